"""The figures of `dmd2 evaluate`, with intervals where there are honest ones."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from dmd2_jax.commands.report.chart import Line, line_chart
from dmd2_jax.commands.report.curve_section import curves_of
from dmd2_jax.commands.report.markup import Markup, joined, number, table, tag
from dmd2_jax.commands.report.runs import Run
from dmd2_jax.evaluate.sets import by_set
from dmd2_jax.metrics import all_figures
from dmd2_jax.metrics.contract.figures import Figure, Interval, from_plain
from dmd2_jax.runtime.devices import device_words

__all__ = ["interval", "metric_section"]

_MADE = {"nfe": "calls an image", "seconds_per_image": "ms an image", "num_samples": "samples"}
_LAST = ("num_samples", "nfe", "seconds_per_image")
_OF_THE_WHOLE = (
    "extractor",
    "reference",
    "seed",
    "clip",
    "clip_prefix",
    "classifier_test_accuracy",
)
_UNSHOWN = ("_bias", "_std", "_standard_error")  # their figure's interval is
_MOST_ROWS = 200
_FIXED = re.compile(r"\{:\.(\d)f\}")


def metric_section(runs: Sequence[Run]) -> Markup:
    """Return the section."""
    parts = [tag("h2", "Metrics")]
    for run in runs:
        if not run.figures:
            parts.append(
                tag("p", f"{run.name} has no metrics.json yet: `dmd2 evaluate` writes one.")
            )
    sets = [(run, name, own) for run in runs for name, own in by_set(run.figures).items()]
    if sets:
        parts.extend(_compared(runs, sets))
        parts.append(_table(runs, sets[:_MOST_ROWS]))
        if len(sets) > _MOST_ROWS:
            parts.append(tag("p", f"{len(sets) - _MOST_ROWS} more rows are left out."))
        parts.append(_explained({key for _, _, own in sets for key in own}))
        parts.extend(_over_checkpoints(runs))
    return tag("section", *parts, id="metrics")


def _table(runs: Sequence[Run], sets: Sequence[tuple[Run, str, Mapping[str, Any]]]) -> Markup:
    declared = _declared(runs)
    keys = list(dict.fromkeys(key for _, _, own in sets for key in own))
    keys = [key for key in keys if not key.endswith(_UNSHOWN)]
    keys.sort(key=lambda key: (_LAST.index(key) + 1 if key in _LAST else 0, key != "fid"))
    styles = {run.name: style for style, run in enumerate(runs)}

    def label(name: str, run: Run) -> Markup:
        owner = tag("span", run.name, class_=f"of name s{styles[run.name]}")
        return joined((tag("b", name[:80]), owner if len(runs) > 1 else ""))

    rows = [
        (label(name, run), *(_cell(own, key, declared) for key in keys)) for run, name, own in sets
    ]
    for run in runs if "fid" in keys else ():
        if (floor := number(run.figures.get("real_fid_floor"))) is not None:
            dashes = ["–"] * (len(keys) - 1)
            rows.append(
                (label("real, half to half", run), _format("fid", floor, declared), *dashes)
            )
    head = ("measured", *(_heading(key, declared)[:80] for key in keys))
    return table(head, rows, caption="Metrics, [95 % interval] where there is one")


def _declared(runs: Sequence[Run]) -> dict[str, Figure]:
    """Return what is known of figures: ours, and what runs recorded of metrics of the user's own.

    A report may be of a stranger's run: it imports no module that a file names.
    """
    recorded = (from_plain(run.figures.get("own_figures")) for run in runs)
    return {key: it for own in recorded for key, it in own.items()} | all_figures()


def _cell(own: Mapping[str, Any], key: str, declared: Mapping[str, Figure]) -> object:
    value = number(own.get(key))
    if value is None:
        return "–" if own.get(key) is None else str(own[key])[:80]
    found = interval(own, key)
    if found is None:
        return _format(key, value, declared)
    shown, low, high = (
        _format(key, number, declared, found.high - found.low)
        for number in (value, found.low, found.high)
    )
    return joined((f"{shown} ", tag("span", f"[{low}, {high}]", class_="interval")))


def interval(figures: Mapping[str, Any], key: str) -> Interval | None:
    """Return the 95 % interval of one figure of one measured set.

    Some have none: recall and diversity are no means over independent samples, and metrics.json
    does not say how they vary. Files of before this version lack the others' deviations too.

    Args:
      figures: of the set, without its name in front.
      key: of the figure.
    """
    declared = all_figures().get(key)
    value, count = number(figures.get(key)), number(figures.get("num_samples"))
    if declared is None or declared.interval is None or value is None:
        return None
    if count is None or count < 1:
        return None
    return declared.interval(value, count, {name: number(it) for name, it in figures.items()})


def _heading(key: str, declared: Mapping[str, Figure]) -> str:
    if key in _MADE:
        return _MADE[key]
    figure = declared.get(key)
    return key.replace("_", " ") if figure is None else figure.heading


def _format(
    key: str, value: float, declared: Mapping[str, Figure], width: float | None = None
) -> str:
    """Write a figure; of an interval of this width no more digits than it lets stand."""
    figure = declared.get(key)
    form = "{:.3f}" if figure is None else figure.form
    if width and (fixed := _FIXED.fullmatch(form)):
        digits = 1 - math.floor(math.log10(width / 2))
        form = f"{{:.{min(int(fixed[1]), max(0, digits))}f}}"
    if figure is not None and figure.share:
        return f"{100 * value:.1f} %"
    if key == "seconds_per_image":
        return f"{1000 * value:.3g}"
    if key in ("nfe", "num_samples"):
        return f"{value:,.0f}"
    return form.format(value)


def _explained(keys: set[str]) -> Markup:
    """Say how each interval is computed, and which figures have none."""
    lines = [
        tag("li", tag("b", figure.heading), ": ", figure.method)
        for key, figure in all_figures().items()
        if key in keys and figure.interval is not None
    ]
    if keys & {"fid", "patch_fid"}:
        text = (
            "the distance of real images, half to half, is what perfect samples could reach, and "
            "no interval."
        )
        lines.append(tag("li", tag("b", "FID"), f": {text}"))
    rest = {"recall", "diversity"} & keys
    if rest:
        names = ", ".join(sorted(rest))
        text = ": none. metrics.json does not hold what one would take."
        lines.append(tag("li", tag("b", names), text))
    everywhere = tag(
        "li",
        "An interval is of the noise that was drawn. Another training of the same recipe differs "
        "by more: several seeds tell.",
    )
    return tag(
        "details", tag("summary", "How the intervals are computed"), tag("ul", *lines, everywhere)
    )


def _compared(
    runs: Sequence[Run], sets: Sequence[tuple[Run, str, Mapping[str, Any]]]
) -> list[Markup]:
    """Say what the figures are of, and where runs were not measured alike."""
    measured = [run for run in runs if run.figures]
    same, differ = [], []
    for key in _OF_THE_WHOLE:
        values = [_said(run.figures.get(key, "not said")) for run in measured]
        label = key.replace("_", " ")
        if len(set(values)) == 1:
            if key in measured[0].figures:
                same.append(f"{label}: {values[0]}")
        else:
            pairs = (f"{run.name}: {v}" for run, v in zip(measured, values, strict=True))
            differ.append(f"{label} ({'; '.join(pairs)})")
    counts = {str(own.get("num_samples")) for _, _, own in sets}
    if len(counts) > 1:
        differ.append(f"samples ({', '.join(sorted(counts))})")
    timed = dict.fromkeys(
        device_words(found)[:80]
        for run in measured
        if isinstance(found := run.figures.get("devices"), Mapping)
    )
    if timed:
        same.append(f"measured on: {'; '.join(timed)}")
    said = [tag("p", ". ".join(same) + ".")] if same else []
    if differ:
        text = f"Not measured alike, so that FIDs do not compare: {'. '.join(differ)}."
        said.append(tag("p", text, class_="warning"))
    return said


def _said(value: object) -> str:
    found = number(value)
    return f"{found:.4g}" if isinstance(value, float) and found is not None else str(value)[:300]


def _over_checkpoints(runs: Sequence[Run]) -> list[Markup]:
    """Chart FID over checkpoints, of runs that were measured with --all_checkpoints."""
    lines = []
    for style, run in enumerate(runs):
        rows = []
        for name, own in by_set(run.figures).items():
            step = name.rpartition("_checkpoint_")[2]
            if "_checkpoint_" in name and step.isdecimal() and len(step) < 16:
                rows.append({"step": int(step), "fid": own.get("fid")})
        if found := curves_of(sorted(rows, key=lambda row: row["step"])):
            lines.append(Line(run.name, style, found["fid"]))
    if not lines:
        return []
    chart = line_chart(
        lines, title="FID of the kept checkpoints", x_label="checkpoint", named=len(runs) > 1
    )
    return [tag("div", chart, class_="charts")]
