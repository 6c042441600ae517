"""Diversity within a class or prompt: mean distance of two samples of the same one."""

import numpy as np
from scipy.spatial.distance import pdist

from dmd2_jax.config.refused import Refused
from dmd2_jax.metrics.contract.figures import Figure
from dmd2_jax.metrics.features.extractor import FeatureSet

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
    numbers = {"diversity": _diversity(fake, per_label, seed)}
    if real is not None and real.features is not None and real.labels is not None:
        numbers["diversity_real"] = _diversity(real, per_label, seed)
    return numbers


def _diversity(features: FeatureSet, per_label: int, seed: int) -> float:
    random = np.random.RandomState(seed)
    vectors, labels = features.kept("features"), features.kept("labels")
    order = np.argsort(labels, kind="stable")
    means = []
    for members in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):
        if len(members) > per_label:
            members = random.choice(members, per_label, replace=False)
        if len(members) > 1:
            means.append(pdist(vectors[members].astype(np.float64)).mean())
    if not means:
        raise Refused(
            f"{len(labels)} samples of as many labels, expected some label at least twice; "
            "generate several samples a class or prompt."
        )
    return float(np.mean(means))
