"""Checkpoints: what comes back is what was saved, or an error says why not."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dmd2_jax.run.checkpoint import CheckpointError, Checkpoints, newest_extra, state_bytes
from dmd2_jax.runtime.integrity import Misplaced, read_manifest, sealed, step_folders
from dmd2_jax.runtime.seal import Unreachable
from dmd2_jax.typing import PyTree
from tests.tiny import contents


class State(NamedTuple):
    """A small state with the kinds of leaf that training states have."""

    step: jax.Array
    params: PyTree
    head: PyTree


def make_state(seed: int, size: int = 64) -> State:
    key = jax.random.key(seed)
    params = {"w": jax.random.normal(key, (size, 8)), "b": jnp.arange(8, dtype=jnp.bfloat16)}
    return State(jnp.int32(seed), (params, [jnp.float32(seed)]), None)


def assert_equal(got: PyTree, expected: PyTree) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def saved(directory: Path, steps: tuple[int, ...], keep: int = 5) -> Path:
    with Checkpoints(directory, keep=keep) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_state(step), {"step": step})
    return directory


def data_files(checkpoint: Path) -> list[Path]:
    """The files that hold the arrays' bytes (Orbax may keep a second copy of some)."""
    files = [f for f in (checkpoint / "state").rglob("*") if f.parent.name == "d" and f.is_file()]
    assert files
    return files


def test_restore_returns_what_was_saved(tmp_path: Path) -> None:
    saved(tmp_path / "c", (1, 2))
    with Checkpoints(tmp_path / "c") as checkpoints:
        state, extra, step = checkpoints.restore(jax.eval_shape(lambda: make_state(0)))
    assert step == 2
    assert extra == {"step": 2}
    assert_equal(state, make_state(2))


def test_restore_reads_the_step_asked_for(tmp_path: Path) -> None:
    saved(tmp_path / "c", (1, 2))
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert_equal(checkpoints.restore(make_state(0), step=1).state, make_state(1))


def test_save_copies_before_the_state_is_donated(tmp_path: Path) -> None:
    state = make_state(1, size=200_000)
    expected = np.array(state.params[0]["w"], copy=True)
    overwrite = jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, state)
        for _ in range(3):
            state = overwrite(state)
        restored = checkpoints.restore(state).state
    np.testing.assert_array_equal(np.asarray(restored.params[0]["w"]), expected)


def test_save_takes_what_is_said_beside_the_state_as_it_is_now(tmp_path: Path) -> None:
    extra = {"window": [1]}
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(1, make_state(1), extra)
        extra["window"].append(2)
        assert checkpoints.restore(make_state(0)).extra == {"window": [1]}


def test_digests_that_cannot_be_made_are_a_save_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(tree: object) -> None:
        raise MemoryError("no room for a digest")

    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(1, make_state(1))
        checkpoints.wait()
        monkeypatch.setattr("dmd2_jax.run.checkpoint.part_digests", out_of_memory)
        checkpoints.save(2, make_state(2))
        with pytest.raises(CheckpointError, match="no room for a digest"):
            checkpoints.wait()
        assert list(step_folders(tmp_path / "checkpoints")) == [1]


def test_save_keeps_the_latest(tmp_path: Path) -> None:
    saved(tmp_path / "c", (1, 2, 3, 4), keep=2)
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.all_steps() == [3, 4]
        assert checkpoints.latest_step() == 4


def test_save_removes_old_steps_by_a_rename_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as killed:  # before anything of the renamed step is removed
        killed.setattr("dmd2_jax.run.checkpoint.shutil.rmtree", lambda *a, **k: None)
        saved(tmp_path / "c", (1, 2), keep=1)
    assert sorted(entry.name for entry in (tmp_path / "c").iterdir()) == ["2", "discarded"]
    assert (tmp_path / "c" / "discarded" / "1" / "meta").is_dir()
    Checkpoints(tmp_path / "c").close()
    assert [entry.name for entry in (tmp_path / "c").iterdir()] == ["2"]


def test_save_leaves_an_existing_step_alone(tmp_path: Path) -> None:
    saved(tmp_path / "c", (1,))
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, make_state(9))
        assert_equal(checkpoints.restore(make_state(0)).state, make_state(1))


def test_restore_puts_leaves_on_the_template_sharding(tmp_path: Path) -> None:
    saved(tmp_path / "c", (1,))
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    template = jax.tree.map(lambda x: jax.device_put(x, sharding), make_state(0))
    with Checkpoints(tmp_path / "c") as checkpoints:
        state = checkpoints.restore(template).state
    assert {leaf.sharding for leaf in jax.tree.leaves(state)} == {sharding}


def test_restore_moves_to_another_number_of_devices(tmp_path: Path) -> None:
    def split(devices: int, leaf: jax.Array) -> NamedSharding:
        mesh = Mesh(np.asarray(jax.devices()[:devices]), ("data",), axis_types=(AxisType.Auto,))
        return NamedSharding(mesh, PartitionSpec("data") if leaf.ndim else PartitionSpec())

    state = make_state(1)
    for step, devices in enumerate((1, 4, 2, 8)):
        state = jax.tree.map(lambda x, n=devices: jax.device_put(x, split(n, x)), state)
        with Checkpoints(tmp_path / "c") as checkpoints:
            if step:
                state = checkpoints.restore(state, step=step - 1).state
            assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(state)} == {devices}
            checkpoints.save(step, state)
    assert_equal(state, make_state(1))


@pytest.mark.parametrize("damage", ["flipped bit", "truncated", "no manifest", "empty folder"])
def test_restore_falls_back_to_the_newest_good_step(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    directory = saved(tmp_path / "c", (1, 2, 3))
    newest = directory / "3"
    if damage == "flipped bit":
        for file in data_files(newest):
            content = bytearray(file.read_bytes())
            content[len(content) // 2] ^= 1
            file.write_bytes(content)
    elif damage == "truncated":
        for file in data_files(newest):
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif damage == "no manifest":
        for file in (newest / "meta").rglob("*"):
            file.unlink()
    else:
        newest.rename(tmp_path / "elsewhere")
        newest.mkdir()
    with Checkpoints(directory) as checkpoints, caplog.at_level("WARNING"):
        state, _, step = checkpoints.restore(make_state(0))
        assert step == 2
        assert_equal(state, make_state(2))
        # The repeated step can be saved again, and is the one that counts.
        checkpoints.save(3, make_state(3))
        assert_equal(checkpoints.restore(make_state(0)).state, make_state(3))
    assert "checkpoint 3" in caplog.text
    assert "falling back to step 2" in caplog.text
    assert (directory / "damaged-3").is_dir()


def test_restore_names_the_altered_array(tmp_path: Path) -> None:
    directory = saved(tmp_path / "c", (1,))
    manifest = read_manifest(directory / "1")
    (name,) = (name for name in manifest["arrays"] if name.endswith("['w']"))
    manifest["arrays"][name]["digest"] = "0" * 32
    resealed = sealed(manifest["arrays"], manifest["extra"])
    (directory / "1" / "meta" / "metadata").write_text(json.dumps(resealed))
    with (
        Checkpoints(directory) as checkpoints,
        pytest.raises(CheckpointError, match=r"digest mismatch in \[.*\['w'\]\]"),
    ):
        checkpoints.restore(make_state(0))


def test_restore_read_only_moves_nothing(tmp_path: Path) -> None:
    directory = saved(tmp_path / "c", (1, 2))
    for file in data_files(directory / "2"):
        file.write_bytes(b"")
    with Checkpoints(directory, read_only=True) as checkpoints:
        assert checkpoints.restore(make_state(0)).step == 1
    assert (directory / "2").is_dir()


def test_restore_refuses_another_structure(tmp_path: Path) -> None:
    directory = saved(tmp_path / "c", (1,))
    other = make_state(0, size=32)._replace(head={"extra": jnp.zeros(3)})
    with (
        Checkpoints(directory) as checkpoints,
        pytest.raises(ValueError, match=r"1 arrays missing .*head.* 1 differing .*\[64, 8\]"),
    ):
        checkpoints.restore(other)
    assert (directory / "1").is_dir()


def test_restore_without_checkpoints_says_so(tmp_path: Path) -> None:
    with (
        Checkpoints(tmp_path / "c") as checkpoints,
        pytest.raises(CheckpointError, match="no checkpoint in .*start a run"),
    ):
        checkpoints.restore(make_state(0))


def test_save_on_a_full_disk_leaves_earlier_checkpoints(tmp_path: Path) -> None:
    directory = saved(tmp_path / "c", (1,), keep=1)
    code = f"""
        import resource, signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        import numpy as np
        from dmd2_jax.run.checkpoint import CheckpointError, Checkpoints
        checkpoints = Checkpoints({str(directory)!r}, keep=1)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            checkpoints.save(2, {{"w": np.random.RandomState(0).rand(100_000)}})
            checkpoints.wait()
        except CheckpointError as error:
            print("REFUSED", error)
    """
    output = run_python(code)
    assert "REFUSED saving a checkpoint" in output
    assert "[1] are untouched" in output
    with Checkpoints(directory) as checkpoints:
        state, _, step = checkpoints.restore(make_state(0))
        assert step == 1
        assert_equal(state, make_state(1))


def test_save_on_a_full_file_system_leaves_earlier_checkpoints(tmp_path: Path) -> None:
    code = f"""
        import numpy as np
        from dmd2_jax.run.checkpoint import CheckpointError, Checkpoints
        small, large = {{"w": np.ones(1000)}}, {{"w": np.random.RandomState(0).rand(500_000)}}
        try:
            with Checkpoints({str(tmp_path / "c")!r}, keep=1) as checkpoints:
                checkpoints.save(1, small)
                checkpoints.save(2, large)
        except CheckpointError as error:
            print("REFUSED", error)
        with Checkpoints({str(tmp_path / "c")!r}, keep=1) as checkpoints:
            print("RESTORED", checkpoints.restore(small).step, checkpoints.all_steps())
            checkpoints.save(3, small)
        print("SAVED", checkpoints.all_steps())
    """
    # A file system of 2 MB that only this process sees, where that is permitted.
    mount = f'mount -t tmpfs -o size=2m tmpfs {tmp_path} && exec "$@"'
    prefix = ["unshare", "--mount", "sh", "-c", mount, "sh"]
    if shutil.which("unshare") is None or subprocess.run([*prefix, "true"], check=False).returncode:
        pytest.skip("mounting a small file system is not permitted here")
    output = run_python(code, prefix)
    assert "REFUSED saving a checkpoint" in output
    assert "[1] are untouched" in output
    assert "RESTORED 1 [1]" in output
    assert "SAVED [3]" in output


def test_kill_during_a_save_leaves_earlier_checkpoints(tmp_path: Path) -> None:
    directory = saved(tmp_path / "c", (1,))
    code = f"""
        import numpy as np
        from dmd2_jax.run.checkpoint import Checkpoints
        checkpoints = Checkpoints({str(directory)!r})
        big = np.random.RandomState(0).rand(20_000_000)
        print("SAVING", flush=True)
        for step in range(2, 100):
            checkpoints.save(step, {{"w": big}})
            checkpoints.wait()
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "SAVING\n"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not list(directory.glob("2*tmp*")):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with Checkpoints(directory) as checkpoints:
        assert checkpoints.all_steps() == [1]
        assert_equal(checkpoints.restore(make_state(0)).state, make_state(1))
    assert sorted(entry.name for entry in directory.iterdir() if entry.is_dir()) == ["1"]


def test_state_bytes_counts_every_leaf() -> None:
    tree = {"a": jnp.zeros((3, 5), jnp.float32), "b": jax.ShapeDtypeStruct((2,), jnp.bfloat16)}
    assert state_bytes(tree) == 3 * 5 * 4 + 2 * 2


def test_keep_below_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep=0 checkpoints, expected at least 1"):
        Checkpoints(tmp_path, keep=0)


def run_python(code: str, prefix: Sequence[str] = ()) -> str:
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [*prefix, sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr  # what fails is raised, and said once
    return done.stdout


def two_of(directory: Path, run: str | None) -> Path:
    with Checkpoints(directory, run=run) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, make_state(step))
    return directory


def test_a_checkpoint_that_was_renamed_swapped_or_is_of_another_run_is_refused(
    tmp_path: Path,
) -> None:
    directory = two_of(tmp_path / "c", "ours")

    def refusal() -> str:
        there = contents(directory)
        with (
            Checkpoints(directory, run="ours") as checkpoints,
            pytest.raises(Misplaced) as error,
        ):
            checkpoints.restore(make_state(0))
        with pytest.raises(Misplaced):
            newest_extra(directory, make_state(0), "ours")
        assert contents(directory) == there
        return str(error.value)

    (directory / "2").rename(directory / "7")
    assert "/7 is the one of step 2" in refusal()
    (directory / "1").rename(directory / "2")
    (directory / "7").rename(directory / "1")
    assert "/2 is the one of step 1" in refusal()
    shutil.rmtree(directory / "2")
    shutil.copytree(two_of(tmp_path / "other", "theirs") / "2", directory / "2")
    assert "/2 is of another run (theirs)" in refusal()


def test_checkpoints_of_older_releases_say_no_step_and_are_read(tmp_path: Path) -> None:
    directory = two_of(tmp_path / "c", None)
    file = directory / "2" / "meta" / "metadata"
    manifest = json.loads(file.read_text())
    file.write_text(json.dumps(sealed(manifest["arrays"], manifest["extra"])))
    with Checkpoints(directory, run="ours") as checkpoints:
        assert checkpoints.restore(make_state(0)).step == 2


def test_a_checkpoint_that_the_disk_does_not_hand_over_stays_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = two_of(tmp_path / "c", "ours")
    opened = Path.open

    def stale(self: Path, *how: Any, **more: Any) -> IO[Any]:
        if self.name == "metadata" and "/2/" in str(self):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(self))
        return opened(self, *how, **more)

    monkeypatch.setattr(Path, "open", stale)
    with Checkpoints(directory, run="ours") as checkpoints:
        with pytest.raises(Unreachable, match=r"/2/meta/metadata cannot be read at the moment"):
            checkpoints.restore(make_state(0))
        assert checkpoints.all_steps() == [1, 2]
    assert not list(directory.glob("damaged*"))
