"""The feature spaces that `dmd2 evaluate` measures in, and the real side in each of them."""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dmd2_jax import data, metrics
from dmd2_jax.config.refused import Refused
from dmd2_jax.config.sizes import sides
from dmd2_jax.data import Source
from dmd2_jax.data.reading.npz import npz_names
from dmd2_jax.evaluate.encoders import encoder_name, open_encoder
from dmd2_jax.evaluate.measured import FILES_BATCH
from dmd2_jax.evaluate.options import APART, PATCH, RATIO, EvaluateOptions
from dmd2_jax.metrics.features.extractor import (
    Collector,
    Extractor,
    FeatureSet,
    classifier_extractor,
)
from dmd2_jax.metrics.features.images import (
    Sized,
    check_comparable,
    holds_images,
    image_batches,
    open_images,
)
from dmd2_jax.metrics.features.inception import inception_extractor, read_inception
from dmd2_jax.metrics.features.real import Reference, open_reference
from dmd2_jax.metrics.features.reference import read_reference, write_statistics
from dmd2_jax.run.metrics import Progress
from dmd2_jax.runtime.fetched import fetched
from dmd2_jax.runtime.places import path_of
from dmd2_jax.sampling.images import Images, whole_batch

__all__ = [
    "LATENTS",
    "RealSide",
    "Space",
    "classifier_space",
    "is_statistics",
    "open_spaces",
    "real_side",
    "reference_side",
]

_LOG = logging.getLogger(__name__)
LATENTS = "latents"
"""The source whose examples are no images."""
_INCEPTION_BATCH = 64  # 299 x 299 pixels each


class Space(NamedTuple):
    """A feature network and what is measured with it.

    Attributes:
      extractor: the network.
      metrics: names of files of `dmd2_jax.metrics`, or dotted modules of the user's own.
      prefix: of the figures' names.
      names_classes: whether its logits are the classes of the data.
    """

    extractor: Extractor
    metrics: tuple[str, ...]
    prefix: str = ""
    names_classes: bool = False

    def keep(self, conditional: bool) -> frozenset[str]:
        """Return what of generated samples is kept, with classes that were asked for or not."""
        accuracy = {"logits", "labels"} if conditional and self.names_classes else set()
        return metrics.needs(self.metrics).fake | accuracy

    def figures(self, real: FeatureSet | None, fake: FeatureSet, name: str) -> dict[str, float]:
        """Compute the figures of some samples.

        Args:
          real: the real side, where a metric needs one.
          fake: the samples' features; with logits and labels, also the share of samples that the
            network takes for the class that was asked for.
          name: of the samples, for warnings.
        """
        with _warnings_of(name):
            numbers = metrics.compute(self.metrics, real, fake)
        if self.names_classes and fake.logits is not None and fake.labels is not None:
            correct = fake.logits.argmax(axis=-1) == np.asarray(fake.labels)
            numbers["class_accuracy"] = float(correct.mean())
        return {f"{self.prefix}{key}": value for key, value in numbers.items()}


class RealSide(NamedTuple):
    """What samples are compared with.

    Attributes:
      name: of the images or the file.
      sets: its features in each space; None where no metric looks at them.
    """

    name: str
    sets: tuple[FeatureSet | None, ...]


def open_spaces(
    options: EvaluateOptions,
    config: ConfigDict | None,
    mesh: Mesh,
    batch_size: int,
    cache: str | Path | None = None,
    check: Callable[[Source], object] | None = None,
) -> tuple[list[Space], Reference | None]:
    """Open the feature networks that the metrics need.

    Args:
      options: checked flags.
      config: the recipe, whose data the classifier is trained on.
      mesh: the devices.
      batch_size: in which images arrive.
      cache: folder of trained classifiers; None: that of the run, if it is one.
      check: raises where the images that a classifier is to be trained on will not do.

    Returns:
      (the spaces, the classifier's reference where there is a classifier).

    Raises:
      ValueError: if the weights or the data are refused.
    """
    names = [name for name in options.metrics if name not in APART]
    weights = read_inception(options.inception_weights) if options.inception_weights else None
    spaces: list[Space] = []
    reference = None
    if names and options.features == "inception":
        spaces.append(
            Space(_inception(weights, options.resize or "pytorch_fid", mesh), tuple(names))
        )
    elif names:
        if config is None:
            raise Refused(
                "`features=classifier` without a recipe, expected `workdir=` or `config=` that "
                "says which data to train it on; add one, or `features=inception`."
            )
        if config.data.name == LATENTS:
            raise Refused(
                "`features=classifier` of a recipe on latents, expected one on images with "
                "classes; use `features=inception`."
            )
        if cache is None and options.workdir:
            cache = path_of(options.workdir) / "classifier"
        reference = open_reference(config, cache, check)
        spaces.append(classifier_space(reference, names, mesh, batch_size))
    if PATCH in options.metrics:
        spaces.append(Space(_inception(weights, "patch", mesh), ("fid",), prefix="patch_"))
    for folder in options.encoders:
        prefix = f"{encoder_name(folder)}_"
        spaces.append(Space(open_encoder(folder, mesh), (RATIO,), prefix=prefix))
    return spaces, reference


def classifier_space(
    reference: Reference, names: Sequence[str], mesh: Mesh, batch_size: int
) -> Space:
    """Return the features of a classifier of the real images.

    Args:
      reference: with the classifier.
      names: of the metrics to measure in them.
      mesh: the devices.
      batch_size: in which images arrive.
    """
    size = whole_batch(batch_size, mesh)
    extractor = classifier_extractor(reference.classifier, batch_size=size, mesh=mesh)
    return Space(extractor, tuple(names), names_classes=True)


def reference_side(reference: Reference, space: Space, name: str) -> RealSide:
    """Return the real images of a reference as what samples are compared with by statistics."""
    return RealSide(name, (FeatureSet(space.extractor.name, reference.statistics),))


def _inception(weights: Any, resize: str, mesh: Mesh) -> Extractor:
    size = whole_batch(_INCEPTION_BATCH, mesh)
    return inception_extractor(weights, resize, batch_size=size, mesh=mesh)


def real_side(
    options: EvaluateOptions,
    config: ConfigDict | None,
    spaces: Sequence[Space],
    reference: Reference | None,
    measured: Sequence[Images],
) -> RealSide:
    """Refuse samples that cannot be compared; then read the real side, in one pass.

    Args:
      options: checked flags.
      config: the recipe, whose data are the real side unless the flags name another.
      spaces: from `open_spaces`.
      reference: likewise; the statistics of the recipe's data are taken from it.
      measured: the sets of samples.

    Returns:
      The real side; written to a file as well where the flags say so.

    Raises:
      ValueError: if sizes, channels or numbers of images are refused, or a metric needs of the
        real side what a file of statistics has not.
    """
    needs = [metrics.needs(space.metrics).real for space in spaces]
    for images in measured:
        for space in spaces:
            _check_samples(space, images)
            _check_classes(options, space, images)
    if not any(needs) and not options.write_reference:
        return RealSide("", (None,) * len(spaces))
    if is_statistics(options.reference) and not _read_as_images(options, needs):
        _check_statistics_suffice(options, spaces)
        sets = [read_reference(options.reference, space.extractor, measured) for space in spaces]
        return RealSide(Path(options.reference).name, tuple(sets))
    if not spaces:
        raise Refused(
            "`write_reference=` with metrics that have no statistics, expected fid or patch_fid "
            "among `metrics=`; add one."
        )
    source = _real_images(options, config)
    for images in measured:
        check_comparable(source, images)
    for space in spaces:
        metrics.check_counts(space.metrics, len(source), space.extractor.dimension, "real")
        _check_shape(space, source)
    ready = reference is not None and not options.reference and len(spaces) == 1
    if ready and reference is not None and needs[0] <= {"statistics"}:
        sets = [FeatureSet(spaces[0].extractor.name, reference.statistics)]
    else:
        sets = _collected(spaces, needs, source)
    if options.write_reference:
        (made,) = sets  # of one network: `evaluate` has refused the flag with several
        write_statistics(made.statistics, made.extractor, options.write_reference, source)
    return RealSide(source.name, tuple(sets))


def is_statistics(reference: str) -> bool:
    """Return whether a reference is an .npz of statistics; ADM's have images too."""
    if not reference.lower().endswith(".npz"):
        return False
    return not holds_images(reference) or {"mu", "sigma"} <= npz_names(
        fetched(reference).expanduser()
    )


def _read_as_images(options: EvaluateOptions, needs: Sequence[frozenset[str]]) -> bool:
    """Return whether the images beside statistics are wanted, and say so."""
    if all(need <= {"statistics"} for need in needs) or not holds_images(options.reference):
        return False
    _LOG.warning(
        "%s has mu and sigma, and images: the images are used for all of `metrics=%s`, as some "
        "need more than mu and sigma.", options.reference, ",".join(options.metrics),
    )  # fmt: skip
    return True


def _real_images(options: EvaluateOptions, config: ConfigDict | None) -> Source:
    if options.reference:
        return open_images(options.reference)
    if config is None:
        raise Refused(
            "nothing to compare with, expected `reference=PATH` (a folder, a zip or an .npz of "
            "statistics), or `workdir=` or `config=` whose data are the reference; add one."
        )
    if config.data.name == LATENTS:
        raise Refused(
            "nothing to compare with: the recipe's data are latents, expected `reference=PATH` (a "
            "folder, a zip or an .npz of statistics); add it."
        )
    source = data.load(config.data, "all", config.model.resolution)
    if source.channels not in (1, 3):
        raise Refused(
            f"nothing to compare with: {source.name} has latents of {source.channels} channels, "
            "expected images: `reference=PATH` (a folder, a zip or an .npz of statistics); add it."
        )
    return source


def _collected(
    spaces: Sequence[Space], needs: Sequence[frozenset[str]], source: Source
) -> list[FeatureSet]:
    collectors = [
        Collector(space.extractor, keep, source.describe)
        for space, keep in zip(spaces, needs, strict=True)
    ]
    with Progress(total=len(source), description=source.name) as progress:
        done = 0
        for batch in image_batches(source, FILES_BATCH):
            for collector in collectors:
                collector.add(batch["image"], batch["label"])
            done += len(batch["image"])
            progress.update(done)
    return [collector.result() for collector in collectors]


def _check_samples(space: Space, images: Images) -> None:
    """Refuse what would be found out only after all images were made."""
    metrics.check_counts(space.metrics, len(images), space.extractor.dimension, "generated")
    _check_shape(space, images)


def _check_classes(options: EvaluateOptions, space: Space, images: Images) -> None:
    """Refuse metrics that hold labels of both sides against each other where they cannot."""
    for name in space.metrics:
        if "labels" not in metrics.needs([name]).real:
            continue
        if not images.conditional:
            raise Refused(
                f"`metrics={name}` of {images.name}, whose labels are none of the data's classes, "
                "expected images of a network that is asked for a class; leave the metric away."
            )
        if options.reference:
            raise Refused(
                f"`metrics={name}` with `reference={options.reference}`, whose classes have "
                "numbers of their own, expected the recipe's data; leave one of the two away."
            )


def _check_shape(space: Space, images: Sized) -> None:
    if space.extractor.check is not None:
        try:
            space.extractor.check((1, *sides(images.resolution), images.channels))
        except ValueError as error:
            raise Refused(f"{images.name}: {error}") from error


def _check_statistics_suffice(options: EvaluateOptions, spaces: Sequence[Space]) -> None:
    for space in spaces:
        for name in space.metrics:
            if metrics.needs([name]).real - {"statistics"}:
                raise Refused(
                    f"`metrics={name}` with `reference={options.reference}`, which has mean and "
                    "covariance alone, expected a folder or zip of images; name one, or leave the "
                    "metric away."
                )


@contextlib.contextmanager
def _warnings_of(name: str) -> Iterator[None]:
    """Say warnings as the command's own, with what they are about."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        _LOG.warning("%s: %s", name, warning.message)
