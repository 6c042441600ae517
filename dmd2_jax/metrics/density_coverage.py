"""Density (fidelity) and coverage (variety): precision and recall that outliers do not sway."""

import numpy as np

from dmd2_jax.metrics.contract.figures import NORMAL, STUDENT, Figure, by_deviation
from dmd2_jax.metrics.features.blocks import BLOCKS, Dealer, jackknife_std
from dmd2_jax.metrics.features.extractor import FeatureSet
from dmd2_jax.metrics.features.neighbours import balls, check_enough, count_inside

REAL, FAKE = ("features",), ("features",)

FIGURES = {
    "density": Figure(
        "density",
        interval=by_deviation("density_std", NORMAL),
        method="Interval of the mean over num_samples independent samples, the real images held "
        "fixed.",
    ),
    "coverage": Figure(
        "coverage",
        share=True,
        interval=by_deviation("coverage_std", STUDENT, high=1.0),
        method="Student's interval by the jackknife over 10 blocks of the samples, the real "
        "images held fixed. It is of the coverage by as many samples of other noise; more cover "
        "more.",
    ),
}

_NEIGHBOUR = 5


def compute(real: FeatureSet, fake: FeatureSet, *, k: int = _NEIGHBOUR) -> dict[str, float]:
    """Return how many real balls a generated sample lies in, and how many real balls have one.

        density = sum_j |{i: y_j in B(x_i)}| / (k m)
        coverage = |{i: some y_j in B(x_i)}| / n

    B(x_i) reaches to the k-th nearest real neighbour of x_i, its border included. (The authors'
    program leaves the border out, which matters for duplicates alone: with it, a set covers a
    copy of itself also where all vectors are equal.)

    Args:
      real: features, n.
      fake: features, m.
      k: which neighbour.

    Returns:
      density >= 0, about 1 for equal distributions, and coverage, 0..1; of 20 generated samples or
      more also density_std and coverage_std, what they would differ by between evaluations of as
      many samples of other noise, the real side held fixed: density is a mean over the samples,
      for coverage it is the jackknife's over blocks of them.

    Raises:
      ValueError: if the real side has no more than k vectors.

    Source: Naeem et al. 2020 (2002.09797), eq. 4 and 5.
    """
    x, y = real.kept("features"), fake.kept("features")
    count = len(y)
    blocks = BLOCKS if count >= 2 * BLOCKS else 1
    dealt, around = Dealer(blocks)(count), balls(x, k)
    of_fake, reached = np.empty(count), np.empty((blocks, len(x)))
    for block in range(blocks):
        chosen = dealt == block
        of_fake[chosen], reached[block] = count_inside(around, y[chosen])
    of_balls = reached.sum(axis=0)
    numbers = {"density": float(of_fake.mean() / k), "coverage": float((of_balls > 0).mean())}
    if blocks > 1:
        without = [float((of_balls > own).mean()) for own in reached]
        numbers["density_std"] = float(of_fake.std(ddof=1) / k / np.sqrt(count))
        numbers["coverage_std"] = jackknife_std(without)
    return numbers


def check_count(count: int, dimension: int, side: str) -> None:
    """Refuse fewer samples than `compute` takes; see `metrics.check_counts`."""
    if side == "real":
        check_enough(count, _NEIGHBOUR)
