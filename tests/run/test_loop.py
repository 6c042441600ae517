"""The loop of every training command, on a state of one number."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from dmd2_jax.config.refused import Refused
from dmd2_jax.run.checkpoint import CheckpointError, Checkpoints, Keep, Restored
from dmd2_jax.run.exported import exported_step
from dmd2_jax.run.folder import RunFolderError
from dmd2_jax.run.job import Job, Stopper
from dmd2_jax.run.loop import (
    CHECKPOINTS,
    DivergedError,
    check_room,
    examples_counter,
    run_loop,
)
from dmd2_jax.run.metrics import read_metrics
from dmd2_jax.runtime.preemption import Interrupted
from dmd2_jax.runtime.summaries import Average

LOG = {"every": 2, "grid_every": 4, "checkpoint_every": 3}
KEEP = Keep(2)
SHAPES = {"x": jax.ShapeDtypeStruct((), jnp.float32)}


@jax.jit
def step(state: dict, i: jax.Array) -> dict:
    return {"x": state["x"] * 0.5 + i}


class Run:
    """A run of `total` steps in `workdir`, like a training command's."""

    def __init__(self, workdir: Path, log: dict = LOG, keep: Keep = KEEP) -> None:
        self.workdir, self.log, self.keep = workdir, log, keep
        self.drawn: list[int] = []
        self.best: list[tuple[int, float]] = []
        self.exported: list[int] = []
        self.taken: list[int] = []

    def to(
        self,
        total: int,
        at: dict[int, signal.Signals] | None = None,
        skip: int | set[int] = 99,
        score: Callable[[dict], dict] | None = None,
        broken: tuple[int, ...] = (),
        unread: int = 99,
        stopper: Stopper | None = None,
    ) -> float:
        """Run to `total` steps.

        Args:
          total: of the run.
          at: sends a signal in a step.
          skip: updates fail from there on, or in these steps.
          score: of the job.
          broken: the steps whose pictures cannot be drawn.
          unread: the step whose data cannot be read.
          stopper: of the job.
        """

        def refused(i: int) -> int:
            return max(0, i + 1 - skip) if isinstance(skip, int) else int(i in skip)

        def draw(state: dict, done: int, last: bool) -> None:
            self.drawn.append(done)
            if done in broken:
                raise OSError("no such font")

        def make_batch(i: int, seen: int) -> tuple[int, int]:
            if i == unread:
                raise Refused(f"image {i} cannot be read, expected a PNG; replace it.")
            return i, seen

        def advance(state: dict, batch: tuple[int, int], i: int) -> tuple[dict, dict]:
            assert batch == (i, 10 * i)
            self.taken.append(i)
            if at and i in at:
                os.kill(os.getpid(), at[i])
            state = step(state, jnp.float32(i))
            metrics = {"x": state["x"], "skipped_in_a_row": refused(i)}
            metrics["skipped_updates"] = sum(refused(j) > 0 for j in range(i + 1))
            return state, metrics | {"mean_x": Average(state["x"], jnp.int32(1))}

        job = Job(
            workdir=self.workdir,
            unit="step",
            total=total,
            total_key="teacher.steps",
            log=self.log,
            keep=self.keep,
            shapes=SHAPES,
            shardings=jax.sharding.SingleDeviceSharding(jax.devices()[0]),
            make_state=lambda: {"x": jnp.float32(1.0)},
            make_batch=make_batch,
            advance=advance,
            examples_per_step=10,
            images_per_step=1,
            max_skipped_in_a_row=2,
            record={"teacher": "mine"},
            score=score,
            export=lambda state, done: self.exported.append(len(self.taken)),
            draw=draw,
            stopper=stopper,
            export_best=lambda state, done: self.best.append((done, float(state["x"]))),
            shown=("x",),
        )
        state = run_loop(job)
        return float(state["x"])

    def checkpoints(self) -> list[int]:
        with Checkpoints(self.workdir / CHECKPOINTS, read_only=True) as checkpoints:
            return checkpoints.all_steps()

    def rows(self) -> list[dict]:
        return read_metrics(self.workdir / "metrics.jsonl")


def test_run_loop_reports_draws_and_saves_on_time(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.to(9)
    assert run.taken == list(range(9))
    assert [row["step"] for row in run.rows()] == [2, 4, 6, 8, 9]
    assert run.drawn == [4, 8, 9]
    assert run.checkpoints() == [6, 9]


@pytest.mark.parametrize(
    ("grid_every", "export_every", "drawn", "exported"),
    [(100, 2, [5], [2, 4, 5]), (2, 100, [2, 4, 5], [5]), (3, 0, [3, 5], [5])],
)
def test_run_loop_exports_and_draws_each_at_its_own_time(
    grid_every: int, export_every: int, drawn: list[int], exported: list[int], tmp_path: Path
) -> None:
    run = Run(tmp_path, LOG | {"grid_every": grid_every, "export_every": export_every})
    run.to(5)
    assert (run.drawn, run.exported) == (drawn, exported)
    run.to(5)  # of a run that is finished the weights are written once more, and nothing else
    assert (run.drawn, run.exported) == (drawn, [*exported, 5])


def test_run_loop_goes_on_where_a_picture_cannot_be_drawn_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(tmp_path, LOG | {"grid_every": 2})
    run.to(7, broken=(2, 4))
    assert run.drawn == [2, 4, 6, 7]
    assert run.checkpoints() == [6, 7]
    (said,) = [it.getMessage() for it in caplog.records if "cannot be drawn" in it.getMessage()]
    assert "the pictures of step 2 cannot be drawn (OSError: no such font)" in said


def test_run_loop_records_which_step_the_exported_weights_are_of(tmp_path: Path) -> None:
    run = Run(tmp_path, LOG | {"grid_every": 100, "export_every": 2})
    with pytest.raises(Interrupted):
        run.to(9, at={4: signal.SIGINT})
    assert exported_step(tmp_path) == 4
    run.to(9)
    assert exported_step(tmp_path) == 9


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_run_loop_saves_when_asked_to_stop(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    run = Run(tmp_path)
    with pytest.raises(Interrupted, match="after step 5 of 9; saved in .* To resume:\n") as caught:
        run.to(9, at={4: number})
    assert caught.value.exit_code == code
    assert run.checkpoints()[-1] == 5


def test_run_loop_resumed_equals_never_stopped(tmp_path: Path) -> None:
    whole, stopped = Run(tmp_path / "a"), Run(tmp_path / "b")
    for run in (whole, stopped):
        run.workdir.mkdir()
    expected = whole.to(9)
    with pytest.raises(Interrupted):
        stopped.to(9, at={4: signal.SIGINT})
    assert stopped.to(9) == expected
    assert stopped.taken == whole.taken
    # The stopped one has a row more, of step 5, which takes nothing from the row of step 6.
    assert whole.rows() == [row for row in stopped.rows() if row["step"] != 5]


def test_run_loop_saves_what_was_trained_before_data_that_cannot_be_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole, stopped = Run(tmp_path / "a"), Run(tmp_path / "b")
    for run in (whole, stopped):
        run.workdir.mkdir()
    expected = whole.to(9)
    for attempt in range(2):  # the second finds it saved
        with pytest.raises(Refused, match="image 5 cannot be read"):
            stopped.to(9, unread=5)
        assert stopped.checkpoints()[-1] == 5
        assert ("step 5 of 9 is saved in" in caplog.text) == (attempt == 0)
        caplog.clear()
    assert stopped.to(9) == expected
    assert stopped.taken == whole.taken and stopped.rows() == whole.rows()


@pytest.mark.parametrize(("skip", "unread", "saved"), [(4, 5, [3]), (99, 0, []), (99, 3, [3])])
def test_run_loop_saves_nothing_twice_and_nothing_refused_before_unread_data(
    skip: int, unread: int, saved: list[int], tmp_path: Path
) -> None:
    run = Run(tmp_path)
    with pytest.raises(Refused, match="cannot be read"):
        run.to(9, skip=skip, unread=unread)
    assert run.checkpoints() == saved


def test_run_loop_averages_over_the_steps_since_the_last_report(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.to(5)
    x = [1.0]
    for i in range(5):
        x.append(0.5 * x[-1] + i)
    rows = {row["step"]: row["mean_x"] for row in run.rows()}
    assert rows == pytest.approx({2: (x[1] + x[2]) / 2, 4: (x[3] + x[4]) / 2, 5: x[5]})


def test_run_loop_writes_its_speed(tmp_path: Path) -> None:
    Run(tmp_path).to(9)
    rows = read_metrics(tmp_path / "speed.jsonl")
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 9]
    for row in rows:
        assert row["images_per_second"] * row["seconds_per_step"] == pytest.approx(1.0)
        assert 0 <= row["drawing_share"] < 1 and 0 <= row["saving_share"] < 1
    assert rows[1]["saving_share"] > 0  # the checkpoint of step 3


def test_run_loop_at_its_end_has_nothing_to_do(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert run.to(4) == run.to(4)
    assert run.taken == [0, 1, 2, 3]


def test_run_loop_stops_when_updates_in_a_row_are_skipped(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with pytest.raises(DivergedError, match=r"2 updates in a row up to step 7 .*\[3\] in"):
        run.to(9, skip=5)
    # Step 6 was due for a checkpoint, and lies within the row.
    assert run.checkpoints() == [3]
    assert run.taken == list(range(7))


def test_run_loop_shows_skipped_updates_once_there_are_some(
    tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    run = Run(tmp_path)
    run.to(2)
    assert "skipped" not in capfd.readouterr().err
    run.to(5, skip={2})
    assert capfd.readouterr().err.splitlines()[-1].endswith("skipped_updates 1")


def test_run_loop_saves_as_soon_as_a_row_of_skipped_updates_is_over(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.to(5, skip={2})
    assert run.checkpoints() == [4, 5]


def test_run_loop_saves_what_describes_a_checkpoint_with_it(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.to(6)
    with Checkpoints(tmp_path / CHECKPOINTS, read_only=True) as checkpoints:
        state, extra, step = checkpoints.restore(SHAPES, step=3)
    assert (extra["teacher"], extra["examples_seen"], step) == ("mine", 30, 3)
    assert extra["metrics"]["x"] == float(state["x"])
    assert extra["metrics"]["skipped_in_a_row"] == 0


def test_run_loop_scores_reports_and_saves_together(tmp_path: Path) -> None:
    run = Run(tmp_path, LOG | {"evaluate_every": 5}, Keep(1, best=1, metric="half"))
    run.to(8, score=lambda state: {"half": float(state["x"]) / 2})
    halves = {row["step"]: row["half"] for row in run.rows() if "half" in row}
    assert list(halves) == [5, 8]
    assert halves[5] < halves[8]
    # The last is kept, and of those that were scored the lowest; 3 and 6 have no score.
    assert run.checkpoints() == [5, 8]
    with Checkpoints(tmp_path / CHECKPOINTS, read_only=True) as checkpoints:
        assert checkpoints.restore(SHAPES, step=5).extra["metrics"]["half"] == halves[5]


def test_examples_counter_goes_on_from_what_was_saved() -> None:
    fresh = examples_counter(Restored(None, {}, 0), per_step=8)
    assert [fresh(0), fresh(3)] == [0, 24]
    wider = examples_counter(Restored(None, {"examples_seen": 24}, 3), per_step=16)
    assert [wider(3), wider(4)] == [24, 40]


def test_run_loop_passes_on_a_failed_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path)
    run.to(3)

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    import orbax.checkpoint as ocp

    monkeypatch.setattr(ocp.CheckpointManager, "save", refuse)
    with pytest.raises(CheckpointError, match=r"No space left.*\[3\] are untouched: free some"):
        run.to(9)
    monkeypatch.undo()
    assert run.checkpoints() == [3]
    assert run.to(9) == Run.to(Run(tmp_path / "fresh"), 9)


def test_check_room_counts_the_checkpoints_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "dmd2_jax.run.folder.shutil.disk_usage",
        lambda path: type("Usage", (), {"free": 2_500_000}),
    )
    state = {"w": jax.ShapeDtypeStruct((250_000,), jnp.float32)}  # 1 MB
    check_room(tmp_path, state, keep=1)
    with pytest.raises(RunFolderError, match=r"expected at least 4 MB for 4 more checkpoints"):
        check_room(tmp_path, state, keep=3)
    for number in (1, 2):
        (tmp_path / CHECKPOINTS / str(number)).mkdir(parents=True)
    check_room(tmp_path, state, keep=3)
