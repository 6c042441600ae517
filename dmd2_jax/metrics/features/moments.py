"""Fréchet distance between two sets of features, from streamed float64 statistics.

The distance knows nothing of what made the features: Inception's 2048 and a small
classifier's 48 go through the same functions.
"""

import contextlib
import functools
import warnings
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import scipy.linalg
import threadpoolctl
from jaxtyping import Float64

from dmd2_jax.config.refused import Refused
from dmd2_jax.typing import Float


class Moments(Protocol):
    """What the distance needs of a set of features.

    Attributes:
      count: n, vectors; None where a file does not say.
      dimension: d, features a vector.
      mean: [d] float64.
      covariance: [d, d] float64, unbiased.
    """

    @property
    def count(self) -> int | None: ...  # noqa: D102 (documented above)

    @property
    def dimension(self) -> int: ...  # noqa: D102

    @property
    def mean(self) -> np.ndarray: ...  # noqa: D102

    @property
    def covariance(self) -> np.ndarray: ...  # noqa: D102


@dataclass(frozen=True)
class FeatureStatistics:
    """Count, mean and scatter of feature vectors, accumulated in float64.

    Immutable: `statistics = statistics.update(features)`.

    Attributes:
      count: n, vectors seen.
      mean: [d] float64.
      scatter: [d, d] float64, sum of (f - mean)(f - mean)^T; not divided by anything, which is
        what makes two of them add up.
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def empty(cls, dimension: int) -> "FeatureStatistics":
        """Return the statistics of no vectors of `dimension` features."""
        return cls(0, np.zeros(dimension), np.zeros((dimension, dimension)))

    @property
    def dimension(self) -> int:
        """d, features a vector."""
        return len(self.mean)

    @property
    def covariance(self) -> Float64[np.ndarray, "d d"]:
        """Unbiased covariance, scatter / (n - 1).

        Raises:
          ValueError: if there are fewer than 2 vectors.
        """
        if self.count < 2:
            raise Refused(
                f"count={self.count} feature vectors, expected at least 2 for a covariance; "
                "evaluate more samples."
            )
        return self.scatter / (self.count - 1)

    def update(self, features: Float[np.ndarray, "n d"]) -> "FeatureStatistics":
        """Return the statistics with these vectors added.

        Args:
          features: [n, d], any float type, finite.

        Returns:
          New statistics; `self` is unchanged.

        Raises:
          ValueError: if the shape is not [n, d] or a value is not finite.
        """
        features = np.asarray(features, np.float64)
        if features.ndim != 2 or features.shape[1] != self.dimension:
            raise Refused(
                f"features have shape {features.shape}, expected [n, {self.dimension}]; use one "
                "feature network for both sides and flatten its output."
            )
        bad = int(np.sum(~np.isfinite(features).all(axis=1)))
        if bad:
            raise Refused(
                f"{bad} of {len(features)} feature vectors hold NaN or infinity, expected none; "
                "look at the samples: the generator has probably diverged."
            )
        if len(features) == 0:
            return self
        mean = features.mean(axis=0)
        centred = features - mean
        return self.merge(FeatureStatistics(len(features), mean, centred.T @ centred))

    def merge(self, other: "FeatureStatistics") -> "FeatureStatistics":
        """Return the statistics of both sets together.

        n = n_1 + n_2, delta = mean_2 - mean_1, mean = mean_1 + delta n_2 / n,
        scatter = scatter_1 + scatter_2 + delta delta^T n_1 n_2 / n.

        Args:
          other: statistics of other vectors of the same network.

        Returns:
          New statistics; independent of the order up to rounding.

        Raises:
          ValueError: if the dimensions differ.

        Source: Chan, Golub, LeVeque, Updating formulae and a pairwise algorithm for computing
        sample variances (1979), eq. 2.1, for vectors.
        """
        if other.dimension != self.dimension:
            raise Refused(
                f"dimension={other.dimension} to be merged, expected {self.dimension}; use one "
                "feature network for both sides."
            )
        count = self.count + other.count
        if count == 0:
            return self
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / count)
        scatter = np.outer(delta * (self.count * other.count / count), delta)
        scatter += self.scatter  # in place: one new matrix, where d is large
        scatter += other.scatter
        return FeatureStatistics(count, mean, scatter)

    def without(self, part: "FeatureStatistics") -> "FeatureStatistics":
        """Return the statistics of the vectors that are not in a part: `merge` undone.

        Args:
          part: statistics of some of these vectors, and not of all.

        Returns:
          New statistics; directions that only the part has keep a variance of rounding's size.

        Raises:
          ValueError: if the part is no smaller than the whole, or of another dimension.
        """
        count = self.count - part.count
        if count < 1 or part.dimension != self.dimension:
            raise Refused(
                f"a part of {part.count} vectors of dimension {part.dimension} out of {self.count} "
                f"of dimension {self.dimension}, expected fewer vectors of one dimension; pass a "
                "part of these vectors."
            )
        delta = part.mean - self.mean
        mean = self.mean - delta * (part.count / count)
        scatter = np.outer(delta * (-part.count * self.count / count), delta)
        scatter += self.scatter
        scatter -= part.scatter
        return FeatureStatistics(count, mean, scatter)


def feature_statistics(features: Float[np.ndarray, "n d"]) -> FeatureStatistics:
    """Return the statistics of one array of features.

    Args:
      features: [n, d], any float type, finite.

    Returns:
      Their count, mean and scatter.

    Raises:
      ValueError: if the shape is not [n, d] or a value is not finite.
    """
    if np.ndim(features) != 2:
        raise Refused(
            f"features have shape {np.shape(features)}, expected [n, d]; flatten each vector."
        )
    return FeatureStatistics.empty(features.shape[1]).update(features)


def frechet_distance(
    mu1: Float[np.ndarray, " d"],
    cov1: Float[np.ndarray, "d d"],
    mu2: Float[np.ndarray, " d"],
    cov2: Float[np.ndarray, "d d"],
) -> float:
    """Return the squared Fréchet (2-Wasserstein) distance of two Gaussians.

    |mu1 - mu2|^2 + tr(cov1) + tr(cov2) - 2 tr((cov1 cov2)^1/2)

    The product of two covariances is not symmetric, but it has the eigenvalues of L^T cov2 L,
    which is, where cov1 = L L^T. They replace a general matrix square root: real by construction.
    L is Cholesky's factor; where cov1 lacks rank and has none, it is the symmetric root. Rounding
    only turns zero eigenvalues into tiny negative ones, cut to 0 here.

    Args:
      mu1: [d] mean.
      cov1: [d, d] covariance, symmetric, positive semi-definite.
      mu2: [d] mean.
      cov2: [d, d] covariance.

    Returns:
      The distance, in squared feature units, >= 0, computed in float64.

    Raises:
      ValueError: if the shapes do not fit or a value is not finite.

    Source: Heusel et al., arXiv 1706.08500, eq. 6.
    """
    mu1, cov1, mu2, cov2 = (np.asarray(array, np.float64) for array in (mu1, cov1, mu2, cov2))
    d = mu1.size
    for name, array, shape in (
        ("mu1", mu1, (d,)),
        ("cov1", cov1, (d, d)),
        ("mu2", mu2, (d,)),
        ("cov2", cov2, (d, d)),
    ):
        if array.shape != shape:
            raise Refused(
                f"{name} has shape {array.shape}, expected {shape}; use one feature network for "
                "both sides."
            )
        if not np.isfinite(array).all():
            raise Refused(
                f"{name} holds NaN or infinity, expected finite values; look at the samples."
            )
    trace_of_root = np.sqrt(np.maximum(_eigenvalues_of_product(cov1, cov2), 0.0)).sum()
    distance = np.sum((mu1 - mu2) ** 2) + np.trace(cov1) + np.trace(cov2) - 2 * trace_of_root
    return float(max(distance, 0.0))


def _eigenvalues_of_product(cov1: np.ndarray, cov2: np.ndarray) -> Float64[np.ndarray, " d"]:
    """Return the eigenvalues of cov1 cov2, by symmetric decompositions alone."""
    with _one_blas_thread():
        with contextlib.suppress(scipy.linalg.LinAlgError):  # of Cholesky, without full rank
            # type 2: of the product. Under half of the work of the symmetric root.
            return scipy.linalg.eigh(
                cov2, cov1, type=2, eigvals_only=True, driver="gv", check_finite=False
            )
        values, vectors = np.linalg.eigh(cov1)
        root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
        product = root @ cov2 @ root
        return np.linalg.eigvalsh((product + product.T) / 2)


def _one_blas_thread() -> contextlib.AbstractContextManager:
    """Keep eigen-decompositions on one processor.

    Half of one is products of a matrix and a vector, which wait for memory. More threads gain
    little, and where other programs run they wait for each other: ten times the processor time.
    """
    return _blas().limit(limits=1, user_api="blas")


@functools.cache
def _blas() -> threadpoolctl.ThreadpoolController:
    return threadpoolctl.ThreadpoolController()  # finds the libraries, which takes a while


def fid(statistics_1: Moments, statistics_2: Moments) -> float:
    """Return the Fréchet distance of two sets of features.

    Finite sets are further apart than their distributions, by about a constant times
    1/n_1 + 1/n_2, so only figures of equal counts compare.

    Args:
      statistics_1: one side, n >= 2; below n = d + 1 its covariance lacks rank: a warning.
      statistics_2: the other side.

    Returns:
      The distance, >= 0, symmetric up to rounding.

    Raises:
      ValueError: if a side has fewer than 2 vectors or the dimensions differ.
    """
    for statistics in (statistics_1, statistics_2):
        if statistics.count is not None and 2 <= statistics.count <= statistics.dimension:
            warnings.warn(
                f"{statistics.count} feature vectors of dimension {statistics.dimension}: the "
                "covariance lacks rank and the distance is far too large; evaluate more than "
                f"{10 * statistics.dimension} samples.",
                stacklevel=2,
            )
    return frechet_distance(
        statistics_1.mean, statistics_1.covariance, statistics_2.mean, statistics_2.covariance
    )


def fid_bias(statistics: Moments, count: int) -> float:
    """Return the distance to expect between a Gaussian and `count` samples of itself.

    To second order in the errors of mean and covariance, in the axes of the covariance with
    variances v_i,

        (1 / n) (sum_i v_i + 1/2 sum_ij (1 + [i = j]) v_i v_j / (v_i + v_j))

    which for d equal variances is (v / n) (d + d (d + 1) / 4): it grows with the square of d. It
    holds for n well above d; below, the distance has no more to grow than the variances
    themselves, and the expression is cut at twice their sum.

    Args:
      statistics: of the reference.
      count: n >= 1, samples.

    Returns:
      What a perfect generator would show, in squared feature units.

    Source: expectation of the second-order expansion of the Bures distance under Wishart errors,
    E[(S - C)_ij^2] = (1 + [i = j]) v_i v_j / n.
    """
    with _one_blas_thread():
        variances = np.maximum(np.linalg.eigvalsh(statistics.covariance), 0.0)
    total = variances.sum()
    sums = variances[:, None] + variances
    harmonic = np.divide(
        np.outer(variances, variances), sums, out=np.zeros_like(sums), where=sums > 0
    )
    bias = (total + 0.5 * (harmonic.sum() + np.trace(harmonic))) / count
    return float(min(bias, 2.0 * total))
