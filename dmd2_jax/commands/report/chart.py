"""Line charts as inline SVG: no script, no font, nothing from elsewhere."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dmd2_jax.commands.report.markup import Markup, tag
from dmd2_jax.commands.report.runs import Series
from dmd2_jax.pictures.curves import running_median

__all__ = ["Line", "key", "line_chart", "short", "ticks"]

_WIDTH, _HEIGHT = 380, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 20, 12, 36
_MANY = 40
"""Points from which on the running median is drawn over them."""


class Line(NamedTuple):
    """One line of a chart.

    Attributes:
      name: what it is of.
      style: 0.. , the number of its colour and dashes.
      xy: its points, at least one.
    """

    name: str
    style: int
    xy: Series


def line_chart(lines: Sequence[Line], *, title: str, x_label: str, named: bool = True) -> Markup:
    """Return a figure: title, chart, and below it each line's last value.

    It is logarithmic where all values are positive and span a factor of 100 or more. A line of 40
    points or more is faint, with its running median drawn over it.

    Args:
      lines: at least one.
      title: what is measured.
      x_label: what x counts.
      named: whether the last values stand beside the lines' names and patterns.
    """
    x = np.concatenate([line.xy[0] for line in lines])
    y = np.concatenate([line.xy[1] for line in lines])
    logarithmic = bool(y.min() > 0 and y.max() / y.min() >= 100)
    across = _Axis(*_widened(x.min(), x.max(), room=0.0), False, _LEFT, _WIDTH - _RIGHT)
    low, high = (y.min() / 1.1, y.max() * 1.1) if logarithmic else _widened(y.min(), y.max())
    up = _Axis(low, high, logarithmic, _HEIGHT - _BOTTOM, _TOP)
    said = f"{title} over {x_label}s {short(x.min())} to {short(x.max())}. " + " ".join(
        f"{line.name}: from {short(line.xy[1][0])} to {short(line.xy[1][-1])}, "
        f"least {short(line.xy[1].min())}, most {short(line.xy[1].max())}."
        for line in lines
    )
    drawing = tag(
        "svg",
        *_grid(across, up),
        *(part for line in lines for part in _drawn(line, across, up)),
        _text(_WIDTH - _RIGHT, _HEIGHT - 4, x_label, "end"),
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        role="img",
        aria_label=said,
    )
    scale = tag("small", " (logarithmic)") if logarithmic else ""
    last = tag("p", "last: ", *(_last(line, named) for line in lines), class_="last")
    return tag("figure", tag("figcaption", title, scale), drawing, last, class_="chart")


def key(style: int) -> Markup:
    """Return a piece of a line, to stand beside its name."""
    line = tag("line", x1=0, y1=6, x2=30, y2=6, class_=f"line s{style}")
    return tag("svg", line, viewBox="0 0 30 12", class_="key", aria_hidden="true")


def ticks(low: float, high: float, logarithmic: bool = False, most: int = 5) -> list[float]:
    """Return round numbers within [low, high]: steps of 1, 2 or 5 times a power of ten, or powers.

    Args:
      low, high: low < high; both positive if `logarithmic`.
      logarithmic: whether to return powers of ten; some of them, where there are many.
      most: about how many.
    """
    if logarithmic:
        first, last = math.ceil(math.log10(low)), math.floor(math.log10(high))
        return [10.0**power for power in range(first, last + 1, (last - first) // most + 1)]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    return [
        place * step for place in range(math.ceil(low / step), math.floor(high / step) + 1)
    ]  # fmt: skip


def short(value: float) -> str:
    """Return a number in four significant digits."""
    return f"{value + 0.0:.4g}"  # + 0.0: no -0


class _Axis(NamedTuple):
    low: float
    high: float
    logarithmic: bool
    begin: float
    end: float

    def places(self, values: np.ndarray) -> np.ndarray:
        """Return where on the picture values lie."""
        low, high = self.low, self.high
        if self.logarithmic:
            values, low, high = np.log(values), math.log(low), math.log(high)
        return self.begin + (self.end - self.begin) * ((values - low) / (high - low))

    def ticks(self) -> list[float]:
        return ticks(self.low, self.high, self.logarithmic)


def _widened(low: float, high: float, room: float = 0.06) -> tuple[float, float]:
    """Return limits with some room, also where all values are the same."""
    low, high = float(low), float(high)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        half = 0.1 * abs(low) or 1.0
        return low - half, low + half
    return low - room * (high - low), high + room * (high - low)


def _grid(across: _Axis, up: _Axis) -> list[Markup]:
    parts = []
    for value, y in zip(up.ticks(), up.places(np.array(up.ticks())), strict=True):
        parts.append(_rule(_LEFT, y, _WIDTH - _RIGHT, y))
        parts.append(_text(_LEFT - 6, y + 4, short(value), "end"))
    for value, x in zip(across.ticks(), across.places(np.array(across.ticks())), strict=True):
        parts.append(_rule(x, _HEIGHT - _BOTTOM, x, _HEIGHT - _BOTTOM + 4))
        parts.append(_text(x, _HEIGHT - _BOTTOM + 16, short(value), "middle"))
    return parts


def _drawn(line: Line, across: _Axis, up: _Axis) -> list[Markup]:
    x, y = line.xy
    style = f"line s{line.style}"
    if len(y) == 1:
        (cx,), (cy,) = across.places(x), up.places(y)
        return [tag("circle", cx=f"{cx:.1f}", cy=f"{cy:.1f}", r=4, class_=f"dot s{line.style}")]
    if len(y) < _MANY:
        return [_path(across.places(x), up.places(y), style)]
    kept = np.unique(np.linspace(0, len(x) - 1, 400).round().astype(int))
    smooth_x, smooth_y = running_median(x, y)
    return [
        _path(across.places(x[kept]), up.places(y[kept]), f"{style} faint"),
        _path(across.places(smooth_x), up.places(smooth_y), style),
    ]


def _path(x: np.ndarray, y: np.ndarray, style: str) -> Markup:
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    return tag("polyline", points=points, class_=style)


def _rule(x1: float, y1: float, x2: float, y2: float) -> Markup:
    place = {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
    return tag("line", **{key: f"{value:.1f}" for key, value in place.items()}, class_="rule")


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    return tag("text", text, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor)


def _last(line: Line, named: bool) -> Markup:
    value = tag("b", short(line.xy[1][-1]))
    return tag("span", key(line.style), f" {line.name} ", value) if named else value
