"""Tiny plain-JAX players for the tests of the algorithm: an MLP on flattened samples."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np

from dmd2_jax.denoiser import Denoiser, Discriminator, Schedule
from dmd2_jax.diffusion.guidance import guided_by_cond, told_scale
from dmd2_jax.distill import DistillConfig, Players, dmd2
from dmd2_jax.typing import expand

SHAPE = (2, 2, 1)
SCHEDULE = Schedule(
    alpha=lambda t: 1.0 / jnp.sqrt(1.0 + t * t),
    sigma=lambda t: t / jnp.sqrt(1.0 + t * t),
    levels=np.linspace(0.01, 8.0, 50, dtype=np.float32),
    prior_scale=jnp.ones_like,
)


def init_mlp(seed: int, width: int = 8) -> dict:
    keys = jax.random.split(jax.random.key(seed), 3)
    return {
        "in": 0.5 * jax.random.normal(keys[0], (6, width)),
        "out": 0.5 * jax.random.normal(keys[1], (width, 4)),
        "bias": 0.1 * jax.random.normal(keys[2], (4,)),
    }


def _hidden(params, x_t, t, cond):
    flat = x_t.reshape(x_t.shape[0], -1)
    inputs = jnp.concatenate([flat, jnp.log1p(t)[:, None], cond[:, None]], axis=1)
    return jnp.tanh(inputs @ params["in"])


def _decode(params, hidden, x_t, t):
    out = (hidden @ params["out"] + params["bias"]).reshape(x_t.shape)
    return 0.3 * x_t / expand(1.0 + t, x_t) + out


def denoiser(calls: list | None = None, name: str = "") -> Denoiser:
    """A Denoiser that notes each traced call in `calls` as (name, method)."""

    def note(method):
        if calls is not None:
            calls.append((name, method))

    def x0(params, x_t, t, cond):
        note("x0")
        return _decode(params, _hidden(params, x_t, t, cond), x_t, t)

    def features(params, x_t, t, cond):
        note("features")
        return (_hidden(params, x_t, t, cond),)

    def x0_and_features(params, x_t, t, cond):
        note("x0_and_features")
        hidden = _hidden(params, x_t, t, cond)
        return _decode(params, hidden, x_t, t), (hidden,)

    return Denoiser(x0, features, x0_and_features, SCHEDULE, jnp.zeros_like)


DISCRIMINATOR = Discriminator(
    init=lambda key, features: {"w": jax.random.normal(key, (features[0].shape[-1],))},
    logits=lambda params, features: features[0] @ params["w"],
)


def players(calls: list | None = None) -> Players:
    return Players(
        teacher=denoiser(calls, "teacher"),
        generator=denoiser(calls, "generator"),
        critic=denoiser(calls, "critic"),
        discriminator=DISCRIMINATOR,
    )


def told(params, cond, scale):
    """Tell a network the guidance scale."""
    return params, cond + 0.2 * scale


def players_of(config: DistillConfig) -> Players:
    """Make the players of a config: with a range of guidance scales they are told them."""
    plain = players()
    if not config.guidance_range:
        return plain
    return plain._replace(
        teacher=guided_by_cond(plain.teacher),
        generator=told_scale(plain.generator, told),
        critic=told_scale(plain.critic, told),
    )


def config(**changes) -> DistillConfig:
    """Make the tests' config; keys of `dmd2` go to its objectives."""
    defaults = {
        "sample_shape": SHAPE,
        "batch_size": 8,
        "critic_turns": 3,
        "student_times": (8.0,),
        "denoising_weight": "eps",
        "generator_lr": 1e-2,
        "critic_lr": 2e-2,
        "warmup": 0,
        "gan_generator_weight": 0.1,
        "gan_critic_weight": 0.1,
        "ema_decays": (0.9,),
    }
    return config_of({**defaults, **changes})


def config_of(given: dict) -> DistillConfig:
    """Make a config of its own fields and keys of `dmd2`."""
    keys = inspect.signature(dmd2).parameters
    objectives = dmd2(**{key: value for key, value in given.items() if key in keys})
    rest = {key: value for key, value in given.items() if key not in keys}
    return DistillConfig(**rest, objectives=objectives)
