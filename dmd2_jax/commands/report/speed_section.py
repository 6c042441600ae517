"""Speed and memory of the runs, from speed.jsonl."""

from collections.abc import Sequence

import numpy as np

from dmd2_jax.commands.report.chart import Line, line_chart, short
from dmd2_jax.commands.report.curve_section import curves_of, x_label
from dmd2_jax.commands.report.markup import Markup, joined, table, tag
from dmd2_jax.commands.report.runs import Run, Series

__all__ = ["speed_section"]

_SPREAD = ("images_per_second", "seconds_per_cycle", "seconds_per_step", "seconds_per_turn")
_ONCE = ("first_cycle_seconds", "first_step_seconds")
_SHARES = ("data_wait_share", "drawing_share", "evaluating_share", "saving_share")
_PEAKS = ("host_memory_peak_mb", "device_memory_peak_mb")
_HEADINGS = {
    "images_per_second": "images a second",
    "seconds_per_cycle": "seconds a cycle",
    "seconds_per_step": "seconds a step",
    "seconds_per_turn": "seconds a turn",
    "first_cycle_seconds": "first cycle, s",
    "first_step_seconds": "first step, s",
    "data_wait_share": "waiting for data",
    "drawing_share": "drawing",
    "evaluating_share": "evaluating",
    "saving_share": "saving",
    "host_memory_peak_mb": "host memory, peak MB",
    "device_memory_peak_mb": "device memory, peak MB",
}
_DRAWN = ("images_per_second", *_PEAKS)


def speed_section(runs: Sequence[Run]) -> Markup:
    """Return the section."""
    curves = {run.name: curves_of(run.speed) for run in runs}
    parts: list[object] = [tag("h2", "Speed and memory")]
    parts += [
        tag("p", f"{run.name} has reported no speed yet.") for run in runs if not curves[run.name]
    ]
    keys = [key for key in _HEADINGS if any(key in own for own in curves.values())]
    if keys:
        measured = [run for run in runs if curves[run.name]]
        rows = [
            (_HEADINGS[key], *(_cell(key, curves[run.name].get(key)) for run in measured))
            for key in keys
        ]
        head = ("", *(run.name for run in measured))
        text = (
            "Speeds are medians over the reports, with the middle 80 % of them in brackets, which "
            "is a spread and no confidence interval; without drawing, evaluating and saving. "
            "Shares of time are means over the reports, peaks the largest."
        )
        parts += [tag("p", text), table(head, rows, caption="Speed and memory")]
        parts.append(_charts(runs, curves))
    return tag("section", *parts, id="speed")


def _charts(runs: Sequence[Run], curves: dict[str, dict[str, Series]]) -> Markup:
    drawn = []
    for key in _DRAWN:
        lines = [
            Line(run.name, style, curves[run.name][key])
            for style, run in enumerate(runs)
            if key in curves[run.name]
        ]
        if lines:
            drawn.append(
                line_chart(lines, title=_HEADINGS[key], x_label=x_label(runs), named=len(runs) > 1)
            )
    return tag("div", *drawn, class_="charts")


def _cell(key: str, series: Series | None) -> object:
    if series is None:
        return "–"
    values = series[1]
    if key in _SHARES:
        return f"{100 * values.mean():.1f} %"
    if key in _PEAKS:
        return f"{values.max():,.0f}"
    if key in _ONCE:
        return short(values[0])
    low, middle, high = np.quantile(values, (0.1, 0.5, 0.9))
    if len(values) == 1:
        return short(middle)
    span = tag("span", f"[{short(low)}, {short(high)}]", class_="interval")
    return joined((f"{short(middle)} ", span))
