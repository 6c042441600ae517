"""The sample grids of the runs over time, of the same noise each, side by side."""

import json
from collections.abc import Sequence

from dmd2_jax.commands.report.curve_section import x_label
from dmd2_jax.commands.report.markup import Markup, joined, tag
from dmd2_jax.commands.report.pictures import embed, evenly
from dmd2_jax.commands.report.runs import Run
from dmd2_jax.data.reading.classes import shown

__all__ = ["sample_section"]

_MOST = 24  # grids of a run
_ALL = 64  # grids of all runs
_BYTES = 6_000_000  # of all grids, as PNG
_MOST_CLASSES = 1000


def sample_section(runs: Sequence[Run]) -> Markup:
    """Return the section: a row of grids for each run, of which the script shows one at a time."""
    most = min(_MOST, _ALL // len(runs))
    chosen = {run.name: evenly(list(run.grids), most) for run in runs}
    pictures = sum(
        len(steps) + (run.compared is not None)
        for run, steps in zip(runs, chosen.values(), strict=True)
    )
    budget = _BYTES // max(1, pictures)
    steps = sorted({step for own in chosen.values() for step in own})
    parts = [tag("h2", "Samples"), *_compared(runs, budget)]
    if steps:
        text = "Over time, of the same noise each time."
        if any(len(run.grids) > most for run in runs):
            text += f" {most} grids of each run, evenly chosen; its folder has them all."
        parts.append(tag("p", text))
    if len(steps) > 1:
        parts.append(_slider(steps, x_label(runs)))
    if any(run.classes for run in runs):
        parts.append(_classes(runs))
    columns = [
        _column(run, style, chosen[run.name], budget, several=len(runs) > 1)
        for style, run in enumerate(runs)
    ]
    return tag("section", *parts, tag("div", *columns, class_="columns"), id="samples")


def _compared(runs: Sequence[Run], budget: int) -> list[Markup]:
    """Return the pictures that `dmd2 evaluate` drew: real, teacher, student."""
    shown = []
    for style, run in enumerate(runs):
        picture = None if run.compared is None else embed(run.compared, budget)
        if picture is None:
            continue
        image = tag(
            "img",
            src=picture.uri,
            alt=f"Real images, and below them those of each network of {run.name} as measured",
            width=picture.width,
            height=picture.height,
        )
        owner = tag("span", f"{run.name}: ", class_=f"name s{style}") if len(runs) > 1 else ""
        text = (
            "Real images, and what was measured: of the networks, images of the same place have "
            "the same noise and class."
        )
        shown.append(tag("figure", image, tag("figcaption", owner, text), class_="pictures"))
    if not shown and any(run.figures for run in runs):
        shown = [tag("p", "`dmd2 evaluate` draws real, teacher's and student's images here.")]
    return shown


def _classes(runs: Sequence[Run]) -> Markup:
    """Return which number is which class, once for runs that agree."""
    lists: dict[tuple[str, ...], list[str]] = {}
    for run in runs:
        if run.classes:
            lists.setdefault(run.classes, []).append(run.name)
    parts = []
    for names, whose in lists.items():
        said = ", ".join(f"{i} {shown(name)}" for i, name in enumerate(names[:_MOST_CLASSES]))
        left_out = len(names) - _MOST_CLASSES
        said += f", and {left_out} more" if left_out > 0 else ""
        of = "" if len(lists) == 1 and len(whose) == len(runs) else f" of {', '.join(whose)}"
        summary = tag("summary", f"Which number is which class{of} ({len(names)})")
        parts.append(tag("details", summary, tag("p", said)))
    return joined(parts)


def _slider(steps: list[int], unit: str) -> Markup:
    """Return the slider, hidden until the script shows it."""
    control = tag(
        "input",
        type="range",
        id="when",
        min=0,
        max=len(steps) - 1,
        step=1,
        value=len(steps) - 1,
        data_steps=json.dumps(steps),
        data_unit=unit,
    )
    words = joined((f"{unit} ", tag("output", steps[-1], id="shown", for_="when")))
    return tag("div", tag("label", words, for_="when"), control, class_="slider", hidden=True)


def _column(run: Run, style: int, steps: list[int], budget: int, *, several: bool) -> Markup:
    shown, lost = [], []
    for step in steps:
        picture = embed(run.grids[step], budget)
        if picture is None:
            lost.append(run.grids[step].name)
            continue
        image = tag(
            "img",
            src=picture.uri,
            alt=f"Grid of samples of {run.name} after {run.unit} {step}",
            width=picture.width,
            height=picture.height,
        )
        figure = tag("figure", image, tag("figcaption", f"{run.unit} {step}"))
        shown.append(tag("li", figure, data_step=step))
    notes = [tag("p", f"{name} cannot be shown: no PNG that fits the page.") for name in lost]
    if not steps:
        notes.append(tag("p", f"{run.name} has drawn no samples yet."))
    title = tag("h3", run.name, class_=f"name s{style}") if several else ""
    label = f"Sample grids of {run.name} over time"
    row = tag("ol", *shown, class_="frames", tabindex=0, aria_label=label) if shown else ""
    return tag("div", title, *notes, row, class_="column")
