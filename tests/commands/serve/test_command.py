"""What `dmd2 serve` refuses before it works, and its dry run; Gradio is not needed."""

import importlib.util
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dmd2_jax.commands.serve import server
from tests.tiny import contents, dmd2, refused, student_run, teacher_run


@pytest.fixture(autouse=True)
def gradio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "check_gradio", lambda: None)


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as it:
        yield it.getsockname()[1]


def test_without_gradio_it_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.undo()
    find = importlib.util.find_spec

    def lacking(name: str, *others: Any) -> Any:
        return None if name == "gradio" else find(name, *others)

    monkeypatch.setattr(importlib.util, "find_spec", lacking)
    message = refused(capsys, "serve", "--workdir=nowhere", "--port=0")
    assert "needs the package gradio" in message and "[serve]" in message


def test_port_that_is_taken_is_refused(taken: int, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "serve", "--workdir=x", f"--port={taken}")
    assert f"--port={taken} is taken at 127.0.0.1, expected a free one" in message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "got neither --workdir nor --pipeline"),
        (("--port=65536", "--workdir=x"), "--port=65536, expected 0 to 65535"),
        (("--host=192.0.2.1", "--port=0", "--workdir=x"), "cannot be listened at"),
        (("--workdir=nowhere", "--port=0"), "no run in workdir nowhere"),
        (("--pipeline=nowhere", "--port=0"), "nowhere"),
        (("--workdir=x", "--variant=fp16"), "--variant=fp16 given with --workdir"),
    ],
)
def test_what_cannot_be_served_is_refused(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, "serve", *words)


def test_dry_run_reads_the_weights_and_serves_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(student_run())
    capsys.readouterr()  # what the run that is made here has said
    assert dmd2("serve", f"--workdir={student_run()}", "--port=0", "--dry_run") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"teacher: {teacher_run()}/teacher.safetensors, network calls an image: 3"
    assert said[1] == f"student: {student_run()}/student.safetensors, network calls an image: 1"
    assert said[2].startswith("dry run: the page can be served at http://127.0.0.1:")
    assert contents(student_run()) == before


def test_dry_run_names_damaged_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "student"
    shutil.copytree(student_run(), run, ignore=shutil.ignore_patterns("checkpoints"))
    (run / "student.safetensors").write_bytes(b"no weights")
    assert dmd2("serve", f"--workdir={run}", "--port=0", "--dry_run") == 0
    assert "student: cannot be drawn: " in capsys.readouterr().out
