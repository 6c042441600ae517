"""Images with captions: a folder or zip in Hugging Face's layout, or a text beside each image.

    metadata.jsonl beside the images    {"file_name": "cat/1.png", "text": "a tabby"}, one a line
    metadata.csv, metadata.parquet      the same as columns
    a text for each image               1.png, 1.txt; 2.jpg, 2.caption

The caption may also be called "caption" or "prompt". Images are of any size and of the kinds that
`decode` reads: they are resized until the shorter side fits, and their middle is cut out. `dmd2
cache` reads them.

Source of the first layout: Hugging Face datasets, "Create an image dataset" (ImageFolder).
"""

import csv
import io
import logging
import posixpath
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dmd2_jax.config.refused import Missing, Refused
from dmd2_jax.config.sizes import Size, sides
from dmd2_jax.config.text import decode_text
from dmd2_jax.data.reading.decode import (
    MAX_BYTES,
    CorruptImageError,
    ImageRefusedError,
    image_endings,
    is_image,
    read_image,
    turned_size,
    with_channels,
)
from dmd2_jax.data.reading.folder import (
    FileTree,
    Folder,
    TooLargeError,
    listed_endings,
    warn_of_left_out,
)
from dmd2_jax.data.reading.parquet import read_columns
from dmd2_jax.data.reading.resize import Picture, crop_to
from dmd2_jax.data.reading.source import listed
from dmd2_jax.data.reading.text_lines import KEYS, json_lines, text_key, text_of
from dmd2_jax.data.reading.zip_file import ZipFolder
from dmd2_jax.runtime.fetched import fetched

__all__ = ["CaptionedImages", "open_captions"]

_LOG = logging.getLogger(__name__)

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_SIDECARS = (".txt", ".caption")
_MAX_TEXT = 2**28  # bytes of a table: a million long captions
_MAX_CAPTION = 2**16


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

    def size(self, index: int) -> tuple[int, int]:
        """Return height and width of an image without decoding it; from any thread.

        Raises:
          CorruptImageError, ImageRefusedError: if its header cannot be read, or is refused.
        """
        try:
            return turned_size(self.tree.read(self.names[index], MAX_BYTES))
        except (OSError, TooLargeError) as error:
            raise CorruptImageError(f"cannot be read: {error}") from error

    def picture(self, index: int, size: Size, *, enlarge: bool = False) -> Picture:
        """Read one image; from any thread.

        Args:
          index: its number.
          size: to give it, in pixels.
          enlarge: whether a smaller image may be made larger.

        Raises:
          CorruptImageError: if it cannot be decoded.
          ImageRefusedError: if it is smaller, of 16 bits a channel, transparent or CMYK.
        """
        name = self.describe(index)
        try:
            image = read_image(self.tree, self.names[index], None)
        except OSError as error:
            raise CorruptImageError(f"cannot be read: {error}") from error
        image = with_channels(image, 3, name)
        (height, width), (high, broad) = image.shape[:2], sides(size)
        if (height < high or width < broad) and not enlarge:
            least = f"{high} each" if high == broad else f"{high} high and {broad} wide"
            raise ImageRefusedError(
                f"{name} is {height} pixels high and {width} wide, expected at least {least}; "
                "remove it, or allow images to be enlarged."
            )
        return crop_to(image, size)


def open_captions(path: str | Path) -> CaptionedImages:
    """Open a folder or zip of images with captions; no image is read yet.

    Args:
      path: the folder or the .zip.

    Raises:
      FileNotFoundError: if there is nothing at `path`.
      ValueError: if an image lacks its caption, a caption its image, a line or text is damaged, or
        there are no images; the message names the file.
    """
    root = fetched(path).expanduser()
    if not root.exists():
        raise Missing(
            f"{path} does not exist, expected a folder or zip of images with captions; mind the "
            "working directory."
        )
    limit = max(MAX_BYTES, _MAX_TEXT)
    tree = Folder(root, _wanted) if root.is_dir() else ZipFolder(root, _wanted, limit)
    images = [name for name in tree.names if is_image(name)]
    if not images:
        others = f" (but {listed_endings(tree.others)})" if tree.others else ""
        raise Refused(
            f"{path} has no images{others}, expected files ending in {', '.join(image_endings())};"
            " check the path, or convert them."
        )
    warn_of_left_out(
        tree,
        f"images ({', '.join(image_endings())}) and captions ({', '.join(_SIDECARS + METADATA)})",
    )
    tables = [name for name in tree.names if _is_table(name)]
    texts = _from_tables(tree, tables) if tables else _from_sidecars(tree, images)
    if tables:
        _warn_of_sidecars(tree, images, tables[0])
    there = set(images)
    absent = sorted(texts.keys() - there)
    if absent:
        raise Refused(
            f"{path} has captions of {len(absent)} images that are not there ({listed(absent)}), "
            "expected an image for each; the copy may be incomplete."
        )
    lacking = [name for name in images if not texts.get(name)]
    if lacking:
        where = f"an entry in {tables[0]}" if tables else "a .txt or .caption beside each"
        raise Refused(
            f"{path} has {len(lacking)} images without a caption ({listed(lacking)}), expected "
            f"{where} that is not empty; add it or remove them."
        )
    return CaptionedImages(tree, tuple(images), tuple(texts[name] for name in images))


def _wanted(name: str) -> bool:
    return is_image(name) or name.lower().endswith(_SIDECARS) or _is_table(name)


def _is_table(name: str) -> bool:
    return name.rpartition("/")[-1] in METADATA


def _from_tables(tree: FileTree, tables: list[str]) -> dict[str, str]:
    """Read captions by image name from every table, whose names start at its folder."""
    texts: dict[str, str] = {}
    for table in tables:
        folder = table.rpartition("/")[0]
        for where, entry in _rows(_read(tree, table, _MAX_TEXT), f"{tree.place}/{table}"):
            file = entry.get("file_name")
            if not isinstance(file, str):
                raise Refused(
                    f"{where} has file_name = {file!r:.60}, expected the image's name below the "
                    "folder; correct it."
                )
            # "./1.png", and what Windows writes, name the same image
            name = posixpath.normpath(posixpath.join(folder, file.replace("\\", "/")))
            if name in texts:
                raise Refused(
                    f"{where} names {file!r} a second time, expected one caption an image; remove "
                    "one."
                )
            texts[name] = text_of(entry, where)
    return texts


def _rows(data: bytes, place: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (place and number of the row, its values by name) of a metadata file."""
    if place.endswith(".jsonl"):
        yield from json_lines(data, place)
    elif place.endswith(".csv"):
        yield from _csv_rows(data, place)
    else:
        names = ("file_name", "text")
        columns = read_columns(data, place, lambda all: [_column(all, place), text_key(all, place)])
        for number, row in enumerate(zip(*columns, strict=True), 1):
            yield f"{place} row {number}", dict(zip(names, row, strict=True))


def _column(names: list[str], place: str) -> str:
    if "file_name" not in names:
        raise Refused(
            f"{place} has the columns {names!r:.200}, expected file_name and one of "
            f"{list(KEYS)}; rename one."
        )
    return "file_name"


def _csv_rows(data: bytes, place: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the rows of a table whose first line names its columns, which commas part."""
    reader = csv.reader(io.StringIO(decode_text(data, place, lines=True), newline=""), strict=True)
    try:
        names = next(reader, [])
        _column(names, place)
        for row in reader:
            where = f"{place} line {reader.line_num}"
            if row and len(row) != len(names):
                raise Refused(
                    f"{where} has {len(row)} values, expected {len(names)} ({','.join(names)}); "
                    'put a text with a comma into "quotes".'
                )
            if row:
                yield where, dict(zip(names, row, strict=True))
    except csv.Error as error:
        raise Refused(
            f"{place} line {reader.line_num} is no CSV ({error}), expected values between commas; "
            "correct it."
        ) from error


def _from_sidecars(tree: FileTree, images: list[str]) -> dict[str, str]:
    """Read captions by image name from the .txt or .caption of the same name."""
    stems = {name.rpartition(".")[0]: name for name in images}
    texts: dict[str, str] = {}
    for name in tree.names:
        if name.lower().endswith(_SIDECARS):
            text = decode_text(_read(tree, name, _MAX_CAPTION), f"{tree.place}/{name}")
            # Of a text without an image the text's own name is reported.
            image = stems.get(name.rpartition(".")[0], name)
            if image in texts:
                raise Refused(
                    f"{tree.place}/{name} is a second caption of {image}, expected a .txt or a "
                    ".caption; move those of one ending away."
                )
            texts[image] = " ".join(text.split())
    return texts


def _warn_of_sidecars(tree: FileTree, images: list[str], table: str) -> None:
    stems = {name.rpartition(".")[0] for name in images}
    unread = [
        name
        for name in tree.names
        if name.lower().endswith(_SIDECARS) and name.rpartition(".")[0] in stems
    ]
    if unread:
        _LOG.warning(
            "%s: %d texts beside images are not read (%s), as there is %s.",
            tree.place, len(unread), listed(unread), table,
        )  # fmt: skip


def _read(tree: FileTree, name: str, limit: int) -> bytes:
    try:
        return tree.read(name, limit)
    except (CorruptImageError, OSError) as error:
        raise Refused(
            f"{tree.place}/{name} cannot be read ({error}), expected a text; copy it again."
        ) from error
