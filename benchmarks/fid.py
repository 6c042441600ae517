"""Time the Fréchet distance of 50,000 features of dimension 2048, and the memory it takes.

    python -m benchmarks.fid
    python -m benchmarks.fid --samples=10000 --metrics=kid,precision_recall --json=fid.json

Random features are made batch by batch, as a network would, and streamed into statistics; then
the distance to reference statistics is computed. Target on 2 cores: FID in less than 60 s and
4 GB. Other metrics keep the features and are timed without a target.

Measured: (pending)
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

from dmd2_jax.evaluation import metrics
from dmd2_jax.evaluation.extractor import FeatureSet
from dmd2_jax.evaluation.fid import FeatureStatistics
from dmd2_jax.recipe import aligned
from dmd2_jax.typing import Float

TARGETS = {"fid seconds": 60.0, "peak GB": 4.0}

_BATCH = 2048  # as `extractor.Collector` gathers them


def main() -> None:
    """Run the benchmark that the command line asks for and print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=50_000, help="feature vectors a side")
    parser.add_argument("--dimension", type=int, default=2048, help="features a vector")
    parser.add_argument("--metrics", default="", help="others of `evaluation.metrics`, by commas")
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
    """Return seconds of each part, and the peak memory of the whole process in GB."""
    keep = bool(others)
    real = collect(samples, dimension, 0, keep)[0]
    fake, seconds = collect(samples, dimension, 1, keep)
    figures = {"statistics seconds": seconds}
    for name in ("fid", *others):
        start = time.perf_counter()
        metrics.compute([name], real, fake)
        figures[f"{name} seconds"] = time.perf_counter() - start
    figures["fid seconds"] += seconds
    unit = 2**30 if sys.platform == "darwin" else 2**20
    figures["peak GB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    return figures


def collect(samples: int, dimension: int, seed: int, keep: bool) -> tuple[FeatureSet, float]:
    """Return a set of random features, and the seconds that its statistics took."""
    statistics, kept, seconds = FeatureStatistics.empty(dimension), [], 0.0
    for batch in batches(samples, dimension, seed):
        start = time.perf_counter()
        statistics = statistics.update(batch)
        seconds += time.perf_counter() - start
        kept += [batch] * keep
    features = np.concatenate(kept) if keep else None
    return FeatureSet("random/none", statistics, features), seconds


def batches(samples: int, dimension: int, seed: int) -> Iterator[Float[np.ndarray, "b d"]]:
    """Make features with the falling spectrum that Inception's have."""
    random = np.random.default_rng(seed)
    scale = (1.0 + np.arange(dimension, dtype=np.float32)) ** -0.5
    for begin in range(0, samples, _BATCH):
        shape = (min(_BATCH, samples - begin), dimension)
        yield random.standard_normal(shape, np.float32) * scale + 0.4


if __name__ == "__main__":
    main()
