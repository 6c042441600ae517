"""metrics.jsonl and the progress display."""

import io
import json
import logging
import os
import re
import types
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from dmd2_jax.run import metrics
from dmd2_jax.run.metrics import MetricsWriter, Progress, read_metrics
from dmd2_jax.runtime.summaries import Average, Histogram


def test_write_flushes_each_line(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"loss": jnp.float32(0.5), "turns": jnp.int32(7)})
        text = (tmp_path / "metrics.jsonl").read_text()
    assert text == '{"step": 1, "loss": 0.5, "turns": 7}\n'


def test_write_stores_the_mean_of_an_array(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"critic_loss": np.array([1.0, 2.0, 6.0], np.float32)})
    assert read_metrics(writer.path) == [{"step": 1, "critic_loss": 3.0}]


def test_write_stores_an_average_as_its_quotients(tmp_path: Path) -> None:
    metrics = {
        "share": Average(np.float32(3.0), np.int32(12)),
        "by_bin": Average(np.array([3.0, 0.0, np.nan], np.float32), np.array([2, 0, 1])),
    }
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, metrics)
    assert read_metrics(writer.path) == [{"step": 1, "share": 0.25, "by_bin": [1.5, None, None]}]


def test_write_stores_a_histogram_as_its_counts(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"histogram": Histogram(np.array([0, 4, 1]))})
    assert '"histogram": [0, 4, 1]}' in writer.path.read_text()


def test_write_stores_what_is_not_finite_as_null(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"nan": np.nan, "inf": np.float32(np.inf), "array": np.array([1, np.nan])})
    row = json.loads(writer.path.read_text(), parse_constant=pytest.fail)
    assert row == {"step": 1, "nan": None, "inf": None, "array": None}


def test_open_drops_rows_beyond_the_resumed_step(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path) as writer:
        for step in (2, 4, 6):
            writer.write(step, {"loss": step / 2})
    with writer.path.open("a") as file:
        file.write('{"step": 8, "lo')  # cut short by a kill
    with MetricsWriter(tmp_path, resumed_step=4) as writer:
        writer.write(6, {"loss": 9.0})
    assert [(row["step"], row["loss"]) for row in read_metrics(writer.path)] == [
        (2, 1.0),
        (4, 2.0),
        (6, 9.0),
    ]


@pytest.mark.parametrize(
    ("damage", "lost"),
    [
        (lambda text: b"", 3),
        (lambda text: text[: len(text) // 2], 2),
        (lambda text: text[:-30] + bytes(30), 2),
        (lambda text: text.replace(b"4", b"\xff", 1), 1),
        (lambda text: text.replace(b'{"step": 4', b"[" * 100_000, 1), 1),
        (lambda text: text.replace(b'"step": 2', b'"step": "2"', 1), 1),
    ],
)
def test_open_says_how_many_rows_are_lost(
    damage: Callable[[bytes], bytes], lost: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with MetricsWriter(tmp_path) as writer:
        for step in (2, 4, 6):
            writer.write(step, {"loss": 1.0})
        assert writer.rows == 3
    writer.path.write_bytes(damage(writer.path.read_bytes()))
    with MetricsWriter(tmp_path, resumed_step=6, rows=3) as writer:
        writer.write(8, {"loss": 9.0})
    assert f"{lost} rows are lost, of the 3 up to step 6" in caplog.text
    assert len(read_metrics(writer.path)) == 4 - lost


@pytest.mark.parametrize(
    ("harm", "is_said"),
    [
        (lambda lines: lines, False),
        (lambda lines: lines * 2, False),  # put right
        (lambda lines: lines[::-1], False),
        (lambda lines: [lines[0], lines[1].replace("1.0", "7.0"), lines[2]], True),
        (lambda lines: [lines[0].replace("2", "1"), *lines[1:]], True),
        (lambda lines: [*lines, '{"step": 5, "loss": 1.0}\n'], True),
    ],
)
def test_open_says_when_rows_are_not_those_that_were_written(
    harm: Callable[[list[str]], list[str]],
    is_said: bool,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with MetricsWriter(tmp_path) as writer:
        for step in (2, 4, 6):
            writer.write(step, {"loss": 1.0})
    before = writer.path.read_text()
    writer.path.write_text("".join(harm(before.splitlines(keepends=True))))
    MetricsWriter(tmp_path, resumed_step=6, rows=3, rows_digest=writer.rows_digest).close()
    assert ("are not those that the run wrote" in caplog.text) == is_said
    assert is_said or writer.path.read_text() == before


def test_sync_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    with MetricsWriter(tmp_path) as writer:
        writer.write(2, {"loss": 1.0})
        monkeypatch.setattr("os.fsync", synced.append)
        writer.sync()
    assert len(synced) == 1


@pytest.mark.parametrize("line", [b"nonsense", b"\xff", bytes(9), b"[" * 100_000])
def test_read_names_a_damaged_line(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 2}\n')
    with pytest.raises(ValueError, match="line 2 of .* is not JSON"):
        read_metrics(path)


def test_progress_without_a_terminal_writes_plain_lines() -> None:
    stream = io.StringIO()
    with Progress(
        total=4, initial=1, description="cycle", stream=stream, seconds_between_lines=0.0
    ) as progress:
        progress.update(2, {"loss": np.array([1.0, 3.0])})
        progress.update(4)
    first, last = stream.getvalue().splitlines()
    assert first == "cycle 2/4, loss 2"  # the first step is compilation: no speed yet
    assert last.startswith("cycle 4/4, ETA 00:00, ")
    assert last.endswith(" images/s, loss 2")
    assert "\r" not in stream.getvalue()


def test_progress_of_nothing_known_is_the_count_alone() -> None:
    stream = io.StringIO()
    with Progress(
        total=4, description="cycle", stream=stream, seconds_between_lines=0.0
    ) as progress:
        progress.update(1)
    assert stream.getvalue() == "cycle 1/4\n"


def test_progress_without_a_terminal_is_quiet_between_lines() -> None:
    stream = io.StringIO()
    progress = Progress(total=100, stream=stream, seconds_between_lines=3600.0)
    for done in range(1, 100):
        progress.update(done)
    assert stream.getvalue() == ""


def test_progress_without_a_terminal_says_that_it_compiles_and_how_long_that_took() -> None:
    stream = io.StringIO()
    with Progress(total=4, initial=1, description="cycle", stream=stream) as progress:
        progress.compiling()
        progress.compiled()
        progress.update(2)
    first, second = stream.getvalue().splitlines()
    assert first == "cycle 2 of 4: compiling ..."
    assert re.fullmatch(r"cycle 2 of 4: 0\.\d s, compilation included\.", second)


class Terminal(io.StringIO):
    """What is drawn on a terminal."""

    def isatty(self) -> bool:
        return True


def test_progress_on_a_terminal_shows_a_bar() -> None:
    stream = Terminal()
    with Progress(total=2, description="step", images_per_step=8, stream=stream) as progress:
        progress.update(1, {"loss": 0.25})
        progress.update(2, {"loss": 0.125})
    assert "step: 100%" in stream.getvalue()
    assert "images/s" in stream.getvalue()
    assert "loss 0.125" in stream.getvalue()


def test_progress_on_a_terminal_counts_the_seconds_of_the_compilation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, stream = [10.0], Terminal()
    monkeypatch.setattr(metrics, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    with Progress(total=3, description="cycle", stream=stream) as progress:
        progress.compiling()
        now[0] += 75.0
    assert "compiling: 01:15" in stream.getvalue() and "0/3" in stream.getvalue()
    with Progress(total=4, description="cycle", stream=stream) as progress:
        for done in (1, 2):
            now[0] += 600.0
            progress.update(done)
        now[0] += 60.0  # the time that is left goes by while a step is taken
    assert "2/4, ETA 19:00" in stream.getvalue()


def test_progress_within_another_is_shown_below_it_and_what_is_printed_above(
    capsys: pytest.CaptureFixture[str],
) -> None:
    stream = Terminal()
    handler = logging.StreamHandler(stream)
    logging.getLogger().addHandler(handler)
    try:
        with Progress(total=3, description="step", stream=stream) as outer:
            outer.update(1)
            logging.getLogger().warning("said [bold]")
            print("into a file")
            with Progress(total=5, description="images", stream=stream) as inner:
                inner.update(5)
            outer.update(2)
        assert handler.stream is stream
    finally:
        logging.getLogger().removeHandler(handler)
    shown = stream.getvalue()
    places = [shown.index(it) for it in ("said [bold]\n", "images: 100%", "step: 66%")]
    assert places == sorted(places)
    assert capsys.readouterr().out == "into a file\n" and "into a file" not in shown


def test_progress_on_a_terminal_that_cannot_draw_is_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    with Progress(total=1, description="step", stream=stream) as progress:
        progress.update(1)
    assert stream.getvalue() == "step 1/1\n"


def test_pipe_in_place_of_metrics_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(ValueError, match="is a pipe"):
        MetricsWriter(tmp_path, 0)
    with pytest.raises(ValueError, match="is a pipe"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_link_to_nothing_is_replaced_and_not_followed(tmp_path: Path) -> None:
    file, elsewhere = tmp_path / "run" / "metrics.jsonl", tmp_path / "elsewhere"
    file.parent.mkdir()
    file.symlink_to(elsewhere)
    with MetricsWriter(file.parent, 0) as writer:
        writer.write(1, {"x": 1.0})
    assert not elsewhere.exists() and not file.is_symlink()
    assert read_metrics(file) == [{"step": 1, "x": 1.0}]
