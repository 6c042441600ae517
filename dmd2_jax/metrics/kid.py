"""Kernel distance (KID): squared maximum mean discrepancy with a cubic kernel, unbiased."""

import math

import numpy as np

from dmd2_jax.config.refused import Refused
from dmd2_jax.metrics.contract.figures import NORMAL, Figure, by_deviation
from dmd2_jax.metrics.features.extractor import FeatureSet
from dmd2_jax.typing import Float

REAL, FAKE = ("features",), ("features",)

FIGURES = {
    "kid": Figure(
        "KID",
        more_is_better=False,
        form="{:.4g}",
        interval=by_deviation("kid_standard_error", NORMAL, low=-math.inf),
        method="Interval of a U-statistic, the real images held fixed; the draw of the subsets is "
        "in it.",
    )
}

_BLOCK = 4096
_LOOKED_AT = 1000  # generated samples whose part in the figure is looked at


def compute(
    real: FeatureSet,
    fake: FeatureSet,
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
) -> dict[str, float]:
    """Return mean and standard deviation over random subsets of equal size.

        k(x, y) = (x.y / d + 1)^3
        KID = sum_(i != j) (k(x_i, x_j) + k(y_i, y_j)) / (m (m - 1)) - 2 sum_ij k(x_i, y_j) / m^2

    Args:
      real: features.
      fake: features.
      subsets: how many pairs of subsets.
      subset_size: m, vectors of a subset; fewer if a side has fewer.
      seed: of the subsets, drawn without replacement.

    Returns:
      kid, around 0 (and also below) for equal distributions; kid_std, of one subset (0 where a
      subset is all there is); and kid_standard_error, of kid itself between evaluations of as many
      samples of other noise and other subsets, the real side held fixed.

    Raises:
      ValueError: if a side has fewer than 2 vectors or an option is out of range.

    Source: Bińkowski et al. 2018 (1801.01401), eq. 4.
    """
    x, y = real.kept("features"), fake.kept("features")
    size = min(subset_size, len(x), len(y))
    if size < 2 or subsets < 1:
        raise Refused(
            f"KID with subset_size={subset_size}, subsets={subsets} of {len(x)} real "
            f"and {len(y)} generated samples, expected 2 samples and 1 subset or more; "
            "evaluate more samples."
        )
    random = np.random.RandomState(seed)
    values = [
        squared_discrepancy(
            x[random.choice(len(x), size, replace=False)],
            y[random.choice(len(y), size, replace=False)],
        )
        for _ in range(subsets)
    ]
    # Given the samples, subsets are drawn independently of each other.
    variance = np.var(values) / subsets + _variance_of_samples(x, y, random)
    return {
        "kid": float(np.mean(values)),
        "kid_std": float(np.std(values)),
        "kid_standard_error": float(np.sqrt(variance)),
    }


def _variance_of_samples(x: np.ndarray, y: np.ndarray, random: np.random.RandomState) -> float:
    """Return how much of the variance of the estimate is of which samples y were drawn.

        4 / m Var_y h(y),   h(y) = E_y' k(y, y') - E_x k(x, y)

    which is the first term of a U-statistic's variance. h is estimated from some of the samples;
    its error adds to the variance, which is then rather too large than too small.

    Source: W. Hoeffding, A class of statistics with asymptotically normal distribution (1948).
    """
    some, partners = (y[random.permutation(len(y))[:most]] for most in (_LOOKED_AT, _BLOCK))
    others = x[random.permutation(len(x))[:_BLOCK]]
    h = _kernel_means(some, partners) - _kernel_means(some, others)
    return float(4.0 * h.var() / len(y))


def _kernel_means(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return E_x k(x, y) of each y; a y among the x adds little to so many."""
    y, x = (np.asarray(array, np.float64) for array in (y, x))
    return ((y @ x.T / x.shape[1] + 1.0) ** 3).mean(axis=1)


def squared_discrepancy(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> float:
    """Return the unbiased squared maximum mean discrepancy of two sets; see `compute`.

    Args:
      x: [n, d], n >= 2.
      y: [m, d], m >= 2.

    Returns:
      The estimate, in float64.
    """
    x, y = (np.asarray(array, np.float64) for array in (x, y))
    n, m = len(x), len(y)
    within = _off_diagonal(x) / (n * (n - 1)) + _off_diagonal(y) / (m * (m - 1))
    return float(within - 2.0 * _kernel_sum(x, y) / (n * m))


def _off_diagonal(x: np.ndarray) -> float:
    own = (np.einsum("nd,nd->n", x, x) / x.shape[1] + 1.0) ** 3
    return _kernel_sum(x, x) - own.sum()


def _kernel_sum(x: np.ndarray, y: np.ndarray) -> float:
    total = 0.0
    for i in range(0, len(x), _BLOCK):
        for j in range(0, len(y), _BLOCK):
            kernel = x[i : i + _BLOCK] @ y[j : j + _BLOCK].T / x.shape[1] + 1.0
            total += (kernel * kernel * kernel).sum()
    return total
