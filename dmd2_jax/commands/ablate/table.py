"""The figures of an ablation: over seeds, in pairs, and as tables for terminal and Markdown."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dmd2_jax.commands.ablate.rows import Ablation, Pair
from dmd2_jax.metrics.contract.figures import Figure
from dmd2_jax.recipe.tables import aligned

__all__ = ["RULE", "Spread", "judge", "markdown", "spread", "summary", "terminal", "values_of"]

RULE = (
    "A pair agrees with the paper, or disagrees, if its means differ by more than twice the pooled "
    "standard deviation of single runs over seeds; else it is within noise."
)
"""How pairs are judged."""

_NOISE = 2.0

Runs = Mapping[str, Mapping[str, Any]]
"""ROW/seed_N -> {"row", "seed", "figures": {...} or None, "diverged": the reason}."""


class Spread(NamedTuple):
    """Values over seeds: their mean, standard deviation (of n - 1; None of one) and number."""

    mean: float
    std: float | None
    number: int


def spread(values: Sequence[float]) -> Spread:
    """Return mean and standard deviation of one or more values."""
    std = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), std, len(values))


def judge(
    pair: Pair,
    better: Sequence[float],
    worse: Sequence[float],
    *,
    more_is_better: bool = False,
) -> dict[str, Any]:
    """Say whether two rows stand as in the paper.

        s^2 = ((n_1 - 1) s_1^2 + (n_2 - 1) s_2^2) / (n_1 + n_2 - 2)
        agree if m > 2 s, disagree if m < -2 s, else within noise

    Args:
      pair: the rows, of which the paper finds the first better.
      better, worse: their figures over seeds.
      more_is_better: of the figure; or less, as of FID.

    Returns:
      better, worse, figure; margin m, by which the first is better here in the mean; pooled_std s;
      verdict: also "not run" without figures, "unknown" with no two runs of a row.
    """
    found: dict[str, Any] = pair._asdict() | {"margin": None, "pooled_std": None}
    if not better or not worse:
        return found | {"verdict": "not run"}
    sign = 1 if more_is_better else -1
    margin = sign * (statistics.fmean(better) - statistics.fmean(worse))
    freedom = len(better) + len(worse) - 2
    if not freedom:
        return found | {"margin": margin, "verdict": "unknown"}
    squares = sum(
        (value - statistics.fmean(values)) ** 2 for values in (better, worse) for value in values
    )
    pooled = math.sqrt(squares / freedom)
    verdict = "within noise"
    if abs(margin) > _NOISE * pooled:
        verdict = "agree" if margin > 0 else "disagree"
    return found | {"margin": margin, "pooled_std": pooled, "verdict": verdict}


def values_of(runs: Runs, row: str, figure: str) -> list[float]:
    """Return a figure of a row over its finished runs, by seed."""
    chosen = sorted((run for run in runs.values() if run["row"] == row), key=lambda r: r["seed"])
    return [run["figures"][figure] for run in chosen if figure in (run["figures"] or {})]


def summary(ablation: Ablation, runs: Runs) -> dict[str, Any]:
    """Return rows and pairs as table.json has them.

    Args:
      ablation: the ablation.
      runs: the finished runs.

    Returns:
      rows: name -> label, published, seeds, diverged (how many of them) and for each figure
      mean, std, number; pairs: see `judge`.
    """
    rows: dict[str, Any] = {}
    for name, row in ablation.rows.items():
        own = [run for run in runs.values() if run["row"] == name]
        figures = {figure: values_of(runs, name, figure) for figure in ablation.figures}
        rows[name] = {
            "label": row.label,
            "published": row.published,
            "seeds": sorted(run["seed"] for run in own),
            "diverged": sum(run["figures"] is None for run in own),
            "figures": {key: spread(value)._asdict() for key, value in figures.items() if value},
        }
    pairs = [
        judge(
            pair,
            *(values_of(runs, name, pair.figure) for name in pair[:2]),
            more_is_better=ablation.figures[pair.figure].more_is_better,
        )
        for pair in ablation.pairs
    ]
    return {"rows": rows, "pairs": pairs}


def terminal(ablation: Ablation, table: Mapping[str, Any]) -> str:
    """Return both tables for the terminal, from what table.json holds."""
    parts = [ablation.title, aligned(_rows(ablation, table))]
    if table["pairs"]:
        parts += [aligned(_pair_rows(ablation, table)), RULE]
    return "\n\n".join(parts)


def markdown(ablation: Ablation, table: Mapping[str, Any]) -> str:
    """Return table.md, from what table.json holds."""
    parts = [f"# {ablation.title}", _grid(_rows(ablation, table))]
    parts.append(
        "Mean ± standard deviation over seeds, of the students' last average of weights; all rows "
        "share one teacher and as many generator turns as their config says. Published figures "
        "are of other data and features: compare orders, not values."
    )
    if table["pairs"]:
        parts += [_grid(_pair_rows(ablation, table)), RULE]
    return "\n\n".join(parts) + "\n"


def _grid(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def _rows(ablation: Ablation, table: Mapping[str, Any]) -> list[list[str]]:
    rows, figures = table["rows"], ablation.figures
    published = [f for f in figures if any(f in row["published"] for row in rows.values())]
    measured = [f for f in figures if any(f in row["figures"] for row in rows.values())]
    head = ["", *ablation.switches, *(f"paper: {figures[f].heading}" for f in published)]
    cells = [[*head, *(figures[f].heading for f in measured), "runs"]]
    for name, row in rows.items():
        ticks = ["✓" if it in ablation.rows[name].on else "" for it in ablation.switches]
        quoted = [_number(figures[f], row["published"].get(f)) for f in published]
        own = [_spread(figures[f], row["figures"].get(f)) for f in measured]
        runs = str(len(row["seeds"]))
        if row["diverged"]:
            runs += f", {row['diverged']} diverged"
        cells.append([row["label"], *ticks, *quoted, *own, runs])
    blank = [""] * len(ablation.switches) + ["-"] * len(published)
    teacher = table.get("teacher")
    if teacher:
        own = [_number(figures[f], teacher["figures"].get(f)) for f in measured]
        cells.append([f"teacher, {teacher['figures']['nfe']} calls", *blank, *own, "1"])
    if table.get("real_fid_floor") is not None and measured[:1] == ["fid"]:
        floor = [_number(figures["fid"], table["real_fid_floor"]), *["-"] * (len(measured) - 1)]
        cells.append(["real, half to half", *blank, *floor, "-"])
    return cells


def _pair_rows(ablation: Ablation, table: Mapping[str, Any]) -> list[list[str]]:
    cells = [["the paper's order", "by", "better by", "pooled std", "ours"]]
    for pair in table["pairs"]:
        better, worse = (ablation.rows[pair[key]].label for key in ("better", "worse"))
        figure = ablation.figures[pair["figure"]]
        numbers = [_number(figure, pair[key]) for key in ("margin", "pooled_std")]
        cells.append([f"{better} before {worse}", figure.heading, *numbers, pair["verdict"]])
    return cells


def _number(figure: Figure, value: float | None) -> str:
    return "-" if value is None else (figure.mean_form or figure.form).format(value)


def _spread(figure: Figure, value: Mapping[str, Any] | None) -> str:
    if value is None:
        return "-"
    deviation = "" if value["std"] is None else f" ± {_number(figure, value['std'])}"
    return _number(figure, value["mean"]) + deviation
