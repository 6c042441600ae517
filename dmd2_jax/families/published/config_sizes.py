"""What the numbers of a published config.json may be, before a network is made by them."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from dmd2_jax.config.refused import Refused

__all__ = ["check_sizes"]

_MOST = 2**20  # of any whole number; the largest that is known is a vocabulary of 250,112
_MOST_THETA = 10**9
_MOST_LAYERS = 1000  # each is traced by itself; FLUX.1 has 57
_MOST_STEPS = 100_000  # of a schedule, whose tables are made whole; all that are known have 1000
_MOST_SIDE = 2**14  # of an image or of latents, of which whole batches are made
_LAYERS = ("layers", "depth", "blocks")
_SIDES = ("sample_size", "image_size")
_STEPS = "num_train_timesteps"
_UNBOUNDED = "lambda_min_clipped"  # diffusers' default is -Infinity, and is written so


def check_sizes(config: Mapping[str, Any], where: str) -> None:
    """Refuse numbers with which making the network or its schedule would not end.

    Args:
      config: what the file holds.
      where: the file, for messages.

    Raises:
      Refused: if a number is not finite, or larger than of any model by far.
    """
    for key, number in _numbers(config):
        if isinstance(number, float):
            if not math.isfinite(number) and not (key == _UNBOUNDED and math.isinf(number)):
                raise Refused(
                    f"{where} has {key}={number}, expected a finite number; download it again."
                )
        elif abs(number) > (most := _most(key)):
            said = str(number) if abs(number) < 10**20 else "a number of over 20 digits"
            raise Refused(f"{where} has {key}={said}, expected at most {most}; download it again.")


def _most(key: str) -> int:
    if key.endswith("theta"):  # of rotary places, which is no size
        return _MOST_THETA
    if key == _STEPS:
        return _MOST_STEPS
    if key.endswith(_SIDES):
        return _MOST_SIDE
    return _MOST_LAYERS if any(word in key for word in _LAYERS) else _MOST


def _numbers(config: Mapping[str, Any]) -> Iterator[tuple[str, int | float]]:
    """Yield all numbers, each with the nearest name above it."""
    waiting = list(config.items())
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, Mapping):
            waiting.extend(value.items())
        elif isinstance(value, list):
            waiting.extend((key, one) for one in value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield key, value
