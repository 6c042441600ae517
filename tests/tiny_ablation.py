"""An ablation that runs in seconds: two rows of `tests.tiny`, two seeds each."""

from typing import Any

from ml_collections import ConfigDict

from tests import tiny


def get_config() -> ConfigDict:
    """Return the base."""
    config = tiny.get_config()
    config.name = "tiny_ablation"
    config.distill.cycles = 2
    config.distill.gan_generator_weight = None
    config.distill.gan_critic_weight = None
    config.log.grid_every = 100
    return config


def get_ablation() -> dict[str, Any]:
    """Return the rows."""
    return {
        "title": "two rows",
        "seeds": (0, 1),
        "switches": ("TTUR",),
        "rows": {
            "no_ttur": {
                "label": "DM alone",
                "overrides": {"distill.critic_turns": 1},
                "published": {"fid": 3.48},
            },
            "ttur": {
                "label": "+ TTUR",
                "overrides": {},
                "on": ("TTUR",),
                "published": {"fid": 2.61},
            },
        },
        "ordered": (("ttur", "no_ttur"),),
    }
