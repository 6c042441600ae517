"""Distances of samples of one label: a class or prompt, drawn from several seeds."""

from collections.abc import Mapping

import numpy as np
from scipy.spatial.distance import pdist

from dmd2_jax.config.refused import Refused
from dmd2_jax.metrics.features.extractor import FeatureSet

__all__ = ["label_distances", "mean_distance"]


def label_distances(features: FeatureSet, per_label: int, seed: int) -> dict[int, float]:
    """Return label -> the mean distance of two of its samples, of labels that occur twice or more.

    Args:
      features: features and labels.
      per_label: samples of a label that are looked at, at most.
      seed: of which ones, where there are more.
    """
    random = np.random.RandomState(seed)
    vectors, labels = features.kept("features"), features.kept("labels")
    order = np.argsort(labels, kind="stable")
    means = {}
    for members in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):
        if len(members) > per_label:
            members = random.choice(members, per_label, replace=False)
        if len(members) > 1:
            label = int(labels[members[0]])
            means[label] = float(pdist(vectors[members].astype(np.float64)).mean())
    return means


def mean_distance(distances: Mapping[int, float]) -> float:
    """Return the mean over labels.

    Raises:
      ValueError: if there is none.
    """
    if not distances:
        raise Refused(
            "no two of these samples are of one label, expected some label at least twice; "
            "generate several samples a class or prompt."
        )
    return float(np.mean(list(distances.values())))
