"""Look at a data source end to end, or write it as array_record: `dmd2 data`."""

import contextlib
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
from ml_collections import ConfigDict

from dmd2_jax import data
from dmd2_jax.config.refused import Refused
from dmd2_jax.config.sizes import sides
from dmd2_jax.data import Batch, Source, array_record, latents
from dmd2_jax.data.reading.classes import shown
from dmd2_jax.data.reading.contract import NoSplitError
from dmd2_jax.pictures.grids import class_headings, image_grid
from dmd2_jax.recipe.tables import aligned
from dmd2_jax.run.folder import check_free_space, write_json
from dmd2_jax.run.metrics import Progress
from dmd2_jax.runtime.places import make_folder, path_of
from dmd2_jax.runtime.whole_file import whole_folder
from dmd2_jax.typing import Int

__all__ = ["check_source", "histogram", "list_sources", "write_shards"]

_CACHE = "latents"  # a source without images
_CHUNK = 256
_GRID = (8, 8)  # rows, columns
_BAR = 40
_LINES = 20  # of a histogram; more classes are shown in groups
_LISTED = 50
_NAME = 30  # letters of a class's name


class Report(NamedTuple):
    """What reading a split from end to end found.

    Attributes:
      name: of the split.
      counts: [num_classes] images of each class, sound ones only.
      corrupt: the names of the images that cannot be decoded.
      first: [m, h, w, c] the first images.
      labels: [m] their classes.
    """

    name: str
    counts: Int[np.ndarray, " num_classes"]
    corrupt: list[str]
    first: np.ndarray
    labels: Int[np.ndarray, " m"]


def list_sources() -> str:
    """Return every source's name and what it is, a line each."""
    own = "A module of your own with load(path, split, resolution, options): docs/data.md."
    rows = data.summaries() | {"my_lab.shapes": own}
    width = max(map(len, rows))
    lines = [f"  {name.ljust(width)}  {summary}" for name, summary in rows.items()]
    return "\n".join(["config.data.name is one of", *lines])


def check_source(config: ConfigDict, out: str | Path, *, classes: bool = False) -> bool:
    """Read every image of each split; print counts, shapes, a histogram and what is corrupt.

    Of a cache of latents, compare every digest and print what it holds.

    Args:
      config: `config.data` counts.
      out: the PNG file for the first images of the train split.
      classes: whether the number and the name of every class are printed too.

    Returns:
      Whether there are images to draw, and they were.

    Raises:
      Refused: if the source is refused, or more images are corrupt than `max_corrupt`.
      FileNotFoundError: if files are missing.
    """
    if config.data.name == _CACHE:
        print(latents.describe(cast(latents.Latents, _open(config, "all"))), flush=True)
        return False
    sources = _open_splits(config)
    reports = [_read_through(source, split) for split, source in sources.items()]
    first, names = reports[0].first, sources["train"].class_names
    headings = class_headings(reports[0].labels, _GRID[1], names)
    image_grid(first, out, rows=-(-len(first) // _GRID[1]), cols=_GRID[1], **headings)
    print(_describe(sources["train"], reports), flush=True)
    if classes:
        print("\n".join(["", "classes:", *_class_lines(names)]), flush=True)
    corrupt = [name for report in reports for name in report.corrupt]
    worst = max(len(report.corrupt) for report in reports)
    allowed = config.data.get("max_corrupt", data.Options.max_corrupt)
    if worst > allowed:
        raise Refused(
            f"{len(corrupt)} images cannot be decoded, expected at most "
            f"config.data.max_corrupt={allowed} in a split; replace or remove them, or raise it."
        )
    return True


def write_shards(config: ConfigDict, folder: str | Path, *, encoding: str = "raw") -> str:
    """Write the splits as array_record, for the source of that name.

    The same images give the same bytes. The folder appears when it is whole: it is written under
    another name beside its place first. Images that cannot be decoded are left out.

    Args:
      config: `config.data` counts.
      folder: where to; must not exist, or be empty.
      encoding: "raw" or "png".

    Returns:
      What was written.

    Raises:
      Refused: if the source is refused, or the folder is not empty.
      OSError: if the disk is full.
    """
    if config.data.name == _CACHE:
        raise Refused(
            "config.data.name='latents' has no images, expected a source of images; a cache of "
            "latents is written by `dmd2 cache` and copied by copying its folder."
        )
    target = path_of(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise Refused(
            f"--write={folder} exists and is not empty, expected a new folder; nothing is ever "
            "written over: choose another."
        )
    sources = _open_splits(config)
    first = sources["train"]
    size = sum(map(len, sources.values())) * math.prod(sides(first.resolution)) * first.channels
    make_folder(target.parent)
    check_free_space(target.parent, size, "the shards")
    splits, left_out = {}, 0
    with whole_folder(target) as partial:
        for split, source in sources.items():
            with array_record.ShardWriter(partial, split, encoding) as writer:
                for batch in _sound(source, f"writing {split}"):
                    for image, label in zip(batch["image"], batch["label"], strict=True):
                        writer.add(image, int(label))
            splits[split] = writer.files
            left_out += len(source.corrupt)
        write_json(partial / array_record.INFO, _info(sources, encoding, splits))
        total = sum(file.stat().st_size for file in partial.iterdir())
    counts = {split: sum(count for _, count in files) for split, files in splits.items()}
    corrupt = f" ({left_out} corrupt ones left out)" if left_out else ""
    return (
        f"{target}: {counts['train']:,} train and {counts.get('test', 0):,} test images{corrupt}, "
        f"{total / 1e6:,.1f} MB\n"
        f"use it with: --config.data.name=array_record --config.data.path={target}"
    )


def _open_splits(config: ConfigDict) -> dict[str, Source]:
    """Open train, and test where there is one."""
    sources = {"train": _open(config, "train")}
    with contextlib.suppress(NoSplitError):
        sources["test"] = _open(config, "test")
    if (channels := sources["train"].channels) not in (1, 3):
        raise Refused(
            f"config.data.name={config.data.name!r} has latents of {channels} channels, expected a "
            "source of images, which are looked at and written here; a training reads latents."
        )
    return sources


def _open(config: ConfigDict, split: str) -> Source:
    """Open a split that puts up with any number of corrupt images."""
    options = config.data.copy_and_resolve_references().unlock()
    options.max_corrupt = sys.maxsize
    return data.load(options, split, config.model.resolution)


def _sound(source: Source, what: str) -> Iterator[Batch]:
    """Yield a source's images in order, without the corrupt ones, showing progress."""
    corrupt = source.corrupt
    with Progress(total=len(source), description=what) as progress:
        for begin in range(0, len(source), _CHUNK):
            numbers = np.arange(begin, min(begin + _CHUNK, len(source)))
            batch = source.examples(numbers)
            keep = np.array([int(i) not in corrupt for i in numbers])
            yield {name: array[keep] for name, array in batch.items()}
            progress.update(int(numbers[-1]) + 1)


def _read_through(source: Source, split: str) -> Report:
    counts = np.zeros(source.num_classes, np.int64)
    first: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    wanted = _GRID[0] * _GRID[1]
    for batch in _sound(source, f"reading {split}"):
        counts += np.bincount(batch["label"], minlength=source.num_classes)
        if sum(len(images) for images in first) < wanted:
            first.append(batch["image"])
            labels.append(batch["label"])
    corrupt = [name for _, name in sorted(source.corrupt.items())]
    shown = (np.concatenate(parts)[:wanted] for parts in (first, labels))
    return Report(split, counts, corrupt, *shown)


def _describe(source: Source, reports: list[Report]) -> str:
    height, width = sides(source.resolution)
    rows: list[tuple[object, ...]] = [("split", "images", "classes seen", "corrupt")]
    for report in reports:
        seen = int((report.counts > 0).sum())
        rows.append((report.name, f"{report.counts.sum():,}", seen, len(report.corrupt)))
    lines = [
        f"{source.name}: uint8 [{height}, {width}, {source.channels}], "
        f"{source.num_classes} classes",
        "",
        aligned(rows),
        "",
        "images of each class, train:",
        histogram(reports[0].counts, source.class_names),
    ]
    if source.formerly:
        lines += ["", f"earlier releases numbered the classes {source.formerly}"]
    corrupt = [name for report in reports for name in report.corrupt]
    if corrupt:
        lines += ["", "cannot be decoded:", *(f"  {name}" for name in corrupt[:_LISTED])]
    if len(corrupt) > _LISTED:
        lines.append(f"  and {len(corrupt) - _LISTED} more")
    return "\n".join(lines)


def histogram(counts: Int[np.ndarray, " n"], names: Sequence[str] | None = None) -> str:
    """Draw counts as lines of text, the largest as a full bar.

    Args:
      counts: [n] of each class; many classes are drawn in groups, with the mean of each group.
      names: of the classes; None: they have none.

    Returns:
      Lines of class (or first and last class), name, count and bar.
    """
    group = -(-len(counts) // _LINES)
    rows, means = [], []
    for begin in range(0, len(counts), group):
        part = counts[begin : begin + group]
        last = begin + len(part) - 1
        means.append(float(part.mean()))
        number = f"{begin}" if last == begin else f"{begin}-{last}"
        rows.append([number, f"{part.mean():,.6g}", _range_name(names, begin, last)])
    most = max(*means, 1.0)
    width = [max(len(row[i]) for row in rows) for i in range(3)]
    between = "  " if names is not None else ""
    return "\n".join(
        f"  {number.rjust(width[0])}  {name.ljust(width[2])}{between}{count.rjust(width[1])}  "
        f"{'#' * round(_BAR * mean / most)}"
        for (number, count, name), mean in zip(rows, means, strict=True)
    )


def _class_lines(names: Sequence[str] | None) -> list[str]:
    if names is None:
        return ["  the data have no names of classes, numbers alone"]
    return [f"  {number}  {shown(name)}" for number, name in enumerate(names)]


def _range_name(names: Sequence[str] | None, first: int, last: int) -> str:
    """Return the name of a class, or those of the first and the last of several."""
    if names is None:
        return ""
    ends = dict.fromkeys((names[first], names[last]))
    return " .. ".join(shown(name, _NAME) for name in ends)


def _info(
    sources: dict[str, Source], encoding: str, splits: dict[str, list[tuple[str, int]]]
) -> dict:
    source = sources["train"]
    listings = {split: it.listing for split, it in sources.items()}
    return {
        "format": array_record.FORMAT,
        "name": source.name,
        "resolution": source.resolution,
        "channels": source.channels,
        "num_classes": source.num_classes,
        "class_names": source.class_names,
        "listings": {split: it.digest for split, it in listings.items() if it is not None},
        "encoding": encoding,
        "splits": splits,
    }
