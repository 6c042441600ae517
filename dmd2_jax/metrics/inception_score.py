"""Inception Score: how sure the network is of each sample, and how varied it finds them all."""

import numpy as np

from dmd2_jax.config.refused import Refused
from dmd2_jax.metrics.contract.figures import Figure, of_parts
from dmd2_jax.metrics.features.extractor import FeatureSet

REAL, FAKE = (), ("logits",)

FIGURES = {
    "inception_score": Figure(
        "IS",
        mean_form="{:.2f}",
        interval=of_parts,
        method="Student's interval of the mean over 10 disjoint parts of the samples (10 parts' "
        "score: that of all samples at once is larger).",
    )
}

_SPLITS = 10


def compute(
    real: FeatureSet | None, fake: FeatureSet, *, splits: int = _SPLITS, seed: int = 0
) -> dict[str, float]:
    """Return mean and standard deviation over equal parts of the samples.

        exp(mean_i KL(p(y | x_i) || mean_j p(y | x_j)))

    Args:
      real: not used.
      fake: logits; without the bias of the last layer, as the reference implementations have
        them (`networks.inception.InceptionV3`).
      splits: parts; 10 of 5,000 samples are usual.
      seed: of the order in which samples go to parts; samples often come sorted by class.

    Returns:
      inception_score, 1 .. number of classes, and inception_score_std.

    Raises:
      ValueError: if there are fewer samples than parts.

    Source: Salimans et al. 2016 (1606.03498), section 4.
    """
    logits = fake.kept("logits")
    count = len(logits)
    _check_splits(count, splits)
    order = np.random.RandomState(seed).permutation(count)
    scores = [
        _score(logits[order[count * i // splits : count * (i + 1) // splits]])
        for i in range(splits)
    ]
    return {
        "inception_score": float(np.mean(scores)),
        "inception_score_std": float(np.std(scores)),
    }


def check_count(count: int, dimension: int, side: str) -> None:
    """Refuse fewer samples than `compute` takes; see `metrics.check_counts`."""
    if side == "generated":
        _check_splits(count, _SPLITS)


def _check_splits(count: int, splits: int) -> None:
    if not 1 <= splits <= count:
        raise Refused(
            f"splits={splits} of {count} samples, expected 1 .. {count}; evaluate more samples."
        )


def _score(logits: np.ndarray) -> float:
    logits = logits.astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    p = np.exp(log_p)
    mean = p.mean(axis=0)
    # Where the mean is 0 every p is, and 0 log 0 = 0.
    log_mean = np.log(mean, out=np.zeros_like(mean), where=mean > 0)
    return float(np.exp((p * (log_p - log_mean)).sum(axis=1).mean()))
