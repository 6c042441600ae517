"""Reference statistics in files: EDM's npz of mu and sigma, with a note of what made them.

    mu         [d] float64
    sigma      [d, d] float64, the unbiased covariance
    extractor  the network and its way of preparing images, "inception_v3/edm"; ours only
    count      how many images; ours only

EDM's own files have the first two entries; they were made by "inception_v3/edm".
"""

import logging
import os
import zipfile
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from dmd2_jax.evaluation.extractor import Extractor, FeatureSet
from dmd2_jax.evaluation.fid import Moments
from dmd2_jax.runtime.whole_file import whole_file

__all__ = ["ReferenceStatistics", "read_reference", "read_statistics", "write_statistics"]

_LOG = logging.getLogger(__name__)
_UNNAMED = "inception_v3/edm"
_MOST_BYTES = 2**31  # of an entry: sigma of 16,384 dimensions
# All that reading a damaged .npz raises; a lying header asks for more memory than there is.
_DAMAGE = (OSError, ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error)
_EXPECTED = "expected EDM's npz with mu [d] and sigma [d, d]"


@dataclass(frozen=True)
class ReferenceStatistics:
    """Moments of reference images, from a file; see `fid.Moments`.

    Attributes:
      mean: [d] float64.
      covariance: [d, d] float64, unbiased.
      count: images; None if the file does not say.
      extractor: what made them; None if the file does not say.
    """

    mean: Float64[np.ndarray, " d"]
    covariance: Float64[np.ndarray, "d d"]
    count: int | None = None
    extractor: str | None = None

    @property
    def dimension(self) -> int:
        """d, features a vector."""
        return len(self.mean)


def write_statistics(statistics: Moments, extractor: str, path: str | os.PathLike) -> None:
    """Write statistics as EDM's programs read them, whole or not at all.

    Args:
      statistics: of the reference images.
      extractor: the name of the `Extractor` that made them.
      path: the .npz file; replaced if it exists.

    Raises:
      ValueError: if there are too few images for a covariance, or the name does not end in .npz.
      OSError: if the disk refuses.
    """
    if not str(path).endswith(".npz"):  # NumPy would add the suffix silently
        raise ValueError(f"statistics file {str(path)!r}, expected a name ending in .npz; add it.")
    entries: dict[str, Any] = {
        "mu": statistics.mean,
        "sigma": statistics.covariance,
        "extractor": np.array(extractor),
    }
    if statistics.count is not None:
        entries["count"] = np.array(statistics.count)
    with whole_file(path) as partial:
        np.savez(partial, **entries)


def read_reference(path: str | os.PathLike, extractor: Extractor) -> FeatureSet:
    """Read statistics as the real side of metrics that need no more of it.

    Args:
      path: the .npz file, ours or EDM's.
      extractor: of the generated side.

    Returns:
      A set with statistics alone.

    Raises:
      ValueError: see `read_statistics`.
    """
    statistics = read_statistics(path, extractor.name, extractor.dimension)
    return FeatureSet(extractor.name, statistics)


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
        entries = _read(path)
    except _DAMAGE as error:
        raise ValueError(
            f"statistics file {str(path)!r} cannot be read ({error}), {_EXPECTED}; check the path "
            "or copy the file again."
        ) from error
    made_by = str(entries["extractor"]) if "extractor" in entries else None
    if made_by not in (None, extractor):
        raise ValueError(
            f"statistics file {str(path)!r} was made by extractor {made_by!r}, expected "
            f"{extractor!r}; figures of two extractors do not compare: use the one of the file, "
            "or make the statistics again."
        )
    mean, covariance = (entries[key].astype(np.float64) for key in ("mu", "sigma"))
    if mean.shape != (dimension,) or covariance.shape != (dimension, dimension):
        raise ValueError(
            f"statistics file {str(path)!r} has mu {mean.shape} and sigma {covariance.shape}, "
            f"expected [{dimension}] and [{dimension}, {dimension}] for {extractor}; use "
            "statistics of the same extractor."
        )
    scale = np.abs(covariance).max()
    sound = np.isfinite(mean).all() and np.isfinite(covariance).all()
    if not sound or not np.allclose(covariance, covariance.T, rtol=0, atol=1e-6 * scale):
        raise ValueError(
            f"statistics file {str(path)!r} holds NaN, infinity or a sigma that is not symmetric, "
            f"{_EXPECTED}; make it again."
        )
    if made_by is None and extractor != _UNNAMED:
        _LOG.warning(
            "%s does not say which extractor made it; EDM's files are of %s, and the other side "
            "is of %s.", path, _UNNAMED, extractor,
        )  # fmt: skip
    count = int(entries["count"]) if "count" in entries else None
    return ReferenceStatistics(mean, covariance, count, made_by)


def _read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Return the entries that we know, of the kinds they should be."""
    with zipfile.ZipFile(path) as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist()}
    if max(sizes.values(), default=0) > _MOST_BYTES:
        raise ValueError(f"an entry of {max(sizes.values()):,} bytes")
    with np.load(path, allow_pickle=False) as archive:
        missing = {"mu", "sigma"} - set(archive.files)
        if missing:
            raise ValueError(f"no {' and no '.join(sorted(missing))} among {archive.files[:10]}")
        entries = {key: archive[key] for key in ("mu", "sigma")}
        for key, kinds in (("extractor", "U"), ("count", "iu")):
            if key in archive.files:
                entries[key] = archive[key]
                if entries[key].shape != () or entries[key].dtype.kind not in kinds:
                    raise ValueError(f"an entry {key} of another kind")
    for key in ("mu", "sigma"):
        if entries[key].dtype.kind != "f":
            raise ValueError(f"{key} of type {entries[key].dtype}")
    return entries
