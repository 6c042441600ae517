"""Rules of values, each stated once, and what is said of a value that breaks one."""

import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from dmd2_jax.config.plugins import nearest, nearest_or_stop
from dmd2_jax.config.refused import Refused
from dmd2_jax.config.sizes import EXPECTED as SIZES_EXPECTED
from dmd2_jax.config.sizes import sizes_of
from dmd2_jax.config.times import EXPECTED, parsed_times

__all__ = [
    "AT_LEAST_ONE",
    "AT_LEAST_TWO",
    "CHANNELS",
    "CLASSES",
    "CRITIC_TURNS",
    "DECREASING",
    "DIGESTS",
    "DTYPES",
    "FRACTION",
    "FROM_DATA",
    "GAN_FEATURES",
    "GAN_LOSSES",
    "GUIDANCE_RANGE",
    "LEVELS",
    "LR_SCHEDULES",
    "NOT_NEGATIVE",
    "OTHER_SCALES",
    "POSITIVE",
    "POSITIVE_OR_NONE",
    "R1_SAMPLES",
    "REMAT",
    "RESIZE",
    "SIZES",
    "TIMES",
    "UNCONDITIONAL",
    "Rule",
    "check_seed",
    "choice_faults",
    "holds",
    "number_faults",
    "refuse",
    "seed_faults",
    "unknown_faults",
    "unsaid_faults",
    "value_faults",
]

DTYPES = ("float32", "bfloat16")
"""The types that networks compute in, and that an optimiser's moments are kept in."""

DIGESTS = ("names", "sizes", "contents")
"""What tells the files of one run's data from others: their names, sizes too, or every byte."""

GAN_FEATURES = ("critic", "teacher")
"""Whose features the discriminator reads."""

GAN_LOSSES = ("softplus", "hinge")
"""What the two sides of the GAN minimise of its logits."""

LR_SCHEDULES = ("constant", "cosine")
"""What a learning rate does after its warm-up: nothing, or falls to 0 at the end of the run."""

R1_SAMPLES = ("real", "both")
"""Whose logits approximate R1 is of: real samples', or generated ones' too."""

REMAT = ("none", "block", "full")
"""What the backward pass computes again instead of keeping it: nothing, each block, everything."""

RESIZE = ("none", "crop", "enlarge")
"""What is done to images of other sizes as they are read: they are refused, made smaller until the
shorter side fits and cropped to their middle, or made larger too."""

_SEEDS = 2**32


class Rule(NamedTuple):
    """What a number has to be.

    Attributes:
      holds: whether a value is; may raise TypeError for what is no number.
      expected: the same in words.
    """

    holds: Callable[[Any], bool]
    expected: str


AT_LEAST_ONE = Rule(lambda v: v >= 1, "at least 1")
AT_LEAST_TWO = Rule(lambda v: v >= 2, "at least 2")
NOT_NEGATIVE = Rule(lambda v: v >= 0, "0 or more")
POSITIVE = Rule(lambda v: v > 0, "a positive number")
POSITIVE_OR_NONE = Rule(lambda v: v is None or v > 0, "a positive number, or None for none")
FRACTION = Rule(lambda v: 0 <= v < 1, "a number in [0, 1)")
CHANNELS = Rule(lambda v: v is None or v >= 1, "at least 1, or None: as the data have")
CLASSES = Rule(lambda v: v is None or v >= 0, "0 or more, or None: as the data have")


CRITIC_TURNS = Rule(lambda v: v >= 1, "at least 1 (K of TTUR; 5 in the paper, 1 is none)")
DECREASING = Rule(
    lambda v: len(v) > 0 and all(later < earlier for earlier, later in itertools.pairwise(v)),
    "one or more strictly decreasing times, for example (80.0, 0.4), or (999, 749, 499, 249) of "
    "Stable Diffusion",
)
LEVELS = Rule(
    lambda v: len(v) == 2 and 0 <= v[0] < v[1] <= 1,
    "(low, high) with 0 <= low < high <= 1, fractions of the schedule's levels",
)
GUIDANCE_RANGE = Rule(
    lambda v: len(v) == 0 or (len(v) == 2 and 0 < v[0] < v[1] < math.inf),
    "(low, high) with 0 < low < high, guidance scales such as (1, 4), or () for none",
)
UNCONDITIONAL = "which is u + 0 (c - u): the teacher without its condition"
OTHER_SCALES = "one of c + w (c - u), such as Z-Image's, of which 0 is none, is w + 1 here"
"""What to say of a scale 0 of u + w (c - u), which elsewhere is no guidance."""

SIZES = Rule(lambda v: _are_sizes(v), SIZES_EXPECTED)
TIMES = Rule(lambda v: _are_times(v), EXPECTED)


def value_faults(
    values: Mapping[str, Any],
    rules: Mapping[Rule, Collection[str]],
    prefix: str = "",
    *,
    remedy: str = "set config.{}",
) -> Iterator[str]:
    """Yield what breaks a rule of values of any kind.

    Args:
      values: key -> value.
      rules: rule -> the keys that it is for.
      prefix: of the keys as the user writes them, such as "distill.".
      remedy: what to do, of the key with its prefix.
    """
    for rule, keys in rules.items():
        for key in keys:
            if not holds(rule.holds, values[key]):
                name = prefix + key
                yield f"{name}={values[key]!r}, expected {rule.expected}; {remedy.format(name)}."


def number_faults(
    values: Mapping[str, Any], rules: Mapping[Rule, Collection[str]], prefix: str = ""
) -> Iterator[str]:
    """Yield what breaks a rule.

    Args:
      values: key -> value.
      rules: rule -> the keys that it is for.
      prefix: of the keys as the user writes them, such as "model.".
    """
    for rule, keys in rules.items():
        for key in keys:
            value = values[key]
            if not _is_number_or_none(value) or not holds(rule.holds, value):
                name = prefix + key
                yield f"{name}={value!r}, expected {rule.expected}; set config.{name}."


def choice_faults(
    values: Mapping[str, Any],
    choices: Mapping[str, Sequence[str]],
    prefix: str = "",
    *,
    dotted: Collection[str] = (),
) -> Iterator[str]:
    """Yield what is none of the words that a key may have.

    Args:
      values: key -> value.
      choices: key -> its words.
      prefix: of the keys as the user writes them, such as "model.".
      dotted: keys that take a dotted module of the user's own too, which the caller looks at.
    """
    for key, allowed in choices.items():
        value = values[key]
        if value not in allowed:
            own = ", or a dotted module of your own, such as my_lab.mine" if key in dotted else ""
            close = nearest_or_stop(value, allowed)
            yield f"{prefix}{key}={value!r}, expected one of {sorted(allowed)}{own}{close}"


FROM_DATA = ("image_channels", "num_classes")
"""Keys of a family's group that the data say as well, where it leaves them to them."""


def unsaid_faults(model: Mapping[str, Any]) -> Iterator[str]:
    """Yield which keys of a family's group are left to the data: what is built needs a number.

    Args:
      model: `config.model`, or a family's group.
    """
    for key in FROM_DATA:
        if key in model and model[key] is None:
            yield (
                f"model.{key}=None, which means as the data have, expected a number where no data "
                f"are read; set config.model.{key}."
            )


def unknown_faults(values: Collection[str], known: Collection[str], family: str) -> Iterator[str]:
    """Yield which keys of `config.model` its family does not know."""
    for key in values:
        if key not in known:
            yield (
                f"model.{key} is no key of model.family={family}, expected one of {sorted(known)}"
                f"{nearest(key, known)}; leave it away, or begin with that family's keys: "
                f"defaults.get_config({family!r})."
            )


def refuse(faults: Collection[str], what: str = "the config") -> None:
    """Refuse what has faults.

    Raises:
      Refused: naming them all.
    """
    if faults:
        raise Refused(f"{what} is refused:\n  " + "\n  ".join(faults))


def seed_faults(seed: Any, name: str) -> Iterator[str]:
    """Yield why a number is no seed: JAX would cut it to 32 bits without a word."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < _SEEDS:
        yield f"{name}={seed!r}, expected a whole number in 0..{_SEEDS - 1}; try 0."


def check_seed(seed: Any, name: str) -> None:
    """Refuse what is no seed.

    Raises:
      Refused: if it is no whole number in 0 .. 2**32 - 1.
    """
    for fault in seed_faults(seed, name):
        raise Refused(fault)


def holds(rule: Callable[[Any], bool], value: Any) -> bool:
    """Apply `rule`; a value that cannot be compared, or is NaN or infinite, fails it."""
    try:
        return bool(rule(value)) and not (isinstance(value, float) and not math.isfinite(value))
    except TypeError:
        return False


def _are_times(value: Any) -> bool:
    try:
        return bool(parsed_times(value))
    except Refused:
        return False


def _are_sizes(value: Any) -> bool:
    try:
        return bool(sizes_of(value))
    except Refused:
        return False


def _is_number_or_none(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
