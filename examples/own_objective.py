"""An objective and an optimiser of your own, in a loop and with data of your own.

The objective pulls the samples' mean to that of the real images; the generator trains with Muon.

    python examples/own_objective.py

prints the objective's value as it falls:

    cycle 0: moments 1.8
    cycle 199: moments 0.0
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax.contrib import muon

from dmd2_jax import (
    CycleBatch,
    DistillConfig,
    Objective,
    Optimizers,
    Players,
    Samples,
    dmd2,
    from_function,
    init_state,
    make_cycle,
    schedules,
    stream_key,
)

SCHEDULE = schedules.edm(sigma_min=0.02, sigma_max=5.0)


@dataclasses.dataclass(frozen=True)
class Moments(Objective):
    """Compares the mean of generated and real samples."""

    name, player, needs_real = "moments", "generator", True
    weight: float = 0.5

    def value(self, view, draws):
        """Return the squared distance of the means."""
        error = jnp.sum(jnp.square(view.x_0.mean(axis=0) - view.real.x_0.mean(axis=0)))
        return error, {"moments": error}


def network(params, x_t, sigma, cond):
    """Predict x_0 by one hidden layer."""
    inputs = jnp.concatenate([x_t, jnp.log(sigma)[:, None], jnp.ones_like(x_t)], axis=1)
    return jnp.tanh(inputs @ params["in"]) @ params["out"]


def images(turns, batch):
    """Yield real samples for ever; any iterator does."""
    draw = np.random.default_rng(0)
    while True:
        yield np.float32(draw.normal((1.0, -1.0), 0.2, (turns, batch, 2)))


def main(cycles: int = 200):
    """Train, and return the objective's value at every cycle."""
    keys = jax.random.split(jax.random.key(0), 2)
    params = {
        "in": jax.random.normal(keys[0], (5, 64)),
        "out": 0.1 * jax.random.normal(keys[1], (64, 2)),
    }
    net = from_function(network, schedule=SCHEDULE, prediction="x0")
    no = {"dm_weight": None, "gan_generator_weight": None, "gan_critic_weight": None}
    ours = dmd2(**no, objectives=(Moments(),))  # beside it the critic learns the score
    config = DistillConfig((2,), 128, student_times=(5.0,), warmup=10, objectives=ours)
    optimizers = Optimizers(generator=muon(3e-3), critic=optax.adam(1e-3))
    state = init_state(config, generator=params, critic=params, optimizers=optimizers)
    cycle, key = make_cycle(Players(net), config, optimizers=optimizers), jax.random.key(1)
    values = []
    stream = images(config.critic_turns, 128)
    for i in range(cycles):
        batch = CycleBatch(real=Samples(next(stream), None))
        state, metrics = cycle(state, params, batch, stream_key(key, "cycle", i))
        values.append(float(metrics["moments"]))
        if i in (0, cycles - 1):
            print(f"cycle {i}: moments {values[-1]:.1f}")
    return values


if __name__ == "__main__":
    main()
