"""From batches of images to the features that metrics compare, streamed and on all devices.

An `Extractor` is a network with its weights and its way of preparing images. A `Collector` feeds
it batch by batch and keeps what the metrics need: always count, mean and scatter; where they are
asked for, also those of ten blocks of the samples, the feature vectors, logits and labels. Images
are never kept.
"""

import functools
import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dmd2_jax.config.refused import Refused
from dmd2_jax.data.reading.dataset import to_model, to_uint8
from dmd2_jax.metrics.features.blocks import BLOCKS, BlockStatistics
from dmd2_jax.metrics.features.classifier import Classifier
from dmd2_jax.metrics.features.moments import FeatureStatistics, Moments
from dmd2_jax.runtime.sharding import batch_sharding, check_batch_size, make_mesh, replicated
from dmd2_jax.typing import Array, Float, Int, Params, Shaped

__all__ = ["KEEP", "Collector", "Extractor", "FeatureSet", "classifier_extractor", "collect"]

KEEP = ("blocks", "features", "logits", "labels")
"""What a `FeatureSet` can keep beside the statistics: those of blocks, and parts of each sample."""

_NAMED = 5

Apply = Callable[[Params, Array], tuple[Array, Array | None]]
"""(weights, uint8 images [b, h, w, c]) -> (features [b, d], logits [b, k] or None), pure."""


@dataclass(frozen=True)
class Extractor:
    """A feature network.

    Attributes:
      name: of the network and of its way of preparing images, for example
        "inception_v3/pytorch_fid"; statistics under another name are refused.
      dimension: d, features a vector.
      apply: the network and the preparation, run on the device.
      params: its weights.
      batch_size: images at a time on all devices together.
      mesh: the devices; None: the first one.
      check: raises ValueError for images [n, h, w, c] whose shape the network does not take.
      prepare: uint8 [b, h, w, c] -> what `apply` takes, [b, ...], on the host; None: as they are.

    Raises:
      ValueError: if the batch does not split evenly over the mesh.
    """

    name: str
    dimension: int
    apply: Apply
    params: Params
    batch_size: int = 64
    mesh: Mesh | None = None
    check: Callable[[tuple[int, ...]], None] | None = None
    prepare: Callable[[np.ndarray], np.ndarray] | None = None

    def __post_init__(self) -> None:
        mesh = self.mesh or make_mesh({"data": 1}, jax.devices()[:1])
        check_batch_size(self.batch_size, mesh)
        object.__setattr__(self, "mesh", mesh)
        object.__setattr__(self, "params", jax.device_put(self.params, replicated(mesh)))

    def __call__(
        self, images: Shaped[Array | np.ndarray, "n h w c"]
    ) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "n k"] | None]:
        """Return (features, logits) of images.

        In a run of several processes all of them pass the same images and get the same features.

        Args:
          images: [n, h, w, c], uint8, or float in [-1, 1]; floats are first rounded to bytes, as
            if they had been written to a file.

        Returns:
          features [n, d] and logits [n, k] (None if the network has none), float32, on the host.

        Raises:
          ValueError: if there are no images, a float is not finite or the network does not take
            the shape.
        """
        if images.ndim != 4 or len(images) == 0:
            raise Refused(
                f"images have shape {images.shape}, expected [n, h, w, c] with n >= 1; pass a "
                "batch, channels last."
            )
        if self.check is not None:
            self.check(images.shape)
        if images.dtype != np.uint8:
            if not bool(jnp.isfinite(images).all()):
                raise Refused(
                    "images hold NaN or infinity, expected values in [-1, 1]; the generator has "
                    "probably diverged."
                )
            images = np.asarray(to_uint8(images))
        mesh, outputs = self.mesh, []
        assert mesh is not None  # __post_init__ makes one
        for begin in range(0, len(images), self.batch_size):
            batch = np.asarray(images[begin : begin + self.batch_size])
            batch = batch if self.prepare is None else self.prepare(batch)
            # A padded last batch keeps one compiled program for any number of images.
            padding = ((0, self.batch_size - len(batch)), (0, 0), (0, 0), (0, 0))
            batch = jax.device_put(np.pad(batch, padding), batch_sharding(mesh))
            outputs.append(_apply(self.apply, mesh, self.params, batch))
        features, logits = zip(*outputs, strict=True)
        whole = np.concatenate([np.asarray(part) for part in features])[: len(images)]
        if logits[0] is None:
            return whole, None
        return whole, np.concatenate([np.asarray(part) for part in logits])[: len(images)]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _apply(apply: Apply, mesh: Mesh, params: Params, images: Array) -> tuple[Array, Array | None]:
    # Whole on every device: each process may then read the result.
    return jax.lax.with_sharding_constraint(apply(params, images), replicated(mesh))


def classifier_extractor(
    classifier: Classifier, *, batch_size: int = 512, mesh: Mesh | None = None
) -> Extractor:
    """Return the feature network of a classifier of the user's own data.

    Args:
      classifier: from `train_classifier`; its name becomes a hash of its weights, since
        every one is a feature space of its own.
      batch_size: see `Extractor`.
      mesh: see `Extractor`.

    Returns:
      The extractor; its logits are the classifier's.
    """
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(jax.device_get(classifier.params)):
        digest.update(np.ascontiguousarray(leaf).tobytes())

    def check(shape: tuple[int, ...]) -> None:
        if tuple(shape[1:]) != classifier.image_shape:
            raise Refused(
                f"images have shape {shape}, expected [n, h, w, c] = [n, "
                f"{', '.join(map(str, classifier.image_shape))}]; use the classifier of this data "
                "set, or images of its resolution and channels."
            )

    return Extractor(
        f"classifier-{digest.hexdigest()[:12]}/none",
        classifier.module.num_features,
        functools.partial(_classify, classifier.module),
        classifier.params,
        batch_size,
        mesh,
        check,
    )


def _classify(module, params: Params, images: Array) -> tuple[Array, Array]:
    return module.apply({"params": params}, to_model(images))


@dataclass(frozen=True)
class FeatureSet:
    """The features of a set of samples: what every metric takes.

    Attributes:
      extractor: the name of the network and the preparation.
      statistics: count, mean and covariance.
      features: [n, d] float32, or None if not kept.
      logits: [n, k] float32, or None if not kept.
      labels: [n] int, the classes or prompts that the samples are of, or None.
      blocks: statistics of `blocks.BLOCKS` parts of equal size, by which `statistics` can be left
        without one of them, or None if not kept.
    """

    extractor: str
    statistics: Moments
    features: Float[np.ndarray, "n d"] | None = None
    logits: Float[np.ndarray, "n k"] | None = None
    labels: Int[np.ndarray, " n"] | None = None
    blocks: tuple[FeatureStatistics, ...] | None = None

    def kept(self, name: str) -> np.ndarray:
        """Return "features", "logits" or "labels", one row a sample.

        Raises:
          Refused: if they were not kept.
        """
        rows = getattr(self, name)
        if rows is None:
            raise Refused(
                f"the {name} of these samples were not kept, expected them for this metric; "
                f"collect with keep=({name!r},)."
            )
        return rows


class Collector:
    """Takes batches of images one after the other and makes a `FeatureSet` of them."""

    def __init__(
        self,
        extractor: Extractor,
        keep: Collection[str] = (),
        describe: Callable[[int], str] | None = None,
    ) -> None:
        """Start with no samples.

        Args:
          extractor: the feature network.
          keep: what to keep, of `KEEP`; 50,000 vectors of 2,048 take 0.4 GB, and "blocks" of 2,048
            dimensions 0.5 GB. "statistics", which are always kept, may be among them, as in what
            `metrics.needs` returns.
          describe: number of a sample -> its name for messages, its file for example.

        Raises:
          ValueError: if `keep` names something else.
        """
        keep = set(keep) - {"statistics"}
        unknown = sorted(keep - set(KEEP))
        if unknown:
            raise Refused(f"keep={unknown}, expected names of {KEEP}; see `metrics.needs`.")
        self._extractor, self._keep = extractor, tuple(keep - {"blocks"})
        self._describe = describe or "sample {}".format
        blocks = BLOCKS if "blocks" in keep else 1
        self._statistics = BlockStatistics(extractor.dimension, blocks)
        self._kept: dict[str, list[np.ndarray]] = {name: [] for name in self._keep}
        self._count = 0
        self._shape: tuple[int, ...] | None = None

    def add(
        self,
        images: Shaped[Array | np.ndarray, "b h w c"],
        labels: Int[Array | np.ndarray, " b"] | None = None,
    ) -> None:
        """Take a batch.

        Args:
          images: see `Extractor`; of the same size and channels as all before.
          labels: [b]; needed if they are kept.

        Raises:
          ValueError: if images or labels do not fit, or a feature is not finite: by its name.
        """
        if self._shape not in (None, images.shape[1:]):
            raise Refused(
                f"images from {self._describe(self._count)} on have shape {images.shape[1:]}, "
                f"expected {self._shape} as before; prepare the images at one size."
            )
        self._shape = images.shape[1:]
        features, logits = self._extractor(images)
        bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
        if len(bad):
            names = ", ".join(self._describe(self._count + int(i)) for i in bad[:_NAMED])
            raise Refused(
                f"features of {len(bad)} samples hold NaN or infinity ({names}"
                f"{', ...' * (len(bad) > _NAMED)}), expected none; look at these images and at "
                f"the weights of {self._extractor.name}."
            )
        self._keep_parts({"features": features, "logits": logits, "labels": labels}, len(features))
        self._statistics.add(features)
        self._count += len(features)

    def result(self) -> FeatureSet:
        """Return the set of all samples so far.

        Raises:
          ValueError: if there are none.
        """
        if self._count == 0:
            raise Refused("got no images, expected at least one; check where they come from.")
        kept = {name: np.concatenate(parts) for name, parts in self._kept.items()}
        whole, blocks = self._statistics.result()
        return FeatureSet(self._extractor.name, whole, **kept, blocks=blocks)

    def _keep_parts(self, parts: Mapping[str, Array | np.ndarray | None], count: int) -> None:
        for name in self._keep:
            part = parts[name]
            if part is None or len(part) != count:
                raise Refused(
                    f"got {'no' if part is None else len(part)} {name} for {count} images, "
                    f"expected one for each; use a feature network and images that have {name}."
                )
            self._kept[name].append(np.asarray(part))


def collect(
    extractor: Extractor,
    batches: Iterable[Mapping[str, Array | np.ndarray]],
    keep: Collection[str] = (),
    describe: Callable[[int], str] | None = None,
) -> FeatureSet:
    """Return the features of a stream of batches.

    Args:
      extractor: the feature network.
      batches: {"image": [b, h, w, c], "label": [b]} each, the label only where there is one; of
        any sizes (full ones are faster).
      keep: see `Collector`.
      describe: see `Collector`.

    Returns:
      Statistics, and what is kept, in the stream's order.

    Raises:
      ValueError: as `Collector` does.
    """
    collector = Collector(extractor, keep, describe)
    for batch in batches:
        collector.add(batch["image"], batch.get("label"))
    return collector.result()
