"""Precision (fidelity) and recall (variety) by the reach of nearest neighbours."""

from dmd2_jax.metrics.contract.figures import Figure, of_share
from dmd2_jax.metrics.features.extractor import FeatureSet
from dmd2_jax.metrics.features.neighbours import balls, check_enough, count_inside

REAL, FAKE = ("features",), ("features",)

FIGURES = {
    "precision": Figure(
        "precision",
        share=True,
        interval=of_share,
        method="Wilson's interval of a share of num_samples independent samples, the real images "
        "held fixed.",
    ),
    "recall": Figure("recall", share=True),
}

NEIGHBOUR = 3
"""Which neighbour a ball reaches to, by default."""


def compute(real: FeatureSet, fake: FeatureSet, *, k: int = NEIGHBOUR) -> dict[str, float]:
    """Return the share of each side that lies on the other's manifold.

    A manifold is the union of balls around a side's vectors, each reaching to its k-th nearest
    neighbour on the same side, its border included.

    Args:
      real: features.
      fake: features; of as many samples as the real side, as both figures depend on the counts.
      k: which neighbour; a larger one makes larger manifolds.

    Returns:
      precision and recall, 0..1.

    Raises:
      ValueError: if a side has no more than k vectors.

    Source: Kynkäänniemi et al. 2019 (1904.06991), eq. 1 and 2.
    """
    x, y = real.kept("features"), fake.kept("features")
    in_real, _ = count_inside(balls(x, k), y)
    in_fake, _ = count_inside(balls(y, k), x)
    return {"precision": float((in_real > 0).mean()), "recall": float((in_fake > 0).mean())}


def check_count(count: int, dimension: int, side: str) -> None:
    """Refuse fewer samples than `compute` takes; see `metrics.check_counts`."""
    check_enough(count, NEIGHBOUR)
