"""Initial variables without compiling anything.

`module.init` runs the forward pass, and under `jit` it compiles one random draw for every
parameter: ten seconds and more on CPU for a small U-Net. Here the module is only traced, and its
layers' own `Init`s are then drawn on the host.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dmd2_jax.networks.layers import CONSTANTS, Conv, FourierEmbedding, GroupNorm, Init, Linear
from dmd2_jax.typing import Array, Key, Params

_LAYERS = (Conv, Linear, GroupNorm, FourierEmbedding)


def init_variables(module: nn.Module, key: Key, *example: Any) -> Params:
    """Draw what `module.init(key, *example)` would draw, up to the random numbers themselves.

    Args:
      module: a network whose variables all belong to layers of networks/layers.py.
      key: the numbers are a function of it, the same on every platform.
      example: arguments of the module's call; arrays or ShapeDtypeStructs.

    Returns:
      The variables, float32.

    Raises:
      ValueError: if a variable belongs to another kind of layer.
    """
    layers: dict[tuple[str, ...], nn.Module] = {}

    def record(call, args, kwargs, context):
        if isinstance(context.module, _LAYERS):
            layers[context.module.path] = context.module
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        shapes = jax.eval_shape(module.init, key, *example)
    seed = np.asarray(jax.random.key_data(key) if _is_typed(key) else key)
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed.tolist())))
    flat = {
        path: jnp.asarray(_draw(generator, layers, path, leaf.shape, shapes))
        for path, leaf in sorted(nn.traverse_util_flatten(shapes).items())
    }
    return flat
