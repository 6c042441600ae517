"""Fréchet distance of two Gaussians with the means and covariances of the features (FID)."""

import warnings
from collections.abc import Sequence

from dmd2_jax.config.refused import Refused
from dmd2_jax.metrics.contract.figures import STUDENT, Figure, by_deviation
from dmd2_jax.metrics.features import moments as distance
from dmd2_jax.metrics.features.blocks import jackknife_std, left_out
from dmd2_jax.metrics.features.extractor import FeatureSet

REAL, FAKE, FAKE_USES = ("statistics",), ("statistics",), ("blocks",)

FIGURES = {
    "fid": Figure(
        "FID",
        more_is_better=False,
        mean_form="{:.2f}",
        interval=by_deviation("fid_std", STUDENT),
        method="Student's interval by the jackknife over 10 blocks of the samples, the reference "
        "held fixed. It is of the FID of as many samples of other noise; that of infinitely many "
        "is lower, by about fid_bias of metrics.json. Where FID is not far above fid_bias, the "
        "interval is up to 1.4 times too wide.",
    )
}

_FLOOR = 8
"""Below one sample for this many dimensions the figure says how many samples there are, and
nothing of what they are."""


def compute(
    real: FeatureSet, fake: FeatureSet, *, min_samples: int | None = None
) -> dict[str, float]:
    """Return the distance, how far it varies, and how much is owed to the number of samples.

    fid_std is what the distance would differ by between evaluations of as many samples of other
    noise, by the jackknife over blocks: one more distance a block, about a second each in 2,048
    dimensions. The real side is held fixed. Where the distance is not far above fid_bias, it is up
    to 1.4 times too large.

    Args:
      real: statistics; of at least as many samples.
      fake: statistics; of 10 times as many samples as dimensions for a figure to report; and
        blocks, where there are any.
      min_samples: fewer, on either side, are refused; None: an eighth of the dimension.

    Returns:
      fid >= 0; fid_std, where there are blocks of two samples or more each; and fid_bias: what that
      many generated samples of the real Gaussian itself would show (`fid.fid_bias`), where it is
      known how many there are.

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
    numbers = {"fid": value}
    if fake.blocks is not None and min(block.count for block in fake.blocks) >= 2:
        numbers["fid_std"] = _deviation(real.statistics, fake.blocks)
    if fake.statistics.count is not None:
        numbers["fid_bias"] = distance.fid_bias(real.statistics, fake.statistics.count)
    return numbers


def _deviation(real: distance.Moments, blocks: Sequence[distance.FeatureStatistics]) -> float:
    mean, covariance = real.mean, real.covariance
    return jackknife_std(
        [
            distance.frechet_distance(mean, covariance, rest.mean, rest.covariance)
            for rest in left_out(blocks)
        ]
    )


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
        raise Refused(
            f"{count} {side} samples for FID in {dimension} dimensions, expected at least "
            f"{floor}, better {10 * dimension:,}; evaluate more samples, or use kid, which is "
            "unbiased."
        )
