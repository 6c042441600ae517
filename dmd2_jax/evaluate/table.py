"""The figures of `dmd2 evaluate` as a table for the terminal."""

from collections.abc import Mapping
from typing import Any

from dmd2_jax.metrics.measured_sets import by_set
from dmd2_jax.recipe.open import aligned

__all__ = ["metrics_table"]

_LAST = {
    "class_accuracy": ("class accuracy", "{:.2%}", 1.0),
    "nfe": ("calls/image", "{}", 1),
    "seconds_per_image": ("ms/image", "{:.3f}", 1e3),
}
"""Figure -> heading, format and factor of the columns that come last."""

_HEADINGS = {
    "fid": "FID",
    "patch_fid": "patch FID",
    "kid": "KID",
    "inception_score": "IS",
    "clip_score": "CLIP score",
}
_FORMATS = {"kid": "{:.4g}"}
_HIDDEN = ("num_samples", "fid_bias", "patch_fid_bias", "kid_standard_error")


def metrics_table(metrics: Mapping[str, Any]) -> str:
    """Return figures as a table: a row for each measured set, a column for each figure.

    Args:
      metrics: NAME_num_samples and further figures NAME_... of each set, as in metrics.json. A
        figure's deviation NAME_..._std stands behind it; real_fid_floor has a row of its own.
    """
    figures = by_set(metrics)
    keys = list(dict.fromkeys(key for own in figures.values() for key in own))
    last = list(_LAST)
    # "fid" stands first, as the row of real images has a figure there.
    keys = sorted(
        _shown(keys), key=lambda key: (last.index(key) if key in last else -1, key != "fid")
    )
    rows = [["", *(_heading(key) for key in keys)]]
    for name, own in figures.items():
        rows.append([name, *(_cell(own, key) for key in keys)])
    if "real_fid_floor" in metrics and "fid" in keys:
        floor = f"{metrics['real_fid_floor']:.3f}"
        rows.append(["real, half to half", floor, *["-"] * (len(keys) - 1)])
    return aligned(rows)


def _shown(keys: list[str]) -> list[str]:
    deviations = {f"{key}_std" for key in keys}
    return [key for key in keys if key not in _HIDDEN and key not in deviations]


def _heading(key: str) -> str:
    if key in _LAST:
        return _LAST[key][0]
    return _HEADINGS.get(key, key.replace("_", " "))


def _cell(own: Mapping[str, Any], key: str) -> str:
    value = own.get(key)
    if value is None:
        return "-"
    if key in _LAST:
        _, form, factor = _LAST[key]
        return form.format(value * factor)
    form = _FORMATS.get(key, "{:.3f}")
    deviation = own.get(f"{key}_std")
    return form.format(value) + (f" ± {form.format(deviation)}" if deviation is not None else "")
