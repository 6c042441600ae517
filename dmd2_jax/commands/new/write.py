"""A recipe as a Python file, checked before it is written."""

import shlex
import textwrap
from collections.abc import Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from dmd2_jax.commands.new.command import Options
from dmd2_jax.commands.new.look import Facts, look
from dmd2_jax.commands.new.propose import (
    Group,
    Machine,
    propose,
    sizes_in_words,
    this_machine,
)
from dmd2_jax.config import defaults
from dmd2_jax.config.refused import Refused
from dmd2_jax.data.reading.classes import shown
from dmd2_jax.recipe.open import open_recipe
from dmd2_jax.runtime.places import make_folder, path_of
from dmd2_jax.runtime.whole_file import whole_file

__all__ = ["write_recipe"]

_WIDTH = 100
_NAMED = 10  # classes

_TEMPLATE = '''"""{summary}

{commands}

{about}
"""

from ml_collections import ConfigDict

from dmd2_jax.config import defaults


def get_config() -> ConfigDict:
    """Return the config."""
    config = defaults.get_config()
    config.name = {name}
{body}
    return config
'''


def write_recipe(options: Options) -> str:
    """Look at data, and write a recipe for them.

    Args:
      options: of the command.

    Returns:
      What was written and how to use it; of a dry run the recipe itself.

    Raises:
      FileNotFoundError: if there are no data.
      Refused: if the data are refused, or the file is there.
    """
    out = path_of(options.out)
    if out.suffix != ".py":
        raise Refused(f"`out={options.out}`, expected a Python file; call it *.py.")
    if out.exists() and not options.overwrite and not options.dry_run:
        raise Refused(
            f"`out={options.out}` is there, expected a new file, so that no recipe of yours is "
            "lost; choose another name, or add `overwrite=`."
        )
    facts, machine = look(options.data, options.source), this_machine()
    groups = propose(facts, machine, options.resolution)
    config = _config(out.stem, groups)
    # All that a training would refuse is refused now: values, data, devices.
    recipe = open_recipe(config, config.distill.batch_size)
    config = recipe.config  # with what the data say
    shapes = jax.tree.leaves(recipe.family.param_shapes())
    text = _text(options.out, config, facts, machine, groups)
    if options.dry_run:
        return text.rstrip()
    make_folder(out.parent)
    with whole_file(out) as partial:
        partial.write_text(text, encoding="utf-8")
    lines = [
        f"{options.out}: {_summary(facts, config)}",
        f"network: {sum(int(np.prod(it.shape)) for it in shapes):,} parameters; for {machine.name}",
        *(f"note: {note}" for note in facts.notes),
        "",
        "look at it and change what you like, then:",
        *(f"  {line}" for line in _commands(options.out, config)),
    ]
    return "\n".join(lines)


def _config(name: str, groups: Sequence[Group]) -> ConfigDict:
    """Return the config that the recipe makes."""
    config = defaults.get_config()
    config.name = name
    for group in groups:
        config.update_from_flattened_dict(group.values)
    return config


def _text(
    out: str, config: ConfigDict, facts: Facts, machine: Machine, groups: Sequence[Group]
) -> str:
    about = (
        f"Proposed by `dmd2 new` for {machine.name}: a start, to be changed. All other values, and "
        "what each is, are in dmd2_jax/config/defaults.py and, of the network, "
        "dmd2_jax/families/edm/settings.py."
    )
    body = []
    for group in groups:
        body += ["", *_wrapped(group.why, "    # ")]
        body += [f"    config.{key} = {_code(value)}" for key, value in group.values.items()]
    if facts.class_names is not None and facts.num_classes > 1:
        body += ["", *_wrapped(f"Classes: {_classes(facts.class_names)}.", "    # ")]
    commands = "\n".join(f"    {line}" for line in _commands(out, config))
    return _TEMPLATE.format(
        summary=_quoted(f"{_summary(facts, config)}."),
        commands=_quoted(commands),
        about=_quoted("\n".join(_wrapped(about, ""))),
        name=_string(config.name),
        body="\n".join(body),
    )


def _summary(facts: Facts, config: ConfigDict) -> str:
    side = config.model.resolution
    classes = f" of {facts.num_classes:,} classes" if facts.num_classes > 1 else ""
    made = "" if config.data.resize == "none" else f", resized to {side} x {side}"
    return f"{facts.images:,} images{classes}, {sizes_in_words(facts)}{made}"


def _commands(out: str, config: ConfigDict) -> list[str]:
    """Return the three commands, each ready to be pasted."""
    recipe, teacher, student = (
        shlex.quote(word)
        for word in (out, f"runs/{config.name}_teacher", f"runs/{config.name}_student")
    )
    last = (
        f"dmd2 evaluate      --workdir={student}"
        if config.model.num_classes
        else f"dmd2 sample        --workdir={student} --num=64 --out=samples.png"
    )
    return [
        f"dmd2 train-teacher --config={recipe} --workdir={teacher}",
        f"dmd2 distill       --config={recipe} --workdir={student} "
        f"--config.teacher.weights={teacher}",
        last,
    ]


def _classes(names: Sequence[str]) -> str:
    said = ", ".join(f"{i} {shown(name)}" for i, name in enumerate(names[:_NAMED]))
    return said + (f", ... {len(names) - 1} {shown(names[-1])}" if len(names) > _NAMED else "")


def _code(value: object) -> str:
    """Return a value as Python, numbers as people write them."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:_}" if value >= 10_000 else str(value)
    return _string(value) if isinstance(value, str) else repr(value)


def _string(text: str) -> str:
    """Return a text as Python, in the quotes of the other recipes."""
    plain = text.isprintable() and not set(text) & {'"', "\\"}
    return f'"{text}"' if plain else repr(text)


def _quoted(text: str) -> str:
    """Return a text as it stands in a docstring."""
    return text.replace("\\", "\\\\").replace('"', '\\"')


def _wrapped(text: str, before: str) -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, initial_indent=before, subsequent_indent=before, break_on_hyphens=False
    )
