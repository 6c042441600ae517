"""One declaration a flag: the fields of a frozen dataclass become the flags of a command.

    @dataclasses.dataclass(frozen=True)
    class Options:
        workdir: str = flag("the run folder", metavar="DIR")
        seed: int = flag("of the noise", default=0)

gives `--workdir DIR` (required) and `--seed N`, whose help is "of the noise; default: 0". Python
makes the same Options by hand and calls the command's `run` with them.
"""

import argparse
import dataclasses
import re
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from dmd2_jax.config.plugins import nearest
from dmd2_jax.config.sizes import Sizes, read_sizes

__all__ = [
    "add_flags",
    "as_flags",
    "comma_separated",
    "count",
    "flag",
    "flag_names",
    "given",
    "nearest_flag",
    "options_from",
    "outputs",
    "paths",
    "shapes",
    "spelt",
    "unknown_flags",
]

_FLAG = "flag"
_PLURAL = (tuple, list)
_ARGUMENT = re.compile(r"`(\w+|config\.[\w.]+)=([^`]*)`")
_PATHS = ("DIR", "FILE", "PATH", "PNG", "HTML", "JSON", "NPZ", "SRC", "DST")
_OUTPUTS = ("out", "write", "target")


class _Flag(typing.NamedTuple):
    help: str
    metavar: str | None
    choices: Sequence[str] | None
    parse: Callable[[str], Any] | None
    group: str
    positional: bool
    repeated: bool
    const: Any


def flag(
    help: str,
    *,
    default: Any = dataclasses.MISSING,
    metavar: str | None = None,
    choices: Sequence[str] | None = None,
    parse: Callable[[str], Any] | None = None,
    group: str = "",
    positional: bool = False,
    repeated: bool = False,
    const: Any = None,
) -> Any:
    """Declare a field of an options dataclass that is a flag too.

    The type comes from the annotation: str, int, float, bool (a switch), any of them `| None`, and
    `tuple[T, ...]`, whose values are separated by commas or, if `repeated`, given one flag each.

    Args:
      help: one line; the default is added to it, unless it is None, "", () or False, or the line
        says itself what it is.
      default: without one the flag is required.
      metavar: what the value is called, for example "DIR"; by default after its type.
      choices: the values that are allowed.
      parse: text -> value, raising ValueError or argparse.ArgumentTypeError; by default the type.
      group: the heading that the flag stands under.
      positional: given by its place and not by its name.
      repeated: a tuple whose values are given one flag each.
      const: the value of the flag given without one.
    """
    declared = _Flag(help, metavar, choices, parse, group, positional, repeated, const)
    return dataclasses.field(default=default, metadata={_FLAG: declared})


def add_flags(
    parser: argparse.ArgumentParser, options: type, descriptions: Mapping[str, str] | None = None
) -> None:
    """Add the flags that a dataclass declares.

    Args:
      parser: of the command.
      options: a frozen dataclass; fields without `flag` are no flags.
      descriptions: of groups, by their headings.
    """
    hints = typing.get_type_hints(options)
    groups: dict[str, Any] = {"": parser}
    for field in dataclasses.fields(options):
        declared = field.metadata.get(_FLAG)
        if declared is None:
            continue
        if declared.group not in groups:
            text = (descriptions or {}).get(declared.group)
            groups[declared.group] = parser.add_argument_group(declared.group, text)
        required = field.default is dataclasses.MISSING
        name = field.name if declared.positional else f"--{field.name}"
        words = _words(field, declared, hints[field.name])
        if declared.positional:
            words |= {} if required else {"nargs": "?"}
        else:
            words |= {"required": required}
        groups[declared.group].add_argument(name, **words)


def _words(field: dataclasses.Field, declared: _Flag, hint: Any) -> dict[str, Any]:
    """Return what argparse is told of one flag."""
    kind, plural = _kind(hint)
    has_default = field.default is not dataclasses.MISSING
    words: dict[str, Any] = {"help": _help(declared, field.default if has_default else None)}
    if has_default:
        words["default"] = field.default
    if kind is bool and not plural and declared.parse is None:
        return words | {"action": "store_true"}
    parse = declared.parse or kind
    if plural and declared.repeated:
        # argparse would append to the default itself
        words |= {"action": "append", "type": parse, "default": None}
    else:
        words["type"] = comma_separated(kind) if plural and declared.parse is None else parse
    if declared.choices is not None and not plural:
        words["choices"] = tuple(declared.choices)
    elif declared.metavar is not None or not declared.positional:
        usual = "N" if kind is int else "X" if kind is float else field.name.upper()
        words["metavar"] = declared.metavar or usual
    if declared.const is not None:
        words |= {"nargs": "?", "const": declared.const}
    return words


def _kind(hint: Any) -> tuple[Callable[[str], Any], bool]:
    """Return (type of one value, whether there are several) of an annotation."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(it for it in typing.get_args(hint) if it is not type(None))
    if typing.get_origin(hint) in _PLURAL:
        return typing.get_args(hint)[0], True
    return hint, False


def _help(declared: _Flag, default: Any) -> str:
    text = declared.help.replace("%", "%%")
    says_nothing = default is None or default is False or default in ("", ())
    if says_nothing or "default" in declared.help:
        return text
    shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
    return f"{text}; default: {shown}"


def comma_separated(
    kind: Callable[[str], Any], expected: str | None = None
) -> Callable[[str], tuple[Any, ...]]:
    """Make a parser of values that are separated by commas.

    Args:
      kind: text -> one value, raising ValueError or argparse.ArgumentTypeError.
      expected: what is asked for, for errors, "names like a,b"; no value may then be empty.
        Without it empty ones are left out.
    """

    def parse(text: str) -> tuple[Any, ...]:
        parts = [part.strip() for part in text.split(",")]
        try:
            if expected and not all(parts):
                raise ValueError
            return tuple(kind(part) for part in parts if part)
        except (ValueError, argparse.ArgumentTypeError):
            example = "0.5,1.5" if kind is float else "0,1,2"
            message = f"{text!r}, expected {expected or f'numbers like {example}'}"
            raise argparse.ArgumentTypeError(message) from None

    return parse


def shapes(text: str) -> Sizes:
    """Read heights and widths: 512, 448x576, or several between commas; 0: none are said.

    Raises:
      argparse.ArgumentTypeError: if they are none.
    """
    try:
        return 0 if text.strip() == "0" else read_sizes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def count(text: str) -> int:
    """Read a whole number from 1.

    Raises:
      argparse.ArgumentTypeError: if it is none.
    """
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}, expected a whole number from 1")
    return int(text)


def spelt(words: Sequence[str]) -> list[str]:
    """Return a command line with the names of its flags as they are declared: dry-run as dry_run.

    Values stay as they are, and so does all after a lone `--`.
    """
    words = list(words)
    end = words.index("--") if "--" in words else len(words)
    for place, word in enumerate(words[:end]):
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            words[place] = f"--{name[2:].replace('-', '_')}{equals}{value}"
    return words


def unknown_flags(words: Sequence[str], names: Collection[str]) -> list[str]:
    """Return those words of a command line that are written as flags and are none.

    Args:
      words: after the command; as argparse does, words with blanks are values.
      names: of the flags that there are, without dashes.
    """
    words = list(words)
    end = words.index("--") if "--" in words else len(words)
    typed = (word for word in words[:end] if word.startswith("--") and " " not in word)
    return [word for word in typed if word.partition("=")[0][2:] not in names]


def nearest_flag(word: str, names: Iterable[str]) -> str:
    """Return "; did you mean --dry_run?" of a flag that there is not, or nothing.

    Args:
      word: as it was typed.
      names: of the flags that there are, without dashes.
    """
    if not word.startswith("--"):
        return ""
    found = nearest(word.partition("=")[0][2:], [*names])
    return re.sub("'([^']+)'", r"--\1", found)


def options_from(options: type, arguments: argparse.Namespace, **others: Any) -> Any:
    """Make the options that a command line asks for.

    Args:
      options: the dataclass.
      arguments: parsed by a parser with its flags.
      others: values of fields that are no flags.
    """
    values = {}
    for field in dataclasses.fields(options):
        if (declared := field.metadata.get(_FLAG)) is None:
            continue
        value = getattr(arguments, field.name)
        if declared.repeated:
            value = field.default if value is None else tuple(value)
        values[field.name] = value
    return options(**values, **others)


def flag_names(options: type) -> frozenset[str]:
    """Return the names of the flags of an options dataclass, without dashes."""
    declared = {field.name: field.metadata.get(_FLAG) for field in dataclasses.fields(options)}
    return frozenset(name for name, it in declared.items() if it and not it.positional)


def as_flags(message: str, names: Collection[str], *, keys: bool) -> str:
    """Write what a message says to give as it is typed: `seed=1` becomes --seed=1.

    The rooms below the commands serve Python as well and know no flags. They write an argument as
    `seed=1` or `workdir=`, and a key of the config as `config.seed=1`.

    Args:
      message: theirs.
      names: of the flags that can be typed; other arguments stay as they are.
      keys: whether --config.KEY=VALUE can be.
    """

    def typed(found: re.Match[str]) -> str:
        name, value = found.groups()
        if not (keys if name.startswith("config.") else name in names):
            return found.group()
        bare = not value or (value == "True" and "." not in name)  # which takes no value when typed
        return f"--{name}" if bare else f"--{name}={value}"

    return _ARGUMENT.sub(typed, message)


def paths(options: Any) -> list[str]:
    """Return the values of an options object's fields that name a file or folder."""
    found: list[str] = []
    for field in dataclasses.fields(options):
        declared = field.metadata.get(_FLAG)
        if declared is not None and declared.metavar in _PATHS:
            value = getattr(options, field.name)
            found += value if isinstance(value, _PLURAL) else [value] if value else []
    return found


def outputs(options: Any) -> dict[str, bool | None]:
    """Return where an options object says that something is to be written, as the user gave it.

    Returns:
      Path -> whether it will be a file; None: that depends on its name.
    """
    found: dict[str, bool | None] = {}
    for field in dataclasses.fields(options):
        declared, value = field.metadata.get(_FLAG), getattr(options, field.name)
        if declared is not None and field.name in _OUTPUTS and value not in ("", field.default):
            found[value] = {"DIR": False, "PATH": None}.get(declared.metavar, True)
    return found


def given(options: Any, names: Sequence[str]) -> list[str]:
    """Return those of an options object's fields that differ from their defaults."""
    fields = {field.name: field.default for field in dataclasses.fields(options)}
    return [name for name in names if getattr(options, name) != fields[name]]
