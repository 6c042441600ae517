"""Time what seals and the lock cost: a checkpoint and a .safetensors, with them and without.

    python -m benchmarks.sealed_save
    python -m benchmarks.sealed_save --megabytes=1000 --rounds=9 --folder=/mnt/disk --json=save.json

One state of random float32 arrays is saved in turns, in one process: with digests of every array,
the sealed manifest, the lock of the folder and metrics.jsonl brought to the disk; and by the same
code without all four. A .safetensors is written by `write_safetensors`, and by the safetensors
library alone, brought to the disk and renamed. Printed are medians, ratios against the target, and
what the disk and BLAKE2b do alone.
"""

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import jax
import numpy as np
from safetensors.numpy import save as plain_safetensors

from dmd2_jax.recipe.tables import aligned
from dmd2_jax.run import checkpoint
from dmd2_jax.run.metrics import MetricsWriter
from dmd2_jax.run.shards import Held
from dmd2_jax.runtime.owner import owned
from dmd2_jax.weights.state_dict import write_safetensors

TARGET = 1.1
"""Time with seals and lock over the time without."""

NAMES = ("checkpoint", "of it the training waits", "checkpoint, processors", "safetensors")
"""What is timed: by the clock and, for a machine that does other work too, on all processors."""

_SHARES = (0.12,) * 4 + (0.05,) * 8 + (0.001,) * 100 + (0.00001,) * 200
"""Of the bytes, by array: a U-Net has a few large kernels, many small ones, and biases."""


def main() -> None:
    """Run the benchmark that the command line asks for and print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=float, default=200, help="of the state")
    parser.add_argument("--rounds", type=int, default=7, help="saves of each kind")
    parser.add_argument("--folder", default=None, help="where to write; default: temporary files")
    parser.add_argument("--json", default="", help="write the figures here too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        figures = run(Path(folder), arguments.megabytes, arguments.rounds)
    print(f"{os.cpu_count()} cores, {arguments.megabytes:g} MB, medians of {arguments.rounds}")
    print(
        f"alone: the disk {figures['disk MB/s']:,.0f} MB/s, BLAKE2b {figures['BLAKE2b MB/s']:,.0f}"
    )
    rows = [("", "with", "without", "ratio", "target", "reached")]
    for name in NAMES:
        sealed, plain, ratio = (figures[f"{name}{how}"] for how in (" with", " without", ""))
        reached = "yes" if ratio <= TARGET else "no"
        rows.append(
            (name, f"{sealed:.3f} s", f"{plain:.3f} s", f"{ratio:.2f}", f"{TARGET:g}", reached)
        )
    print(aligned(rows))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(figures, indent=1))


def run(folder: Path, megabytes: float, rounds: int) -> dict[str, float]:
    """Return median seconds by what was saved and how, ratios, and the speeds of disk and digest.

    A ratio is the median over the rounds: what else the machine does slows both of a round.
    """
    state = arrays(megabytes)
    content = b"".join(array.tobytes() for array in state.values())
    found: dict[str, list[float]] = {}
    for number in range(rounds + 1):
        for sealed in (True, False) if number % 2 else (False, True):
            place = folder / "saved"
            for name, seconds in save(place, state, sealed).items():
                found.setdefault(f"{name} {'with' if sealed else 'without'}", []).append(seconds)
            shutil.rmtree(place)
        for name, body in (
            ("disk", lambda: _plain_file(folder / "file", content)),
            ("BLAKE2b", lambda: hashlib.blake2b(content, digest_size=16).hexdigest()),
        ):
            found.setdefault(name, []).append(_timed(body))
    # The first round finds no page ready.
    found = {name: seconds[1:] for name, seconds in found.items()}
    for name in NAMES:
        pairs = zip(found[f"{name} with"], found[f"{name} without"], strict=True)
        found[name] = [sealed / plain for sealed, plain in pairs]
    medians = {name: statistics.median(seconds) for name, seconds in found.items()}
    size = len(content) / 1e6
    return medians | {f"{name} MB/s": size / medians.pop(name) for name in ("disk", "BLAKE2b")}


def arrays(megabytes: float) -> dict[str, np.ndarray]:
    """Return float32 arrays of so many bytes in all, of the sizes that networks have."""
    random = np.random.default_rng(0)
    counts = [max(1, int(share / sum(_SHARES) * megabytes * 1e6 / 4)) for share in _SHARES]
    return {f"{i:03d}": random.random(count, np.float32) for i, count in enumerate(counts)}


def save(folder: Path, state: dict[str, np.ndarray], sealed: bool) -> dict[str, float]:
    """Save a checkpoint and a .safetensors into a new folder; return the seconds of each."""
    folder.mkdir()
    with (
        owned(folder) if sealed else _without_seals(),
        MetricsWriter(folder) as metrics,
        checkpoint.Checkpoints(folder / "checkpoints", run="r" * 16) as checkpoints,
    ):
        metrics.write(1, {"loss": 0.5})
        begun, worked = time.perf_counter(), time.process_time()
        if sealed:
            metrics.sync()
        checkpoints.save(1, state, {"metrics": {}})
        waited = time.perf_counter() - begun
        checkpoints.wait()
        saved, worked = time.perf_counter() - begun, time.process_time() - worked
    path = folder / "weights.safetensors"
    write = (
        (lambda: write_safetensors(state, path))
        if sealed
        else (lambda: _plain_file(path, plain_safetensors(state, metadata={"format": "pt"})))
    )
    return {
        "checkpoint": saved,
        "of it the training waits": waited,
        "checkpoint, processors": worked,
        "safetensors": _timed(write),
    }


def _without_seals() -> contextlib.AbstractContextManager[object]:
    """Have checkpoints record the shapes of arrays alone."""

    def shapes(state: dict[str, Held], _: object) -> dict[str, dict[str, object]]:
        return {
            jax.tree_util.keystr(path): {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}
            for path, leaf in jax.tree.leaves_with_path(state)
        }

    return mock.patch.multiple(checkpoint, part_digests=lambda state: {}, joined=shapes)


def _plain_file(path: Path, content: bytes) -> None:
    """Write a file, bring it to the disk and rename it, as `whole_file` does."""
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        file.write(content)
        os.fsync(file.fileno())
    os.replace(partial, path)


def _timed(body: Callable[[], object]) -> float:
    begun = time.perf_counter()
    body()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
