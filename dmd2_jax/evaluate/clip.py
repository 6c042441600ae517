"""How images fit their captions by a CLIP model, for `dmd2 evaluate`."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dmd2_jax.config.refused import Refused
from dmd2_jax.data import to_uint8
from dmd2_jax.data.reading.captions import open_captions
from dmd2_jax.evaluate.measured import FileImages
from dmd2_jax.families.published.folder import read_component, read_component_config
from dmd2_jax.families.published.model import PublishedModel
from dmd2_jax.families.published.openclip import from_openclip
from dmd2_jax.metrics.features.clip import SCORES, ClipPreparation, clip_preparation, cosines
from dmd2_jax.networks.clip import Clip, ClipText, ClipVision
from dmd2_jax.runtime.fetched import fetched
from dmd2_jax.runtime.sharding import batch_sharding, replicated
from dmd2_jax.text2image.tokenizer import open_tokenizer, warn_of_cut
from dmd2_jax.typing import Array, Float, Params
from dmd2_jax.weights.weight_files import read_weights

__all__ = ["ClipJudge", "captions_of", "open_clip"]

_BATCH = 64
_CLASSES = ("CLIPModel",)


class ClipJudge:
    """Takes images as they go by, each with its caption, and scores them."""

    def __init__(
        self,
        name: str,
        module: Clip,
        params: Params,
        preparation: ClipPreparation,
        texts: Float[np.ndarray, "n e"],
        mesh: Mesh,
    ) -> None:
        """Take the model and the captions' embeddings, in the order of the images.

        Args:
          name: of the score, as `SCORES` has it.
          module: both encoders.
          params: their weights.
          preparation: of the images.
          texts: [n, e].
          mesh: the devices.
        """
        self._name, self._scale = name, float(params["params"]["logit_scale"])
        self._apply = functools.partial(_image_embeds, module.vision)
        self._params = jax.device_put({"params": params["params"]["vision"]}, replicated(mesh))
        self._preparation, self._texts = preparation, texts
        self._mesh = mesh
        self.restart(str)

    def restart(self, describe: Callable[[int], str]) -> None:
        """Begin with the first image of a set.

        Args:
          describe: number of an image -> its name, for messages.
        """
        self._scores, self._describe = np.empty(0), describe

    def add(self, images: np.ndarray) -> None:
        """Score a batch.

        Args:
          images: [b, h, w, c], the next ones; uint8, or float in [-1, 1].

        Raises:
          ValueError: if an image's embedding is not finite; by its name.
        """
        images = np.asarray(images if images.dtype == np.uint8 else to_uint8(images))
        begin = len(self._scores)
        embeds = _in_batches(
            lambda part: self._apply(self._params, part), self._preparation(images), self._mesh
        )
        apart = cosines(embeds, self._texts[begin : begin + len(images)])
        scores = SCORES[self._name].of(apart, self._scale)
        bad = np.flatnonzero(~np.isfinite(scores))
        if len(bad):
            raise Refused(
                f"{self._describe(begin + int(bad[0]))} or its caption has no finite CLIP "
                "embedding, expected one; look at the image and the model's weights."
            )
        self._scores = np.concatenate([self._scores, scores])

    def figures(self) -> dict[str, float]:
        """Return the score's mean over all images so far, and its deviation of one, NAME_std."""
        deviation = float(self._scores.std(ddof=1)) if len(self._scores) > 1 else 0.0
        return {self._name: float(self._scores.mean()), f"{self._name}_std": deviation}


def captions_of(path: str, images: FileImages) -> list[str]:
    """Return the caption of each image of a folder or zip.

    Args:
      path: the folder or zip, with metadata.jsonl or a .txt beside each image.
      images: its images, or some of them.

    Raises:
      ValueError: if a caption is missing or damaged.
    """
    captions = open_captions(path)
    by_file = {captions.describe(i): text for i, text in enumerate(captions.captions)}
    files = [images.describe(i) for i in range(len(images))]
    lacking = [file for file in files if file not in by_file]
    if lacking:
        raise Refused(
            f"{len(lacking)} images of {path} have no caption ({lacking[0]}), expected one each; "
            "add it to metadata.jsonl."
        )
    return [by_file[file] for file in files]


def open_clip(
    name: str,
    folder: str,
    texts: Sequence[str],
    mesh: Mesh,
    *,
    prefix: str = "",
    weights: str = "",
) -> ClipJudge:
    """Read a CLIP model and embed the captions.

    Args:
      name: of the score, as `SCORES` has it.
      folder: of the model, as transformers writes a CLIPModel: config.json, model.safetensors, the
        tokenizer's files and preprocessor_config.json.
      texts: the captions, in the order of the images.
      mesh: the devices.
      prefix: words to put before each caption, a space between; "A photo depicts" of Hessel et al.
      weights: a file of OpenCLIP's names in place of the folder's weights, which may be missing.

    Raises:
      MissingPackageError: if transformers is not installed.
      ValueError: if a file of the model is missing or damaged.
    """
    model, params = _read(folder, weights)
    try:
        settings = read_component_config(folder, "preprocessor_config.json")
        preparation = clip_preparation(settings)
    except ValueError as error:
        raise Refused(f"{folder}: {error}") from error
    module = model.module
    preparation = preparation._replace(whole=SCORES[name].whole)
    if preparation.crop != module.vision.image_size:
        raise Refused(
            f"{folder}: preprocessor_config.json makes images of {preparation.crop} pixels, "
            f"expected {module.vision.image_size} as config.json says; take both from one model."
        )
    tokenizer = open_tokenizer(folder, module.text)
    if prefix.strip():
        texts = [f"{prefix.strip()} {text}" for text in texts]
    tokens = tokenizer(texts)
    warn_of_cut(tokens.counts, tokenizer.length, texts)
    own = jax.device_put({"params": params["params"]["text"]}, replicated(mesh))
    embeds = _in_batches(lambda ids: _text_embeds(module.text, own, ids), tokens.ids, mesh)
    return ClipJudge(name, module, params, preparation, embeds, mesh)


def _read(folder: str, weights: str) -> tuple[PublishedModel, Params]:
    """Read the network of a folder, with its weights or those of a file of OpenCLIP's names."""
    if not weights:
        return read_component(folder, expected=_CLASSES)
    try:
        model = PublishedModel.from_config(read_component_config(folder), expected=_CLASSES)
    except ValueError as error:
        raise Refused(f"{folder}: {error}") from error
    file = fetched(weights)
    try:
        return model, model.from_tensors(from_openclip(read_weights(file).tensors))
    except ValueError as error:
        raise Refused(f"{file}: {error}") from error


@functools.partial(jax.jit, static_argnums=0)
def _image_embeds(module: ClipVision, params: Params, images: Array) -> Array:
    with jax.default_matmul_precision("highest"):  # accelerators round to TF32 or bfloat16
        return module.apply(params, images).image_embeds


@functools.partial(jax.jit, static_argnums=0)
def _text_embeds(module: ClipText, params: Params, ids: Array) -> Array:
    with jax.default_matmul_precision("highest"):
        return module.apply(params, ids).text_embeds


def _in_batches(apply: Any, rows: np.ndarray, mesh: Mesh) -> Float[np.ndarray, "n e"]:
    """Apply a network to rows, a filled batch at a time, split over the devices."""
    size = math.ceil(_BATCH / mesh.size) * mesh.size
    outputs = []
    for begin in range(0, len(rows), size):
        part = np.resize(rows[begin : begin + size], (size, *rows.shape[1:]))
        outputs.append(np.asarray(apply(jax.device_put(part, batch_sharding(mesh)))))
    return np.concatenate(outputs)[: len(rows)]
