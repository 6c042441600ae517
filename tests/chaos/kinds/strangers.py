"""JSON of strangers: huge numbers, deep nesting, other types; pipes and links in a file's place."""

import functools
import json
import os
import random
from pathlib import Path
from typing import Any

from tests.chaos.engine import HARMLESS, SILENT, Try, Unavailable, asked, fine
from tests.chaos.runs import copied
from tests.data.images import edm_files, write_folder
from tests.tiny import RECIPE, scratch, student_run

NAME = "strangers' JSON: huge, deep, mistyped, pipes"
TRIES = 60
_SECONDS = 10.0  # of a processor, in which a refusal must come

_DEEP = "[" * 100_000
_HUGE = (
    "1e999",
    "1" + "0" * 30,
    "-1" + "0" * 12,
    "1" + "0" * 5000,
    "1" + "0" * 12,
    "NaN",
    "-Infinity",
)
_MISTYPED = (
    "null",
    '"x"',
    "[]",
    "{}",
    "true",
    "[[[1]]]",
    '{"a": {"b": 1}}',
    '"\\ud800"',
    '"\\u0000"',
)


@functools.cache
def _pipeline() -> tuple[Path, bytes]:
    """Return a tiny pipeline of Stable Diffusion, and what it draws."""
    try:
        from tests.pipelines import tiny_pipeline
    except BaseException as error:  # pytest's Skipped is no Exception
        raise Unavailable("diffusers and transformers are not installed") from error
    out = scratch() / "drawn.npz"
    fine(*_draw(tiny_pipeline("sd15"), out))
    return tiny_pipeline("sd15"), out.read_bytes()


def _draw(pipeline: Path, out: Path) -> tuple[object, ...]:
    asked_for = ("--prompt=a handwritten one", "--steps=2", f"--out={out}")
    return ("sample", f"--pipeline={pipeline}", *asked_for)


def _replaced(text: str, new: str, dice: random.Random) -> tuple[str, str]:
    """Put `new` in the place of one value of a JSON text, at any depth."""
    content = json.loads(text)
    holder, key = _somewhere(content, dice)
    mark = "\x01here\x01"
    holder[key] = mark
    return json.dumps(content).replace(json.dumps(mark), new, 1), str(key)


def _somewhere(content: Any, dice: random.Random) -> tuple[Any, Any]:
    places = []
    waiting = [content]
    while waiting:
        it = waiting.pop()
        for key in it if isinstance(it, dict) else range(len(it)):
            places.append((it, key))
            if isinstance(it[key], dict | list):
                waiting.append(it[key])
    return dice.choice(places)


def _harmed(file: Path, dice: random.Random) -> str:
    """Harm a file of JSON; return how."""
    draw, text = dice.random(), file.read_text()
    if draw < 0.12:
        file.unlink()
        way = dice.choice(["a pipe", "a folder", "a link to /dev/zero", "a link to itself"])
        if way == "a pipe":
            os.mkfifo(file)
        elif way == "a folder":
            file.mkdir()
        else:
            file.symlink_to("/dev/zero" if "zero" in way else file)
        return f"{file.name}: {way}"
    if draw < 0.2:
        whole = dice.choice([_DEEP, '{"a":' * 100_000, "3", "[]", "null", '"x"', "", "{", "\ufeff"])
        file.write_text(whole)
        return f"{file.name}: {whole[:10]}"
    new = dice.choice([_DEEP + "]" * 100_000, *_HUGE * 2, *_MISTYPED])
    text, key = _replaced(text, new, dice)
    file.write_text(text)
    return f"{file.name}: {key}={new[:14]}"


def attempt(dice: random.Random, folder: Path) -> Try:
    """Harm a file that a stranger may have written, then have it read."""
    return dice.choice([_of_a_pipeline, _of_data, _of_a_run])(dice, folder)


def _of_a_pipeline(dice: random.Random, folder: Path) -> Try:
    whole, expected = _pipeline()
    pipeline, out = copied(whole, folder / "pipeline"), folder / "drawn.npz"
    files = [f for f in sorted(pipeline.rglob("*.json")) if f.stat().st_size < 100_000]
    what = _harmed(dice.choice(files), dice)
    words = _draw(pipeline, out)
    same = lambda: out.read_bytes() == expected  # noqa: E731
    it = asked(folder, what, *words, same=same, kept=(), refusal_cpu=_SECONDS)
    if it.outcome == SILENT and any(f"={huge[:14]}" in what for huge in _HUGE):
        return it._replace(outcome=HARMLESS)  # a number within the bounds is another model
    return it


def _of_data(dice: random.Random, folder: Path) -> Try:
    data = write_folder(folder / "data", edm_files([i % 3 for i in range(8)]))
    what = _harmed(data / "dataset.json", dice)
    words = ("data", f"--config={RECIPE}", "--config.data.name=image_folder")
    words += (f"--config.data.path={data}", f"--out={folder / 'x.png'}")
    words += ("--config.model.num_classes=3", "--config.model.image_channels=3")
    return asked(folder, what, *words, same=lambda: False, kept=(), refusal_cpu=_SECONDS)


def _of_a_run(dice: random.Random, folder: Path) -> Try:
    run = copied(student_run(), folder / "run")
    names = ["data.json", "exported.json", "metrics.jsonl", "speed.jsonl"]
    file = run / dice.choice([name for name in names if (run / name).exists()])
    if file.suffix == ".jsonl":
        lines = file.read_text().splitlines()
        one = run / "row"
        one.write_text(dice.choice(lines))
        what = _harmed(one, dice)
        if one.is_file() and not one.is_symlink():
            file.write_text("\n".join([*lines, one.read_text(), lines[-1]]) + "\n")
        what = f"{file.name} {what}"
    else:
        what = _harmed(file, dice)
    name, out = dice.choice([("report", "x.html"), ("sample", "x.png")])
    words = (name, f"--workdir={run}", f"--out={folder / out}")
    return asked(folder, what, *words, same=lambda: True, kept=(), refusal_cpu=_SECONDS)
