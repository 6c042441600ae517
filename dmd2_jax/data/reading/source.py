"""A source whose images are decoded when they are asked for, by several threads."""

import functools
import itertools
import logging
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from dmd2_jax.config.refused import Refused
from dmd2_jax.config.sizes import Size, sides
from dmd2_jax.data.reading.classes import Listing
from dmd2_jax.data.reading.contract import Batch, Options, SourceDefaults
from dmd2_jax.data.reading.decode import CorruptImageError, with_channels
from dmd2_jax.data.reading.files import Files
from dmd2_jax.typing import Int, Shaped

_LOG = logging.getLogger(__name__)
_PROBES = 32
_NAMED = 10

Read = Callable[[int], tuple[Shaped[np.ndarray, "h w c"], int]]
"""number -> (uint8 image, class); raises CorruptImageError; safe to call from several threads."""


class CorruptDataError(Refused):
    """More images are corrupt than the config allows."""


class DecodedSource(SourceDefaults):
    """Images that are read one by one; implements `Source`.

    An image that cannot be decoded is warned of by name, counted once, and replaced by the next
    one that can, with that one's label: what stands at a position remains a function of the
    files alone. Beyond `max_corrupt` such images reading stops.

    Attributes:
      name, resolution, channels, num_classes, class_names, formerly: see `Source`.
      corrupt: number of each image found corrupt -> its name and what is wrong with it.
    """

    def __init__(
        self,
        name: str,
        count: int,
        read: Read,
        *,
        describe: Callable[[int], str],
        resolution: Size,
        num_classes: int,
        options: Options,
        channels: int | None = None,
        read_many: Callable[[Int[np.ndarray, " n"]], Batch] | None = None,
        class_names: Sequence[str] | None = None,
        formerly: str = "",
        listing: Callable[[], Listing] | None = None,
        files: Callable[[], Files | None] | None = None,
        labels: Callable[[], Int[np.ndarray, " n"]] | None = None,
        size_of: Callable[[int], tuple[int, int]] | None = None,
    ) -> None:
        """Make the source, looking at some images spread over it.

        Args:
          name: the source, for messages.
          count: how many images there are.
          read: reads one.
          describe: number -> the file's name, for messages.
          resolution: of every image that `read` returns.
          num_classes: how many classes there are.
          options: max_corrupt and workers count.
          channels: 1 or 3; None: 3 if any of the images looked at has colour.
          read_many: reads many sound ones at once, faster; may raise CorruptImageError.
          class_names, formerly: see `Source`.
          listing: makes the member of that name, when it is asked for, but for its `sizes` and
            `contents`.
          files: makes the member of that name, when it is asked for.
          labels: makes `known_labels`, when they are asked for.
          size_of: number -> width and height before resizing; raises as `read`. None: as after.

        Raises:
          ValueError: if there are no images, or one that was looked at is refused.
        """
        if count == 0:
            raise Refused(
                f"{name} has no images, expected at least one; check the path and the split."
            )
        self.name, self.resolution, self.num_classes = name, resolution, num_classes
        self.corrupt: dict[int, str] = {}
        self._count, self._read, self._describe = count, read, describe
        self._read_many = read_many
        self.class_names = None if class_names is None else tuple(class_names)
        self.formerly, self._list, self._labels = formerly, listing, labels
        self._files = files
        self._size_of = size_of
        self._max_corrupt = options.max_corrupt
        self._lock = threading.Lock()
        self._workers = options.workers or os.cpu_count() or 1
        self.channels = channels or self._probe()

    def __len__(self) -> int:
        return self._count

    def examples(self, indices: Int[np.ndarray, " n"]) -> Batch:
        """Return the examples of these numbers, in this order.

        Raises:
          CorruptDataError: if too many images are corrupt.
          ImageRefusedError: if an image is not as the config says.
        """
        if self._read_many is not None:
            try:
                return self._read_many(indices)
            except CorruptImageError:
                pass  # One by one, to find which.
        n = len(indices)
        images = np.empty((n, *sides(self.resolution), self.channels), np.uint8)
        labels = np.empty(n, np.int32)

        def fill(begin: int, end: int) -> None:
            for k in range(begin, end):
                i, image, label = self._readable(int(indices[k]))
                images[k] = with_channels(image, self.channels, self._describe(i))
                labels[k] = label

        # Small parts, so that a slow one at the end keeps no thread waiting for long.
        part = max(1, min(32, -(-n // self._workers)))
        borders = [*range(0, n, part), n]
        if self._workers == 1 or len(borders) <= 2:
            fill(0, n)
        else:
            for _ in self._pool.map(lambda pair: fill(*pair), itertools.pairwise(borders)):
                pass
        return {"image": images, "label": labels}

    def known_labels(self) -> Int[np.ndarray, " n"] | None:
        """Return every image's class without decoding it; see `Source`."""
        return None if self._labels is None else self._labels()

    def describe(self, index: int) -> str:
        """Return the file of an image, for messages."""
        return self._describe(index)

    def sizes(self, indices: Int[np.ndarray, " n"]) -> Int[np.ndarray, "n 2"] | None:
        """Return height and width as the files have them; of a file that is damaged (0, 0)."""
        size_of = self._size_of
        if size_of is None:
            return None

        def size(i: int) -> tuple[int, int]:
            try:
                width, height = size_of(i)
            except CorruptImageError:
                return 0, 0
            return height, width

        return np.array(list(self._pool.map(size, map(int, indices)))).reshape(-1, 2)

    @functools.cached_property
    def listing(self) -> Listing | None:
        """What is listed, without reading an image; None: unknown."""
        listing, files = None if self._list is None else self._list(), self.files
        if listing is None or files is None:
            return listing
        return listing._replace(sizes=files.by_size, contents=files.by_content)

    @functools.cached_property
    def files(self) -> Files | None:  # type: ignore[override]
        """The files that the examples come from; None: unknown."""
        return None if self._files is None else self._files()

    @functools.cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._workers, thread_name_prefix=f"read {self.name}")

    def _readable(self, index: int) -> tuple[int, Shaped[np.ndarray, "h w c"], int]:
        """Read the first sound example from `index` on: (its number, image, label)."""
        for step in range(self._count):
            i = (index + step) % self._count
            if i in self.corrupt:
                continue
            try:
                return i, *self._read(i)
            except CorruptImageError as error:
                self._note(i, str(error))
        raise CorruptDataError(f"{self.name}: none of {self._count} images can be decoded.")

    def _note(self, index: int, reason: str) -> None:
        with self._lock:
            if index in self.corrupt:
                return
            self.corrupt[index] = f"{self._describe(index)} ({reason})"
            found = list(self.corrupt.values())
        _LOG.warning("corrupt image, the next one takes its place: %s", found[-1])
        if len(found) > self._max_corrupt:
            raise CorruptDataError(
                f"{self.name}: {len(found)} images cannot be decoded, expected at most "
                f"config.data.max_corrupt={self._max_corrupt}: {listed(found)}; replace or remove "
                "them (`dmd2 data` lists them all), or raise config.data.max_corrupt."
            )

    def _probe(self) -> int:
        """Return the most channels among some images, which are checked on the way."""
        numbers = np.unique(np.linspace(0, self._count - 1, _PROBES).astype(np.int64))
        return max(self._readable(int(i))[1].shape[-1] for i in numbers)


def listed(names: Sequence[str]) -> str:
    """Join names, the first few of many."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
