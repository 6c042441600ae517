"""How well images fit their prompts, by a CLIP model; and how it wants images prepared.

With c_i the cosine of the embeddings of image i and its text, averaged over the images:

| score        | of one image   | of the model                                                |
|--------------|----------------|-------------------------------------------------------------|
| `clip_score` | 100 max(c, 0)  | any                                                         |
| `pick_score` | exp(s) c       | ViT-H/14 tuned on Pick-a-Pic, s its logit_scale             |
| `hps_v2`     | c              | ViT-H/14 tuned on HPD v2; images are not cut, but padded    |

Hessel et al. weigh by 2.5 where clip_score has 100; torchmetrics cuts at 0 after averaging, which
differs only where single images have a negative cosine. Papers also print the mean cosine.

Sources: Hessel et al. 2021 (2104.08718), eq. of section 3; Kirstain et al. 2023 (2305.01569), eq. 1
and the model card of PickScore_v1; Wu et al. 2023 (2306.09341) and the package hpsv2 1.2.0.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from dmd2_jax.config.refused import Refused
from dmd2_jax.typing import Float

__all__ = ["SCORES", "ClipPreparation", "Score", "clip_preparation", "cosines"]

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
_FILTERS = (0, 1, 2, 3, 4, 5)  # Pillow's numbers of its filters
_BICUBIC = 3
_STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")


class ClipPreparation(NamedTuple):
    """What a CLIP model's preprocessor_config.json asks for.

    Attributes:
      size: pixels that the shorter side is resized to.
      crop: pixels of the square that is cut out of the middle.
      mean: of each channel, of values in 0..1.
      std: of each channel.
      scale: of bytes to these values.
      filter: Pillow's number of the filter that resizes.
      whole: HPS v2's way: the longer side is resized to `size` in place of the shorter and black
        added around, so that nothing is cut, and what is resized is not rounded to bytes.
    """

    size: int = 224
    crop: int = 224
    mean: tuple[float, ...] = _MEAN
    std: tuple[float, ...] = _STD
    scale: float = 1 / 255
    filter: int = _BICUBIC
    whole: bool = False

    def __call__(self, images: UInt8[np.ndarray, "b h w c"]) -> Float[np.ndarray, "b crop crop 3"]:
        """Resize by Pillow, to bytes as most models' own programs do, cut or pad, normalise.

        Args:
          images: uint8 [b, h, w, c], c is 1 or 3.
        """
        sides = images.shape[1:3]
        if self.whole:
            scale = self.size / max(sides)
            tall, wide = (round(side * scale) for side in sides)
        else:  # the longer side is cut off, not rounded
            tall, wide = (self.size * side // min(sides) for side in sides)
        prepared = np.zeros((len(images), self.crop, self.crop, 3), np.float32)
        rows, target_rows = _middle(tall, self.crop)
        columns, target_columns = _middle(wide, self.crop)
        for target, image in zip(prepared, images, strict=True):
            resized = _resized(image, (wide, tall), self.filter, rounded=not self.whole)
            target[target_rows, target_columns] = resized[rows, columns]
        prepared *= np.float32(self.scale)
        return (prepared - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)


def clip_preparation(config: Mapping[str, Any]) -> ClipPreparation:
    """Read a preprocessor_config.json of transformers.

    Args:
      config: the file's contents; absent settings have CLIP's defaults.

    Raises:
      ValueError: if it asks for what CLIP's preprocessor does not do.
    """
    off = [step for step in _STEPS if not config.get(step, True)]
    if off:
        raise Refused(
            f"preprocessor_config.json has {off[0]}=false, expected all steps of CLIP's "
            "preprocessor; use the model's own file."
        )
    size = _side(config.get("size", 224), "size")
    crop = _side(config.get("crop_size", size), "crop_size")
    kind = config.get("resample", _BICUBIC)
    if kind not in _FILTERS or not 1 <= crop <= size:
        raise Refused(
            f"preprocessor_config.json has size={size}, crop_size={crop} and resample={kind}, "
            f"expected 1 <= crop_size <= size and a filter of {_FILTERS}; use the model's own file."
        )
    mean, std = (
        tuple(float(value) for value in config.get(key, default))
        for key, default in (("image_mean", _MEAN), ("image_std", _STD))
    )
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise Refused(
            f"preprocessor_config.json has image_mean={mean} and image_std={std}, expected three "
            "numbers each, and deviations above 0; use the model's own file."
        )
    return ClipPreparation(
        size, crop, mean, std, float(config.get("rescale_factor", 1 / 255)), kind
    )


def cosines(
    images: Float[np.ndarray, "n e"], texts: Float[np.ndarray, "n e"]
) -> Float[np.ndarray, " n"]:
    """Return the cosine of each image and its text, in float64.

    Args:
      images: [n, e] embeddings, of any length but 0.
      texts: [n, e], the text of each image.
    """
    images, texts = (np.asarray(array, np.float64) for array in (images, texts))
    lengths = np.linalg.norm(images, axis=1) * np.linalg.norm(texts, axis=1)
    return np.einsum("ne,ne->n", images, texts) / lengths


_Values = Float[np.ndarray, " n"]


class Score(NamedTuple):
    """A row of the table above.

    Attributes:
      of: (cosines [n], the model's logit_scale) -> scores [n].
      whole: see `ClipPreparation`.
    """

    of: Callable[[_Values, float], _Values]
    whole: bool = False


SCORES = {
    "clip_score": Score(lambda c, scale: 100.0 * np.maximum(c, 0.0)),
    "pick_score": Score(lambda c, scale: math.exp(scale) * c),
    "hps_v2": Score(lambda c, scale: c, whole=True),
}
"""The scores by their names."""


def _middle(side: int, crop: int) -> tuple[slice, slice]:
    """Return which part of a side goes where: the middle is cut out, or lies in the middle."""
    if side >= crop:
        begin = (side - crop) // 2
        return slice(begin, begin + crop), slice(0, crop)
    begin = (crop - side) // 2
    return slice(0, side), slice(begin, begin + side)


def _side(value: Any, key: str) -> int:
    """Return the pixels of a size as any release writes it: 224, or by name."""
    if isinstance(value, Mapping):
        sides = {value[name] for name in ("shortest_edge", "height", "width") if name in value}
        value = sides.pop() if len(sides) == 1 else value
    if type(value) is not int:
        raise Refused(
            f"preprocessor_config.json has {key}={value}, expected one number of pixels; use the "
            "model's own file."
        )
    return value


def _resized(image: np.ndarray, size: tuple[int, int], kind: int, *, rounded: bool) -> np.ndarray:
    from PIL import Image

    if image.shape[-1] == 1:
        image = np.repeat(image, 3, axis=-1)
    if image.shape[:2] == size[::-1]:
        return image
    parts = [image] if rounded else [part.astype(np.float32) for part in np.moveaxis(image, -1, 0)]
    made = [np.asarray(Image.fromarray(it).resize(size, Image.Resampling(kind))) for it in parts]
    return made[0] if rounded else np.stack(made, axis=-1)
