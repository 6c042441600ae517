"""Bytes of an image to pixels as a viewer shows them, trusting nothing that the bytes say."""

import contextlib
import functools
import io
import re
import struct
import warnings
import zlib

import numpy as np

from dmd2_jax.config.refused import Refused
from dmd2_jax.config.sizes import Size
from dmd2_jax.data.reading.folder import FileTree, TooLargeError
from dmd2_jax.data.reading.resize import crop_to, size_fault
from dmd2_jax.typing import Shaped

MAX_PIXELS = 2**27
"""Of an image of any size: 134 million; a large telephone's photograph has 108."""

MAX_BYTES = 4 * MAX_PIXELS + 2**20
"""Of an encoded image: four bytes a pixel, as those that compress nothing take, and a header."""

_ENDINGS = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
}
"""What is read: Pillow's name of the format -> endings of its files."""

_COLOUR_ALONE = ("WEBP", "AVIF", "GIF")
_ORIENTATION, _ON_ITS_SIDE = 0x0112, (5, 6, 7, 8)  # of EXIF
"""Formats that grey images are written to as colour ones."""

_PYTHON_OBJECT = re.compile(r" ?<_io\.BytesIO object at \w+>")  # of Pillow's words for a file

# All that Pillow raises for bytes that are no image, or a damaged one.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    ArithmeticError,
    RuntimeError,
    struct.error,
    zlib.error,
)


class CorruptImageError(Exception):
    """Bytes that cannot be decoded; reading may go on with another image."""


class ImageRefusedError(Refused):
    """A sound image that is not what the config asks for; reading must stop."""


@functools.cache
def image_endings() -> tuple[str, ...]:
    """Return the endings of the files that are read: all whose format this Pillow knows."""
    return tuple(ending for name in _formats() for ending in _ENDINGS[name])


def is_image(name: str) -> bool:
    """Return whether a file of this name is one that is read, by its ending."""
    return name.lower().endswith(image_endings())


def read_image(
    tree: FileTree, name: str, resolution: Size | None, resize: str = "none"
) -> Shaped[np.ndarray, "h w c"]:
    """Read and decode an image of a folder or zip; see `decode_image`.

    Args:
      tree: the folder or zip.
      name: of the file in it.
      resolution: height and width that it must have, in pixels; None: any.
      resize: of `Options`.

    Raises:
      CorruptImageError, ImageRefusedError: see `decode_image`.
      OSError: if the disk refuses.
    """
    try:
        data = tree.read(name, MAX_BYTES)
    except TooLargeError as error:
        raise ImageRefusedError(str(error)) from error
    return decode_image(data, f"{tree.place}/{name}", resolution, resize)


def image_size(data: bytes) -> tuple[int, int]:
    """Return width and height of an encoded image, by its header's word.

    Raises:
      CorruptImageError: if it cannot be read.
      ImageRefusedError: if the image has too many pixels.
    """
    return _open(data, "the image").size


def turned_size(data: bytes) -> tuple[int, int]:
    """Return height and width of an encoded image, turned as its camera says (EXIF's orientation).

    Raises:
      CorruptImageError, ImageRefusedError: see `image_size`.
    """
    width, height = _turned(_open(data, "the image"))
    return height, width


def decode_image(
    data: bytes, name: str, resolution: Size | None, resize: str = "none"
) -> Shaped[np.ndarray, "h w c"]:
    """Decode an image, turned as its camera says (EXIF's orientation).

    Args:
      data: the file's bytes: PNG, JPEG, WebP, BMP, GIF, TIFF, AVIF or PPM.
      name: the file, for messages.
      resolution: height and width that it must have, or is given, in pixels; None: any.
      resize: of `Options`; "none": nothing is resized.

    Returns:
      uint8 [h, w, c]; c is 1 for grey, 3 for colour. Palettes become colour
      and an opaque alpha channel is dropped, both without loss.

    Raises:
      CorruptImageError: if the bytes cannot be decoded.
      ImageRefusedError: if the image has a size that `resize` does not allow, several frames, more
        than 8 bits a channel, transparent pixels or a colour space other than grey and RGB.
    """
    image = _open(data, name)
    # The header's word, before a pixel is decoded: a small file cannot make us allocate much.
    # It may still be turned, which a height and a width that differ feel.
    if (
        resolution is not None
        and (fault := size_fault(image.size, resolution, resize))
        and size_fault(image.size[::-1], resolution, resize)
    ):
        raise ImageRefusedError(f"{name} {fault}")
    if _is_deep(image):
        raise _refused(name, "16 bits a channel", "convert it to 8 bits")
    try:
        # Two pictures in a JPEG (MPO) are one photograph, its preview or the other eye's.
        if image.format != "MPO" and getattr(image, "is_animated", False):
            raise _refused(name, "several frames", "write the one that is meant as a PNG")
        image.load()
        # Damaged EXIF tells a viewer nothing either: the picture stays as it is.
        with contextlib.suppress(*_DAMAGE):
            _turn(image)
        plain = _plain(image, name)
        if image.format in _COLOUR_ALONE and _is_grey(plain):
            plain = plain.convert("L")
        pixels = np.asarray(plain)
    except _DAMAGE as error:
        if isinstance(error, ImageRefusedError):
            raise
        raise CorruptImageError(_reason(error)) from error
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if resolution is not None and (fault := size_fault(plain.size, resolution, resize)):
        raise ImageRefusedError(f"{name} {fault}")
    return pixels if resolution is None else crop_to(pixels, resolution).pixels


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


@functools.cache
def _formats() -> tuple[str, ...]:
    from PIL import Image, features

    # Pillow warns from 89 million pixels on, and we refuse: once is enough.
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    Image.init()
    known = [name for name in _ENDINGS if name in Image.OPEN]
    return tuple(n for n in known if n not in ("WEBP", "AVIF") or features.check(n.lower()))


def _open(data: bytes, name: str):
    """Read the header, and refuse more pixels than there can be room for."""
    from PIL import Image

    if len(data) > MAX_BYTES:
        raise ImageRefusedError(
            f"{name} has {len(data):,} bytes, expected at most {MAX_BYTES:,} for one image; "
            "make it smaller or remove it."
        )
    try:
        image = Image.open(io.BytesIO(data), formats=_formats())
    except Image.DecompressionBombError as error:
        raise ImageRefusedError(
            f"{name} claims to be enormous ({error}), expected at most {MAX_PIXELS:,} pixels; "
            "remove it."
        ) from error
    except _DAMAGE as error:
        raise CorruptImageError(
            f"no image of a kind that is read ({', '.join(_formats())}): {_reason(error)}"
        ) from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageRefusedError(
            f"{name} is {width} x {height} pixels, expected at most {MAX_PIXELS:,} in all; make "
            "it smaller or remove it."
        )
    return image


def _is_deep(image) -> bool:
    """Return whether a channel has more than 8 bits: of colour Pillow drops the rest silently."""
    for tile in image.tile:
        arguments = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        if ";16" in str(arguments[0]):  # as in Pillow's "RGB;16B"
            return True
        if tile.codec_name in ("ppm", "ppm_plain") and arguments[1:] > (255,):  # its largest value
            return True
    return False


def _is_grey(image) -> bool:
    """Return whether an image shows no colour; WebP's rounding makes grey off by one."""
    pixels = np.asarray(image)
    return pixels.ndim == 3 and int((pixels.max(axis=-1) - pixels.min(axis=-1)).max()) <= 1


def _turned(image) -> tuple[int, int]:
    """Return width and height of an image, not yet decoded, as `_turn` will make them."""
    orientation = 1
    if image.format != "PNG" or "exif" in image.info:  # or else the whole PNG would be decoded
        with contextlib.suppress(*_DAMAGE):
            orientation = image.getexif().get(_ORIENTATION, 1)
    return image.size[::-1] if orientation in _ON_ITS_SIDE else image.size


def _turn(image) -> None:
    """Turn a decoded image as its EXIF says, in place."""
    from PIL import ImageOps

    ImageOps.exif_transpose(image, in_place=True)


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
    return f"{type(error).__name__}: {_PYTHON_OBJECT.sub('', str(error))}"
