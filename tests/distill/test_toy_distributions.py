"""One-step students of a 2-D mixture: eight Gaussians on a ring, through each adapter.

A one-step student that has collapsed, kept its initial blob or copied the teacher's first
estimate (the ring's centre) fails both demands: every mode gets its share, and samples lie on
modes.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen, nnx

from dmd2_jax.denoiser import Denoiser, Discriminator
from dmd2_jax.diffusion.predictions import edm_scalings, edm_to_x0
from dmd2_jax.diffusion.schedules import add_noise, discrete_vp, edm, rectified_flow
from dmd2_jax.distill import (
    CycleBatch,
    DistillConfig,
    Players,
    Samples,
    generate,
    init_state,
    make_cycle,
)
from dmd2_jax.families.adapters import from_function, from_linen, from_nnx
from dmd2_jax.losses.denoising import denoising_loss, denoising_weight
from dmd2_jax.runtime.random import stream_key

ANGLES = 2 * np.pi * np.arange(8) / 8
CENTERS = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1).astype(np.float32)
STD = 0.1  # of one mode; neighbours are 0.77 apart
DATA_STD = float(np.sqrt(0.5 + STD**2))
WIDTH, BATCH, K = 64, 256, 5
DISTILL = {
    "sample_shape": (2,),
    "batch_size": BATCH,
    "critic_turns": K,
    "sigma_data": DATA_STD,
    "generator_lr": 1e-3,
    "critic_lr": 2e-3,
    "warmup": 0,
    "weight_decay": 0.0,
    "gan_generator_weight": None,
    "gan_critic_weight": None,
    "ema_decays": (0.99,),
}


def draw_data(key, *shape):
    k_mode, k_noise = jax.random.split(key)
    mode = jax.random.randint(k_mode, shape, 0, len(CENTERS))
    return jnp.asarray(CENTERS)[mode] + STD * jax.random.normal(k_noise, (*shape, 2))


def shares_and_precision(x):
    """Return each mode's share of the samples, and the part within 3 std of a mode."""
    distance = np.linalg.norm(np.asarray(x)[:, None] - CENTERS, axis=2)
    near = distance.min(axis=1) < 3 * STD
    nearest = distance.argmin(axis=1)
    return np.bincount(nearest[near], minlength=8) / len(x), near.mean()


def time_features(u):
    """[b] -> [b, 6]: u (about -1..1) and two octaves of waves."""
    waves = jnp.pi * u[:, None] * jnp.array([1.0, 2.0])
    return jnp.concatenate([u[:, None], u[:, None] ** 2, jnp.sin(waves), jnp.cos(waves)], axis=1)


def train_teacher(denoiser: Denoiser, params, *, weight: str, steps: int):
    """Fit a denoiser to the ring by denoising score matching."""
    optimizer = optax.adam(optax.cosine_decay_schedule(4e-3, steps))
    levels = jnp.asarray(denoiser.schedule.levels)

    def loss_fn(params, key):
        keys = jax.random.split(key, 3)
        x_0 = draw_data(keys[0], 512)
        t = jax.random.choice(keys[1], levels, (512,))
        x_t = add_noise(denoiser.schedule, x_0, jax.random.normal(keys[2], x_0.shape), t)
        w = denoising_weight(
            weight, denoiser.schedule.alpha(t), denoiser.schedule.sigma(t), sigma_data=DATA_STD
        )
        return denoising_loss(denoiser.x0(params, x_t, t, None), x_0, weight=w)[0]

    def step(carry, key):
        params, opt_state = carry
        updates, opt_state = optimizer.update(jax.grad(loss_fn)(params, key), opt_state)
        return (optax.apply_updates(params, updates), opt_state), None

    keys = jax.random.split(jax.random.key(1), steps)
    train = jax.jit(lambda carry: jax.lax.scan(step, carry, keys)[0])
    return train((params, optimizer.init(params)))[0]


def distill(players: Players, teacher, student, config: DistillConfig, *, cycles: int, head=None):
    """Run the public cycle and return 4000 samples of the student's average."""
    root = jax.random.key(0)
    state = init_state(config, generator=student, critic=student, discriminator=head)
    cycle = make_cycle(players, config)
    batches = jax.jit(lambda key: draw_data(key, K, BATCH))
    for i in range(cycles):
        real = Samples(batches(stream_key(root, "data", i)), None) if config.has_gan else None
        batch = CycleBatch(real=real, fake_cond=None)
        state, _ = cycle(state, teacher, batch, stream_key(root, "cycle", i))
    assert int(state.step.skipped) == 0
    noise = jax.random.normal(stream_key(root, "sample"), (1, 4000, 2))
    sample = partial(generate, players.generator, times=config.student_times)
    return jax.jit(sample)(state.ema[0], noise, None)
