"""Time the Fréchet distance of 50,000 features of dimension 2048, and the memory it takes.

    python -m benchmarks.fid
    python -m benchmarks.fid --samples=10000 --metrics=kid,precision_recall --json=fid.json

Random features are made batch by batch, as a network would, and streamed into statistics; then
the distance to reference statistics is computed, and its deviation by ten more distances, as
`dmd2 evaluate` does. Target on 2 cores: FID in less than 60 s and 4 GB. Other metrics keep the
features and are timed without a target.

Measured on 2026-11-28 on 2 cores shared with other programs (load 7), at idle priority: 46 s by the
clock, 20.8 s of one processor, 0.90 GB. Eigen-decompositions keep to one BLAS thread wherever they
run (`metrics.features.moments`), so that OPENBLAS_NUM_THREADS need not be set.
"""

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dmd2_jax import metrics
from dmd2_jax.metrics.features.blocks import BLOCKS, BlockStatistics
from dmd2_jax.metrics.features.extractor import FeatureSet
from dmd2_jax.recipe.tables import aligned
from dmd2_jax.typing import Float

TARGETS = {"fid seconds": 60.0, "peak GB": 4.0}

_BATCH = 2048


def main() -> None:
    """Run the benchmark that the command line asks for and print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=50_000, help="feature vectors a side")
    parser.add_argument("--dimension", type=int, default=2048, help="features a vector")
    parser.add_argument("--metrics", default="", help="others of `dmd2_jax.metrics`, by commas")
    parser.add_argument("--json", default="", help="write the figures here too")
    arguments = parser.parse_args()
    others = [name for name in arguments.metrics.split(",") if name]
    figures = run(arguments.samples, arguments.dimension, others)
    rows = [("", "", "target", "reached")]
    for name, value in figures.items():
        target = TARGETS.get(name)
        reached = "-" if target is None else "yes" if value <= target else "no"
        rows.append((name, f"{value:.2f}", f"{target:g}" if target else "-", reached))
    print(f"{arguments.samples:,} x {arguments.dimension} features, {os.cpu_count()} cores")
    print(aligned(rows))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(figures, indent=1))


def run(samples: int, dimension: int, others: list[str]) -> dict[str, float]:
    """Return the time of each metric, and the peak memory of the whole process in GB."""
    keep = bool(others)
    real = collect(samples, dimension, 0, keep, blocks=1)[0]
    fake, spent = collect(samples, dimension, 1, keep, blocks=BLOCKS)
    figures = {}
    for name in ("fid", *others):
        start = now()
        metrics.compute([name], real, fake)
        spent += now() - start
        figures |= {f"{name} seconds": spent[0], f"{name} processor seconds": spent[1]}
        spent = np.zeros(2)  # the statistics count as FID's
    unit = 2**30 if sys.platform == "darwin" else 2**20
    figures["peak GB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    return figures


def now() -> Float[np.ndarray, " 2"]:
    """Return (wall clock, this process's time on all processors), in seconds.

    On a machine with other work to do, the second divided by the cores is what is left of the
    first without it.
    """
    return np.array([time.perf_counter(), time.process_time()])


def collect(
    samples: int, dimension: int, seed: int, keep: bool, blocks: int
) -> tuple[FeatureSet, Float[np.ndarray, " 2"]]:
    """Return a set of random features, and the time (see `now`) that its statistics took."""
    statistics, kept, spent = BlockStatistics(dimension, blocks), [], np.zeros(2)
    for batch in batches(samples, dimension, seed):
        start = now()
        statistics.add(batch)
        spent += now() - start
        kept += [batch] * keep
    start = now()
    whole, parts = statistics.result()
    spent += now() - start
    features = np.concatenate(kept) if keep else None
    return FeatureSet("random/none", whole, features, blocks=parts), spent


def batches(samples: int, dimension: int, seed: int) -> Iterator[Float[np.ndarray, "b d"]]:
    """Make features with the falling spectrum that Inception's have."""
    random = np.random.default_rng(seed)
    scale = (1.0 + np.arange(dimension, dtype=np.float32)) ** -0.5
    for begin in range(0, samples, _BATCH):
        shape = (min(_BATCH, samples - begin), dimension)
        yield random.standard_normal(shape, np.float32) * scale + 0.4


if __name__ == "__main__":
    main()
