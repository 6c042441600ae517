"""Reading a model's config.json: absent keys have their library's defaults, and a value that our
network does not compute is refused instead of ignored.
"""

import functools
import logging
from collections.abc import Collection, Mapping
from typing import Any

from dmd2_jax.config.refused import Refused

__all__ = ["check_kinds", "per_level", "read_config", "square_side"]

_PER_LEVEL = (
    *("attention_head_dim", "cross_attention_dim", "layers_per_block"),
    "transformer_layers_per_block",
)
"""Settings of a U-Net that are one value, or a list of one for each level."""

# What diffusers' EMAModel notes in the config.json of an average's folder, such as unet_ema/.
_AVERAGE = {
    "decay",
    "inv_gamma",
    "min_decay",
    "optimization_step",
    "power",
    "update_after_step",
    "use_ema_warmup",
}

_log = logging.getLogger(__name__)


def read_config(
    config: Mapping[str, Any],
    *,
    class_name: str,
    defaults: Mapping[str, Any],
    supported: Mapping[str, Collection[Any]],
    ignored: Collection[str] = (),
) -> dict[str, Any]:
    """Return the settings that a network needs, or say what it cannot do.

    Args:
      config: what config.json holds; names that begin with "_" are the library's own notes.
      class_name: the model's class, for the messages.
      defaults: the settings that the network takes, with the library's defaults.
      supported: further settings: the values that mean what the network does, the library's
        default first.
      ignored: settings that do not change what the network computes.

    Returns:
      The values of `defaults`' settings, lists as tuples.

    Raises:
      ValueError: if a setting has a value that is not supported, or is none the network knows and
        not switched off.
    """
    check_kinds(config, defaults, class_name)
    problems = []
    if notes := _AVERAGE & set(config):
        _say_once(f"{', '.join(sorted(notes))} in a {class_name}'s config.json are not used.")
    for key, value in config.items():
        if key in defaults or key in ignored or key in _AVERAGE or key.startswith("_"):
            continue
        if key not in supported and value not in (None, False):
            problems.append(f"{key}={value!r} is no setting this version knows")
        elif key in supported and _plain(value) not in supported[key]:
            expected = " or ".join(repr(choice) for choice in supported[key])
            problems.append(f"{key}={value!r}, expected {expected}")
    if problems:
        raise Refused(
            f"config of a {class_name} asks for what is not built here: {'; '.join(problems)}. "
            "Use a model without it: those of the releases that docs/text_to_image.md names have "
            "none of it."
        )
    return {key: _plain(config.get(key, default)) for key, default in defaults.items()}


def check_kinds(config: Mapping[str, Any], defaults: Mapping[str, Any], class_name: str) -> None:
    """Refuse settings of another kind than the library's defaults: texts for numbers and the like.

    Args:
      config: what config.json holds.
      defaults: the settings that are used, with the library's defaults; None: of any kind.
      class_name: the model's class, for the message.

    Raises:
      Refused: naming them.
    """
    odd = [
        f"{key}={str(config[key])[:40]!r} (its default is {default!r})"
        for key, default in defaults.items()
        if key in config and not _alike(config[key], default, several=key in _PER_LEVEL)
    ]
    if odd:
        raise Refused(
            f"config of a {class_name} has {'; '.join(odd)}, expected values of the kind of the "
            "defaults; download it again."
        )


def _alike(value: Any, default: Any, *, several: bool = False) -> bool:
    if default is None:
        return not isinstance(value, Mapping)
    if isinstance(default, tuple):
        entry = default[0] if default else 0
        return isinstance(value, list | tuple) and all(_alike(it, entry) for it in value)
    if several and isinstance(value, list | tuple):
        return all(_alike(it, default, several=True) for it in value)
    if isinstance(value, bool) or isinstance(default, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    return isinstance(value, int | float if isinstance(default, float) else type(default))


def per_level(name: str, value: Any, levels: int) -> tuple[Any, ...]:
    """Give a setting's value to every level of a U-Net, finest first.

    Args:
      name: of the setting, for the message.
      value: one value for all levels, or a sequence of one a level.
      levels: their number.

    Raises:
      ValueError: if a sequence has another length.
    """
    if not isinstance(value, list | tuple):
        return (value,) * levels
    if len(value) != levels:
        raise Refused(
            f"{name}={list(value)} has {len(value)} entries, expected one value or one for each "
            f"of the {levels} levels of block_out_channels; correct config.json."
        )
    return tuple(value)


def square_side(size: Any) -> Any:
    """Return the side that a `sample_size` means: [64, 64] is 64; anything else stays as it is."""
    sides = set(size) if isinstance(size, list | tuple) else set()
    return sides.pop() if len(sides) == 1 else size


@functools.cache
def _say_once(line: str) -> None:
    _log.warning(line)


def _plain(value: Any) -> Any:
    return tuple(_plain(entry) for entry in value) if isinstance(value, list | tuple) else value
