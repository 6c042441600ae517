"""Bytes to pixels: what is decoded, what is corrupt, what is refused."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from dmd2_jax.data.reading.decode import (
    CorruptImageError,
    ImageRefusedError,
    decode_image,
    encode_png,
    with_channels,
)
from tests.data.images import picture, png

COLOUR, GREY = picture(0), picture(1, channels=1)


def header_only(width: int, height: int, depth: int = 8, kind: int = 2) -> bytes:
    """A PNG whose header claims a size that its data do not have."""

    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)

    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + data + chunk(b"IEND", b"")


def test_decode_image_returns_the_pixels_of_a_png() -> None:
    np.testing.assert_array_equal(decode_image(png(COLOUR), "x.png", 8), COLOUR)
    np.testing.assert_array_equal(decode_image(png(GREY), "x.png", 8), GREY)


def test_decode_image_reads_jpeg() -> None:
    flat = np.full((8, 8, 3), 100, np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(flat).save(buffer, format="JPEG", quality=95)
    got = decode_image(buffer.getvalue(), "x.jpg", 8).astype(int)
    assert np.abs(got - flat).max() <= 2


def test_encode_png_is_undone_by_decode_image() -> None:
    for image in (COLOUR, GREY):
        np.testing.assert_array_equal(decode_image(encode_png(image), "x.png", 8), image)


def test_decode_image_expands_palettes_and_single_bits() -> None:
    two = np.where(GREY > 127, 255, 0).astype(np.uint8)
    np.testing.assert_array_equal(decode_image(png(two, "1"), "x.png", 8), two)
    expected = np.asarray(Image.fromarray(COLOUR).convert("P").convert("RGB"))
    np.testing.assert_array_equal(decode_image(png(COLOUR, "P"), "x.png", 8), expected)


@pytest.mark.parametrize(("image", "mode"), [(COLOUR, "RGBA"), (GREY, "LA")])
def test_decode_image_drops_an_opaque_alpha_channel(image: np.ndarray, mode: str) -> None:
    np.testing.assert_array_equal(decode_image(png(image, mode), "x.png", 8), image)


def test_decode_image_refuses_transparent_pixels() -> None:
    image = np.concatenate([COLOUR, np.full((8, 8, 1), 255, np.uint8)], axis=-1)
    image[3, 4, 3] = 254
    with pytest.raises(ImageRefusedError, match=r"x\.png has transparent pixels.*flatten"):
        decode_image(png(image), "x.png", 8)


def test_decode_image_refuses_a_transparent_colour() -> None:
    buffer = io.BytesIO()
    image = Image.fromarray(COLOUR)
    image.save(buffer, format="PNG", transparency=tuple(int(v) for v in COLOUR[0, 0]))
    with pytest.raises(ImageRefusedError, match="transparent"):
        decode_image(buffer.getvalue(), "x.png", 8)


@pytest.mark.parametrize("kind", [0, 2])
def test_decode_image_refuses_sixteen_bits(kind: int) -> None:
    with pytest.raises(ImageRefusedError, match="16 bits a channel.*convert"):
        decode_image(header_only(8, 8, depth=16, kind=kind), "x.png", 8)


def test_decode_image_refuses_cmyk() -> None:
    buffer = io.BytesIO()
    Image.fromarray(COLOUR).convert("CMYK").save(buffer, format="JPEG")
    with pytest.raises(ImageRefusedError, match="mode CMYK"):
        decode_image(buffer.getvalue(), "x.jpg", 8)


def test_decode_image_refuses_another_size() -> None:
    with pytest.raises(ImageRefusedError, match=r"x\.png is 9 x 9 pixels, expected 8 x 8"):
        decode_image(png(picture(0, side=9)), "x.png", 8)


@pytest.mark.parametrize("size", [(2**31 - 1, 2**31 - 1), (50_000, 50_000), (8, 10**9)])
def test_decode_image_refuses_absurd_dimensions(size: tuple[int, int]) -> None:
    with pytest.raises(ImageRefusedError, match=r"x\.png"):
        decode_image(header_only(*size), "x.png", 8)


def test_decode_image_refuses_a_huge_file() -> None:
    with pytest.raises(ImageRefusedError, match="bytes, expected at most"):
        decode_image(png(COLOUR) + bytes(2**24), "x.png", 8)


@pytest.mark.parametrize(
    "data",
    [b"", b"GIF89a" + bytes(50), png(COLOUR)[:60], png(COLOUR)[:-30], b"\xff\xd8\xff" + bytes(9)],
)
def test_decode_image_calls_damaged_bytes_corrupt(data: bytes) -> None:
    with pytest.raises(CorruptImageError):
        decode_image(data, "x.png", 8)


def test_decode_image_calls_every_flipped_byte_corrupt_or_reads_it_right() -> None:
    data = png(COLOUR)
    for i in range(len(data)):
        damaged = bytearray(data)
        damaged[i] ^= 0x55
        try:
            pixels = decode_image(bytes(damaged), "x.png", 8)
        except (CorruptImageError, ImageRefusedError):
            continue
        np.testing.assert_array_equal(pixels, COLOUR, err_msg=f"byte {i}")


def test_with_channels_repeats_grey_among_colour() -> None:
    np.testing.assert_array_equal(with_channels(GREY, 3, "x"), np.repeat(GREY, 3, axis=-1))


def test_with_channels_refuses_colour_among_grey() -> None:
    with pytest.raises(ImageRefusedError, match=r"x\.png has colour, unlike the others"):
        with_channels(COLOUR, 1, "x.png")
