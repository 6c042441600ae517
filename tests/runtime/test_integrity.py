"""Digests, seals, links, and parts of a checkpoint."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from dmd2_jax.run.checkpoint import CheckpointError, Checkpoints, newest_extra
from dmd2_jax.runtime.integrity import (
    array_entries,
    mismatches,
    params_digest,
    read_manifest,
    refuse_links,
    sealed,
    step_folders,
)
from dmd2_jax.runtime.seal import digest, digests
from dmd2_jax.typing import PyTree


class Player(NamedTuple):
    params: PyTree
    opt_state: PyTree


class State(NamedTuple):
    step: jax.Array
    generator: Player
    head: PyTree
    ema: tuple[PyTree, ...]


def make_state(seed: int) -> State:
    def weights(i: int) -> PyTree:
        return {"params": {"w": jax.random.normal(jax.random.key(100 * seed + i), (4, 3))}}

    player = Player(weights(0), (jnp.zeros(3), {"m": jnp.ones(2)}))
    return State(jnp.int32(seed), player, None, (weights(1), weights(2)))


def two_steps(directory: Path) -> Path:
    with Checkpoints(directory) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, make_state(step), {"examples_seen": step})
    return directory


def test_params_digest_changes_with_value_name_shape_and_type() -> None:
    params = {"a": np.arange(6, dtype=np.float32)}
    others = [
        {"a": np.arange(6, dtype=np.float32) + 1e-6},
        {"b": np.arange(6, dtype=np.float32)},
        {"a": np.arange(6, dtype=np.float32).reshape(2, 3)},
        {"a": np.arange(6, dtype=np.float32).view(np.int32)},
    ]
    assert len({params_digest(tree) for tree in (params, *others)}) == 5


def test_params_digest_does_not_depend_on_who_holds_the_array() -> None:
    array = np.arange(6, dtype=np.float32)
    assert params_digest({"a": array}) == params_digest({"a": jnp.asarray(array)})


def test_array_entries_are_those_of_every_release() -> None:
    tree = {
        "half": np.ones(5, ml_dtypes.bfloat16),
        "number": np.float32(3.0),
        "nothing": np.zeros((0, 2), np.float16),
        "turned": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "jax": jnp.arange(3),
        "shape": jax.ShapeDtypeStruct((2,), np.float32),
    }
    # Recorded when each array was copied and digested after the other.
    assert [(name, it.get("digest")) for name, it in array_entries(tree).items()] == [
        ("['half']", "cc3363c955c886be43deb1417428a188"),
        ("['jax']", "953221e3def79ccd1f76477e81644e13"),
        ("['nothing']", "cae66941d9efbd404e4d88758ea67670"),
        ("['number']", "ff5e3c70ac29d05d816ddb3beadf7729"),
        ("['shape']", None),
        ("['turned']", "3d91e4af8cb16544b719e24d6c5f0bd8"),
    ]


def test_digests_of_many_are_in_order_and_few_are_held() -> None:
    taken, contents = [], [bytes([i]) * 5000 for i in range(100)]

    def one_by_one() -> Iterator[bytes]:
        for content in contents:
            taken.append(content)
            yield content

    found = digests(one_by_one())
    first = next(found)
    assert len(taken) < 20
    assert [first, *found] == [digest(content) for content in contents]


def test_sealed_is_what_read_manifest_accepts(tmp_path: Path) -> None:
    extra = {"times": (80.0, 1.5), "none": None, "tiny": 1e-45}
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "metadata").write_text(json.dumps(sealed({}, extra)))
    assert read_manifest(tmp_path)["extra"] == extra | {"times": [80.0, 1.5]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"arrays": {}, "extra": {}}', "cannot be read"),
        ("[]", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ('{"arrays": {}, "extra": {}, "seal": "0"}', "does not match its own digest"),
    ],
)
def test_read_manifest_refuses_what_was_not_sealed(
    tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "metadata").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_manifest(tmp_path)


def test_mismatches_is_empty_for_the_same_structure() -> None:
    recorded = {"['a']": {"shape": [2], "dtype": "float32", "digest": "x"}}
    assert mismatches(recorded, {"a": jax.ShapeDtypeStruct((2,), jnp.float32)}) == ""
    assert "1 differing" in mismatches(recorded, {"a": jax.ShapeDtypeStruct((3,), jnp.float32)})


def test_step_folders_are_the_numbered_ones_newest_first(tmp_path: Path) -> None:
    for name in ("9", "10", "damaged-11", "12.orbax-checkpoint-tmp-3", "x"):
        (tmp_path / name).mkdir()
    (tmp_path / "13").write_text("a file")
    assert list(step_folders(tmp_path)) == [10, 9]
    assert step_folders(tmp_path / "nowhere") == {}


@pytest.mark.parametrize("link", ["a step", "a file in a step", "a temporary folder", "the folder"])
def test_checkpoints_refuse_links_and_touch_nothing_outside(tmp_path: Path, link: str) -> None:
    directory, outside = two_steps(tmp_path / "c"), tmp_path / "outside"
    (outside / "state").mkdir(parents=True)
    (outside / "precious").write_text("keep me")
    if link == "a step":
        (directory / "3").symlink_to(outside)
    elif link == "a file in a step":
        (directory / "2" / "meta" / "metadata").unlink()
        (directory / "2" / "meta" / "metadata").symlink_to(outside / "precious")
    elif link == "a temporary folder":
        (directory / "3.orbax-checkpoint-tmp-9").symlink_to(outside)
    else:
        directory.rename(tmp_path / "moved")
        directory.symlink_to(tmp_path / "moved")
    before = sorted(tmp_path.rglob("*"))
    for read_only in (True, False):
        with pytest.raises(ValueError, match="is a symbolic link to .* remove the link"):
            Checkpoints(directory, read_only=read_only)
    with pytest.raises(ValueError, match="is a symbolic link to"):
        newest_extra(directory, make_state(0))
    assert sorted(tmp_path.rglob("*")) == before
    assert (outside / "precious").read_text() == "keep me"


def test_checkpoints_refuse_links_made_while_open(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    with Checkpoints(two_steps(tmp_path / "c")) as checkpoints:
        (tmp_path / "c" / "3").symlink_to(tmp_path / "outside")
        with pytest.raises(ValueError, match="is a symbolic link"):
            checkpoints.save(3, make_state(3))
        with pytest.raises(ValueError, match="is a symbolic link"):
            checkpoints.restore(make_state(0))
    assert list((tmp_path / "outside").iterdir()) == []


def test_refuse_links_lets_the_folders_above_be_links(tmp_path: Path) -> None:
    two_steps(tmp_path / "disk" / "c")
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    refuse_links(tmp_path / "run" / "c")


@pytest.mark.parametrize(
    ("part", "index"), [("generator.params", None), ("ema.0", 0), ("ema.1", 1)]
)
def test_restore_part_reads_one_branch(tmp_path: Path, part: str, index: int | None) -> None:
    state = make_state(2)
    expected = state.generator.params if index is None else state.ema[index]
    shapes = jax.eval_shape(lambda: expected)
    with Checkpoints(two_steps(tmp_path / "c"), read_only=True) as checkpoints:
        branch, extra, step = checkpoints.restore_part(part, shapes)
    assert (step, extra) == (2, {"examples_seen": 2})
    np.testing.assert_array_equal(branch["params"]["w"], np.asarray(expected["params"]["w"]))


def test_restore_part_reads_no_other_arrays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import orbax.checkpoint as ocp

    read = []
    original = ocp.PyTreeCheckpointHandler.restore

    def spy(self: object, *arguments: object, **options: object) -> PyTree:
        tree = original(self, *arguments, **options)
        read.append(sum(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(tree)))
        return tree

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "restore", spy)
    shapes = jax.eval_shape(lambda: make_state(0).ema[1])
    with Checkpoints(two_steps(tmp_path / "c"), read_only=True) as checkpoints:
        checkpoints.restore_part("ema.1", shapes)
    assert read == [1]


def test_restore_part_puts_leaves_on_the_template_sharding(tmp_path: Path) -> None:
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[-1])
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), make_state(0).ema[0]
    )
    with Checkpoints(two_steps(tmp_path / "c"), read_only=True) as checkpoints:
        branch = checkpoints.restore_part("ema.0", shapes).state
    assert branch["params"]["w"].sharding == sharding


def test_restore_part_falls_back_and_notices_damage(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = two_steps(tmp_path / "c")
    manifest = read_manifest(directory / "2")
    entry = manifest["arrays"][".generator.params['params']['w']"]
    entry["digest"] = "0" * 32
    resealed = sealed(manifest["arrays"], manifest["extra"])
    (directory / "2" / "meta" / "metadata").write_text(json.dumps(resealed))
    shapes = jax.eval_shape(lambda: make_state(0).generator.params)
    with Checkpoints(directory, read_only=True) as checkpoints:
        assert checkpoints.restore_part("generator.params", shapes).step == 1
        assert "digest mismatch in [['params']['w']]" in caplog.text
        with pytest.raises(CheckpointError, match="no good checkpoint"):
            checkpoints.restore_part("generator.params", shapes, step=2)


def test_restore_part_names_a_part_that_is_not_there(tmp_path: Path) -> None:
    shapes = jax.eval_shape(lambda: make_state(0).ema[0])
    with (
        Checkpoints(two_steps(tmp_path / "c"), read_only=True) as checkpoints,
        pytest.raises(ValueError, match="has no part 'ema.2', expected"),
    ):
        checkpoints.restore_part("ema.2", shapes)


def test_newest_extra_passes_over_damage_and_refuses_another_structure(tmp_path: Path) -> None:
    directory = two_steps(tmp_path / "c")
    (directory / "2" / "meta" / "metadata").write_text("{")
    (directory / "3").mkdir()
    assert newest_extra(directory, make_state(0)) == (1, {"examples_seen": 1})
    with pytest.raises(ValueError, match="another structure"):
        newest_extra(directory, make_state(0)._replace(head=jnp.zeros(3)))
    assert newest_extra(tmp_path / "nowhere", make_state(0)) is None


def test_opening_clears_the_temporary_folders_of_a_killed_save(tmp_path: Path) -> None:
    directory = two_steps(tmp_path / "c")
    left = directory / "3.orbax-checkpoint-tmp-7"
    (left / "state").mkdir(parents=True)
    (left / "state" / "half").write_bytes(b"half of an array")
    with Checkpoints(directory, read_only=True) as checkpoints:
        assert checkpoints.latest_step() == 2
    assert left.is_dir()
    with Checkpoints(directory) as checkpoints:
        assert checkpoints.all_steps() == [1, 2]
        checkpoints.save(3, make_state(3))  # which waits for the clearing, done beside the rest
    assert not left.exists()


def test_latest_step_counts_an_empty_folder_and_restore_passes_over_it(tmp_path: Path) -> None:
    directory = two_steps(tmp_path / "c")
    (directory / "3").mkdir()
    with Checkpoints(directory) as checkpoints:
        assert checkpoints.latest_step() == 3
        assert checkpoints.restore(make_state(0)).step == 2
        assert checkpoints.latest_step() == 2
