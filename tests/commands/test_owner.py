"""Commands leave a folder alone that another process writes to, and read one all the same."""

from pathlib import Path

import pytest

from dmd2_jax.runtime.owner import owned
from tests.tiny import RECIPE, contents, distill_words, dmd2, refused, student_run, teacher_run

TRAIN = ("train-teacher", f"--config={RECIPE}")
WRITERS = {
    "train-teacher": lambda out: [*TRAIN, f"--workdir={out}"],
    "distill": distill_words,
    "make-pairs": lambda out: [
        "make-pairs",
        f"--config={RECIPE}",
        f"--config.teacher.weights={teacher_run()}",
        f"--out={out}",
    ],
    "ablate": lambda out: ["ablate", "--config=tests/tiny_ablation.py", f"--workdir={out}"],
    "sample": lambda out: ["sample", f"--workdir={student_run()}", "--num=2", f"--out={out}"],
}


@pytest.mark.parametrize("command", WRITERS)
def test_folder_that_another_process_writes_to_is_refused(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = WRITERS[command](tmp_path / "out")
    with owned(tmp_path / "out"):
        before = contents(tmp_path)
        for more in ([], ["--dry_run"] if command != "sample" else []):
            message = refused(capsys, *words, *more)
            assert "out is being written to by process" in message
        assert contents(tmp_path) == before


def test_run_that_another_process_writes_to_is_read(tmp_path: Path) -> None:
    with owned(student_run()):
        words = (f"--workdir={student_run()}", "--num=2", f"--out={tmp_path / 'grid.png'}")
        assert dmd2("sample", *words) == 0
    assert (tmp_path / "grid.png").is_file()


def test_pairs_that_are_finished_serve_runs_at_once(tmp_path: Path) -> None:
    words = WRITERS["make-pairs"](tmp_path / "pairs")
    assert dmd2(*words) == 0
    with owned(tmp_path / "pairs"):
        assert dmd2(*words) == 0  # nothing is left to be written
