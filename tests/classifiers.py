"""The classifier in whose features generated images are measured, fitted once for all commands."""

import contextlib
import hashlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

from dmd2_jax.data import ImageDataset
from dmd2_jax.metrics.features import classifier
from dmd2_jax.typing import Params

_FITTED: dict[Any, Params] = {}
_fit = classifier._fit


@contextlib.contextmanager
def fitted_once() -> Iterator[None]:
    """Fit the default classifier once for the same images: it takes longer than most tests."""
    with mock.patch.object(classifier, "_fit", _fitted):
        yield


def _fitted(module: Any, images: ImageDataset, seed: int, training: classifier.Training) -> Params:
    if training != classifier.Training():
        return _fit(module, images, seed, training)
    content = hashlib.sha256(images.images.tobytes() + images.labels.tobytes()).hexdigest()
    key = (module, images.images.shape, content, seed)
    if key not in _FITTED:
        _FITTED[key] = _fit(module, images, seed, training)
    return _FITTED[key]
