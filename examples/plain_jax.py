"""A denoiser in plain JAX: a function and a dict of arrays become a one-step student.

    python examples/plain_jax.py

prints, after some seconds, the mean and spread of the student's samples beside the data's:

    data: mean [1.0, -1.0], std 0.2; student: mean [0.99, -0.99], std 0.2
"""

import jax
import jax.numpy as jnp

from dmd2_jax import (
    CycleBatch,
    DistillConfig,
    Players,
    dmd2,
    from_function,
    generate,
    init_state,
    make_cycle,
    schedules,
    stream_key,
)

SCHEDULE = schedules.edm(sigma_min=0.02, sigma_max=5.0)
MEAN, STD = jnp.array([1.0, -1.0]), 0.2


def teacher(params, x_t, sigma, cond):
    """Return E[x_0 | x_t] of Gaussian data: the perfect teacher; its parameter is the mean."""
    weight = STD**2 / (STD**2 + sigma[:, None] ** 2)
    return params["mean"] + weight * (x_t - params["mean"])


def network(params, x_t, sigma, cond):
    """Predict x_0 by one hidden layer."""
    sigma = sigma[:, None]
    scaled = x_t / jnp.sqrt(1.0 + sigma**2)
    inputs = jnp.concatenate([scaled, jnp.log(sigma) / 4], axis=1)
    hidden = jnp.tanh(inputs @ params["in"] + params["bias"])
    return scaled / jnp.sqrt(1.0 + sigma**2) + hidden @ params["out"]


def init(key):
    """Draw the student's first parameters."""
    keys = jax.random.split(key, 2)
    return {
        "in": jax.random.normal(keys[0], (3, 64)),
        "bias": jnp.zeros(64),
        "out": 0.1 * jax.random.normal(keys[1], (64, 2)),
    }


def main(cycles: int = 600):
    """Distil, and return samples of the student."""
    config = DistillConfig(
        sample_shape=(2,),
        batch_size=128,
        student_times=(5.0,),
        generator_lr=2e-3,
        critic_lr=5e-3,
        lr_schedule="cosine",
        total_turns=5 * cycles,
        warmup=0,
        b1=0.0,
        weight_decay=0.0,
        objectives=dmd2(gan_generator_weight=None, gan_critic_weight=None),
    )
    student = from_function(network, schedule=SCHEDULE, prediction="x0")
    perfect = from_function(teacher, schedule=SCHEDULE, prediction="x0")
    cycle = make_cycle(Players(teacher=perfect, generator=student, critic=student), config)
    key, start = jax.random.key(0), init(jax.random.key(1))
    state = init_state(config, generator=start, critic=start)
    for i in range(cycles):
        state, _ = cycle(state, {"mean": MEAN}, CycleBatch(), stream_key(key, "cycle", i))
    noise = jax.random.normal(jax.random.key(2), (1, 4000, 2))
    return generate(student, state.generator.params, noise, None, times=config.student_times)


if __name__ == "__main__":
    x_0 = main()
    mean = ", ".join(f"{value:.2f}" for value in x_0.mean(axis=0))
    std = float(x_0.std(axis=0).mean())
    print(f"data: mean [1.0, -1.0], std {STD}; student: mean [{mean}], std {std:.1f}")
