"""Objectives by their names in a config: a file of this folder, or a dotted module of one's own.

f_distill                                    the file f_distill.py, its objective()
f_distill:divergence=jensen_shannon:weight=2 the same with some of its fields set
f_distill:ratio_range=0.1..20                (0.1, 20)
my_lab.my_loss:scale=0.5                     a module of one's own
"""

import ast
import contextlib
import dataclasses
import importlib
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from dmd2_jax.config.plugins import available, is_dotted, load_plugin, nearest
from dmd2_jax.config.refused import Refused
from dmd2_jax.distill.objectives.contract import Objective

__all__ = ["checked", "named"]

_KEY = "config.distill.objectives"
_SETTING = re.compile(r":(?=[A-Za-z_]\w*=)")
_MEMBERS = (
    "name",
    "player",
    "weight",
    "draws",
    "passes",
    "value",
    "needs_real",
    "needs_pairs",
    "needs_discriminator",
    "needs_critic",
    "trains_critic",
)


def named(text: str, settings: Mapping[str, Any]) -> Objective:
    """Make the objective that a text names, with the values that the text sets.

    A module's `objective()` may take arguments of the names of `settings`, and is given them.

    Args:
      text: NAME or NAME:FIELD=VALUE:FIELD=VALUE..., the fields being those of the dataclass.
      settings: keys of `config.distill` that all objectives share, such as "guidance".

    Raises:
      Refused: if there is no such module, field or value, or what is made is no objective.
    """
    name, *values = _SETTING.split(text)
    if not is_dotted(name) and name not in (known := _by_name()):
        raise Refused(
            f"{_KEY} has {name!r}, expected dotted modules of your own, such as my_lab.my_loss, or "
            f"some of {known}{nearest(name, known)}; the paper's are switched by their weights."
        )
    package = __name__.rpartition(".")[0]
    module: Any = load_plugin(name, package, _KEY, known=(name,), needs=("objective",))
    one = checked(_made(module.objective, settings, name), f"{name}.objective() returned")
    return _changed(one, values, text)


def checked(one: Any, whose: str = f"{_KEY} has") -> Objective:
    """Refuse what is no objective, a class that was not called among it.

    Args:
      one: what is given as one.
      whose: who gave it, for the error.
    """
    missing = [member for member in _MEMBERS if not hasattr(one, member)]
    if missing or isinstance(one, type):
        without = f" without {missing}" if missing else ", a class"
        raise Refused(
            f"{whose} {one!r}{without}, expected an objective; make it an object of a subclass of "
            "dmd2_jax.objectives.Objective."
        )
    return one


def _made(objective: Callable[..., Any], settings: Mapping[str, Any], name: str) -> Any:
    asked = inspect.signature(objective).parameters
    given = {key: settings[key] for key in asked if key in settings}
    unknown = [
        key for key, it in asked.items() if key not in settings and it.default is inspect._empty
    ]
    if unknown:
        raise Refused(
            f"{name}.objective() asks for {unknown}, expected arguments with defaults, or of the "
            f"names {sorted(settings)}, which it is given; give them defaults."
        )
    return objective(**given)


def _changed(one: Objective, values: list[str], text: str) -> Objective:
    """Return the objective with the fields that are written behind its name."""
    if not values:
        return one
    if not dataclasses.is_dataclass(one):
        raise Refused(f"{_KEY} has {text!r}, expected values for a dataclass alone; take them off.")
    hints = typing.get_type_hints(type(one))
    fields = [field.name for field in dataclasses.fields(one)]
    changes = {}
    for value in values:
        field, _, written = value.partition("=")
        if field not in fields:
            raise Refused(
                f"{_KEY} has {text!r}, whose {field!r} is no field of it, expected some of "
                f"{sorted(fields)}{nearest(field, fields)}."
            )
        changes[field] = _value(written, hints[field], f"{_KEY} has {text!r}, whose {field}")
    return dataclasses.replace(one, **changes)


def _value(written: str, hint: Any, whose: str) -> Any:
    """Read a value of a field's type; what is no literal of Python is a string."""
    try:
        value = ast.literal_eval(written)
    except (SyntaxError, ValueError):
        value = written
    union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    kinds = [typing.get_origin(it) or it for it in (typing.get_args(hint) if union else (hint,))]
    if float in kinds and type(value) is int:
        value = float(value)
    if tuple in kinds and isinstance(value, str):
        with contextlib.suppress(ValueError):  # what is no pair of numbers is refused below
            value = tuple(float(part) for part in value.split(".."))
    if type(value) not in kinds:
        names = " or ".join("None" if it is types.NoneType else it.__name__ for it in kinds)
        raise Refused(f"{whose} is {written!r}, expected {names}; correct it.")
    return value


def _by_name() -> list[str]:
    """List the files of this folder that offer an objective by name, as a user's module does."""
    package = __name__.rpartition(".")[0]
    modules = {name: importlib.import_module(f"{package}.{name}") for name in available(package)}
    return [name for name, module in modules.items() if hasattr(module, "objective")]
