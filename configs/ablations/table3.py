"""Table 3 of the DMD2 paper on handwritten digits: what regression, TTUR and the GAN do.

    dmd2 ablate --config=configs/ablations/table3.py --workdir=runs/table3

Six rows, three seeds each, one teacher for all. All rows take as many generator turns
(`distill.cycles`, here 240); a row with TTUR takes five critic turns for each of them and a row
without one, so that rows with TTUR cost about three times the time. Learning rates fall to zero by
the last turn in every row.

Source: Yin et al. 2024 (arXiv 2405.14867), Table 3, FID on ImageNet-64, quoted. Published figures
that differ by a tenth or less (2.62, 2.61, 2.56, 2.52) are not taken for an order; the paper's text
calls the first two comparable, and says of the last two that TTUR does not improve the GAN alone.

Measured on 2 CPU cores with nothing else on them, 2026-11-28: 49.7 minutes for all 18 runs, with
the teacher. docs/ablations.md has the table and what to make of it.
"""

from typing import Any

from ml_collections import ConfigDict

from dmd2_jax.config.load import load_config


def get_config() -> ConfigDict:
    """Return the config that the rows are changes of: DMD2 itself."""
    config = load_config("digits")
    config.name = "table3"
    config.distill.cycles = 240  # two thirds of the recipe's, so that all takes less than an hour
    config.log.grid_every = 240  # one picture a run, at its end
    config.log.export_every = 240
    config.log.checkpoint_every = 120
    config.log.keep = 1
    return config


def get_ablation() -> dict[str, Any]:
    """Return rows, seeds, and the order that the paper finds."""
    no_gan = {"distill.gan_generator_weight": None, "distill.gan_critic_weight": None}
    gan_only = {"distill.dm_weight": None, "distill.train_critic": False}
    no_ttur = {"distill.critic_turns": 1}
    return {
        "title": "Table 3 of DMD2 on handwritten digits, one step",
        "seeds": (0, 1, 2),
        "metrics": ("fid", "precision_recall"),
        "switches": ("DMD", "No Regress.", "TTUR", "GAN"),
        "rows": {
            "dmd": {
                "label": "DMD",
                "on": ("DMD",),
                "overrides": {**no_ttur, **no_gan, "distill.regression_weight": 0.25},
                "published": {"fid": 2.62},
            },
            "no_regression": {
                "label": "- regression",
                "on": ("DMD", "No Regress."),
                "overrides": {**no_ttur, **no_gan},
                "published": {"fid": 3.48},
            },
            "ttur": {
                "label": "+ TTUR",
                "on": ("DMD", "No Regress.", "TTUR"),
                "overrides": no_gan,
                "published": {"fid": 2.61},
            },
            "dmd2": {
                "label": "+ GAN (DMD2)",
                "on": ("DMD", "No Regress.", "TTUR", "GAN"),
                "overrides": {},
                "published": {"fid": 1.51},
            },
            "gan": {
                "label": "GAN only",
                "on": ("GAN",),
                "overrides": {**no_ttur, **gan_only},
                "published": {"fid": 2.56},
            },
            "gan_ttur": {
                "label": "GAN + TTUR",
                "on": ("TTUR", "GAN"),
                "overrides": gan_only,
                "published": {"fid": 2.52},
            },
        },
        "ordered": (
            ("dmd", "no_regression"),
            ("ttur", "no_regression"),
            ("gan", "no_regression"),
            ("gan_ttur", "no_regression"),
            ("dmd2", "no_regression"),
            ("dmd2", "dmd"),
            ("dmd2", "ttur"),
            ("dmd2", "gan"),
            ("dmd2", "gan_ttur"),
        ),
    }
