"""Images with captions: a folder or zip in Hugging Face's layout, or a text beside each image.

    metadata.jsonl beside the images    {"file_name": "cat/1.png", "text": "a tabby"}, one a line
    a text for each image               1.png, 1.txt; 2.jpg, 2.txt

The caption may also be called "caption" or "prompt". Images are PNG or JPEG of any size: they are
resized until the shorter side fits, and their middle is cut out. `dmd2 cache` reads them.

Source of the first layout: Hugging Face datasets, "Create an image dataset" (ImageFolder).
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from dmd2_jax.config.refused import Missing, Refused
from dmd2_jax.data.reading.decode import (
    MAX_BYTES,
    CorruptImageError,
    ImageRefusedError,
    decode_image,
    with_channels,
)
from dmd2_jax.data.reading.folder import FileTree, Folder
from dmd2_jax.data.reading.source import listed
from dmd2_jax.data.reading.text_lines import json_lines, text_of, utf8
from dmd2_jax.data.reading.zip_file import ZipFolder
from dmd2_jax.typing import Shaped

__all__ = ["CaptionedImages", "Picture", "crop_to", "open_captions"]

METADATA = "metadata.jsonl"
_IMAGES = (".png", ".jpg", ".jpeg")
_MAX_TEXT = 2**28  # bytes of a metadata.jsonl: a million long captions
_MAX_CAPTION = 2**16


class Picture(NamedTuple):
    """One image, made square.

    Attributes:
      pixels: uint8 [side, side, 3].
      original: height and width of the file's image.
      corner: top and left of the part that was kept, in pixels after resizing.
    """

    pixels: Shaped[np.ndarray, "side side 3"]
    original: tuple[int, int]
    corner: tuple[int, int]


class CaptionedImages(NamedTuple):
    """Images and their captions, sorted by name.

    Attributes:
      tree: where the files are.
      names: of the images in it.
      captions: one each, not empty.
    """

    tree: FileTree
    names: tuple[str, ...]
    captions: tuple[str, ...]

    def describe(self, index: int) -> str:
        """Return the file of an image, for messages."""
        return f"{self.tree.place}/{self.names[index]}"

    def picture(self, index: int, side: int, *, enlarge: bool = False) -> Picture:
        """Read one image; from any thread.

        Args:
          index: its number.
          side: height and width to give it, in pixels.
          enlarge: whether a smaller image may be made larger.

        Raises:
          CorruptImageError: if it cannot be decoded.
          ImageRefusedError: if it is smaller, of 16 bits a channel, transparent or CMYK.
        """
        name = self.describe(index)
        try:
            data = self.tree.read(self.names[index], MAX_BYTES)
        except OSError as error:
            raise CorruptImageError(f"cannot be read: {error}") from error
        image = with_channels(decode_image(data, name, None), 3, name)
        height, width = image.shape[:2]
        if min(height, width) < side and not enlarge:
            raise ImageRefusedError(
                f"{name} is {height} pixels high and {width} wide, expected at least {side} each; "
                "remove it, or allow images to be enlarged."
            )
        return crop_to(image, side)


def crop_to(image: Shaped[np.ndarray, "h w 3"], side: int) -> Picture:
    """Resize an image until its shorter side fits, by Lanczos' filter, and keep the middle.

    Args:
      image: uint8 [h, w, 3]; one that is square and of this size stays as it is.
      side: height and width of the result.
    """
    from PIL import Image

    height, width = image.shape[:2]
    scale = side / min(height, width)
    tall, wide = (max(side, round(length * scale)) for length in (height, width))
    if (tall, wide) != (height, width):
        resized = Image.fromarray(image).resize((wide, tall), Image.Resampling.LANCZOS)
        image = np.asarray(resized)
    top, left = (tall - side) // 2, (wide - side) // 2
    return Picture(image[top : top + side, left : left + side], (height, width), (top, left))


def open_captions(path: str | Path) -> CaptionedImages:
    """Open a folder or zip of images with captions; no image is read yet.

    Args:
      path: the folder or the .zip.

    Raises:
      FileNotFoundError: if there is nothing at `path`.
      ValueError: if an image lacks its caption, a caption its image, a line or text is damaged, or
        there are no images; the message names the file.
    """
    root = Path(path).expanduser()
    if not root.exists():
        raise Missing(
            f"{path} does not exist, expected a folder or zip of images with captions; mind the "
            "working directory."
        )
    tree = Folder(root, _wanted) if root.is_dir() else ZipFolder(root, _wanted, _MAX_TEXT)
    images = [name for name in tree.names if name.lower().endswith(_IMAGES)]
    if not images:
        raise Refused(
            f"{path} has no images, expected files ending in {', '.join(_IMAGES)}; check the path."
        )
    tables = [name for name in tree.names if name.rpartition("/")[-1] == METADATA]
    texts = _from_tables(tree, tables) if tables else _from_sidecars(tree, images)
    there = set(images)
    absent = sorted(texts.keys() - there)
    if absent:
        raise Refused(
            f"{path} has captions of {len(absent)} images that are not there ({listed(absent)}), "
            "expected an image for each; the copy may be incomplete."
        )
    lacking = [name for name in images if not texts.get(name)]
    if lacking:
        where = f"an entry in {METADATA}" if tables else "a .txt beside each"
        raise Refused(
            f"{path} has {len(lacking)} images without a caption ({listed(lacking)}), expected "
            f"{where} that is not empty; add it or remove them."
        )
    return CaptionedImages(tree, tuple(images), tuple(texts[name] for name in images))


def _wanted(name: str) -> bool:
    lower = name.lower()
    return lower.endswith((*_IMAGES, ".txt")) or name.rpartition("/")[-1] == METADATA


def _from_tables(tree: FileTree, tables: list[str]) -> dict[str, str]:
    """Read captions by image name from every metadata.jsonl, whose names start at its folder."""
    texts: dict[str, str] = {}
    for table in tables:
        folder = table[: -len(METADATA)]
        content = _read(tree, table, _MAX_TEXT)
        for where, entry in json_lines(content, f"{tree.place}/{table}"):
            file = entry.get("file_name")
            if not isinstance(file, str):
                raise Refused(
                    f"{where} has file_name = {file!r:.60}, expected the image's name below the "
                    "folder; correct it."
                )
            if folder + file in texts:
                raise Refused(
                    f"{where} names {file!r} a second time, expected one caption an image; remove "
                    "one."
                )
            texts[folder + file] = text_of(entry, where)
    return texts


def _from_sidecars(tree: FileTree, images: list[str]) -> dict[str, str]:
    """Read captions by image name from the .txt of the same name."""
    stems = {name.rpartition(".")[0]: name for name in images}
    texts = {}
    for name in tree.names:
        if name.lower().endswith(".txt"):
            text = utf8(_read(tree, name, _MAX_CAPTION), f"{tree.place}/{name}")
            # Of a text without an image the text's own name is reported.
            texts[stems.get(name[: -len(".txt")], name)] = " ".join(text.split())
    return texts


def _read(tree: FileTree, name: str, limit: int) -> bytes:
    try:
        return tree.read(name, limit)
    except (CorruptImageError, OSError) as error:
        raise Refused(
            f"{tree.place}/{name} cannot be read ({error}), expected a text; copy it again."
        ) from error
