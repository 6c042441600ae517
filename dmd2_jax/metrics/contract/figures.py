"""What a metric says of its figures: heading, format, direction, 95 % interval."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

__all__ = [
    "CLASS_ACCURACY",
    "NORMAL",
    "STUDENT",
    "Figure",
    "Interval",
    "by_deviation",
    "from_plain",
    "of_images",
    "of_parts",
    "of_share",
    "plain",
    "wilson",
]

NORMAL = 1.959964
"""97.5 % of the normal distribution."""

STUDENT = 2.262157
"""97.5 % of Student's distribution, 9 degrees of freedom: of 10 blocks or parts of the samples."""

_PARTS = 10  # of the samples, for the Inception Score and the jackknife


class Interval(NamedTuple):
    """An interval that covers, in 95 of 100 evaluations, the figure's mean over evaluations.

    That mean is of as many samples each: of a share or a mean it is the figure of infinitely many
    samples, of FID, which falls with their number, it is not.
    """

    low: float
    high: float


Numbers = Mapping[str, float | None]
MakeInterval = Callable[[float, float, Numbers], Interval | None]
"""(value, number of samples, all numbers of the set) -> the interval, or None without one."""


class Figure(NamedTuple):
    """A figure of merit, as tables show it.

    Attributes:
      heading: in tables.
      more_is_better: or less.
      form: how one measurement is printed.
      mean_form: how a mean over runs is printed; "": as one measurement.
      share: whether it is a part of 1, which a report shows in per cent.
      interval: makes its interval of what metrics.json holds; None: it has none.
      method: how the interval is computed, and what it leaves out.
    """

    heading: str
    more_is_better: bool = True
    form: str = "{:.3f}"
    mean_form: str = ""
    share: bool = False
    interval: MakeInterval | None = None
    method: str = ""


_PLAIN = ("heading", "more_is_better", "form", "share")
_FORM = re.compile(r"[^{}]{0,20}\{:,?(\.\d)?[defg%]?\}[^{}]{0,20}")


def plain(figures: Mapping[str, Figure]) -> dict[str, dict[str, Any]]:
    """Return how figures are shown as plain values, for JSON; how intervals are made is code."""
    return {
        key: {name: getattr(figure, name) for name in _PLAIN} for key, figure in figures.items()
    }


def from_plain(values: Any) -> dict[str, Figure]:
    """Return the figures that `plain`'s JSON describes, which may be a stranger's.

    Entries that describe none are left out, and a form that is more than a number's is not used.
    """
    found = {}
    for key, it in values.items() if isinstance(values, dict) else ():
        if not isinstance(it, dict) or not isinstance(it.get("heading"), str):
            continue
        figure = Figure(it["heading"], it.get("more_is_better") is True)
        if _FORM.fullmatch(form := str(it.get("form"))):
            figure = figure._replace(form=form)
        found[key] = figure._replace(share=it.get("share") is True)
    return found


def wilson(share: float, count: float) -> Interval:
    """Return the 95 % interval of a probability.

        (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

    Args:
      share: p, of successes, 0..1.
      count: n, trials, at least 1.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    scale = 1 + NORMAL**2 / count
    middle = (share + NORMAL**2 / (2 * count)) / scale
    half = NORMAL / scale * math.sqrt(share * (1 - share) / count + NORMAL**2 / (4 * count**2))
    return Interval(max(0.0, middle - half), min(1.0, middle + half))


def of_share(value: float, count: float, figures: Numbers) -> Interval | None:
    """Return Wilson's interval of a share of independent samples."""
    return wilson(value, count) if 0 <= value <= 1 else None


def of_parts(value: float, count: float, figures: Numbers) -> Interval | None:
    """Return Student's interval of the mean over 10 parts, by the parts' deviation."""
    deviation = figures.get("inception_score_std")
    if deviation is None or deviation < 0:
        return None
    # metrics.json has the deviation of the parts themselves (divided by 10); of the distribution
    # that they are drawn from it is sqrt(10 / 9) of that, and of their mean sqrt(1 / 9).
    half = STUDENT * deviation / math.sqrt(_PARTS - 1)
    return Interval(value - half, value + half)


def of_images(key: str) -> MakeInterval:
    """Return how to make the interval of a mean over images, by the deviation of one."""

    def made(value: float, count: float, figures: Numbers) -> Interval | None:
        deviation = figures.get(key)
        if deviation is None or deviation < 0 or count < 2:
            return None
        half = NORMAL * deviation / math.sqrt(count)
        return Interval(value - half, value + half)

    return made


def by_deviation(key: str, factor: float, low: float = 0.0, high: float = math.inf) -> MakeInterval:
    """Return how to make the interval of a figure with its own deviation, within its range."""

    def made(value: float, count: float, figures: Numbers) -> Interval | None:
        deviation = figures.get(key)
        if deviation is None or deviation < 0 or not low <= value <= high:
            return None
        half = factor * deviation
        return Interval(max(low, value - half), min(high, value + half))

    return made


CLASS_ACCURACY = {
    "class_accuracy": Figure(
        "class accuracy",
        form="{:.2%}",
        mean_form="{:.3f}",
        share=True,
        interval=of_share,
        method="Wilson's interval of a share of num_samples independent samples. The classifier "
        "is taken as it is: its own errors are not in it. Classes are drawn equally often, not at "
        "random, which makes the interval a little too wide.",
    )
}
"""Measured wherever a classifier of the data judges samples of classes."""
