"""PNG and JPEG bytes to pixels, trusting nothing that the bytes say."""

import io
import struct
import zlib

import numpy as np

from dmd2_jax.config.refused import Refused
from dmd2_jax.typing import Shaped

MAX_BYTES = 2**24
"""Of one encoded image: five times a 1024 x 1024 PNG of noise."""

MAX_PIXELS = 2**26
"""Of an image of any size: 8192 x 8192."""

_PNG = b"\x89PNG\r\n\x1a\n"
# All that Pillow raises for bytes that are no image, or a damaged one.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    struct.error,
    zlib.error,
)


class CorruptImageError(Exception):
    """Bytes that cannot be decoded; reading may go on with another image."""


class ImageRefusedError(Refused):
    """A sound image that is not what the config asks for; reading must stop."""


def decode_image(data: bytes, name: str, resolution: int | None) -> Shaped[np.ndarray, "h w c"]:
    """Decode a PNG or JPEG.

    Args:
      data: the file's bytes.
      name: the file, for messages.
      resolution: height and width that it must have, in pixels; nothing is resized. None: any, and
        photographs are turned as their cameras say.

    Returns:
      uint8 [h, w, c]; c is 1 for grey, 3 for colour. Palettes become colour
      and an opaque alpha channel is dropped, both without loss.

    Raises:
      CorruptImageError: if the bytes cannot be decoded.
      ImageRefusedError: if the image has another size, 16 bits a channel, transparent pixels or
        a colour space other than grey and RGB.
    """
    from PIL import Image, ImageOps

    if len(data) > MAX_BYTES:
        raise ImageRefusedError(
            f"{name} has {len(data):,} bytes, expected at most {MAX_BYTES:,} for one image; "
            "prepare the images at the resolution of the config."
        )
    try:
        image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
    except Image.DecompressionBombError as error:
        raise ImageRefusedError(
            f"{name} claims to be enormous ({error}), expected at most {MAX_PIXELS:,} pixels; "
            "remove it."
        ) from error
    except _DAMAGE as error:
        raise CorruptImageError(f"no PNG or JPEG: {_reason(error)}") from error
    # The header's word, before a pixel is decoded: a small file cannot make us allocate much.
    if resolution is None:
        if image.size[0] * image.size[1] > MAX_PIXELS:
            raise ImageRefusedError(
                f"{name} is {image.size[0]} x {image.size[1]} pixels, expected at most "
                f"{MAX_PIXELS:,} in all; make it smaller or remove it."
            )
    elif image.size != (resolution, resolution):
        raise ImageRefusedError(
            f"{name} is {image.size[0]} x {image.size[1]} pixels, expected {resolution} x "
            f"{resolution} as config.model.resolution; prepare the images at one size (none is "
            "resized silently) or set the resolution."
        )
    if data.startswith(_PNG) and data[24:25] == b"\x10":
        raise _refused(name, "16 bits a channel", "convert it to 8 bits")
    try:
        upright = ImageOps.exif_transpose(image) if resolution is None else image
        pixels = np.asarray(_plain(upright, name))
    except _DAMAGE as error:
        if isinstance(error, ImageRefusedError):
            raise
        raise CorruptImageError(_reason(error)) from error
    return pixels[..., None] if pixels.ndim == 2 else pixels


def encode_png(image: Shaped[np.ndarray, "h w c"]) -> bytes:
    """Return a uint8 image as PNG, without loss; c is 1 or 3."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, format="PNG")
    return buffer.getvalue()


def with_channels(
    image: Shaped[np.ndarray, "h w c"], channels: int, name: str
) -> Shaped[np.ndarray, "h w channels"]:
    """Make an image of a data set have the data set's channels.

    Args:
      image: [h, w, c], c is 1 or 3.
      channels: 1 or 3; a grey image among colour ones gets three equal channels.
      name: the file, for messages.

    Raises:
      ImageRefusedError: if a colour image stands among grey ones.
    """
    if image.shape[-1] == channels:
        return image
    if channels == 3:
        return np.repeat(image, 3, axis=-1)
    raise _refused(name, "colour, unlike the others", "convert it to grey, or the others to RGB")


def _plain(image, name: str):
    """Return the image as grey or RGB, or refuse it."""
    if image.mode == "1":
        return image.convert("L")
    if image.mode in ("P", "PA") or "transparency" in image.info:
        image = image.convert("RGBA" if image.mode != "L" else "LA")
    if image.mode in ("LA", "RGBA"):
        if image.getextrema()[-1][0] < 255:
            raise _refused(name, "transparent pixels", "flatten it onto a background")
        image = image.convert(image.mode[:-1])
    if image.mode not in ("L", "RGB"):
        raise _refused(name, f"mode {image.mode}", "convert it to 8-bit grey or RGB")
    return image


def _refused(name: str, got: str, remedy: str) -> ImageRefusedError:
    return ImageRefusedError(f"{name} has {got}, expected opaque 8-bit grey or RGB; {remedy}.")


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
