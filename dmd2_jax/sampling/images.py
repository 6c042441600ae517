"""Sets of images that go by in batches: sampled, or read from files."""

import functools
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dmd2_jax.config.refused import Refused
from dmd2_jax.config.sizes import Size, Sizes, sides, size_of
from dmd2_jax.data import Batch
from dmd2_jax.recipe.open import Family
from dmd2_jax.run.metrics import Progress
from dmd2_jax.runtime.integrity import params_digest
from dmd2_jax.runtime.places import path_of
from dmd2_jax.runtime.sharding import batch_sharding, make_mesh, replicated
from dmd2_jax.sampling.conditions import Conditions, Prompts
from dmd2_jax.sampling.samplers import Sampler, sample_noise, with_scale
from dmd2_jax.text2image.image_latents import check_finite, latent_shape
from dmd2_jax.text2image.pipeline import LatentDecoder, TextToImage, decode, open_autoencoder
from dmd2_jax.typing import Float, Int, Params

__all__ = [
    "Images",
    "Model",
    "SampledImages",
    "class_model",
    "network_size",
    "whole_batch",
]


class Images(Protocol):
    """A set of images of one size, which go by in batches.

    Attributes:
      key: in front of its figures.
      name: for messages: the network or the folder.
      resolution: height and width in pixels: a number where they are equal.
      channels: 1 or 3.
      conditional: whether the labels are classes that were asked for.
      step: of the checkpoint that it is from, if it is from one.
    """

    key: str
    name: str
    resolution: Sizes
    channels: int
    conditional: bool
    step: int | None

    def __len__(self) -> int: ...

    def batches(self) -> Iterator[Batch]:
        """Yield {"image": [b, h, w, c], "label": [b]}, bytes or floats in [-1, 1]."""

    def describe(self, index: int) -> str:
        """Return the name of an image, for messages."""

    def figures(self) -> dict[str, Any]:
        """Return what is known of the making of the images once they have gone by."""


class Model(NamedTuple):
    """A network with all that makes images by it.

    Attributes:
      family: the network.
      sampler: from noise to images, or to latents.
      load: reads the weights.
      pipeline: of a network of prompts, whose autoencoder decodes latents.
      autoencoder: that decodes latents of classes.
      guidance: the scale that a student takes as an input; None: the network takes none.
    """

    family: Family
    sampler: Sampler
    load: Callable[[], Params]
    pipeline: TextToImage | None = None
    autoencoder: LatentDecoder | None = None
    guidance: float | None = None

    @property
    def decoder(self) -> TextToImage | LatentDecoder | None:
        """What decodes latents; None: the network makes images."""
        return self.autoencoder if self.pipeline is None else self.pipeline

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        if self.decoder is None:
            return self.family.image_shape
        return (*sides(self.decoder.resolution), 3)


def network_size(config: ConfigDict, pixels: Size, vae: str = "") -> Size:
    """Return the size that a network of classes makes for images of a size.

    Args:
      config: the recipe, whose `model.vae` may name the autoencoder of its latents.
      pixels: of the images.
      vae: folder of an autoencoder in place of the recipe's.
    """
    folder = vae or _own_autoencoder(config)
    if not folder:
        return pixels
    height, width, _ = latent_shape(open_autoencoder(folder).vae, pixels)
    return size_of(height, width)


def _own_autoencoder(config: ConfigDict) -> str:
    """Return the folder of a recipe's autoencoder: `model.vae`, or its pipeline's; "": none."""
    place = config.model.get("vae", "")
    if place or not config.model.get("pipeline", ""):
        return place
    own = path_of(config.model.pipeline).expanduser() / "vae"
    return str(own) if own.is_dir() else ""


def class_model(
    family: Family,
    config: ConfigDict,
    sampler: Sampler,
    load: Callable[[], Params],
    vae: str = "",
    guidance: float | None = None,
) -> Model:
    """Return a network of classes, with the autoencoder that decodes its latents if one is named.

    Args:
      family: the network.
      config: the recipe, whose `model.vae` may name the autoencoder.
      sampler, load, guidance: see `Model`.
      vae: folder of an autoencoder in place of the recipe's.

    Raises:
      FileNotFoundError: if there is no such folder.
      Refused: if it is of latents of other channels, or the network makes images.
    """
    folder = vae or _own_autoencoder(config)
    if not folder:
        return Model(family, sampler, load, guidance=guidance)
    height, width, channels = family.image_shape
    decoder = open_autoencoder(folder, latent_size=size_of(height, width))
    if decoder.vae.latent_channels != channels:
        raise Refused(
            f"vae={folder} is of latents of {decoder.vae.latent_channels} channels, expected "
            f"{channels} as the network makes; take the one that made the latents, or leave it "
            "away for a network of pixels."
        )
    return Model(family, sampler, load, autoencoder=decoder, guidance=guidance)


class SampledImages:
    """The images that a network makes of noise, a batch at a time over a mesh of devices.

    Image i depends on (seed, i, its class or prompt) alone: not on the batch size, nor on the
    devices. See `Images`.
    """

    def __init__(
        self,
        key: str,
        name: str,
        model: Model,
        conditions: Conditions,
        *,
        num: int,
        batch_size: int,
        seed: int,
        mesh: Mesh | None = None,
        step: int | None = None,
        first: int = 0,
        timed: bool = True,
    ) -> None:
        """Take the network; nothing is loaded yet.

        Args:
          key: in front of its figures.
          name: for messages.
          model: the network.
          conditions: what the images are of.
          num: images.
          batch_size: images at a time; made a multiple of the devices.
          seed: of the noise.
          mesh: over which images are split; None: the first device.
          step: of the checkpoint that it is from, if it is from one.
          first: number of the first image.
          timed: whether the time of an image is wanted, for which one batch more is made, so that
            compilation is not in it.

        Raises:
          Refused: if the network makes latents, and there is no pipeline to decode them.
        """
        self.key, self.name, self.step = key, name, step
        height, width, self.channels = model.image_shape
        self.resolution: Sizes = size_of(height, width)
        if self.channels not in (1, 3):
            raise Refused(
                f"{name} makes latents of {self.channels} channels, expected images; name the "
                "autoencoder that decodes them: config.model.vae=FOLDER in training, or "
                "`vae=FOLDER` of `dmd2 sample`."
            )
        self.conditional = conditions.are_classes
        self.conditions = conditions
        self._model = model
        self._num, self._seed, self._first = num, seed, first
        self._timed, self._seconds = timed, 0.0
        self._held: tuple[Params, Params] | None = None
        self._mesh = make_mesh({}, jax.devices()[:1]) if mesh is None else mesh
        self._batch_size = whole_batch(min(batch_size, num), self._mesh)

    def __len__(self) -> int:
        return self._num

    def batches(self) -> Iterator[Batch]:
        """Yield {"image": float [b, h, w, c], "label": [b]}; no batch is kept.

        Raises:
          ValueError: if latents or images of a pipeline are not finite; the message names the
            image and the remedy.
        """
        return (batch for _, batch in self.parts())

    def parts(
        self, wanted: Callable[[int, int], bool] = lambda begin, end: True
    ) -> Iterator[tuple[int, Batch]]:
        """Yield (number of its first image, batch) of the batches that are wanted; see `batches`.

        Args:
          wanted: (numbers of the first image and of the one behind the last) -> whether to make
            them. What an image is does not depend on it, to the bit.
        """
        begins = [
            begin
            for begin in range(0, self._num, self._batch_size)
            if wanted(begin, min(begin + self._batch_size, self._num))
        ]
        if not begins:
            return
        params = jax.device_put(self._load(), replicated(self._mesh))
        if self._timed:
            self._batch(params, 0)
        self._seconds = 0.0
        for begin in begins:
            start = time.perf_counter()
            images, labels = self._batch(params, begin)
            self._seconds += time.perf_counter() - start
            count = min(self._batch_size, self._num - begin)
            yield begin, {"image": images[:count], "label": labels[:count]}

    def all(self) -> Float[np.ndarray, "n h w c"]:
        """Return all images at once, with a bar where that takes long."""
        parts = []
        with Progress(total=self._num, description=self.key) as progress:
            for batch in self.batches():
                parts.append(batch["image"])
                progress.update(sum(map(len, parts)))
        return np.concatenate(parts)

    def describe(self, index: int) -> str:
        """Return the image's number, the network, and its prompt if it has one."""
        number = self._first + index
        return f"image {number} of {self.name}{self.conditions.describe(number)}"

    def captions(self) -> list[str] | None:
        """Return the prompt of each image; None of classes."""
        conditions = self.conditions
        return conditions.texts(self._num) if isinstance(conditions, Prompts) else None

    def identity(self) -> dict[str, Any]:
        """Return what decides how the images look, but for the sampler: reads the weights."""
        params, vae = self._held = self._load()
        texts = "\n".join(self.captions() or []).encode()
        labels = self.conditions.labels(self._first + np.arange(self._num))
        pipeline = self._model.pipeline
        encoders = () if pipeline is None else pipeline.encoders.params
        return {
            "num": self._num,
            "network calls": self._model.sampler.nfe,
            **({} if self._model.guidance is None else {"scale": self._model.guidance}),
            "weights": params_digest(params),
            "autoencoder": "" if vae is None else params_digest(vae),
            "text encoders": [params_digest(each) for each in encoders],
            "conditions": params_digest({"labels": labels}),
            "prompts": hashlib.blake2b(texts, digest_size=16).hexdigest() if texts else "",
        }

    def _load(self) -> tuple[Params, Params]:
        """Read the weights of the network and of the autoencoder, unless `identity` has."""
        held, self._held = self._held, None
        if held is None:
            decoder = self._model.decoder
            held = (self._model.load(), None if decoder is None else decoder.vae_params)
        return held

    def figures(self) -> dict[str, Any]:
        """Return number, network calls, seconds an image where wanted, and the guidance scale."""
        sampler, scale = self._model.sampler, self._model.guidance
        found: dict[str, Any] = {"num_samples": self._num, "nfe": sampler.nfe}
        if (guidance := sampler.guidance if scale is None else scale) is not None:
            found["guidance"] = guidance
        return found | ({"seconds_per_image": self._seconds / self._num} if self._timed else {})

    def _batch(
        self, params: tuple[Params, Params], begin: int
    ) -> tuple[np.ndarray, Int[np.ndarray, " b"]]:
        # The last batch is whole as the others are, so that one program serves all.
        numbers = self._first + np.arange(begin, begin + self._batch_size)
        family, sampler = self._model.family, self._model.sampler
        split = functools.partial(batch_sharding, self._mesh)
        noise = sample_noise(
            self._seed,
            jax.device_put(numbers, split()),
            sampler.num_noises,
            family.image_shape,
        )
        noise = jax.device_put(noise, split(1))
        cond = family.cond(self.conditions.inputs(numbers))
        cond = with_scale(cond, self._model.guidance, self._batch_size)
        cond = jax.device_put(cond, split())
        made = sampler.run(params[0], noise, cond)
        labels = self.conditions.labels(numbers)
        decoder = self._model.decoder
        if decoder is None:
            return np.asarray(made), labels
        return self._decoded(decoder, params[1], made, begin), labels

    def _decoded(
        self,
        decoder: TextToImage | LatentDecoder,
        vae_params: Params,
        latents: jax.Array,
        begin: int,
    ) -> np.ndarray:
        count = min(self._batch_size, self._num - begin)
        names = [self.describe(i) for i in range(begin, begin + count)]
        _check_latents(np.asarray(latents)[:count], names)
        images = np.asarray(decode(decoder.vae, vae_params, latents))
        check_finite(images[:count], names, decoder.vae, "images")
        return images


def whole_batch(batch_size: int, mesh: Mesh) -> int:
    """Return the next number of images that splits evenly over the devices."""
    return math.ceil(batch_size / mesh.size) * mesh.size


def _check_latents(latents: np.ndarray, names: Sequence[str]) -> None:
    bad = np.flatnonzero(~np.isfinite(latents).reshape(len(latents), -1).all(axis=1))
    if len(bad):
        raise Refused(
            f"the U-Net's latents of {names[bad[0]]} are not finite ({len(bad)} of {len(latents)} "
            "images), expected numbers; sample with `dtype=float32` and a smaller guidance, or "
            "export or download the weights again."
        )
