"""Kernel distance (KID): squared maximum mean discrepancy with a cubic kernel, unbiased."""

import numpy as np

from dmd2_jax.evaluation.extractor import FeatureSet
from dmd2_jax.typing import Float

REAL, FAKE = ("features",), ("features",)

_BLOCK = 4096


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
      kid, around 0 (and also below) for equal distributions, and kid_std, of one subset (0 where
      a subset is all there is).

    Raises:
      ValueError: if a side has fewer than 2 vectors or an option is out of range.

    Source: Bińkowski et al. 2018 (1801.01401), eq. 4.
    """
    size = min(subset_size, len(real.features), len(fake.features))
    if size < 2 or subsets < 1:
        raise ValueError(
            f"KID with subset_size={subset_size}, subsets={subsets} of {len(real.features)} real "
            f"and {len(fake.features)} generated samples, expected 2 samples and 1 subset or more; "
            "evaluate more samples."
        )
    random = np.random.RandomState(seed)
    values = [
        squared_discrepancy(
            real.features[random.choice(len(real.features), size, replace=False)],
            fake.features[random.choice(len(fake.features), size, replace=False)],
        )
        for _ in range(subsets)
    ]
    return {"kid": float(np.mean(values)), "kid_std": float(np.std(values))}


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
