"""A layer's variable: made where it is missing, and taken as it is where it is given."""

from typing import Any

import flax.linen as nn

from dmd2_jax.config.refused import Refused
from dmd2_jax.runtime.gathering import gathered
from dmd2_jax.typing import Array


def weight(layer: nn.Module, name: str, init: Any, shape: tuple[int, ...], *more: Any) -> Array:
    """Return `layer.param(name, init, shape, *more)`, without tracing `init` where it is not used.

    Where the weights are split over devices, they are brought together here (`gathered`).

    To compare shapes, Flax traces the initial value of every variable that a network is called
    with: a fifth of the time that a U-Net takes to be traced. The shape is known here.

    Args:
      layer: a module, within its call.
      name: of the variable.
      init: (key, shape, *more) -> array; a NamedTuple that can be called, too, which mypy does not
        take for a Callable.
      shape: of the variable.
      more: arguments of `init`.

    Raises:
      ValueError: if the variable is given, and has another shape.
    """
    if not layer.has_variable("params", name):
        return layer.param(name, init, shape, *more)
    value = layer.get_variable("params", name)
    if value.shape != shape:
        raise Refused(
            f"variable {name!r} of {'/'.join(layer.path)} has shape {value.shape}, expected "
            f"{shape}; these weights are of another network."
        )
    return gathered(value, "params", *layer.path, name)
