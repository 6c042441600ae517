"""Frechet distance in units of that of half of the real images to the other half."""

import warnings

from dmd2_jax.config.refused import Refused
from dmd2_jax.metrics import fid
from dmd2_jax.metrics.contract.figures import Figure
from dmd2_jax.metrics.features import moments
from dmd2_jax.metrics.features.classifier import real_fid_floor
from dmd2_jax.metrics.features.extractor import FeatureSet

REAL, FAKE = ("features",), ("statistics",)

FIGURES = {
    "fd_ratio": Figure("FD ratio", more_is_better=False, form="{:.2f}"),
    "fd_ratio_mean": Figure("mean FD ratio", more_is_better=False, form="{:.2f}"),
}

_HALVINGS = 5


def compute(real: FeatureSet, fake: FeatureSet, *, halvings: int = _HALVINGS) -> dict[str, float]:
    """Return the distance as a multiple of the real images' own, which has no unit.

        FD(real, fake) / mean_h FD(half h of real, its other half)

    Distances of different feature networks do not compare, as each has a scale of its own; these
    ratios do, and may be averaged. It is of a number of samples, as the distance is: a perfect
    generator has about 1 with half as many samples as there are real images, less with more, and
    more with fewer, which is warned of.

    Args:
      real: features.
      fake: statistics.
      halvings: random halvings that the floor is averaged over.

    Returns:
      fd_ratio >= 0; the mean over several feature networks is made by what has them.

    Raises:
      ValueError: if there are too few samples, or the real images are all alike.
    """
    features = real.kept("features")
    fid.check_count(len(features) // 2, features.shape[1], "real")
    fid.check_count(fake.statistics.count, features.shape[1], "generated")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of halves in many dimensions: see below
        floor = real_fid_floor(features, repeats=halvings)[0]
    few = fake.statistics.count
    if few is not None and few < len(features) // 2:
        warnings.warn(
            f"fd_ratio of {few} samples, fewer than half of the {len(features)} real images that 1 "
            "stands for: their number alone raises it; evaluate as many as half of the real ones, "
            "or compare ratios of equal numbers alone.",
            stacklevel=2,
        )
    if not floor > 0:
        raise Refused(
            "the halves of the real images do not differ in their features, expected images that "
            "do; look at the data, or take another feature network."
        )
    return {"fd_ratio": moments.fid(real.statistics, fake.statistics) / floor}


def check_count(count: int, dimension: int, side: str) -> None:
    """Refuse fewer samples than `compute` takes; see `metrics.check_counts`."""
    fid.check_count(count // 2 if side == "real" else count, dimension, side)
