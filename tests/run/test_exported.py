"""exported.json says which step a run's weights are of, or is refused."""

import json
from pathlib import Path

import pytest

from dmd2_jax.run.exported import EXPORTED, exported_step, unfinished, write_exported
from dmd2_jax.run.folder import RunFolderError, open_run
from dmd2_jax.runtime.seal import seal


@pytest.mark.parametrize(
    ("exported", "checkpoints", "said"),
    [
        (4, (6,), "of cycle 4 of 9: that run is not finished"),
        (9, (9,), ""),
        (None, (3, 6), "of cycle 6 of 9"),  # an older release's
        (None, (9,), ""),
        (None, (), ""),  # its checkpoints removed: nothing can be told
    ],
)
def test_unfinished_says_how_far_a_runs_weights_are(
    exported: int | None, checkpoints: tuple[int, ...], said: str, tmp_path: Path
) -> None:
    open_run(tmp_path, "distill", {"distill": {"cycles": 9}})
    for step in checkpoints:
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
    if exported is not None:
        write_exported(tmp_path, exported)
    told = unfinished(tmp_path)
    assert said in told
    assert bool(told) == bool(said)


def test_unfinished_of_a_folder_without_a_run_is_nothing(tmp_path: Path) -> None:
    assert unfinished(tmp_path) == ""


@pytest.mark.parametrize("step", [-1, True, 1e30, 2**80, 2.0, "4", None, [4]])
@pytest.mark.parametrize("sealed", [True, False])
def test_a_step_that_is_none_is_refused(step: object, sealed: bool, tmp_path: Path) -> None:
    record = {"step": step}
    (tmp_path / EXPORTED).write_text(json.dumps(seal(record) if sealed else record))
    with pytest.raises(RunFolderError, match=r"is not what the run wrote \(it says step"):
        exported_step(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "4", '"x"', "[" * 100_000, '{"step": 4', "\0"])
def test_a_record_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / EXPORTED).write_text(text)
    with pytest.raises(RunFolderError, match="or remove it"):
        unfinished(tmp_path)


def test_another_step_is_seen_by_its_seal_and_older_releases_had_none(tmp_path: Path) -> None:
    write_exported(tmp_path, 4)
    assert exported_step(tmp_path) == 4
    record = json.loads((tmp_path / EXPORTED).read_text())
    (tmp_path / EXPORTED).write_text(json.dumps(record | {"step": 9}))
    with pytest.raises(RunFolderError, match="does not match its own seal"):
        exported_step(tmp_path)
    (tmp_path / EXPORTED).write_text(json.dumps({"step": 9}))
    assert exported_step(tmp_path) == 9
