"""Config files and `--config.key=value` overrides.

A config file is Python with `get_config() -> ml_collections.ConfigDict`; the recipes of this
project lie in configs/, which an installed package has as dmd2_jax/configs. An override must name a
key that exists and parse as the type of the value it replaces, so that a misspelt or ill-typed
value stops the run at once.
"""

import ast
import functools
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FieldReference

from dmd2_jax.config import defaults
from dmd2_jax.config.family import choose_family
from dmd2_jax.config.plugins import nearest_or_stop
from dmd2_jax.config.recorded import MOVED, completed, moved_in
from dmd2_jax.config.refused import Refused
from dmd2_jax.config.sizes import read_sizes
from dmd2_jax.config.text import read_text

__all__ = [
    "allowed_changes",
    "apply_overrides",
    "as_recipe",
    "call_recipe",
    "from_plain",
    "load_config",
    "parse_overrides",
    "plain",
]


def load_config(path: str) -> ConfigDict:
    """Return the locked config of a recipe.

    Args:
      path: a Python file with `get_config()`, or the bare name of one in configs/. A recipe that
        builds on another calls `load_config("imagenet64")`.

    Raises:
      Refused: if there is no such file, or it makes no ConfigDict.
    """
    config = call_recipe(path, "get_config", "return a ConfigDict", "configs/digits.py")
    if not isinstance(config, ConfigDict):
        raise Refused(
            f"--config={path}: get_config() returned {type(config).__name__}, expected a "
            f"ConfigDict; start it from dmd2_jax.config.defaults."
        )
    config.lock()
    return config


def call_recipe(path: str, name: str, expected: str, example: str) -> Any:
    """Return what a function of a config file returns.

    Args:
      path: see `load_config`.
      name: of the function.
      expected: what it is to do, for the error.
      example: a file that does so, for the error.

    Raises:
      Refused: if there is no such file, or the function fails.
    """
    file, candidates = Path(path), _recipes()
    own = Path.cwd() / "configs" / f"{path}.py"
    if path in candidates and own.is_file() and not own.samefile(candidates[path]):
        _say_once(
            f"--config={path} is the recipe that dmd2_jax brings; the one of this folder is "
            f"--config=configs/{path}.py."
        )
    # A file without the ending is no recipe, whatever it is called.
    if not file.is_file() or (path in candidates and file.suffix != ".py"):
        # An installed package has no configs/ in the working folder, which our help speaks of.
        shipped = file.stem if file.parts[:1] == ("configs",) and file.suffix == ".py" else path
        file = candidates.get(shipped, file)
        if not file.is_file():
            raise Refused(
                f"--config={path} is no file, expected a Python file with get_config() or one of "
                f"{sorted(candidates)}{nearest_or_stop(path, candidates)}"
            )
    # Users' recipes import what lies beside them, wherever dmd2 is started.
    places = [str(file.absolute().parent.parent), str(Path.cwd()), str(_PACKAGE.parent)]
    saved, sys.path[:] = list(sys.path), [*places, *sys.path, str(file.absolute().parent)]
    try:
        spec = importlib.util.spec_from_file_location(f"dmd2_recipe_{file.stem}", file)
        if spec is None or spec.loader is None:
            raise Refused(f"--config={path} is not Python, expected a file named *.py.")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return getattr(module, name)()
    except Refused:
        raise
    except Exception as error:
        raise Refused(
            f"--config={path} failed ({type(error).__name__}: {_reason(error)}{_line_of(error)}), "
            f"expected {name}() to {expected}; "
            f"{_remedy(file, error) or f'compare it with {example}.'}"
        ) from error
    finally:
        sys.path[:] = saved


def parse_overrides(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Split `--config.a.b=v` and `--config.a.b v` off a command line; a-b is the key a_b.

    Args:
      arguments: the command line after the program's name.

    Returns:
      ({"a.b": "v"}, the other arguments in order).

    Raises:
      Refused: if an override has no value.
    """
    overrides: dict[str, str] = {}
    others: list[str] = []
    words = iter(arguments)
    for word in words:
        if not word.startswith("--config."):
            others.append(word)
            continue
        key, equals, text = word.removeprefix("--config.").partition("=")
        if not equals:
            following = next(words, None)
            if following is None or following.startswith("--"):
                raise Refused(
                    f"--config.{key} has no value, expected --config.{key}=VALUE; add one."
                )
            text = following
        overrides[key.replace("-", "_")] = text
    return overrides, others


def apply_overrides(config: ConfigDict, overrides: Mapping[str, str]) -> None:
    """Set values of `config` from text, in place.

    Args:
      config: from `load_config`.
      overrides: {"optim.generator_lr": "1e-4"}; numbers, True/False, None where the recipe
        allows it, and tuples as `80,20` or `(80.0, 20.0)`. "model.family" comes first, whatever
        its place: it takes that family's keys, and values of keys that both families know stay.

    Raises:
      Refused: if a key does not exist (the nearest is named) or a value is of another type.
    """
    family = overrides.get("model.family", "").strip()
    if family and "model.family" in dict(_fields(config)) and family != config.model.family:
        choose_family(config, family)
    fields = dict(_fields(config))
    for key, text in overrides.items():
        if key in MOVED and key not in fields:
            raise Refused(
                f"--config.{key} has moved, expected --config.{MOVED[key]}; write "
                f"--config.{MOVED[key]}={text}."
            )
        if key not in fields:
            if inside := [k for k in fields if k.startswith(f"{key}.")]:
                raise Refused(f"--config.{key} is a group of keys, expected one of {inside}.")
            raise Refused(
                f"--config.{key} is no key, expected one of the config's keys"
                f"{nearest_or_stop(key, fields)}"
            )
        current, kind, nullable = fields[key]
        *groups, name = key.split(".")
        node = config
        for group in groups:
            node = node[group]
        node[name] = _parse(key, text, current, kind, nullable)


def allowed_changes(config: ConfigDict, words: Sequence[str]) -> tuple[str, ...]:
    """Read the values of --allow_change: keys (or groups) of the config, separated by commas.

    Raises:
      Refused: if a name is none of the config's (the nearest is named).
    """
    parts = (part.strip().replace("-", "_") for word in words for part in word.split(","))
    names = tuple(filter(None, parts))
    fields = dict(_fields(config))
    for name in names:
        if name in MOVED:
            raise Refused(
                f"--allow_change={name} has moved, expected --allow_change={MOVED[name]}; write so."
            )
        if name not in fields and not any(key.startswith(f"{name}.") for key in fields):
            raise Refused(
                f"--allow_change={name} is no key, expected one of the config's keys or groups"
                f"{nearest_or_stop(name, fields)}"
            )
    return names


def plain(config: ConfigDict) -> dict[str, Any]:
    """Return the config as nested plain Python values, for JSON."""
    return config.to_dict()


def from_plain(values: Mapping[str, Any]) -> ConfigDict:
    """Return the config that `plain` (or its JSON) describes; lists become tuples again."""

    def restored(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: restored(entry) for key, entry in value.items()}
        return tuple(map(restored, value)) if isinstance(value, list) else value

    return ConfigDict(restored(values)).lock()


def as_recipe(values: Mapping[str, Any]) -> ConfigDict:
    """Return a run's config so that overrides apply to it as to the recipe that made it.

    JSON's null says nothing of what else a key takes: types are those of the base of all recipes.

    Args:
      values: of config.json, from `run.folder.read_run`.
    """
    config = from_plain(completed(values))
    try:
        base = defaults.get_config(config.model.family).unlock()
        base.update(config)
    except (Refused, AttributeError, TypeError, ValueError):  # `validate` says what is wrong
        return config
    return base.lock()


_OF_WORDS = ("mesh.", "distill.lora", "distill.objectives", "log.stop_when")


def _parse(key: str, text: str, current: Any, kind: type, nullable: bool) -> Any:
    """Read `text` as the type of the value it replaces."""
    if kind is object:  # of shapes alone, which have no one type
        try:
            return read_sizes(text)
        except Refused as error:
            raise Refused(f"--config.{key}={error}") from error
    expected = kind.__name__ + (" or None" if nullable else "")
    try:
        if nullable and text.strip().lower() == "none":
            return None
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.strip().lower()]
        if kind is int:
            return int(text)
        if kind is float:
            return float(text)
        if kind in (tuple, list):
            expected = f"a tuple like {current!r}"
            if key == "data.classes":
                return tuple(_class(item) for item in _items(text))
            return _parse_tuple(text, current, words=key.startswith(_OF_WORDS))
        if kind is str:
            return text
    except (ValueError, KeyError, SyntaxError):
        pass
    raise Refused(f"--config.{key}={text!r}, expected {expected}; it is {current!r} in the recipe.")


def _parse_tuple(text: str, current: Sequence[Any], words: bool) -> tuple[Any, ...]:
    values = [
        i if words and i.partition(":")[0].replace(".", "").isidentifier() else ast.literal_eval(i)
        for i in _items(text)
    ]
    if any(isinstance(value, bool) or not isinstance(value, int | float | str) for value in values):
        raise ValueError
    if any(isinstance(value, float) for value in current):
        return tuple(float(value) for value in values)
    if any(isinstance(value, float) for value in values) and current:
        raise ValueError
    return tuple(values)


def _items(text: str) -> list[str]:
    stripped = text.strip().strip("()[]").strip()
    return [item.strip() for item in stripped.split(",") if item.strip()]


def _class(item: str) -> str | int:
    """Read a class's number or name; names of folders may be anything, quoted or not."""
    if item[:1] in "'\"" and item[-1:] == item[:1] and len(item) > 1:
        return item[1:-1]
    return int(item) if item.isascii() and item.isdecimal() and str(int(item)) == item else item


def _fields(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, tuple[Any, type, bool]]]:
    """Yield (dotted key, (value, type, may be None)) of every leaf."""
    for name, field in config.items(preserve_field_references=True):
        value = config[name]
        if isinstance(value, ConfigDict):
            yield from _fields(value, f"{prefix}{name}.")
        else:
            yield prefix + name, (value, config.get_type(name), isinstance(field, FieldReference))


def _reason(error: Exception) -> str:
    """Return what an error says, without the whole config, which a locked ConfigDict adds."""
    said: Any = error
    while isinstance(said, KeyError | AttributeError) and said.args:  # one wraps the other
        said = said.args[0]
    return re.sub(r' Other fields present: "\{.*\}"', "", str(said), flags=re.DOTALL).replace(
        "\n", " "
    )


def _line_of(error: Exception) -> str:
    """Return where the user's own code failed: of the recipe, or of what it imports."""
    foreign = tuple(f"{folder}{os.sep}" for folder in (sys.prefix, sys.base_prefix, _PACKAGE))
    frames = traceback.extract_tb(error.__traceback__)
    own = [it for it in frames if not it.filename.startswith((*foreign, "<"))]
    return f"; line {own[-1].lineno} of {own[-1].filename}" if own else ""


def _remedy(recipe: Path, error: Exception) -> str:
    """Return what has changed since a failing recipe was written; "" if it is nothing of that."""
    if isinstance(error, ImportError) and (error.name or "").partition(".")[0] == "configs":
        return (
            "where dmd2_jax is installed there is no package configs: begin the recipe with "
            "`from dmd2_jax.config import defaults` and defaults.get_config(), or with "
            'load_config("imagenet64") of dmd2_jax.config.load.'
        )
    try:
        text = read_text(recipe)
    except (OSError, ValueError):
        return ""
    if moved := moved_in(text):
        return f"{moved}: change the recipe."
    if "model.family" in text:
        return (
            "every family has keys of its own in config.model: begin the recipe with "
            'defaults.get_config("stable_diffusion"), or another family\'s name, and leave '
            "config.model.family away."
        )
    return ""


@functools.cache
def _say_once(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


_PACKAGE = Path(__file__).absolute().parent.parent


def _recipes() -> dict[str, Path]:
    """Map the names of recipes, "digits" and "configs/digits.py", to their files.

    Ours come first: a user's own configs/ in the working folder adds to them, and hides none.
    """
    installed, checkout = _PACKAGE / "configs", _PACKAGE.parent / "configs"
    found: dict[str, Path] = {}
    for folder in (installed if installed.is_dir() else checkout, Path.cwd() / "configs"):
        for file in sorted([*folder.glob("*.py"), *folder.glob("ablations/*.py")]):
            if not file.name.startswith("_"):
                found.setdefault(file.stem, file)
    return found
