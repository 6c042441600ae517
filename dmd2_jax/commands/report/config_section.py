"""What sets the runs' configs apart; of a single run, what sets it apart from the base."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dmd2_jax.commands.report.markup import Markup, joined, table, tag
from dmd2_jax.commands.report.runs import Run, flat
from dmd2_jax.config import defaults
from dmd2_jax.config.load import plain
from dmd2_jax.config.refused import Refused

__all__ = ["base_config", "config_section", "differences"]

_BASE = "dmd2_jax/config/defaults.py"
_ABSENT = "(absent)"
_LONGEST = 300  # characters of a value
_MOST_KEYS = 500
_FOLDED = 15  # keys above which the table is folded away


def config_section(runs: Sequence[Run]) -> Markup:
    """Return the section."""
    sides = {run.name: run.config for run in runs}
    text = "The keys whose values differ between the runs."
    if len(runs) == 1:
        text = f"The keys whose values differ from {_BASE}, the base of all recipes."
        sides = {_BASE: base_config(runs[0].config.get("model.family", ""))} | sides
    differing = differences(list(sides.values()))
    rows = [
        (tag("code", _cut(key)), *(tag("code", _value(side, key)) for side in sides.values()))
        for key in differing[:_MOST_KEYS]
    ]
    shown = tag("p", "No key differs.")
    if rows:
        shown = table(("key", *sides), rows, caption="Config: what differs")
    if len(rows) > _FOLDED:
        shown = tag("details", tag("summary", f"{len(rows)} keys"), shown)
    left_out = len(differing) - len(rows)
    return tag(
        "section",
        tag("h2", "Config"),
        tag("p", text, f" {left_out} more keys are left out." if left_out else ""),
        shown,
        *(_changes(run) for run in runs if run.changes),
        id="config",
    )


def base_config(family: str) -> dict[str, Any]:
    """Return the base of all recipes by dotted keys; of a family that is not here, without it."""
    try:
        base = defaults.get_config(family)
    except Refused:
        base = defaults.get_config().unlock()
        del base.model
    return flat(json.loads(json.dumps(plain(base))))


def differences(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the dotted keys whose values are not the same in all configs, sorted.

    Of one config all keys are returned. A key that one lacks differs; 1, 1.0 and True are three
    values.
    """
    keys = sorted({key for config in configs for key in config})
    if len(configs) == 1:
        return keys
    return [key for key in keys if len({_value(config, key) for config in configs}) > 1]


def _value(config: Mapping[str, Any], key: str) -> str:
    return _cut(json.dumps(config[key], ensure_ascii=False)) if key in config else _ABSENT


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}… ({len(text)} characters)"


def _changes(run: Run) -> Markup:
    """Return what resumptions of a run changed."""
    lines = []
    for entry in run.changes[:_MOST_KEYS]:
        known = isinstance(entry, Mapping) and isinstance(entry.get("changed"), Mapping)
        if not known:
            lines.append(tag("li", tag("code", _cut(json.dumps(entry)))))
            continue
        pairs = [
            joined((tag("code", _cut(f"{key}: {json.dumps(pair, ensure_ascii=False)}")), " "))
            for key, pair in entry["changed"].items()
        ]
        lines.append(tag("li", f"after {run.unit} {entry.get('after_step')}: ", *pairs))
    title = tag("h3", f"{run.name}: changed on resumption, [before, after]")
    return joined((title, tag("ul", *lines)))
