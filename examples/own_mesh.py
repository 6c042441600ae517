"""A mesh of your own: the batch is split over all devices, and the numbers stay the same.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python examples/own_mesh.py

prints, with as many devices as there are:

    8 devices, batch 64 as 8 parts of 8: critic loss 39.5
"""

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dmd2_jax import (
    CycleBatch,
    CycleShardings,
    DistillConfig,
    Players,
    dmd2,
    from_function,
    init_state,
    make_cycle,
    schedules,
    stream_key,
)

SCHEDULE = schedules.edm(sigma_min=0.02, sigma_max=5.0)
BATCH, TURNS = 64, 2


def network(params, x_t, sigma, cond):
    """Predict x_0 of the class cond [b], by one hidden layer."""
    inputs = jnp.concatenate([x_t, jnp.log(sigma)[:, None], cond[:, None]], axis=1)
    return jnp.tanh(inputs @ params["in"]) @ params["out"]


def main(cycles: int = 3, devices: list | None = None):
    """Train on the devices; return the parts of a batch and the critic's last loss."""
    devices = devices or jax.devices()
    mesh = jax.make_mesh((len(devices),), ("rows",), axis_types=(AxisType.Auto,), devices=devices)
    everywhere = NamedSharding(mesh, PartitionSpec())
    rows = NamedSharding(mesh, PartitionSpec(None, "rows"))  # [turn, sample, ...]
    net = from_function(network, schedule=SCHEDULE, prediction="x0")
    no_gan = dmd2(gan_generator_weight=None, gan_critic_weight=None)
    config = DistillConfig(
        (2,), BATCH, critic_turns=TURNS, student_times=(5.0,), warmup=0, objectives=no_gan
    )
    keys = jax.random.split(jax.random.key(0), 2)
    params = {
        "in": jax.random.normal(keys[0], (4, 64)),
        "out": 0.1 * jax.random.normal(keys[1], (64, 2)),
    }
    state = init_state(config, generator=params, critic=params)
    state, params = jax.device_put((state, params), everywhere)
    places = CycleShardings(state=everywhere, teacher=everywhere, batch=rows, key=everywhere)
    cycle = make_cycle(Players(teacher=net), config, shardings=places)
    key, classes = jax.random.key(1), jnp.tile(jnp.array([-1.0, 1.0]), (TURNS, BATCH // 2))
    batch = jax.device_put(CycleBatch(fake_cond=classes), rows)
    for i in range(cycles):
        one = jax.device_put(stream_key(key, "cycle", i), everywhere)
        state, metrics = cycle(state, params, batch, one)
    return [part.data.shape[1] for part in batch.fake_cond.addressable_shards], float(
        metrics["critic_loss"][-1]
    )


if __name__ == "__main__":
    parts, loss = main()
    print(
        f"{len(parts)} devices, batch {BATCH} as {len(parts)} parts of {parts[0]}: "
        f"critic loss {loss:.1f}"
    )
