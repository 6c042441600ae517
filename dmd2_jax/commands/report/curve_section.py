"""Every number of metrics.jsonl over the course of the runs."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from dmd2_jax.commands.report.chart import Line, line_chart, short
from dmd2_jax.commands.report.markup import Markup, number, tag
from dmd2_jax.commands.report.runs import Run, Series
from dmd2_jax.training.health import RULES, guidance_key

__all__ = ["curve_section", "curves_of", "x_label"]

_FIRST = ("fid", "class_accuracy")
"""What ranks runs; then the losses, and folded away the rest."""

_COUNTERS = frozenset({"step", "generator_turns", "critic_turns"})
_MOST = 60  # charts
_LARGEST, _LEAST = 1e100, 1e-100  # beyond them a number is taken for damage, below them for 0


def curve_section(runs: Sequence[Run]) -> Markup:
    """Return the section."""
    title = tag("h2", "Curves")
    silent = [run.name for run in runs if not run.rows]
    notes = [tag("p", f"{name} has reported no metrics yet.") for name in silent]
    notes += [tag("p", text, class_="warning") for run in runs for text in _warnings(run)]
    curves = {run.name: curves_of(run.rows) for run in runs}
    names = list(dict.fromkeys(name for own in curves.values() for name in own))
    zeros = [n for n in names if not any(n in own and own[n][1].any() for own in curves.values())]
    if zeros:
        notes.append(tag("p", f"Always 0: {', '.join(_words(name) for name in zeros)}."))
    names = [name for name in names if name not in zeros]
    first = sorted(filter(_is_first, names), key=lambda name: (name not in _FIRST, name))
    others = [name for name in names if not _is_first(name)]
    if len(names) > _MOST:
        notes.append(tag("p", f"{len(names)} metrics; charts of {_MOST} of them."))
        others = others[: max(0, _MOST - len(first))]

    def charts(chosen: Iterable[str]) -> Markup:
        drawn = []
        for name in chosen:
            having = [run for run in runs if name in curves[run.name]]
            lines = [Line(run.name, runs.index(run), curves[run.name][name]) for run in having]
            drawn.append(
                line_chart(lines, title=_words(name), x_label=x_label(having), named=len(runs) > 1)
            )
        return tag("div", *drawn, class_="charts")

    parts = [charts(first[:_MOST])] if first else []
    if others:
        summary = tag("summary", f"{len(others)} more: gradients, logits, statistics, rates")
        parts.append(tag("details", summary, charts(others)))
    if levels := _level_charts(runs):
        summary = tag("summary", f"{len(levels)} by noise level")
        parts.append(tag("details", summary, tag("div", *levels, class_="charts")))
    return tag("section", title, *notes, *parts, id="curves")


def _warnings(run: Run) -> list[str]:
    """Say of a run what its reports warned of, when, and what usually helps."""
    keys = ("guidance", "guidance_range")
    guidance = guidance_key({key: run.config.get(f"distill.{key}") for key in keys})
    said = []
    for name, rule in RULES.items():
        found = [(row["step"], number(row.get(f"warning_{name}"))) for row in run.rows]
        values = [(step, value) for step, value in found if value is not None]
        if values:
            steps = f"{short(values[0][0])} to {short(values[-1][0])}"
            said.append(
                f"{run.name}, {len(values)} reports from {run.unit} {steps}: "
                f"{rule.said(values[-1][1], guidance)}"
            )
    return said


def curves_of(rows: Iterable[Mapping[str, Any]]) -> dict[str, Series]:
    """Collect the finite values of every metric that is a number, in order of first appearance.

    Counts of turns are left out. Names that are too long for a title are cut.
    """
    points: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        step = _sane(row["step"])
        for name, value in row.items():
            found = _sane(value)
            if name not in _COUNTERS and step is not None and found is not None:
                points.setdefault(name[:80], []).append((step, found))
    return {name: tuple(np.array(pairs, float).T) for name, pairs in points.items()}


def _sane(value: object) -> float | None:
    """Return a number that a chart's arithmetic takes, None if it is none."""
    found = number(value)
    if found is None or abs(found) > _LARGEST:
        return None
    return found if abs(found) >= _LEAST else 0.0


def x_label(runs: Sequence[Run]) -> str:
    """Return what the runs' steps are called."""
    return " or ".join(sorted({run.unit for run in runs}))


def _is_first(name: str) -> bool:
    return name in _FIRST or name.endswith("_loss")


def _words(name: str) -> str:
    return "FID" if name == "fid" else name.replace("_", " ")


def _level_charts(runs: Sequence[Run]) -> list[Markup]:
    """Chart each list by noise level, of each run, one line a level bin."""
    found: list[Markup] = []
    for run in runs:
        names = [n for row in run.rows for n, v in row.items() if isinstance(v, list)]
        for name in dict.fromkeys(name for name in names if name.endswith("_by_level")):
            bins = max(len(row[name]) for row in run.rows if isinstance(row.get(name), list))
            lines = [line for i in range(min(bins, 8)) if (line := _level(run, name, i, bins))]
            if lines:
                title = f"{_words(name)[:80]} (0 %: least noise), {run.name}"
                found.append(line_chart(lines, title=title, x_label=run.unit))
    return found[:_MOST]


def _level(run: Run, name: str, i: int, bins: int) -> Line | None:
    rows = [
        {"step": row["step"], "bin": row[name][i]}
        for row in run.rows
        if isinstance(row.get(name), list) and len(row[name]) > i
    ]
    own = curves_of(rows).get("bin")
    label = f"{100 * i // bins}–{100 * (i + 1) // bins} %"
    return None if own is None else Line(label, i, own)
