"""What the tests of plans share: a recipe and a plan."""

from ml_collections import ConfigDict

from dmd2_jax.config.load import apply_overrides
from dmd2_jax.plan.chips import CHIPS
from dmd2_jax.plan.program_costs import Collective
from dmd2_jax.plan.tables import Plan
from tests.tiny import get_config


def recipe(**changes: str) -> ConfigDict:
    """Return the tiny recipe with changes such as model__remat="full"."""
    config = get_config()
    apply_overrides(config, {key.replace("__", "."): text for key, text in changes.items()})
    return config


def example(**changes: object) -> Plan:
    """Return a plan of round figures."""
    plan = Plan(
        name="x",
        topology="v5e:2x4",
        chip=CHIPS["v5e"],
        device_kind="TPU v5 lite",
        num_devices=8,
        devices_per_chip=1,
        mesh={"data": 8, "fsdp": 1, "tensor": 1},
        batch_size=64,
        images=384,
        cycles=36_000,
        owners={"teacher": {"params": 10**9}},
        peak_bytes=12 * 10**9,
        limit_bytes=16e9,
        host_bytes=0,
        refusal="",
        flops=197e12 * 0.05,
        model_flops=197e12 * 0.05,
        num_bytes=int(819e9 * 0.1),
        collectives={"all-reduce": Collective(6, int(200e9 * 0.02))},
        compile_seconds=1.0,
    )
    return plan._replace(**changes)
