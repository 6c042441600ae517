"""Fréchet distance of two Gaussians with the means and covariances of the features (FID)."""

import warnings

from dmd2_jax.evaluation import fid as distance
from dmd2_jax.evaluation.extractor import FeatureSet

REAL, FAKE = ("statistics",), ("statistics",)

_FLOOR = 8
"""Below one sample for this many dimensions the figure says how many samples there are, and
nothing of what they are."""


def compute(
    real: FeatureSet, fake: FeatureSet, *, min_samples: int | None = None
) -> dict[str, float]:
    """Return the distance, and how much of it is owed to the number of samples.

    Args:
      real: statistics; of at least as many samples.
      fake: statistics; of 10 times as many samples as dimensions for a figure to report.
      min_samples: fewer, on either side, are refused; None: an eighth of the dimension.

    Returns:
      fid >= 0, and fid_bias: what that many generated samples of the real Gaussian itself would
      show (`fid.fid_bias`); the latter only where it is known how many there are.

    Raises:
      ValueError: if there are too few samples or the dimensions differ.

    Source: Heusel et al. 2017 (1706.08500).
    """
    dimension = fake.statistics.dimension
    for side, statistics in (("real", real.statistics), ("generated", fake.statistics)):
        check_count(statistics.count, dimension, side, min_samples)
    with warnings.catch_warnings():  # said below with the figure of this case
        warnings.simplefilter("ignore", UserWarning)
        value = distance.fid(real.statistics, fake.statistics)
    for side, count in (("real", real.statistics.count), ("generated", fake.statistics.count)):
        if count is not None and count <= dimension:
            bias = distance.fid_bias(real.statistics, count)
            warnings.warn(
                f"FID of {count} {side} samples in {dimension} dimensions: about {bias:.3g} of "
                f"{value:.3g} is owed to their number; evaluate more than {10 * dimension:,} "
                "samples, or compare kid, which is unbiased.",
                stacklevel=2,
            )
    if fake.statistics.count is None:
        return {"fid": value}
    return {"fid": value, "fid_bias": distance.fid_bias(real.statistics, fake.statistics.count)}


def check_count(
    count: int | None, dimension: int, side: str, min_samples: int | None = None
) -> None:
    """Refuse a number of samples that `compute` would refuse, before any features are made.

    Args:
      count: samples; None where it is not known.
      dimension: d, features a vector.
      side: "real" or "generated", for the message.
      min_samples: see `compute`.

    Raises:
      ValueError: if there are too few.
    """
    floor = max(2, dimension // _FLOOR if min_samples is None else min_samples)
    if count is not None and count < floor:
        raise ValueError(
            f"{count} {side} samples for FID in {dimension} dimensions, expected at least "
            f"{floor}, better {10 * dimension:,}; evaluate more samples, or use kid, which is "
            "unbiased."
        )
