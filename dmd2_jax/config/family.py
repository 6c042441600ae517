"""`config.model`: each family has a group of keys of its own, which the recipe chooses.

A family is a folder of dmd2_jax/families whose file settings.py has `defaults()`, its group with
every default, and `faults(model)`, what is wrong with the values of one, and where it likes
`recorded(model)`, how an older run's group is read; or a dotted module of the user's own with
`defaults()` and `build(model)`, and the others where it likes. The settings of ours are read
without their networks, so that no recipe imports jax.
"""

import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from dmd2_jax.config.plugins import available, is_dotted, load_plugin
from dmd2_jax.config.refused import Refused
from dmd2_jax.config.rules import unknown_faults

__all__ = [
    "FAMILIES",
    "choose_family",
    "family_names",
    "model_defaults",
    "model_faults",
    "recorded_model",
]

FAMILIES = "dmd2_jax.families"
KEY = "config.model.family"


def family_names() -> list[str]:
    """List the families of ours, in alphabetical order."""
    return [name for name in available(FAMILIES, packages=True) if _file(name).is_file()]


def model_defaults(family: str) -> ConfigDict:
    """Return a family's group of keys with its defaults; `family` is among them.

    Args:
      family: one of `family_names`, or a dotted module.

    Raises:
      Refused: if there is no such family, or its module lacks what is needed.
    """
    group = _settings(family).defaults()
    if not isinstance(group, Mapping | ConfigDict) or "resolution" not in group:
        raise Refused(
            f"{KEY}={family}: defaults() returned {type(group).__name__} without `resolution`, "
            "expected a dict or ConfigDict of the family's keys, the side of its images among them."
        )
    made = group if isinstance(group, ConfigDict) else ConfigDict(dict(group))
    made = made.copy_and_resolve_references() if made.is_locked else made
    made.unlock()
    made.family = family
    return made.lock()


def choose_family(config: ConfigDict, family: str) -> None:
    """Give a config another family's group, in place; values of keys that both know stay.

    Raises:
      Refused: see `model_defaults`.
    """
    group, before = model_defaults(family), config.model
    for key in group:
        if key != "family" and key in before and isinstance(before[key], group.get_type(key)):
            group[key] = before[key]
    config.model = group


def model_faults(model: ConfigDict) -> Iterator[str]:
    """Yield what is wrong with a group: a family, keys that it does not know, its own rules.

    Args:
      model: `config.model`.
    """
    family = model.get("family", "")
    try:
        known = model_defaults(family)
    except Refused as error:
        yield str(error).removeprefix("config.")
        return
    unknown = list(unknown_faults(model, known, family))
    yield from unknown
    missing = [key for key in known if key not in model]
    if missing:
        yield f"model has no {missing}, expected every key of model.family={family}; add them."
    rules = getattr(_settings(family), "faults", None)
    if rules is not None and not unknown and not missing:
        yield from rules(model)


def recorded_model(model: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Return the group of an older run as it is read today, and what that changes, in a sentence.

    Args:
      model: the recorded `config.model`.
    """
    try:
        read = getattr(_settings(str(model.get("family", ""))), "recorded", None)
    except Refused:  # said when the family is needed
        read = None
    return (dict(model), "") if read is None else read(model)


def _settings(family: str) -> ModuleType:
    """Return the module with a family's `defaults`."""
    known = family_names()
    if is_dotted(family) or family not in known:
        return load_plugin(family, FAMILIES, KEY, known=known, needs=("defaults", "build"))
    name = f"{FAMILIES}.{family}.settings"
    spec = importlib.util.spec_from_file_location(name, _file(family))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _file(family: str) -> Path:
    return Path(__file__).absolute().parent.parent / "families" / family / "settings.py"
