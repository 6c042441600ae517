"""FID, class accuracy, precision and recall of the network that trains."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dmd2_jax.config.refused import Refused
from dmd2_jax.metrics import precision_recall
from dmd2_jax.metrics.features.extractor import (
    Collector,
    Extractor,
    FeatureSet,
    classifier_extractor,
)
from dmd2_jax.metrics.features.moments import FeatureStatistics, fid
from dmd2_jax.metrics.features.real import Reference, open_reference
from dmd2_jax.metrics.precision_recall import NEIGHBOUR
from dmd2_jax.recipe.open import Recipe
from dmd2_jax.runtime.distributed import from_all, on_first, to_host
from dmd2_jax.runtime.places import path_of
from dmd2_jax.runtime.sharding import make_mesh
from dmd2_jax.sampling.conditions import Classes
from dmd2_jax.sampling.images import Model, SampledImages, whole_batch
from dmd2_jax.sampling.samplers import Sampler
from dmd2_jax.typing import Float, Params, PyTree

__all__ = ["training_score"]

_MOST = 2000  # whose neighbours are looked for: all pairs are compared


def training_score(
    recipe: Recipe,
    workdir: str | Path,
    sampler: Sampler,
    choose: Callable[[PyTree], Params],
    guidance: float | None = None,
) -> Callable[[PyTree], dict[str, float]] | None:
    """Return what measures a run as it trains: state -> fid, class_accuracy, precision, recall.

    The images go by in batches on the devices of the run, each process's a share of them, and are
    forgotten, as those of `dmd2 evaluate`. The same noise every time, and no clock in the figures:
    a resumed run reports the same. Precision and recall are of the first _MOST images and as many
    real ones, drawn at random; of too few for a third neighbour they are not among the figures.

    Args:
      recipe: of its config, `log.evaluate_every`, `evaluate`, `seed` and `data` count.
      workdir: the run folder; the classifier of the real images is kept there, as by
        `dmd2 evaluate`.
      sampler: of the network that trains.
      choose: state -> the weights to measure.
      guidance: the scale that a student takes as an input; None: it takes none.

    Returns:
      The function, which every process of the run must call; None if `log.evaluate_every` is 0.

    Raises:
      ValueError: if the data are refused, or the processes do not have one classifier.
    """
    config, family = recipe.config, recipe.family
    if not config.log.evaluate_every:
        return None
    cache = path_of(workdir) / "classifier"
    reference = on_first(lambda: open_reference(config, cache))
    if reference is None:  # the first has put the classifier there by now
        reference = open_reference(config, cache)
    place, number = _place(), config.evaluate.training_samples
    real = _some(reference, min(number, _MOST), config.seed)
    mesh = _own_mesh(recipe.mesh)
    share = range(*(number * (place[0] + i) // place[1] for i in range(2)))
    batch_size = min(config.evaluate.batch_size, max(len(share), 1))
    extractor = classifier_extractor(
        reference.classifier, batch_size=whole_batch(batch_size, mesh), mesh=mesh
    )
    _check_one_classifier(extractor)

    def score(state: PyTree) -> dict[str, float]:
        weights = to_host(choose(state))
        images = SampledImages(
            "training",
            "the network that trains",
            Model(family, sampler, lambda: weights, guidance=guidance),
            Classes(family.num_classes),
            num=len(share),
            batch_size=batch_size,
            seed=config.seed,
            mesh=mesh,
            first=share.start,
            timed=False,
        )
        statistics, correct, features = _together(*_judge(extractor, images, share.start))
        found = {"fid": fid(reference.statistics, statistics)}
        if images.conditional:
            found["class_accuracy"] = correct / number
        if min(len(real.kept("features")), number) > NEIGHBOUR:
            fake = FeatureSet(extractor.name, statistics, features=features)
            found |= precision_recall.compute(real, fake)
        return found

    return score


def _some(reference: Reference, number: int, seed: int) -> FeatureSet:
    """Return the features of so many real images, drawn at random; of all, if they are fewer."""
    order = np.random.RandomState(seed).permutation(len(reference.features))[:number]
    return FeatureSet("", reference.statistics, features=reference.features[np.sort(order)])


def _place() -> tuple[int, int]:
    """Return (the number of this process, how many there are)."""
    return jax.process_index(), jax.process_count()


def _own_mesh(mesh: Mesh) -> Mesh:
    """Return the devices of a run's mesh that are this process's, for images alone."""
    own = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
    return make_mesh({"data": -1}, own)


def _check_one_classifier(extractor: Extractor) -> None:
    """Refuse processes that would measure in feature spaces of their own."""
    names = sorted(set(from_all(extractor.name)))
    if len(names) > 1:
        raise Refused(
            f"the processes of this run trained different classifiers, {', '.join(names)}, "
            "expected one; put the run folder where all of them read it, or set "
            "`config.log.evaluate_every=0`."
        )


_Judged = tuple[FeatureStatistics, int, Float[np.ndarray, "n d"]]
"""(statistics of images, how many are of the class asked for, the features of the first)."""


def _judge(extractor: Extractor, images: SampledImages, first: int) -> _Judged:
    """Let images go by once, of which the first has that number among those of all processes."""
    if not len(images):  # there are more processes than images
        none = np.empty((0, extractor.dimension), np.float32)
        return FeatureStatistics.empty(extractor.dimension), 0, none
    of_classes = {"logits", "labels"} if images.conditional else set()
    collector = Collector(extractor, {"features", *of_classes}, images.describe)
    for batch in images.batches():
        collector.add(batch["image"], batch["label"])
    found = collector.result()
    assert isinstance(found.statistics, FeatureStatistics)  # a Collector makes no others
    correct = 0
    if found.logits is not None and found.labels is not None:
        correct = int((found.logits.argmax(axis=-1) == found.labels).sum())
    return found.statistics, correct, found.kept("features")[: max(_MOST - first, 0)]


def _together(statistics: FeatureStatistics, correct: int, features: np.ndarray) -> _Judged:
    """Return what all processes found together, to each of them the same."""
    own: dict[str, Any] = {"count": statistics.count, "correct": correct}
    own |= {"mean": statistics.mean.tolist(), "scatter": statistics.scatter.tolist()}
    own["features"] = features.tolist()
    total, correct, rows = FeatureStatistics.empty(statistics.dimension), 0, []
    for part in from_all(own):
        arrays = (np.asarray(part[name], np.float64) for name in ("mean", "scatter"))
        total = total.merge(FeatureStatistics(part["count"], *arrays))
        correct += part["correct"]
        rows.append(np.asarray(part["features"], np.float32).reshape(-1, statistics.dimension))
    return total, correct, np.concatenate(rows)
