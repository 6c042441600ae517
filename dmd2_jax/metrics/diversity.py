"""Diversity within a class or prompt: mean distance of two samples of the same one."""

from dmd2_jax.metrics.contract.figures import Figure
from dmd2_jax.metrics.features.extractor import FeatureSet
from dmd2_jax.metrics.features.labels import label_distances, mean_distance

REAL, FAKE = (), ("features", "labels")

FIGURES = {"diversity": Figure("diversity"), "diversity_real": Figure("diversity real")}


def compute(
    real: FeatureSet | None, fake: FeatureSet, *, per_label: int = 500, seed: int = 0
) -> dict[str, float]:
    """Return the mean distance over pairs of a label, averaged over labels.

    Args:
      real: optional; where features and labels are kept, its figure is the one to compare with.
      fake: features and labels (class or prompt number), at least one label twice.
      per_label: samples of a label that are looked at, at most; 500 make 124,750 pairs.
      seed: of which ones, where there are more.

    Returns:
      diversity, in units of the features, and diversity_real where there is one.

    Raises:
      ValueError: if no label occurs twice.
    """
    numbers = {"diversity": mean_distance(label_distances(fake, per_label, seed))}
    if real is not None and real.features is not None and real.labels is not None:
        numbers["diversity_real"] = mean_distance(label_distances(real, per_label, seed))
    return numbers
