"""The figures of `dmd2 evaluate` as a table for the terminal."""

from collections.abc import Collection, Mapping
from typing import Any

from dmd2_jax.evaluate.sets import by_set
from dmd2_jax.metrics import all_figures
from dmd2_jax.metrics.contract.figures import CLASS_ACCURACY, Figure
from dmd2_jax.recipe.tables import aligned

__all__ = ["metrics_table"]

_MADE = {
    "guidance": ("guidance", "{:g}", 1),
    "nfe": ("calls/image", "{}", 1),
    "seconds_per_image": ("ms/image", "{:.3f}", 1e3),
}
"""What is known of the making of the images: heading, format and factor."""

_LAST = [*CLASS_ACCURACY, *_MADE]


def metrics_table(metrics: Mapping[str, Any], own: Collection[str] = ()) -> str:
    """Return figures as a table: a row for each measured set, a column for each figure.

    Args:
      metrics: NAME_num_samples and further figures NAME_... of each set, as in metrics.json. A
        figure's deviation NAME_..._std stands behind it; real_fid_floor has a row of its own.
      own: metrics of the user's own that are among them, dotted modules.
    """
    declared, sets = all_figures(own), by_set(metrics)
    keys = list(dict.fromkeys(key for figures in sets.values() for key in figures))
    # "fid" stands first, as the row of real images has a figure there.
    keys = sorted(
        (key for key in keys if key in declared or key in _MADE),
        key=lambda key: (_LAST.index(key) if key in _LAST else -1, key != "fid"),
    )
    rows = [["", *(_MADE[key][0] if key in _MADE else declared[key].heading for key in keys)]]
    for name, figures in sets.items():
        rows.append([name, *(_cell(figures, key, declared.get(key)) for key in keys)])
    if "real_fid_floor" in metrics and "fid" in keys:
        floor = declared["fid"].form.format(metrics["real_fid_floor"])
        rows.append(["real, half to half", floor, *["-"] * (len(keys) - 1)])
    return aligned(rows)


def _cell(figures: Mapping[str, Any], key: str, declared: Figure | None) -> str:
    value = figures.get(key)
    if value is None:
        return "-"
    if declared is None:
        _, form, factor = _MADE[key]
        return form.format(value * factor)
    deviation = figures.get(f"{key}_std")
    shown = declared.form.format(value)
    return shown if deviation is None else f"{shown} ± {declared.form.format(deviation)}"
