"""Metrics whose type says how parts of a batch, or steps, merge: averages, histograms, norms.

Averages and histograms are summed over all steps between two reports.

A step's other metrics are reported as they are at the last step. These two would be mostly empty
there: a noise-level bin of one small batch holds a handful of samples.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dmd2_jax.typing import Array, Float, Int

__all__ = [
    "HISTOGRAM_LIMIT",
    "Average",
    "Histogram",
    "Norm",
    "Window",
    "average_by_bin",
    "histogram",
    "histogram_edges",
    "sum_leading",
]

HISTOGRAM_LIMIT = 5.0
"""A histogram's bins share [-limit, limit] evenly; the first and the last are open outwards.

It is made for logits: a sigmoid of 5 is 0.993, and beyond there is little left to tell apart.
"""


class Average(NamedTuple):
    """Two sums whose quotient is reported: total / number, nothing where number is 0.

    Attributes:
      total: [...] float32, the sum of the values.
      number: [...] int32, how many values; the shape of `total`.
    """

    total: Float[Array | np.ndarray, "..."]
    number: Int[Array | np.ndarray, "..."]


class Histogram(NamedTuple):
    """How many values fell into each bin: counts [n] int32; for the bins see `histogram_edges`."""

    counts: Int[Array | np.ndarray, " n"]


class Norm(NamedTuple):
    """An L2 norm over the samples of a batch: its parts' squares add up to the whole's."""

    value: Float[Array, "..."]


def average_by_bin(values: Float[Array, " b"], bins: Int[Array, " b"], num_bins: int) -> Average:
    """Sum the values of every bin.

    Args:
      values: [b]; one that is not finite spoils its own bin only.
      bins: [b] in 0..num_bins-1.
      num_bins: n.

    Returns:
      An Average of shape [n].
    """
    # A comparison table, not a scatter: the sum has one order on every device, and a batch that is
    # spread over devices stays where it is.
    here = bins[:, None] == jnp.arange(num_bins)
    total = jnp.sum(jnp.where(here, values[:, None], 0.0), axis=0)
    return Average(total, jnp.sum(here, axis=0, dtype=jnp.int32))


def histogram(values: Float[Array, " b"], num_bins: int = 20) -> Histogram:
    """Count values in `num_bins` equal bins of [-HISTOGRAM_LIMIT, HISTOGRAM_LIMIT].

    Args:
      values: [b]; those beyond the limits count in the outermost bins, NaN nowhere.
      num_bins: n >= 2.

    Returns:
      A Histogram of n counts.
    """
    inner = jnp.asarray(histogram_edges(num_bins)[1:-1], values.dtype)
    above = jnp.sum(values[:, None] >= inner, axis=0, dtype=jnp.int32)
    below = jnp.sum(values < inner[0], dtype=jnp.int32)
    return Histogram(jnp.concatenate([below[None], above[:-1] - above[1:], above[-1:]]))


def histogram_edges(num_bins: int = 20) -> Float[np.ndarray, " n+1"]:
    """Return the edges of a histogram's bins, the outermost standing for -inf and inf."""
    return np.linspace(-HISTOGRAM_LIMIT, HISTOGRAM_LIMIT, num_bins + 1)


def sum_leading(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Sum averages and histograms over their leading axis, leaving other metrics alone.

    Args:
      metrics: as a `lax.scan` stacks them, [k, ...].
    """
    return {
        name: jax.tree.map(lambda x: jnp.sum(x, axis=0, dtype=x.dtype), value)
        if isinstance(value, Average | Histogram)
        else value
        for name, value in metrics.items()
    }


class Window:
    """The sums of a run's averages and histograms since they were last cleared.

    They stay on the device until somebody asks. A checkpoint keeps them (`to_json`), so that the
    first report of a resumed run covers the steps before the interruption too.
    """

    def __init__(self, saved: Mapping[str, Any] | None = None) -> None:
        """Begin empty, or with what `to_json` returned."""
        self._sums: dict[str, Average | Histogram] = {
            name: Histogram(np.asarray(entry["counts"], np.int32))
            if "counts" in entry
            else Average(_from_json(entry["total"]), np.asarray(entry["number"], np.int32))
            for name, entry in (saved or {}).items()
        }

    def add(self, metrics: Mapping[str, Any]) -> None:
        """Add one step's averages and histograms, without waiting for the device."""
        new = {k: v for k, v in metrics.items() if isinstance(v, Average | Histogram)}
        self._sums = _add(self._sums, new) if self._sums.keys() == new.keys() else new

    def report(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Return the last step's metrics, on the host, with the sums in their places."""
        return jax.device_get(dict(metrics) | self._sums)

    def clear(self) -> None:
        """Begin again at zero."""
        self._sums = {}

    def to_json(self) -> dict[str, Any]:
        """Return the sums as plain lists."""
        return {
            name: {field: _to_json(array) for field, array in entry._asdict().items()}
            for name, entry in jax.device_get(self._sums).items()
        }


@jax.jit
def _add(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.add, a, b)


def _to_json(array: np.ndarray) -> Any:
    """Return numbers as (nested) lists; what is not finite as None."""
    if np.ndim(array):
        return [_to_json(entry) for entry in array]
    number = array.item()
    return number if math.isfinite(number) else None


def _from_json(values: Any) -> np.ndarray:
    return np.array(values, object).astype(np.float64).astype(np.float32)
