"""Reference statistics in files: EDM's npz of mu and sigma, with a note of what made them.

    mu         [d] float64
    sigma      [d, d] float64, the unbiased covariance
    extractor  the network and its way of preparing images, "inception_v3/edm"; ours only
    count      how many images; ours only
    resolution their height and width in pixels, before the network's own resizing; ours only
    channels   1 for grey, 3 for colour; ours only

EDM's own files have the first two entries; they were made by "inception_v3/edm". EDM's programs
look at these two alone, so that they read ours.
"""

import logging
import os
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from dmd2_jax.config.refused import Refused
from dmd2_jax.config.sizes import Size, sides, size_of
from dmd2_jax.metrics.features.extractor import Extractor, FeatureSet
from dmd2_jax.metrics.features.images import Sized
from dmd2_jax.metrics.features.moments import Moments
from dmd2_jax.runtime.fetched import fetched
from dmd2_jax.runtime.seal import check_reached
from dmd2_jax.runtime.whole_file import whole_file

__all__ = ["ReferenceStatistics", "read_reference", "read_statistics", "write_statistics"]

_LOG = logging.getLogger(__name__)
_UNNAMED = "inception_v3/edm"
_MOST_BYTES = 2**31  # of an entry: sigma of 16,384 dimensions
# All that reading a damaged .npz raises; a lying header asks for more memory than there is.
_DAMAGE = (OSError, ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error)
_ROUNDING = 1e-6  # of the largest entry or eigenvalue; float32 sums leave less
_EXPECTED = "expected EDM's npz with mu [d] and sigma [d, d]"
_NOTES = {"extractor": "U", "count": "iu", "resolution": "iu", "channels": "iu"}
"""What a file may say beside the statistics, and the kinds of NumPy's types that it may have."""


@dataclass(frozen=True)
class ReferenceStatistics:
    """Moments of reference images, from a file; see `moments.Moments`.

    Attributes:
      mean: [d] float64.
      covariance: [d, d] float64, unbiased.
      count: images; None if the file does not say.
      extractor: what made them; None if the file does not say.
      resolution: of the images, in pixels; None if the file does not say.
      channels: of the images; None if the file does not say.
    """

    mean: Float64[np.ndarray, " d"]
    covariance: Float64[np.ndarray, "d d"]
    count: int | None = None
    extractor: str | None = None
    resolution: Size | None = None
    channels: int | None = None

    @property
    def dimension(self) -> int:
        """d, features a vector."""
        return len(self.mean)


def write_statistics(
    statistics: Moments, extractor: str, path: str | os.PathLike, images: Sized | None = None
) -> None:
    """Write statistics as EDM's programs read them, whole or not at all.

    Args:
      statistics: of the reference images.
      extractor: the name of the `Extractor` that made them.
      path: the .npz file; replaced if it exists.
      images: the reference images, whose resolution and channels are noted; None: they are not,
        and samples of any size will pass.

    Raises:
      ValueError: if there are too few images for a covariance, or the name does not end in .npz.
      OSError: if the disk refuses.
    """
    if not str(path).endswith(".npz"):  # NumPy would add the suffix silently
        raise Refused(f"statistics file {str(path)!r}, expected a name ending in .npz; add it.")
    entries: dict[str, Any] = {
        "mu": statistics.mean,
        "sigma": statistics.covariance,
        "extractor": np.array(extractor),
    }
    if statistics.count is not None:
        entries["count"] = np.array(statistics.count)
    if images is not None:
        entries["resolution"] = np.array(images.resolution)
        entries["channels"] = np.array(images.channels)
    with whole_file(path) as partial:
        np.savez(partial, **entries)


def read_reference(
    path: str | os.PathLike, extractor: Extractor, samples: Iterable[Sized] = ()
) -> FeatureSet:
    """Read statistics as the real side of metrics that need no more of it.

    Args:
      path: the .npz file, ours or EDM's.
      extractor: of the generated side.
      samples: the generated sets, whose resolution and channels must be those that the file
        notes; a file that notes none, as EDM's own, is taken.

    Returns:
      A set with statistics alone.

    Raises:
      ValueError: see `read_statistics`; and if a set has images of another resolution or other
        channels.
    """
    statistics = read_statistics(path, extractor.name, extractor.dimension)
    for images in samples:
        _check_comparable(path, statistics, images)
    return FeatureSet(extractor.name, statistics)


def _check_comparable(
    path: str | os.PathLike, statistics: ReferenceStatistics, images: Sized
) -> None:
    """Refuse samples of another size, which a network that resizes would compare all the same."""
    for what in ("resolution", "channels"):
        noted, got = getattr(statistics, what), getattr(images, what)
        if noted not in (None, got):
            raise Refused(
                f"{images.name} has images of {what} {got}, expected {noted} as the images that "
                f"statistics file {str(path)!r} was made of; use statistics of images of that "
                "size and colour, or prepare the samples so."
            )


def read_statistics(path: str | os.PathLike, extractor: str, dimension: int) -> ReferenceStatistics:
    """Read statistics that can be compared with those of an extractor, or refuse them.

    Args:
      path: the .npz file, ours or EDM's.
      extractor: the name of the `Extractor` of the other side.
      dimension: its d.

    Returns:
      The statistics. A file that does not say what made it is taken if its dimension fits, with a
      warning unless `extractor` is "inception_v3/edm".

    Raises:
      ValueError: if the file is missing, damaged or hostile, no covariance, or of another
        extractor or dimension.
    """
    try:
        entries = _read(path, extractor, dimension)
    except _OtherDimension as error:
        raise Refused(f"statistics file {str(path)!r} {error}") from None
    except _DAMAGE as error:
        check_reached(error, path)
        raise Refused(
            f"statistics file {str(path)!r} cannot be read ({error}), {_EXPECTED}; check the path "
            "or copy the file again."
        ) from error
    made_by = str(entries["extractor"]) if "extractor" in entries else None
    if made_by not in (None, extractor):
        raise Refused(
            f"statistics file {str(path)!r} was made by extractor {made_by!r}, expected "
            f"{extractor!r}; figures of two extractors do not compare: use the one of the file, "
            "or make the statistics again."
        )
    mean, covariance = (entries[key].astype(np.float64) for key in ("mu", "sigma"))
    _check_covariance(path, mean, covariance)
    if made_by is None and extractor != _UNNAMED:
        _LOG.warning(
            "%s does not say which extractor made it; EDM's files are of %s, and the other side "
            "is of %s.", path, _UNNAMED, extractor,
        )  # fmt: skip
    count, channels = (
        int(entries[key]) if key in entries else None for key in ("count", "channels")
    )
    noted = entries["resolution"].tolist() if "resolution" in entries else None
    resolution = None if noted is None else size_of(*sides(noted))
    return ReferenceStatistics(mean, covariance, count, made_by, resolution, channels)


class _OtherDimension(Refused):
    """Statistics of vectors of another length."""


def _check_covariance(path: str | os.PathLike, mean: np.ndarray, covariance: np.ndarray) -> None:
    """Refuse what no covariance is: a distance to it would be a number all the same."""
    scale = np.abs(covariance).max()
    finite = np.isfinite(mean).all() and np.isfinite(covariance).all()
    if not finite or np.abs(covariance - covariance.T).max() > _ROUNDING * scale:
        fault = "holds NaN, infinity or a sigma that is not symmetric"
    else:
        least, most = np.linalg.eigvalsh(covariance)[[0, -1]]
        if least >= -_ROUNDING * max(most, 0.0):
            return
        fault = f"holds a sigma with the negative variance {least:.4g} (the largest is {most:.4g})"
    raise Refused(f"statistics file {str(path)!r} {fault}, {_EXPECTED}; make it again.")


def _check_shapes(path: Path, extractor: str, dimension: int) -> None:
    """Look at the headers before numbers are read: a small file may unfold to gigabytes."""
    shapes = {}
    with zipfile.ZipFile(path) as archive:
        for key in ("mu", "sigma"):
            if f"{key}.npy" in archive.namelist():
                with archive.open(f"{key}.npy") as file:
                    version = np.lib.format.read_magic(file)
                    read = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
                    shapes[key] = read(file)[0]
    expected = {"mu": (dimension,), "sigma": (dimension, dimension)}
    if shapes.keys() == expected.keys() and shapes != expected:
        raise _OtherDimension(
            f"has mu {shapes['mu']} and sigma {shapes['sigma']}, expected [{dimension}] and "
            f"[{dimension}, {dimension}] for {extractor}; use statistics of the same extractor."
        )


def _read(path: str | os.PathLike, extractor: str, dimension: int) -> dict[str, np.ndarray]:
    """Return the entries that we know, of the kinds they should be."""
    path = fetched(path)
    with zipfile.ZipFile(path) as archive:
        known = {f"{name}.npy" for name in ("mu", "sigma", *_NOTES)}  # there may be images too
        sizes = [info.file_size for info in archive.infolist() if info.filename in known]
    if max(sizes, default=0) > _MOST_BYTES:
        raise Refused(f"an entry of {max(sizes):,} bytes")
    with np.load(path, allow_pickle=False) as archive:
        missing = {"mu", "sigma"} - set(archive.files)
        if missing:
            raise Refused(f"no {' and no '.join(sorted(missing))} among {archive.files[:10]}")
        entries = {}
        for key, kinds in _NOTES.items():
            if key in archive.files:
                entries[key] = archive[key]
                if entries[key].shape != () or entries[key].dtype.kind not in kinds:
                    raise Refused(f"an entry {key} of another kind")
        if str(entries.get("extractor", extractor)) == extractor:
            _check_shapes(path, extractor, dimension)
            entries |= {key: archive[key] for key in ("mu", "sigma")}
        else:
            return entries  # whose numbers nobody looks at
    for key in ("mu", "sigma"):
        if entries[key].dtype.kind != "f":
            raise Refused(f"{key} of type {entries[key].dtype}")
    return entries
