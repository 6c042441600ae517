"""An ablation that runs in seconds: two rows of `tests.tiny`, which share one compiled program."""

from typing import Any

from ml_collections import ConfigDict

from tests import tiny


def get_config() -> ConfigDict:
    """Return the base."""
    config = tiny.get_config()
    config.name = "tiny_ablation"
    config.distill.cycles = 2
    config.log.grid_every = 100
    return config


def get_ablation() -> dict[str, Any]:
    """Return the rows."""
    return {
        "title": "two rows",
        "seeds": (0, 1),
        "switches": ("LONG",),
        "rows": {
            "short": {
                "label": "one cycle",
                "overrides": {"distill.cycles": 1},
                "published": {"fid": 3.48},
            },
            "long": {
                "label": "two cycles",
                "overrides": {},
                "on": ("LONG",),
                "published": {"fid": 2.61},
            },
        },
        "ordered": (("long", "short"),),
    }
