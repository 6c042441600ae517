"""Time everything that this project is slow or fast at, each row beside a peer, in turns.

    python -m benchmarks.suite
    python -m benchmarks.suite --rows=unet,autoencoder --rounds=9
    python -m benchmarks.suite --against=HEAD~20 --rows=cycle,save

A row is a unit of work that ours and a peer do by turns in one process, so that whatever else the
machine does slows both alike; printed are medians and the median of the turns' ratios, below 1
where ours is faster. A peer that is not installed is left out. With `--against` the peer is this
project at another commit, in a process of its own that waits while ours works.
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

import dmd2_jax
from benchmarks.contenders import OURS, ROWS, Contender, Size
from dmd2_jax.recipe.tables import aligned
from dmd2_jax.runtime.platform import prepare_backend

ROOT = Path(__file__).resolve().parents[1]
SMALL = Size(8, 16, 2, (32, 32), 400, (400, 64), 1.0)
"""Of `--small`: whether the rows run at all."""

_HEADING = ("", "ours", "peer", "", "ratio", "from", "to")


def main() -> None:
    """Run the benchmark that the command line asks for and print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default=",".join(ROWS), help="by commas; default: all")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each (>= 3)")
    parser.add_argument("--against", default="", help="a commit of this project, as the peer")
    parser.add_argument("--small", action="store_true", help="tiny sizes: does it run?")
    parser.add_argument("--json", default="", help="write the figures here too")
    parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    prepare_backend()
    size = SMALL if arguments.small else Size()
    if arguments.worker:
        _serve(arguments.worker, size)
        return
    names = arguments.rows.split(",")
    if unknown := [name for name in names if name not in ROWS]:
        parser.error(f"--rows has {','.join(unknown)}, expected some of {','.join(ROWS)}.")
    if arguments.rounds < 3:
        parser.error(f"--rounds={arguments.rounds}, expected at least 3 for a median.")
    figures: dict[str, dict[str, list[float]]] = {}
    with contextlib.ExitStack() as stack:
        tree = stack.enter_context(_checked_out(arguments.against)) if arguments.against else None
        for name in names:
            with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as row:
                try:
                    contenders = dict(ROWS[name].make(size, Path(folder)))
                    if tree is not None:
                        words = [f"--worker={name}", *(["--small"] if arguments.small else [])]
                        peer = row.enter_context(_other_build(tree, words))
                        contenders = {OURS: contenders[OURS], arguments.against: peer}
                    figures[name] = turns(contenders, arguments.rounds)
                except (ImportError, RuntimeError, BrokenPipeError) as error:
                    print(f"{name}: not run, {error}", flush=True)
                    continue
            print(f"{name}: {len(figures)} of {len(names)}", file=sys.stderr, flush=True)
    print(f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, jax {jax.__version__}")
    print(table(figures))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(figures, indent=1))


def turns(contenders: dict[str, Contender], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each contender, one of each a round, after one that is not counted."""
    for contender in contenders.values():
        contender()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            seconds[name].append(contender())
    return seconds


def table(figures: dict[str, dict[str, list[float]]]) -> str:
    """Return rows of medians, and of the ratios ours / peer of each round median and ends."""
    rows = [_HEADING]
    for name, seconds in figures.items():
        ours = seconds[OURS]
        peers = {peer: times for peer, times in seconds.items() if peer != OURS}
        first = (ROWS[name].unit, f"{statistics.median(ours):.4g} s")
        if not peers:
            rows.append((*first, "-", "not installed", "-", "-", "-"))
        for peer, times in peers.items():
            ratios = sorted(a / b for a, b in zip(ours, times, strict=True))
            shown = (statistics.median(ratios), ratios[0], ratios[-1])
            row = (*first, f"{statistics.median(times):.4g} s", peer)
            rows.append((*row, *(f"{ratio:.2f}" for ratio in shown)))
    return aligned(rows)


@contextlib.contextmanager
def _checked_out(commit: str) -> Iterator[Path]:
    """Lay the package at a commit into a folder of its own; the checkout stays as it is."""
    words = ["git", "-C", str(ROOT), "archive", commit, "dmd2_jax", "configs"]
    content = subprocess.run(words, check=True, stdout=subprocess.PIPE).stdout
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            archive.extractall(folder, filter="data")
        yield Path(folder)


@contextlib.contextmanager
def _other_build(tree: Path, words: list[str]) -> Iterator[Callable[[], float]]:
    """Start a process with the package of another tree and the benchmarks of this one."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.suite", *words],
        env=os.environ | {"PYTHONPATH": f"{tree}{os.pathsep}{ROOT}"},
        cwd=tree,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    its, says = process.stdin, process.stdout

    def once() -> float:
        its.write("\n")
        its.flush()
        while line := says.readline():
            if line.startswith(_SECONDS):
                return float(line.removeprefix(_SECONDS))
        raise RuntimeError(f"the other build ended with code {process.wait()}; see above.")

    try:
        yield once
    finally:
        its.close()
        process.wait()


_SECONDS = "seconds: "


def _serve(name: str, size: Size) -> None:
    """Do ours of a row once a line of the input."""
    if not Path(dmd2_jax.__file__).is_relative_to(Path.cwd()):
        raise RuntimeError(f"{dmd2_jax.__file__} is not the package of {Path.cwd()}.")
    with tempfile.TemporaryDirectory() as folder:
        ours = ROWS[name].make(size, Path(folder))[OURS]
        for _ in sys.stdin:
            print(f"{_SECONDS}{ours()}", flush=True)


if __name__ == "__main__":
    main()
