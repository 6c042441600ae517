"""Time saves of this checkout against those of an older one, in turns, of the same state.

    git worktree add /tmp/before 63c5791   # the last one without lock and seals
    python -m benchmarks.save_time --before=/tmp/before

A checkpoint of random float32 arrays is saved by `Checkpoints`, here with the folder's lock and
all seals, and a .safetensors is written. Each program is a process of its own, which saves a few
times; printed are medians over all saves but each process's first.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from dmd2_jax.recipe.tables import aligned

ROOT = Path(__file__).resolve().parents[1]

NAMES = ("a checkpoint, until it is on the disk", "of it the training waits", "a .safetensors")

_PROGRAM = """
import contextlib, json, shutil, sys, time
import jax
import numpy as np
from dmd2_jax.run.checkpoint import Checkpoints
from dmd2_jax.weights.state_dict import write_safetensors

folder, megabytes, saves = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
owned, words = (lambda place: contextlib.nullcontext()), {}
with contextlib.suppress(ImportError):
    from dmd2_jax.runtime.owner import owned
    words = {"run": "r" * 16}
shares = np.repeat([0.12, 0.05, 0.001, 0.00001], [4, 8, 100, 200])
random = np.random.default_rng(0)
counts = np.maximum(1, shares / shares.sum() * megabytes * 1e6 / 4).astype(int)
host = {f"{i:03d}": random.random(n, np.float32) for i, n in enumerate(counts)}
state, found = jax.device_put(host), []
for number in range(saves + 1):
    place = f"{folder}/{number}"
    with owned(place), Checkpoints(f"{place}/checkpoints", **words) as checkpoints:
        begun = time.perf_counter()
        checkpoints.save(1, state, {})
        waited = time.perf_counter() - begun
        checkpoints.wait()
        saved = time.perf_counter() - begun
    begun = time.perf_counter()
    write_safetensors(host, f"{place}/weights.safetensors")
    found.append((saved, waited, time.perf_counter() - begun))
    shutil.rmtree(place)
print(json.dumps(found[1:]))
"""


def main() -> None:
    """Time both, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", required=True, help="the older checkout")
    parser.add_argument("--megabytes", type=float, default=200, help="of the state")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each")
    parser.add_argument("--saves", type=int, default=5, help="of each process")
    parser.add_argument("--folder", default=None, help="where to write; default: temporary files")
    arguments = parser.parse_args()
    found: dict[str, list[list[float]]] = {"before": [], "now": []}
    trees = {"before": Path(arguments.before).resolve(), "now": ROOT}
    for _ in range(arguments.rounds):
        for which, tree in trees.items():
            with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
                found[which] += saves(tree, folder, arguments.megabytes, arguments.saves)
    rows = [("", "before", "now", "ratio")]
    for name, *columns in zip(
        NAMES, *(zip(*found[which], strict=True) for which in found), strict=True
    ):
        before, now = map(statistics.median, columns)
        rows.append((name, f"{before:.3f} s", f"{now:.3f} s", f"{now / before:.2f}"))
    print(aligned(rows))


def saves(tree: Path, folder: str, megabytes: float, count: int) -> list[list[float]]:
    """Return the seconds of each save by the package of a checkout, in the order of `NAMES`."""
    words = [sys.executable, "-c", _PROGRAM, folder, str(megabytes), str(count)]
    done = subprocess.run(
        words,
        env=os.environ | {"PYTHONPATH": str(tree)},
        cwd=folder,
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
