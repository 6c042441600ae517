"""States that are cut into boxes: saved by one process or two, read by another number of them."""

import gc
import json
import os
import shutil
import socket
import subprocess
import sys
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dmd2_jax.run import digests, manifest, shards
from dmd2_jax.run.boxes import boxes_of, common, slices_of
from dmd2_jax.run.checkpoint import CheckpointError, Checkpoints
from dmd2_jax.runtime.integrity import array_entries, read_manifest, sealed, step_folders
from dmd2_jax.typing import PyTree

SPECS = {"rows": ("all",), "columns": (None, "all"), "whole": (), "half": ("all",), "count": ()}


def values(seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "rows": random.normal(size=(16, 6)).astype(np.float32),
        "columns": random.normal(size=(3, 24)).astype(np.float32),
        "whole": random.normal(size=(5, 7)).astype(np.float32),
        "half": random.normal(size=16).astype(jax.numpy.bfloat16),
        "count": np.int32(seed),
    }


def placed(state: PyTree, devices: int) -> PyTree:
    mesh = Mesh(np.asarray(jax.devices()[:devices]), ("all",))

    def place(name: str, array: np.ndarray) -> jax.Array:
        sharding = NamedSharding(mesh, PartitionSpec(*SPECS[name]))
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return {name: place(name, array) for name, array in state.items()}


def same(got: PyTree, seed: int) -> bool:
    expected = placed(values(seed), len(jax.devices()))
    return all(
        np.array_equal(np.asarray(ours.data), np.asarray(theirs.data))
        for name in expected
        for ours, theirs in zip(
            got[name].addressable_shards, expected[name].addressable_shards, strict=True
        )
    )


def saved(directory: Path, devices: int, steps: tuple[int, ...] = (1, 2)) -> Path:
    with Checkpoints(directory) as checkpoints:
        for step in steps:
            checkpoints.save(step, placed(values(step), devices), {"n": step})
    return directory


def resealed(directory: Path, step: int, arrays: dict[str, Any]) -> Path:
    file = directory / str(step) / "meta" / "metadata"
    file.write_text(json.dumps(sealed(arrays, read_manifest(file.parents[1])["extra"])))
    return directory


def with_another_digest(directory: Path, name: str) -> Path:
    """Have the manifest of step 2 expect other bytes in the last box of an array."""
    arrays = read_manifest(directory / "2")["arrays"]
    found = arrays[f"['{name}']"]["digests"]
    found[list(found)[-1]] = "0" * 32
    return resealed(directory, 2, arrays)


def test_boxes_are_an_array_each_element_once() -> None:
    counts = np.zeros((6, 4), int)
    for box in boxes_of((6, 4), (3, 2)):
        counts[slices_of(box)] += 1
    assert (counts == 1).all()
    assert list(boxes_of((), ())) == [()]
    assert list(boxes_of((0, 2), (0, 2))) == [((0, 0), (0, 2))]


def test_what_boxes_have_in_common() -> None:
    assert common(((0, 4), (2, 6)), ((3, 9), (0, 3))) == ((3, 4), (2, 3))
    assert common(((0, 4),), ((4, 8),)) is None
    assert common((), ()) == ()
    assert slices_of(((3, 4), (2, 3)), within=((3, 9), (0, 3))) == (slice(0, 1), slice(2, 3))


def test_an_array_in_one_piece_is_recorded_as_in_every_release(tmp_path: Path) -> None:
    saved(tmp_path, 1, (1,))
    assert read_manifest(tmp_path / "1")["arrays"] == array_entries(placed(values(1), 1))


def test_a_cut_array_is_recorded_by_its_boxes(tmp_path: Path) -> None:
    arrays = read_manifest(saved(tmp_path, 4, (1,)) / "1")["arrays"]
    columns = arrays["['columns']"]
    assert columns["box"] == [3, 6]
    assert list(columns["digests"]) == ["0,0", "0,6", "0,12", "0,18"]
    second = {"x": np.ascontiguousarray(placed(values(1), 1)["columns"][:, 6:12])}
    assert columns["digests"]["0,6"] == array_entries(second)["['x']"]["digest"]
    assert "digest" in arrays["['whole']"]
    assert not list((tmp_path / "1" / "meta").glob("part_*"))


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_another_number_of_devices_compares_every_box(tmp_path: Path, devices: int) -> None:
    directory = with_another_digest(saved(tmp_path, 4), "columns")
    with Checkpoints(directory, read_only=True) as checkpoints:
        template = placed(values(0), devices)
        with pytest.raises(CheckpointError, match=r"digest mismatch in \[\['columns'\]\]"):
            checkpoints.restore(template, step=2)
        assert checkpoints.restore(template).step == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: entry["digests"].popitem(),
        lambda entry: entry.update(box=[3, 12]),
        lambda entry: entry.update(box=[3, 10**9], digests={"0,0": "0" * 32}),
        lambda entry: entry.update(box=None),
        lambda entry: entry.update(digests={}),
        lambda entry: entry.pop("digests"),
    ],
)
def test_boxes_that_are_not_all_of_an_array_are_a_damage(tmp_path: Path, damage: Any) -> None:
    directory = saved(tmp_path, 4)
    arrays = read_manifest(directory / "2")["arrays"]
    damage(arrays["['columns']"])
    with Checkpoints(resealed(directory, 2, arrays), read_only=True) as checkpoints:
        assert checkpoints.restore(placed(values(0), 4)).step == 1


def test_a_box_that_nobody_saved_is_refused() -> None:
    state = shards.held({"a": placed(values(1), 4)["rows"]})
    part = digests.part_digests(state)
    assert len(digests.joined(state, [part])["['a']"]["digests"]) == 4
    del part["['a']"]["8,0"]
    with pytest.raises(ValueError, match=r"1 processes have saved \[0,0, 12,0, 4,0\] of"):
        digests.joined(state, [part])


def test_a_part_of_the_manifest_that_was_altered_is_a_save_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dmd2_jax.run.manifest.seal", lambda content: content | {"seal": "0"})
    with (
        pytest.raises(CheckpointError, match="parts of the manifest in .* were altered"),
        Checkpoints(tmp_path) as checkpoints,
    ):
        checkpoints.save(1, placed(values(1), 2))
    assert step_folders(tmp_path) == {}


def test_a_part_that_the_first_process_does_not_see_is_a_save_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = manifest._part
    seen: list[Path] = []

    def elsewhere(directory: Any, process: int) -> Any:
        seen.append(place(directory, process))
        return seen[-1] if len(seen) == 1 else directory / "lost"

    monkeypatch.setattr(manifest, "_part", elsewhere)
    with (
        pytest.raises(CheckpointError, match=r"processes \[0\] have written nothing that is seen"),
        Checkpoints(tmp_path) as checkpoints,
    ):
        checkpoints.save(1, placed(values(1), 2))
    assert step_folders(tmp_path) == {}


def test_nothing_is_held_after_a_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copies = []

    def noted(state: PyTree) -> PyTree:
        copy = shards.held(state)
        copies.extend(weakref.ref(array) for array in jax.tree.leaves(copy))
        return copy

    monkeypatch.setattr("dmd2_jax.run.checkpoint.held", noted)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, placed(values(1), 2))
        checkpoints.wait()
        gc.collect()
        assert len(copies) == 5 and not any(copy() for copy in copies)


def test_processes_that_hold_the_same_share_the_writing() -> None:
    load: Counter[int] = Counter()
    owners = [
        shards._owners(dict.fromkeys(boxes_of((6,), (2,)), (0, 1)), 10, load) for _ in range(4)
    ]
    assert load == {0: 60, 1: 60}
    assert [sorted(owner) for owner in owners] == [list(boxes_of((6,), (2,)))] * 4
    # Who alone holds something saves it, and less of the rest.
    assert shards._owners({((0, 2),): (1,)}, 50, load) == {((0, 2),): 1}
    assert set(shards._owners({((0, 2),): (0, 1)}, 50, load).values()) == {0}


PROGRAM = """
import gc, json, sys, weakref
from pathlib import Path
import jax
folder, address, number = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
jax.distributed.initialize(address, 2, number)
import numpy as np
from dmd2_jax.run import checkpoint, digests
from dmd2_jax.run.checkpoint import Checkpoints
from tests.run.test_shards import placed, same, values

read, reads, found = digests._read, [], {}
digests._read = lambda place, name: (reads.append(name), read(place, name))[1]
overwritten = jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)
template = placed(values(0), 4)
held, copies = checkpoint.held, []

def noted(state):
    copy = held(state)
    copies.extend(weakref.ref(array) for array in jax.tree.leaves(copy))
    return copy

checkpoint.held = noted
with Checkpoints(folder / "two") as checkpoints:
    for step in (1, 2):
        state = placed(values(step), 4)
        checkpoints.save(step, state, {"n": step})
        state = jax.block_until_ready(overwritten(state))
    checkpoints.wait()
    gc.collect()
    found["copies"] = [len(copies), sum(copy() is not None for copy in copies)]
    restored = checkpoints.restore(template)
    found["two"] = [restored.step, restored.extra, same(restored.state, 2), sorted(set(reads))]
for name in sys.argv[4:]:
    reads.clear()
    with Checkpoints(folder / name, read_only=True) as checkpoints:
        restored = checkpoints.restore(template)
    found[name] = [
        restored.step, restored.extra, same(restored.state, restored.step), sorted(set(reads))
    ]
print(json.dumps(found), flush=True)
jax.distributed.shutdown()
"""
GIVEN = ("eight", "old", "eight-damaged", "old-damaged", "one-piece-damaged")


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """Checkpoints of one process, read by two, and one of the two; what each of these found."""
    folder = tmp_path_factory.mktemp("together")
    eight = saved(folder / "eight", 8)
    with_another_digest(shutil.copytree(eight, folder / "eight-damaged"), "columns")
    for name in ("old", "old-damaged", "one-piece-damaged"):
        shutil.copytree(eight, folder / name)
        resealed(folder / name, 2, array_entries(placed(values(2), 8)))
    for name, array in (("old-damaged", "rows"), ("one-piece-damaged", "whole")):
        arrays = read_manifest(folder / name / "2")["arrays"]
        arrays[f"['{array}']"]["digest"] = "0" * 32
        resealed(folder / name, 2, arrays)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(folder), address, str(number), *GIVEN],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    ended = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0, 0], ended
    return folder, [json.loads(out.splitlines()[-1]) for out, _ in ended]


def test_two_processes_read_what_they_saved_and_nothing_twice(together: Any) -> None:
    for found in together[1]:
        assert found["two"] == [2, {"n": 2}, True, []]
        assert found["copies"] == [10, 0]


def test_two_processes_write_a_part_each_and_one_manifest(together: Any) -> None:
    step = together[0] / "two" / "2"
    assert not list((step / "meta").glob("part_*"))
    arrays = read_manifest(step)["arrays"]
    assert len(arrays["['rows']"]["digests"]) == len(arrays["['columns']"]["digests"]) == 4
    assert {file.name for file in (step / "state").glob("ocdbt.process_*")} == {
        "ocdbt.process_0",
        "ocdbt.process_1",
    }


def test_one_process_reads_what_two_saved(together: Any) -> None:
    with Checkpoints(together[0] / "two", read_only=True) as checkpoints:
        assert same(checkpoints.restore(placed(values(0), 8)).state, 2)
        whole = checkpoints.restore(values(0)).state
        np.testing.assert_array_equal(whole["rows"], values(2)["rows"])


def test_two_processes_read_what_one_saved_in_finer_boxes(together: Any) -> None:
    for found in together[1]:
        assert found["eight"] == [2, {"n": 2}, True, []]


def test_two_processes_read_a_piece_of_a_box_with_all_of_it(together: Any) -> None:
    for found in together[1]:
        assert found["old"] == [2, {"n": 2}, True, ["columns", "half", "rows"]]


@pytest.mark.parametrize("name", ["eight-damaged", "old-damaged", "one-piece-damaged"])
def test_two_processes_fall_back_together(together: Any, name: str) -> None:
    # What only one of them holds is another's damage too.
    for found in together[1]:
        assert found[name][:3] == [1, {"n": 1}, True]
