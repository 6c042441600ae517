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
from flax.traverse_util import flatten_dict, unflatten_dict

from dmd2_jax.config.refused import Refused
from dmd2_jax.networks.layers import Conv, Embedding, FourierEmbedding, GroupNorm, LayerNorm, Linear
from dmd2_jax.networks.patch_embedding import PatchEmbedding
from dmd2_jax.networks.rms_norm import RmsNorm
from dmd2_jax.typing import Key, Params


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
    if isinstance(key, jax.core.Tracer):  # inside a caller's jit or eval_shape
        return module.init(key, *example)
    layers: dict[tuple[str, ...], nn.Module] = {}

    def record(call, args, kwargs, context):
        layers[context.module.path] = context.module
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        shapes = flatten_dict(jax.eval_shape(module.init, key, *example))
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    seed = np.asarray(jax.random.key_data(key) if typed else key)
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed.tolist())))
    variables = {}
    for path, leaf in sorted(shapes.items()):
        collection, *owner, name = path
        kernel = shapes.get((collection, *owner, "kernel"), leaf)
        values = _draw(generator, layers[tuple(owner)], name, leaf.shape, kernel.shape)
        variables[path] = jnp.asarray(values, jnp.float32)
    return unflatten_dict(variables)


def _draw(
    generator: np.random.Generator,
    layer: nn.Module,
    name: str,
    shape: tuple[int, ...],
    kernel_shape: tuple[int, ...],
) -> np.ndarray:
    """Draw the variable `name` of `layer`."""
    match layer:
        case Conv() | Linear():
            init = layer.kernel_init if name == "kernel" else layer.bias_init
            if init.distribution == "normal":
                return init.scale(kernel_shape) * generator.standard_normal(shape)
            return init.scale(kernel_shape) * generator.uniform(-1.0, 1.0, shape)
        case GroupNorm() | LayerNorm():
            return np.ones(shape) if name == "scale" else np.zeros(shape)
        case RmsNorm():
            return np.ones(shape)
        case PatchEmbedding():
            return layer.table()
        case FourierEmbedding() | Embedding():
            return layer.scale * generator.standard_normal(shape)
    raise Refused(
        f"variable {name!r} belongs to a {type(layer).__name__}, expected a layer of "
        "networks/layers.py or another that networks/initialise.py knows; call module.init instead."
    )
