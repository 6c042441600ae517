"""Sets of features, random and degenerate, that the metrics are tried on."""

import numpy as np

from dmd2_jax.metrics.features.extractor import FeatureSet
from dmd2_jax.metrics.features.moments import feature_statistics


def feature_set(features, labels=None, logits=None, extractor="test/none"):
    features = np.asarray(features)
    statistics = feature_statistics(features)
    return FeatureSet(extractor, statistics, features, logits, labels)


def _normal(n, d=7, seed=0, shift=0.0):
    return np.random.RandomState(seed).standard_normal((n, d)).astype(np.float32) + shift


def _classes(counts, d=7):
    """Tight clusters, one a class, far from each other."""
    centres = 20 * _normal(len(counts), d, seed=9)
    parts = [0.1 * _normal(n, d, seed=i) + centres[i] for i, n in enumerate(counts)]
    return np.concatenate(parts).astype(np.float32)


PAIRS = {
    "random": (_normal(60), _normal(45, seed=1, shift=0.5)),
    "far from zero": (_normal(60, shift=1000), _normal(45, seed=1, shift=1000.5)),
    "disjoint": (_normal(60), _normal(45, seed=1, shift=100)),
    "a copy": (_normal(50), _normal(50)),
    "duplicates": (np.repeat(_normal(12), 5, axis=0), np.repeat(_normal(12)[:6], 9, axis=0)),
    "one class missing": (_classes([20, 20, 20]), _classes([25, 25, 0])),
    "collapsed to a point": (_normal(40), np.repeat(_normal(1, seed=3), 40, axis=0)),
    "constant": (np.full((30, 7), 3.3, np.float32), np.full((20, 7), 3.3, np.float32)),
    "two constants": (np.full((30, 7), 3.3, np.float32), np.full((20, 7), 3.4, np.float32)),
    "integers with ties": (
        np.random.RandomState(5).randint(0, 3, (50, 4)).astype(np.float32),
        np.random.RandomState(6).randint(0, 3, (40, 4)).astype(np.float32),
    ),
}
"""Name -> (real, generated)."""
