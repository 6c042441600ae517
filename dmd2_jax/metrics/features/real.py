"""The real images of a data set, in the features of a classifier that is trained on them."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from dmd2_jax import data
from dmd2_jax.metrics.features.classifier import (
    Classifier,
    real_fid_floor,
    real_statistics,
    train_classifier,
)
from dmd2_jax.metrics.features.moments import FeatureStatistics
from dmd2_jax.typing import Float

__all__ = ["Reference", "open_reference"]


class Reference(NamedTuple):
    """The real images of a data set, and the feature space made from them.

    Attributes:
      classifier: the feature space.
      statistics: of all real images, train and test.
      fid_floor: mean distance from a random half of the real images to the other half.
      features: [n, d] of all of them.
    """

    classifier: Classifier
    statistics: FeatureStatistics
    fid_floor: float
    features: Float[np.ndarray, "n d"]


def open_reference(
    config: ConfigDict,
    cache: str | Path | None = None,
    check: Callable[[data.Source], object] | None = None,
) -> Reference:
    """Load the data that a config names, and train its classifier.

    Args:
      config: `config.data` counts.
      cache: folder of classifiers that were trained before; None: none.
      check: called with the training images before anything is read; raises where they will not do.

    Returns:
      The reference.

    Raises:
      ValueError: if the data are refused.
      FileNotFoundError: if data files are missing.
    """
    side = config.model.resolution
    sources = [data.load(config.data, split, side) for split in ("train", "test")]
    if check is not None:
        check(sources[0])
    train, test = map(data.to_memory, sources)
    classifier = train_classifier(train, test, cache_dir=cache)
    statistics, features = real_statistics(classifier, train, test)
    return Reference(classifier, statistics, real_fid_floor(features)[0], features)
