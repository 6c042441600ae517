"""95 % intervals of figures, where what metrics.json holds allows an honest one."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from dmd2_jax.commands.report.markup import number

__all__ = ["METHODS", "Interval", "interval", "wilson"]

_Z = 1.959964  # 97.5 % of the normal distribution
_T = 2.262157  # 97.5 % of Student's distribution, 9 degrees of freedom
_PARTS = 10  # of the samples, for the Inception Score and the jackknife


class Interval(NamedTuple):
    """An interval that covers, in 95 of 100 evaluations, the figure's mean over evaluations.

    That mean is of as many samples each: of a share or a mean it is the figure of infinitely many
    samples, of FID, which falls with their number, it is not.
    """

    low: float
    high: float


METHODS = {
    "class_accuracy": "Wilson's interval of a share of num_samples independent samples. The "
    "classifier is taken as it is: its own errors are not in it. Classes are drawn equally often, "
    "not at random, which makes the interval a little too wide.",
    "precision": "Wilson's interval of a share of num_samples independent samples, the real "
    "images held fixed.",
    "inception_score": "Student's interval of the mean over 10 disjoint parts of the samples "
    "(10 parts' score: that of all samples at once is larger).",
    "fid": "Student's interval by the jackknife over 10 blocks of the samples, the reference held "
    "fixed. It is of the FID of as many samples of other noise; that of infinitely many is lower, "
    "by about fid_bias of metrics.json. Where FID is not far above fid_bias, the interval is up to "
    "1.4 times too wide.",
    "patch_fid": "As that of FID.",
    "kid": "Interval of a U-statistic, the real images held fixed; the draw of the subsets is in "
    "it.",
    "density": "Interval of the mean over num_samples independent samples, the real images held "
    "fixed.",
    "coverage": "Student's interval by the jackknife over 10 blocks of the samples, the real "
    "images held fixed. It is of the coverage by as many samples of other noise; more cover more.",
    "clip_score": "Interval of the mean over num_samples images, each with its prompt. Where "
    "there are several images of a prompt, which are alike, it is too narrow for other prompts.",
}
"""Figure -> how its interval is computed, and what it leaves out."""


def interval(figures: Mapping[str, Any], key: str) -> Interval | None:
    """Return the 95 % interval of one figure of one measured set.

    Others have none: recall and diversity are no means over independent samples, and metrics.json
    does not say how they vary. Files of before this version lack the others' deviations too.

    Args:
      figures: of the set, without its name in front.
      key: of the figure.
    """
    value, count = number(figures.get(key)), number(figures.get("num_samples"))
    made = _INTERVALS.get(key)
    if made is None or value is None or count is None or count < 1:
        return None
    return made(value, count, figures)


def wilson(share: float, count: float) -> Interval:
    """Return the 95 % interval of a probability.

        (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

    Args:
      share: p, of successes, 0..1.
      count: n, trials, at least 1.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    scale = 1 + _Z**2 / count
    middle = (share + _Z**2 / (2 * count)) / scale
    half = _Z / scale * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    return Interval(max(0.0, middle - half), min(1.0, middle + half))


def _share(value: float, count: float, figures: Mapping[str, Any]) -> Interval | None:
    return wilson(value, count) if 0 <= value <= 1 else None


def _of_parts(value: float, count: float, figures: Mapping[str, Any]) -> Interval | None:
    deviation = number(figures.get("inception_score_std"))
    if deviation is None or deviation < 0:
        return None
    # metrics.json has the deviation of the parts themselves (divided by 10); of the distribution
    # that they are drawn from it is sqrt(10 / 9) of that, and of their mean sqrt(1 / 9).
    half = _T * deviation / math.sqrt(_PARTS - 1)
    return Interval(value - half, value + half)


def _of_images(value: float, count: float, figures: Mapping[str, Any]) -> Interval | None:
    deviation = number(figures.get("clip_score_std"))
    if deviation is None or deviation < 0 or count < 2:
        return None
    half = _Z * deviation / math.sqrt(count)
    return Interval(value - half, value + half)


_Made = Callable[[float, float, Mapping[str, Any]], Interval | None]


def _by_deviation(key: str, factor: float, low: float = 0.0, high: float = math.inf) -> _Made:
    """Return how to make the interval of a figure with its own deviation, within its range."""

    def made(value: float, count: float, figures: Mapping[str, Any]) -> Interval | None:
        deviation = number(figures.get(key))
        if deviation is None or deviation < 0 or not low <= value <= high:
            return None
        half = factor * deviation
        return Interval(max(low, value - half), min(high, value + half))

    return made


_INTERVALS: dict[str, _Made] = {
    "class_accuracy": _share,
    "precision": _share,
    "inception_score": _of_parts,
    "fid": _by_deviation("fid_std", _T),
    "patch_fid": _by_deviation("patch_fid_std", _T),
    "kid": _by_deviation("kid_standard_error", _Z, low=-math.inf),
    "density": _by_deviation("density_std", _Z),
    "coverage": _by_deviation("coverage_std", _T, high=1.0),
    "clip_score": _of_images,
}
