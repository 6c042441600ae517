"""The command: `python -m tests.chaos --seed=N`; `make chaos` runs it."""

import argparse
import datetime
import importlib
import os
import pkgutil
import random
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.chaos import kinds
from tests.chaos.engine import BAD, Try, Unavailable, prepare_logs
from tests.chaos.table import Row, markdown, replaced
from tests.compiling import cache_of_this_machine, flags

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs" / "durability.md"


def main() -> int:
    """Try every kind; return 1 if anything was silent, lost, executed, hung or a traceback."""
    options = _options()
    _prepare()
    rows, wrong = [], []
    print(f"seed {options.seed}", flush=True)
    for name, kind in kinds_of(options.kinds).items():
        how = {"share": options.share, "only": options.only, "verbose": options.verbose}
        row, bad = tried(name, kind, options.seed, **how)
        rows.append(row)
        wrong += bad
        print(row, flush=True)
    for number, it in wrong:
        print(f"\n{number}: {it.outcome}: {it.member}\n{it.said.rstrip()[-3000:]}")
    words = f"--seed={options.seed}" + (f" --share={options.share:g}" if options.share != 1 else "")
    text = markdown(rows, words, datetime.date.today().isoformat(), _commit())
    print(f"\n{text}")
    if options.write:
        DOCS.write_text(replaced(DOCS.read_text(), text))
    return 1 if wrong else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    flag = parser.add_argument
    flag("--seed", type=int, default=secrets.randbelow(2**31), help="default: drawn, and printed")
    flag("--share", type=float, default=1.0, help="of the tries; 0.1: a tenth")
    flag("--kinds", default="", metavar="A,B", help="files of tests/chaos/kinds; default: all")
    flag("--only", type=int, metavar="N", help="try N of each kind alone")
    flag("--verbose", action="store_true", help="print what every try came to")
    flag("--write", action="store_true", help="put the table into docs/durability.md")
    return parser.parse_args()


def _prepare() -> None:
    """Have programs compiled as the tests do, and warnings in what a command says."""
    cache = os.environ.get("DMD2_TESTS_CACHE") or str(cache_of_this_machine())
    os.environ |= {
        "DMD2_TESTS_CACHE": cache,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": flags(),
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }
    Path(cache).mkdir(parents=True, exist_ok=True)
    prepare_logs()


def kinds_of(chosen: str) -> dict[str, ModuleType]:
    """Return the kinds of these names, separated by commas; all for ""."""
    names = [module.name for module in pkgutil.iter_modules(kinds.__path__)]
    wanted = [name for name in chosen.split(",") if name] or names
    return {name: importlib.import_module(f"{kinds.__name__}.{name}") for name in wanted}


def tried(
    name: str,
    kind: Any,
    seed: int,
    *,
    share: float = 1.0,
    only: int | None = None,
    verbose: bool = False,
) -> tuple[Row, list[tuple[str, Try]]]:
    """Make the tries of one kind, each with dice of its own, so that it can be made again alone.

    Returns:
      Its row, and the tries that came to what must not be, with their names.
    """
    begun, cpu = time.monotonic(), _cpu()
    outcomes: Counter[str] = Counter()
    bad, missing = [], ""
    count = max(1, round(kind.TRIES * share))
    for number in range(count) if only is None else [only]:
        folder = Path(tempfile.mkdtemp(prefix="dmd2_chaos_"))
        try:
            it = kind.attempt(random.Random(f"{seed} {name} {number}"), folder)
        except Unavailable as error:
            missing = str(error)
            break
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        outcomes[it.outcome] += 1
        if it.outcome in BAD:
            bad.append((f"{name} {number}", it))
        if verbose or it.outcome in BAD:
            print(f"{name} {number}: {it.outcome}: {it.member}", flush=True)
        if verbose:
            print(f"    {it.said.rstrip()[-300:]}", flush=True)
    return Row(kind.NAME, outcomes, time.monotonic() - begun, _cpu() - cpu, missing), bad


def _cpu() -> float:
    return sum(os.times()[:4])


def _commit() -> str:
    answer = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=10"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return answer.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
