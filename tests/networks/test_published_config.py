"""Values of another kind than a setting's default, in a stranger's config.json."""

from typing import Any

import pytest

from dmd2_jax.config.refused import Refused
from dmd2_jax.families.published.scheduler import read_scheduler
from dmd2_jax.networks.clip_config import text_from_config
from dmd2_jax.networks.published_config import check_kinds
from dmd2_jax.networks.t5 import t5_from_config

DEFAULTS = {"heads": 8, "eps": 1e-5, "act": "silu", "on": True, "types": ("a",), "side": None}
DEFAULTS |= {"layers_per_block": 2}
MISTYPED = (None, "x", [], {}, [[[1]]], {"a": {"b": 1}}, True, 1.5, "\0")


@pytest.mark.parametrize("value", MISTYPED)
def test_check_kinds_refuses_a_number_that_is_none(value: Any) -> None:
    with pytest.raises(Refused, match=r"heads=.* \(its default is 8\)"):
        check_kinds({"heads": value}, DEFAULTS, "Net")


@pytest.mark.parametrize(
    "changes", [{"eps": "1"}, {"act": ["silu"]}, {"on": "false"}, {"types": "a"}, {"types": [[1]]}]
)
def test_check_kinds_refuses_other_kinds(changes: dict[str, Any]) -> None:
    with pytest.raises(Refused, match="config of a Net has .*, expected values of the kind"):
        check_kinds(changes, DEFAULTS, "Net")


def test_check_kinds_accepts_what_files_hold() -> None:
    config = {"heads": 4, "eps": 1, "on": False, "types": ["a", "b"], "side": [64, 64]}
    check_kinds(config | {"layers_per_block": [1, [2, 3]], "another": {}}, DEFAULTS, "Net")


@pytest.mark.parametrize("value", MISTYPED[1:])
def test_configs_of_other_kinds_are_refused(value: Any) -> None:
    betas = {"beta_start": 0.1, "beta_end": 0.2, "num_train_timesteps": 10}
    for read in (
        lambda: text_from_config({"num_attention_heads": value}, projection=False),
        lambda: t5_from_config({"num_layers": value}),
        lambda: read_scheduler({**betas, "beta_schedule": value} if value != "x" else betas),
        lambda: read_scheduler({**betas, "beta_schedule": "linear", "beta_end": [value]}),
    ):
        with pytest.raises(Refused):
            read()
