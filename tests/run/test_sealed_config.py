"""A damaged config.json is refused in one line, and never read as another config."""

import contextlib
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from dmd2_jax.run.folder import open_run, read_run
from dmd2_jax.run.sealed_config import RunFolderError, run_identity
from dmd2_jax.runtime.seal import Unreachable

CONFIG = {"name": "x", "optim": {"generator_lr": 0.0001, "ema_decays": [0.9]}}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    open_run(tmp_path, "distill", CONFIG)
    return tmp_path / "config.json"


def without(key: str) -> Callable[[bytes], bytes]:
    return lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != key}).encode()


def with_value(key: str, value: object) -> Callable[[bytes], bytes]:
    return lambda text: json.dumps(json.loads(text) | {key: value}).encode()


DAMAGES = {
    "empty": lambda text: b"",
    "half": lambda text: text[: len(text) // 2],
    "NUL": lambda text: text[:50] + bytes(20) + text[70:],
    "NUL tail": lambda text: text[:-40] + bytes(40),
    "no UTF-8": lambda text: text.replace(b"distill", b"dist\xffll"),
    "deep": lambda text: b"[" * 100_000,
    "deep within": lambda text: text.replace(b"0.9", b"[" * 100_000),
    "list": lambda text: b"[]",
    "number": lambda text: b"3",
    "null": lambda text: b"null",
    "flipped digit": lambda text: text.replace(b"0.0001", b"0.0003"),
    "flipped letter": lambda text: text.replace(b"generator_lr", b"generator_lp"),
    "huge number": lambda text: text.replace(b"0.0001", b"1e999"),
    "NaN": lambda text: text.replace(b"0.0001", b"NaN"),
    "two of them": lambda text: text + text,
    "no command": without("command"),
    "no config": without("config"),
    "no identity": without("run"),
    "command": with_value("command", 3),
    "config": with_value("config", [1]),
    "config text": with_value("config", "{}"),
    "run": with_value("run", {}),
    "changes": with_value("changes", "x"),
    "devices": with_value("devices", 3),
    "place": with_value("place", ["x"]),
    "seal": with_value("seal", None),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_config_is_refused(damage: Callable[[bytes], bytes], file: Path) -> None:
    file.write_bytes(damage(file.read_bytes()))
    for read in (lambda: read_run(file.parent), lambda: open_run(file.parent, "distill", CONFIG)):
        with pytest.raises(RunFolderError, match=r"config\.json (cannot be read|is not what)"):
            read()


def test_a_flipped_bit_is_refused_or_changes_nothing(file: Path) -> None:
    dice, whole, before = random.Random(18), file.read_bytes(), read_run(file.parent)
    for _ in range(200):
        content = bytearray(whole)
        content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
        file.write_bytes(content)
        with contextlib.suppress(RunFolderError):
            assert read_run(file.parent) == before


def test_an_edited_config_is_accepted_without_its_seal_and_said(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = json.loads(file.read_text())
    del record["seal"]
    record["config"]["name"] = "mine"
    file.write_text(json.dumps(record))
    assert read_run(file.parent)[1]["name"] == "mine"
    assert "it was edited" in capsys.readouterr().err
    open_run(file.parent, "distill", CONFIG | {"name": "mine"})
    assert "seal" in json.loads(file.read_text())


def test_a_run_keeps_its_identity(file: Path) -> None:
    identity = run_identity(file.parent)
    open_run(file.parent, "distill", CONFIG)
    assert identity is not None and run_identity(file.parent) == identity


def test_a_config_that_the_disk_does_not_hand_over_is_not_called_damaged(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(self: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(Unreachable, match=r"config\.json cannot be read at the moment"):
        read_run(file.parent)
