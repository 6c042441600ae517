"""Configs of older releases: keys that have moved, and keys that were not there yet."""

import functools
import re
import sys
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from dmd2_jax.config import defaults
from dmd2_jax.config.family import model_defaults, recorded_model
from dmd2_jax.config.refused import Refused

__all__ = ["MOVED", "completed", "moved_in", "translated"]

MOVED = {
    "data.resolution": "model.resolution",
    "schedule.sigma_min": "model.sigma_min",
    "schedule.sigma_max": "model.sigma_max",
    "schedule.rho": "model.rho",
    "schedule.num_levels": "model.num_levels",
}
"""Keys of older configs, and what they are now."""

_SCHEDULE = {old.partition(".")[2] for old in MOVED if old.startswith("schedule.")}


def moved_in(text: str) -> str:
    """Return which keys that a text names have moved and where to, as a sentence; "" if none."""
    found = [old for old in MOVED if re.search(rf"\b{re.escape(old)}\b", text)]
    said = [f"config.{old} is now config.{MOVED[old]}" for old in found]
    return "; ".join(said)


def translated(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return a recorded config with its keys where they are today.

    What was moved is said once, in one line on standard error.

    Args:
      values: nested plain values of an older or of this release.
      where: whose config it is, for the line.
    """
    groups = _moved(values, where)
    model = groups.get("model")
    if isinstance(model, dict):
        groups["model"], said = recorded_model(model)
        if said:
            _say_once(f"{where}: {said}.")
    return groups


def _moved(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    groups = {
        key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()
    }
    model, data, log = (groups.get(name) for name in ("model", "data", "log"))
    schedule = groups.get("schedule")
    if not isinstance(model, dict) or not isinstance(schedule, dict):
        return groups
    said = ["config.schedule's to config.model"]
    del groups["schedule"]
    model |= {key: value for key, value in schedule.items() if key in _SCHEDULE}
    if isinstance(data, dict) and "resolution" in data:
        model.setdefault("resolution", data.pop("resolution"))
        said.append("data.resolution is model.resolution")
    if isinstance(log, dict) and "grid_every" in log and "export_every" not in log:
        log["export_every"] = log["grid_every"]  # which decided that too
        log["teacher_export_every"] = log.get("teacher_grid_every", log["grid_every"])
        said.append("log.export_every is what log.grid_every was")
    try:  # one group of keys was for all families
        known = model_defaults(str(model.get("family", "edm")))
    except Refused:
        known = ConfigDict(model)
    groups["model"] = {key: value for key, value in model.items() if key in known}
    _say_once(f"{where}: an older config was read, its keys moved ({'; '.join(said)}).")
    return groups


def completed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recorded config with the defaults of the keys that are newer than it.

    Args:
      values: nested plain values, from `translated`; what has no `model.family` is no whole
        config, and stays as it is.
    """

    def filled(known: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
        added = {key: value for key, value in base.items() if key not in known}
        groups = {
            key: filled(value, base[key])
            for key, value in known.items()
            if isinstance(value, Mapping) and isinstance(base.get(key), Mapping)
        }
        return {**known, **added, **groups}

    model = values.get("model")
    if not isinstance(model, Mapping) or "family" not in model:
        return dict(values)
    try:
        base = defaults.get_config(model["family"])
    except Refused:  # said when the family is needed
        return dict(values)
    return filled(values, base.to_dict())


@functools.cache
def _say_once(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
