"""A network that is told a guidance scale, by an embedding that is added to the noise level's.

    h = linear_1(noise level's sinusoids + sinusoids(1000 (w - 1)) K),   K [256, c] learned

linear_1 is the first layer of what embeds the noise level, so that the layers behind it see both
numbers together. K is zero at first: the network begins as it was. It is a collection of its own,
"guidance", beside the network's weights; the layer finds what is added in another ("added"), so
that no network needs to know of it. At one scale all of it is a change of the layer's bias.

Source: Meng et al. 2022 (2210.03142), section 3.1; in the form of Luo et al. 2023 (2310.04378),
  which diffusers' pipelines take as `time_cond_proj_dim`.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from dmd2_jax.config.refused import Refused
from dmd2_jax.networks.layers import ADDED
from dmd2_jax.networks.time_embedding import sinusoids
from dmd2_jax.runtime.gathering import gathered
from dmd2_jax.typing import Array, Float, Params

__all__ = [
    "GUIDANCE",
    "WIDTH",
    "at_scale",
    "folded",
    "scale_embedding",
    "scale_kernels",
    "without_scale",
]

GUIDANCE = "guidance"
"""The collection: path of a layer -> its K [256, c]."""

WIDTH = 256
"""Of the embedding, as diffusers' pipelines of latent consistency models have it."""

_SCALE = 1000.0


def scale_embedding(w: Float[Array, " b"], features: int = WIDTH) -> Float[Array, "b d"]:
    """Embed guidance scales as [sin(1000 (w - 1) f), cos(1000 (w - 1) f)].

    Args:
      w: [b] of u + w (c - u).
      features: even size d.
    """
    values = (jnp.asarray(w, jnp.float32) - 1.0) * _SCALE
    return sinusoids(values, features, cosine_first=False, freq_shift=1)


def scale_kernels(params: Params, layer: str) -> dict[str, Array]:
    """Return the collection for a network, all zero.

    Args:
      params: {"params": ...}, or their shapes.
      layer: the end of the name of the first layer that embeds the noise level, such as
        "timestep_embedder.linear_1"; there may be several.

    Raises:
      Refused: if no layer of the name has a bias, into which a scale can be folded.
    """
    flat = flatten_dict(params["params"])
    layers = [path[:-1] for path in flat if path[-1] == "bias"]
    found = [path for path in layers if f".{'.'.join(path)}".endswith(f".{layer}")]
    if not found:
        raise Refused(
            f"no layer of the network is called {layer!r} and has a bias, expected the first of "
            "those that embed the noise level; name it, or train at one scale."
        )
    widths = {"/".join(path): flat[(*path, "kernel")].shape[0] for path in found}
    return {name: jnp.zeros((WIDTH, width)) for name, width in widths.items()}


def at_scale(params: Params, w: Float[Array, " b"]) -> Params:
    """Return the network's parameters at a guidance scale for each sample of a batch.

    Args:
      params: with the collection.
      w: [b].
    """
    embedded = scale_embedding(w)
    # In float32 as diffusers multiplies, whatever the device's default precision is.
    flat = {}
    for name, kernel in params[GUIDANCE].items():
        whole, highest = gathered(kernel, GUIDANCE, name), jax.lax.Precision.HIGHEST
        flat[*name.split("/"), "input"] = jnp.matmul(embedded, whole, precision=highest)
    return {**without_scale(params), ADDED: unflatten_dict(flat)}


def folded(params: Mapping[str, Any], w: float) -> Params:
    """Return plain weights of the network at one scale: what is added goes into the bias.

    Args:
      params: with the collection.
      w: the scale.
    """
    embedded = np.asarray(scale_embedding(jnp.full((1,), w)))[0].astype(np.float64)
    flat: dict[Any, Any] = flatten_dict(params["params"])
    for name, kernel in params[GUIDANCE].items():
        path = tuple(name.split("/"))
        matrix = np.asarray(flat[(*path, "kernel")], np.float64)
        moved = embedded @ np.asarray(kernel, np.float64) @ matrix
        flat[(*path, "bias")] = np.float32(np.asarray(flat[(*path, "bias")]) + moved)
    return {**without_scale(params), "params": unflatten_dict(flat)}


def without_scale(params: Mapping[str, Any]) -> Params:
    """Return parameters without the collection."""
    return {key: value for key, value in params.items() if key != GUIDANCE}
