"""An Equinox module: split it into arrays and the rest, and wrap its call.

    pip install equinox
    python examples/equinox_module.py

prints how far the one-step student's mean is from the data's, before and after:

    distance of the mean: 1.6 before, 0.0 after
"""

import equinox as eqx
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


class Net(eqx.Module):
    """Predicts x_0 of one sample; Equinox modules know no batch."""

    mlp: eqx.nn.MLP

    def __call__(self, x_t, sigma):
        """Predict x_0 from x_t [2] and sigma []."""
        inputs = jnp.append(x_t / jnp.sqrt(1.0 + sigma**2), jnp.log(sigma) / 4)
        return x_t / (1.0 + sigma**2) + self.mlp(inputs)


def main(cycles: int = 300):
    """Distil, and return the distance of the samples' mean before and after."""
    module = Net(eqx.nn.MLP(3, 2, width_size=64, depth=1, key=jax.random.key(0)))
    params, rest = eqx.partition(module, eqx.is_array)

    def predict(params, x_t, sigma, cond):
        return jax.vmap(eqx.combine(params, rest))(x_t, sigma)

    def perfect(params, x_t, sigma, cond):  # of Gaussian data, in closed form
        weight = STD**2 / (STD**2 + sigma[:, None] ** 2)
        return MEAN + weight * (x_t - MEAN)

    net = from_function(predict, schedule=SCHEDULE, prediction="x0")
    teacher = from_function(perfect, schedule=SCHEDULE, prediction="x0")
    config = DistillConfig(
        sample_shape=(2,),
        batch_size=128,
        student_times=(5.0,),
        generator_lr=3e-3,
        critic_lr=5e-3,
        warmup=0,
        b1=0.0,
        objectives=dmd2(gan_generator_weight=None, gan_critic_weight=None),
    )
    noise = jax.random.normal(jax.random.key(1), (1, 4000, 2))

    def distance(params):
        x_0 = generate(net, params, noise, None, times=config.student_times)
        return float(jnp.linalg.norm(x_0.mean(axis=0) - MEAN))

    before = distance(params)
    cycle, key = make_cycle(Players(teacher, net, net), config), jax.random.key(2)
    state = init_state(config, generator=params, critic=params)
    for i in range(cycles):
        state, _ = cycle(state, None, CycleBatch(), stream_key(key, "cycle", i))
    trained = eqx.combine(state.generator.params, rest)  # an Equinox module again
    return before, distance(eqx.filter(trained, eqx.is_array))


if __name__ == "__main__":
    print("distance of the mean: {:.1f} before, {:.1f} after".format(*main()))
