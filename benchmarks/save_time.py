"""Time saves of this checkout against those of an older one, in turns, of the same state.

    git worktree add /tmp/before 63c5791   # the last one without lock and seals
    python -m benchmarks.save_time --before=/tmp/before
    python -m benchmarks.save_time --before=/tmp/before --processes=2 --megabytes=1000

A checkpoint of random float32 arrays is saved by `Checkpoints`, here with the folder's lock and
all seals, after a step that donates the state, as a training's does. One process writes a
.safetensors too; of several, all as one run over Gloo, each has an equal part of every large
array, and the slowest one's times count. Each round starts processes of its own, which save a few
times; printed are medians over all saves but the first of each round.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from dmd2_jax.recipe.tables import aligned

ROOT = Path(__file__).resolve().parents[1]

NAMES = (
    "a checkpoint, until it is on the disk",
    "of it the training waits",
    "meanwhile, seconds of processors",
    "a .safetensors",
)
"""What is timed; the third is of a process, for a machine that does other work too."""

_PROGRAM = """
import contextlib, json, shutil, sys, time
import jax
import numpy as np
from jax.experimental.multihost_utils import sync_global_devices
from jax.sharding import Mesh, NamedSharding, PartitionSpec

folder, megabytes, saves = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
count, number, port = map(int, sys.argv[4:])
if count > 1:
    jax.distributed.initialize(f"127.0.0.1:{port}", count, number)
from dmd2_jax.run.checkpoint import Checkpoints
from dmd2_jax.weights.state_dict import write_safetensors

owned, words = (lambda place: contextlib.nullcontext()), {}
with contextlib.suppress(ImportError):
    from dmd2_jax.runtime.owner import owned
    words = {"run": "r" * 16}
if number:
    owned = lambda place: contextlib.nullcontext()
shares = np.repeat([0.12, 0.05, 0.001, 0.00001], [4, 8, 100, 200])
random = np.random.default_rng(0)
counts = np.maximum(1, shares / shares.sum() * megabytes * 1e6 / 32).astype(int)
mesh = Mesh(np.asarray(jax.devices()), ("all",))

def placed(array):
    spec = PartitionSpec("all") if array.size > 2**11 else PartitionSpec()
    sharding = NamedSharding(mesh, spec)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

host = {f"{i:03d}": random.random((8, n), np.float32) for i, n in enumerate(counts)}
state = {name: placed(array) for name, array in host.items()}
step = jax.jit(lambda state: jax.tree.map(lambda x: 0.5 * x, state), donate_argnums=0)
found = []
for turn in range(saves + 1):
    state = jax.block_until_ready(step(state))
    place = f"{folder}/{turn}"
    with owned(place), Checkpoints(f"{place}/checkpoints", **words) as checkpoints:
        if count > 1:
            sync_global_devices(f"{turn}")
        begun, worked = time.perf_counter(), time.process_time()
        checkpoints.save(1, state, {})
        waited, worked = time.perf_counter() - begun, time.process_time() - worked
        state = jax.block_until_ready(step(state))
        checkpoints.wait()
        saved = time.perf_counter() - begun
    found.append([saved, waited, worked])
    if count > 1:
        sync_global_devices(f"{turn} is over")
    else:
        begun = time.perf_counter()
        write_safetensors(host, f"{place}/weights.safetensors")
        found[-1].append(time.perf_counter() - begun)
    if not number:
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
    parser.add_argument("--rounds", type=int, default=3, help="starts of each")
    parser.add_argument("--saves", type=int, default=5, help="of each start")
    parser.add_argument("--processes", type=int, default=1, help="of the run")
    parser.add_argument("--folder", default=None, help="where to write; default: temporary files")
    arguments = parser.parse_args()
    found: dict[str, list[list[float]]] = {"before": [], "now": []}
    trees = {"before": Path(arguments.before).resolve(), "now": ROOT}
    for _ in range(arguments.rounds):
        for which, tree in trees.items():
            with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
                found[which] += saves(
                    tree, folder, arguments.megabytes, arguments.saves, arguments.processes
                )
    rows = [("", "before", "now", "ratio")]
    for name, *columns in zip(
        NAMES, *(zip(*found[which], strict=True) for which in found), strict=False
    ):
        before, now = map(statistics.median, columns)
        rows.append((name, f"{before:.3f} s", f"{now:.3f} s", f"{now / before:.2f}"))
    print(aligned(rows))


def saves(
    tree: Path, folder: str, megabytes: float, count: int, processes: int = 1
) -> list[list[float]]:
    """Return the seconds of each save by the package of a checkout, in the order of `NAMES`.

    Those of several processes are of the one that took longest, and of checkpoints alone.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-c", _PROGRAM, folder, str(megabytes), str(count), str(processes)]
    started = [
        subprocess.Popen(
            [*words, str(number), str(port)],
            env=os.environ | {"PYTHONPATH": str(tree), "XLA_FLAGS": ""},
            cwd=folder,
            stdout=subprocess.PIPE,
        )
        for number in range(processes)
    ]
    printed = [process.communicate()[0] for process in started]
    for process in started:
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, process.args)
    # Gloo prints its connections before.
    each = [json.loads(text.splitlines()[-1]) for text in printed]
    return [[max(times) for times in zip(*save, strict=True)] for save in zip(*each, strict=True)]


if __name__ == "__main__":
    main()
