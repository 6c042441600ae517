"""CLIP score: how well images fit their prompts; and how a CLIP model wants images prepared.

    score_i = 100 max(cos(image embedding_i, text embedding_i), 0), averaged over the images

Hessel et al. weigh by 2.5 where this has 100; torchmetrics cuts at 0 after averaging, which differs
only where single images have a negative cosine. Papers also print the mean cosine, 0.01 times this.

Source: Hessel et al. 2021 (2104.08718), eq. of section 3.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from dmd2_jax.config.refused import Refused
from dmd2_jax.typing import Float

__all__ = ["ClipPreparation", "clip_preparation", "clip_scores"]

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
    """

    size: int = 224
    crop: int = 224
    mean: tuple[float, ...] = _MEAN
    std: tuple[float, ...] = _STD
    scale: float = 1 / 255
    filter: int = _BICUBIC

    def __call__(self, images: UInt8[np.ndarray, "b h w c"]) -> Float[np.ndarray, "b crop crop 3"]:
        """Resize by Pillow, which rounds to bytes as the models' own programs do, cut, normalise.

        Args:
          images: uint8 [b, h, w, c], c is 1 or 3.
        """
        height, width = images.shape[1:3]
        short = min(height, width)
        # The longer side is cut off, not rounded.
        tall, wide = (self.size * side // short for side in (height, width))
        top, left = (tall - self.crop) // 2, (wide - self.crop) // 2
        prepared = np.empty((len(images), self.crop, self.crop, 3), np.float32)
        for target, image in zip(prepared, images, strict=True):
            resized = _resized(image, (wide, tall), self.filter)
            target[:] = resized[top : top + self.crop, left : left + self.crop]
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


def clip_scores(
    images: Float[np.ndarray, "n e"], texts: Float[np.ndarray, "n e"]
) -> Float[np.ndarray, " n"]:
    """Return 100 max(cos, 0) of each image and its text, in float64.

    Args:
      images: [n, e] embeddings, of any length but 0.
      texts: [n, e], the text of each image.
    """
    images, texts = (np.asarray(array, np.float64) for array in (images, texts))
    lengths = np.linalg.norm(images, axis=1) * np.linalg.norm(texts, axis=1)
    return 100.0 * np.maximum(np.einsum("ne,ne->n", images, texts) / lengths, 0.0)


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


def _resized(image: np.ndarray, size: tuple[int, int], kind: int) -> np.ndarray:
    from PIL import Image

    if image.shape[-1] == 1:
        image = np.repeat(image, 3, axis=-1)
    if image.shape[:2] == size[::-1]:
        return image
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling(kind)))
