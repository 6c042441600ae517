"""A network that is told one of a few steps, by an embedding that is added to the noise level's.

The embedding of a step is added to the bias of the layer that makes the embedding of the noise
level, which is the same as adding it there; so that no network needs to know of it.
"""

from typing import Any

import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from dmd2_jax.config.refused import Refused
from dmd2_jax.typing import Array, Int, Params

__all__ = ["STEPS", "at_step", "with_steps"]

STEPS = "steps"
"""The collection of the embeddings: path of a bias [d] -> [s, d]."""


def with_steps(params: Params, layer: str, steps: int) -> Params:
    """Return parameters with embeddings of steps, all zero: the network begins as it was.

    Args:
      params: {"params": ...}, or their shapes.
      layer: the end of the name of the layer that makes the noise level's embedding, such as
        "timestep_embedder.linear_2"; there may be several.
      steps: s.

    Raises:
      Refused: if no layer of the name has a bias.
    """
    biases = {
        path: bias
        for path, bias in flatten_dict(params["params"]).items()
        if path[-1] == "bias" and f".{'.'.join(path[:-1])}".endswith(f".{layer}")
    }
    if not biases:
        raise Refused(
            f"no layer of the network is called {layer!r} and has a bias, expected the one that "
            "makes the noise level's embedding; name it, or train without telling it the step."
        )
    tables = {"/".join(path): jnp.zeros((steps, *bias.shape)) for path, bias in biases.items()}
    return {**params, STEPS: tables}


def at_step(params: Params, step: Int[Array, ""] | int) -> Params:
    """Return the network's parameters at a step.

    Args:
      params: from `with_steps`.
      step: [] the step, 0 ... s - 1; may be traced.
    """
    flat: dict[Any, Array] = flatten_dict(params["params"])
    for name, table in params[STEPS].items():
        path = tuple(name.split("/"))
        flat[path] = flat[path] + table[step]
    rest = {key: value for key, value in params.items() if key != STEPS}
    return {**rest, "params": unflatten_dict(flat)}
