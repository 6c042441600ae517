"""Bytes to pixels: what is decoded, what is corrupt, what is refused."""

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from dmd2_jax.data.reading import decode
from dmd2_jax.data.reading.decode import (
    CorruptImageError,
    ImageRefusedError,
    decode_image,
    encode_png,
    image_size,
    is_image,
    with_channels,
)
from tests.data.images import encoded, picture, png

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


def test_decode_image_refuses_a_huge_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "MAX_BYTES", 2**16)
    with pytest.raises(ImageRefusedError, match="bytes, expected at most 65,536"):
        decode_image(png(COLOUR) + bytes(2**16), "x.png", 8)


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


KINDS = ("png", "jpeg", "webp", "bmp", "gif", "tiff", "avif", "ppm")


@pytest.mark.parametrize("kind", KINDS)
def test_decode_image_reads_every_kind(kind: str) -> None:
    smooth = (np.linspace(40, 200, 8)[:, None, None] + [0, 20, 40]).repeat(8, 1).astype(np.uint8)
    got = decode_image(encoded(smooth, kind), "x", 8).astype(int)
    assert np.abs(got - smooth).max() <= (3 if kind in ("jpeg", "avif") else 0)
    assert is_image(f"a/x.{kind}") and is_image(f"X.{kind.upper()}")


@pytest.mark.parametrize("kind", KINDS)
def test_decode_image_reads_grey_of_every_kind_as_grey(kind: str) -> None:
    grey = np.broadcast_to(np.linspace(40, 200, 8)[:, None, None], (8, 8, 1)).astype(np.uint8)
    got = decode_image(encoded(grey, kind), "x", 8).astype(int)
    assert np.abs(got - grey).max() <= (3 if kind in ("jpeg", "avif") else 0)
    assert got.shape == (8, 8, 1)


def test_decode_image_reads_a_grey_webp_with_loss_as_grey() -> None:
    grey = np.tile(np.arange(0, 256, 4, dtype=np.uint8)[:, None], (64, 1, 1))
    grey = np.broadcast_to(grey, (64, 64, 1))
    buffer = io.BytesIO()
    Image.fromarray(grey[..., 0]).save(buffer, format="WEBP", quality=90)
    got = decode_image(buffer.getvalue(), "x", 64)
    assert got.shape == (64, 64, 1) and np.abs(got.astype(int) - grey).mean() < 2


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "tiff", "avif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_decode_image_turns_an_image_as_its_exif_says(kind: str, orientation: int) -> None:
    upright = np.zeros((16, 16, 3), np.uint8)
    upright[:8, :8], upright[:8, 8:], upright[8:, :8] = 255, 170, 85
    stored = {  # what the camera wrote, so that turning it as EXIF says gives `upright`
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(np.ascontiguousarray(stored), kind, exif=exif)
    for resolution in (16, None):
        got = decode_image(data, "x", resolution).astype(int)
        assert np.abs(got[2:-2, 2:-2] - upright[2:-2, 2:-2]).mean() < 3


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_decode_image_reads_an_image_with_damaged_exif() -> None:
    data = encoded(COLOUR, "png", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + bytes(9))
    np.testing.assert_array_equal(decode_image(data, "x.png", 8), COLOUR)


@pytest.mark.parametrize("kind", ["png", "webp", "gif", "tiff"])
def test_decode_image_refuses_several_frames(kind: str) -> None:
    other = Image.fromarray(picture(5))
    data = encoded(COLOUR, kind, save_all=True, append_images=[other])
    with pytest.raises(ImageRefusedError, match=r"x has several frames.*the one that is meant"):
        decode_image(data, "x", 8)


def test_decode_image_reads_the_photograph_of_a_telephone_with_two_pictures() -> None:
    buffer = io.BytesIO()
    first, second = (Image.new("RGB", (8, 8), (grey,) * 3) for grey in (200, 10))
    first.save(buffer, format="MPO", save_all=True, append_images=[second])
    assert np.abs(decode_image(buffer.getvalue(), "x.jpg", 8).astype(int) - 200).max() <= 2


def deep_tiff() -> bytes:
    """2 x 2 pixels of 16 bits a channel, which Pillow cannot write."""
    tags = [(256, 3, 1, 2), (257, 3, 1, 2), (258, 3, 3, 122), (259, 3, 1, 1), (262, 3, 1, 2)]
    tags += [(273, 4, 1, 128), (277, 3, 1, 3), (278, 3, 1, 2), (279, 4, 1, 24)]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    return head + struct.pack("<3H", 16, 16, 16) + bytes(128 - len(head) - 6) + bytes(24)


@pytest.mark.parametrize("data", [deep_tiff(), b"P6\n2 2\n65535\n" + bytes(24)])
def test_decode_image_refuses_sixteen_bits_of_other_kinds(data: bytes) -> None:
    with pytest.raises(ImageRefusedError, match="16 bits a channel.*convert"):
        decode_image(data, "x", 2)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_decode_image_calls_every_damage_by_its_name(kind: str) -> None:
    data, random = encoded(COLOUR, kind), np.random.RandomState(0)
    for i in range(0, len(data), 3):
        damaged = bytearray(data)
        damaged[i] ^= int(random.randint(1, 256))
        for content in (bytes(damaged), data[:i]):
            with contextlib.suppress(CorruptImageError, ImageRefusedError):
                decode_image(content, "x", 8)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_images_are_limited_by_pixels_and_photographs_pass() -> None:
    assert image_size(header_only(12_000, 9_000)) == (12_000, 9_000)
    with pytest.raises(ImageRefusedError, match=r"is 12000 x 12000 pixels, expected at most 134,"):
        decode_image(header_only(12_000, 12_000), "x.png", None)


def test_decode_image_reads_a_photograph_of_more_than_16_megabytes() -> None:
    noise = np.random.RandomState(0).randint(0, 256, (2500, 2500, 3), np.uint8)
    data = encoded(noise, "bmp")
    assert len(data) > 2**24
    np.testing.assert_array_equal(decode_image(data, "x.bmp", None), noise)
