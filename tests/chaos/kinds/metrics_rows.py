"""metrics.jsonl cut, emptied, with NUL or altered figures before the checkpoint's step."""

import json
import random
import re
from pathlib import Path

from tests.chaos.damages import damage
from tests.chaos.engine import Try, asked
from tests.chaos.runs import Halted, halted
from tests.tiny import results

NAME = "rows of metrics cut, emptied, NUL, altered"
TRIES = 28


def _without_a_row(file: Path, dice: random.Random) -> str:
    lines = file.read_text().splitlines(keepends=True)
    del lines[dice.randrange(len(lines) - 2)]  # the last two are of work that is done again
    file.write_text("".join(lines))
    return "a row gone"


def _altered(file: Path, dice: random.Random) -> str:
    lines = file.read_text().splitlines(keepends=True)
    at = dice.randrange(len(lines) - 2)
    row = json.loads(lines[at])
    name = dice.choice(sorted(set(row) - {"step"}))
    lines[at] = json.dumps(row | {name: 0.125}) + "\n"
    file.write_text("".join(lines))
    return "a figure altered"


def _shuffled(file: Path, dice: random.Random) -> str:
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[::-1]))
    return "rows in another order"


def attempt(dice: random.Random, folder: Path) -> Try:
    """Harm the metrics of a run that is to go on."""
    run = halted(folder, dice, students=0)
    way = dice.choice([damage, damage, damage, _without_a_row, _altered, _shuffled])
    what = way(run.workdir / "metrics.jsonl", dice)
    kept = (run.workdir / "checkpoints",)
    it = asked(folder, what, *run.words, same=lambda: _weights_same(run), kept=kept)
    if it.outcome in ("noticed", "harmless") and not run.same():
        said = re.search(r"rows are lost|are not those that", it.said)
        return it._replace(outcome="noticed" if said else "silent")
    return it


def _weights_same(run: Halted) -> bool:
    there = results(run.workdir) | {"metrics.jsonl": run.expected["metrics.jsonl"]}
    return there == run.expected
