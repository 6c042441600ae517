"""A Flax NNX module as teacher, student and critic, from training to the trained module.

    python examples/nnx_module.py

trains a teacher of two clusters by flow matching, distils it to one step, and prints:

    teacher loss 1.6 -> 0.6; right side: 50 % of samples
"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from dmd2_jax import (
    CycleBatch,
    DistillConfig,
    Players,
    diffusion,
    dmd2,
    from_nnx,
    generate,
    init_state,
    make_cycle,
    schedules,
    stream_key,
)

SCHEDULE = schedules.rectified_flow()


class Net(nnx.Module):
    """Predicts the flow, eps - x_0."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.layers = nnx.List([nnx.Linear(a, 64, rngs=rngs) for a in (3, 64)])
        self.last = nnx.Linear(64, 2, rngs=rngs)

    def __call__(self, x_t, t, cond):
        """Predict the flow at x_t [b, 2], t [b]."""
        h = jnp.concatenate([x_t, t[:, None]], axis=1)
        for layer in self.layers:
            h = nnx.silu(layer(h))
        return self.last(h)


def data(key, number):
    """Draw two clusters, left and right."""
    side = jax.random.rademacher(key, (number, 1), jnp.float32)
    return jnp.concatenate([side, 0 * side], axis=1) + 0.1 * jax.random.normal(key, (number, 2))


def train_teacher(module, steps):
    """Train in NNX's own way; nothing of it is ours but the schedule."""
    optimizer = nnx.Optimizer(module, optax.adam(3e-3), wrt=nnx.Param)

    def loss_fn(module, key):
        keys = jax.random.split(key, 3)
        x_0, eps = data(keys[0], 256), jax.random.normal(keys[1], (256, 2))
        t = jax.random.uniform(keys[2], (256,))
        x_t = diffusion.add_noise(SCHEDULE, x_0, eps, t)
        return jnp.mean((module(x_t, t, None) - (eps - x_0)) ** 2)

    @nnx.jit
    def step(module, optimizer, key):
        loss, gradient = nnx.value_and_grad(loss_fn)(module, key)
        optimizer.update(module, gradient)
        return loss

    return [float(step(module, optimizer, jax.random.key(i))) for i in range(steps)]


def main(steps: int = 500, cycles: int = 300):
    """Train and distil; return the teacher's losses and the student's samples."""
    module = Net(nnx.Rngs(0))
    losses = train_teacher(module, steps)
    net, params = from_nnx(module, schedule=SCHEDULE, prediction="flow")
    no_gan = dmd2(gan_generator_weight=None, gan_critic_weight=None, denoising_weight="x0")
    rates = {"generator_lr": 5e-4, "critic_lr": 2e-3, "warmup": 0, "b1": 0.0}
    config = DistillConfig((2,), 256, student_times=(1.0,), objectives=no_gan, **rates)
    cycle, key = make_cycle(Players(teacher=net), config), jax.random.key(0)
    state = init_state(config, generator=params, critic=params)
    for i in range(cycles):
        state, _ = cycle(state, params, CycleBatch(), stream_key(key, "cycle", i))
    nnx.update(module, state.generator.params)  # the module is the student now
    noise = jax.random.normal(jax.random.key(1), (1, 2000, 2))
    return losses, generate(net, nnx.state(module, nnx.Param), noise, None, times=(1.0,))


if __name__ == "__main__":
    found, x_0 = main()
    right = 100 * float((x_0[:, 0] > 0).mean())
    print(f"teacher loss {found[0]:.1f} -> {found[-1]:.1f}; right side: {right:.0f} % of samples")
