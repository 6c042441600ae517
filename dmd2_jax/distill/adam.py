"""Adam's moments, kept in float32 or in half the memory."""

import math

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from jaxtyping import UInt16, UInt32

from dmd2_jax.distill.config import DistillConfig
from dmd2_jax.runtime.random import stream_key
from dmd2_jax.typing import Array, Float, Int, PyTree

__all__ = ["round_stochastically", "scale_by_adam"]


def scale_by_adam(config: DistillConfig) -> optax.GradientTransformation:
    """Make Adam's direction, with moments of `config.moment_dtype`.

        m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) g^2
        direction = m / (1 - b1^n) / (sqrt(v / (1 - b2^n)) + eps)

    "float32" is `optax.scale_by_adam`. With "bfloat16" the moments are stored so, updated in
    float32 and rounded stochastically. Rounded to nearest, a moment would stay where it is whenever
    its update is below half a unit of its last place, 1/512 to 1/256 of it: with b2 = 0.999 no v
    would ever decay. The random bits follow from the count of updates, which is part of the state,
    so that a resumed run goes on bit for bit; they say nothing of the data, so that all players
    and runs may share them.

    Args:
      config: b1, b2, eps and moment_dtype.

    Returns:
      A transformation whose state is an `optax.ScaleByAdamState`.

    Source: Kingma and Ba 2015 (1412.6980), algorithm 1; stochastic rounding: Gupta et al. 2015
      (1502.02551), section 3.
    """
    exact = optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps)
    if config.moment_dtype == "float32":
        return exact

    def init(params: PyTree) -> optax.ScaleByAdamState:
        zero = exact.init(params)
        return zero._replace(mu=_cast(zero.mu, jnp.bfloat16), nu=_cast(zero.nu, jnp.bfloat16))

    def update(
        gradient: PyTree, state: optax.ScaleByAdamState, params: PyTree = None
    ) -> tuple[PyTree, optax.ScaleByAdamState]:
        wide = state._replace(mu=_cast(state.mu, jnp.float32), nu=_cast(state.nu, jnp.float32))
        direction, new = exact.update(gradient, wide, params)
        mu, nu = _rounded(new.mu, new.nu, new.count)
        return direction, new._replace(mu=mu, nu=nu)

    return optax.GradientTransformation(init, update)


def round_stochastically(x: Float[Array, "..."], bits: UInt16[Array, "..."]) -> Array:
    """Round float32 to one of its two bfloat16 neighbours, up with the probability of its place.

    The mean over `bits` is x. What is not finite is kept.

    Args:
      x: float32.
      bits: of x's shape, uniform uint16.

    Returns:
      bfloat16.
    """
    # A bfloat16 is the upper half of a float32: a random number below one unit of the upper half
    # carries into it as often as the lower half says.
    pattern = jax.lax.bitcast_convert_type(x, jnp.uint32) + bits.astype(jnp.uint32)
    upper = jax.lax.shift_right_logical(pattern, jnp.uint32(16)).astype(jnp.uint16)
    rounded = jax.lax.bitcast_convert_type(upper, jnp.bfloat16)
    return jnp.where(jnp.isfinite(x), rounded, x.astype(jnp.bfloat16))


def _rounded(mu: PyTree, nu: PyTree, count: Int[Array, ""]) -> tuple[PyTree, PyTree]:
    """Round both moments after update number `count`, with the halves of one draw."""
    leaves, structure = jax.tree.flatten(mu)
    key = stream_key(jax.random.key(0), "adam.rounding", count)
    seeds = jax.random.bits(key, (len(leaves),), jnp.uint32)
    rounded = []
    for m, v, seed in zip(leaves, jax.tree.leaves(nu), seeds, strict=True):
        bits = _hashed_positions(m.shape, seed)
        rounded.append(
            (
                round_stochastically(m, bits.astype(jnp.uint16)),
                round_stochastically(v, (bits >> 16).astype(jnp.uint16)),
            )
        )
    return tuple(jax.tree.unflatten(structure, moment) for moment in zip(*rounded, strict=True))


def _hashed_positions(shape: tuple[int, ...], seed: UInt32[Array, ""]) -> UInt32[Array, "..."]:
    """Return a random number for each position of an array.

    A hash of the position, which the compiler computes within the update it is used in; drawing as
    many from a key takes it minutes to compile and more arithmetic than the update.

    Source: the 32-bit mixer "lowbias32" of C. Wellons, hash-prospector (public domain).
    """
    x = jnp.broadcast_to(seed, shape)
    for axis, size in enumerate(shape):
        stride = math.prod(shape[axis + 1 :]) * 0x9E3779B9 % 2**32  # spreads neighbours apart
        position = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        x = x + position * jnp.uint32(stride if size > 1 else 0)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ (x >> shift)) * jnp.uint32(factor)
    return x ^ (x >> 16)


def _cast(tree: PyTree, dtype: DTypeLike) -> PyTree:
    return jax.tree.map(lambda x: x.astype(dtype), tree)
