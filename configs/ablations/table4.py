"""Table 4 of the DMD2 paper on handwritten digits: what makes a student of four steps.

    dmd2 ablate --config=configs/ablations/table4.py --workdir=runs/table4

Four rows, three seeds each, one teacher for all, as many generator and critic turns in every row.
The student's times are the first four of EDM's five levels between 80 and 0.002 (rho = 7).

Source: Yin et al. 2024 (arXiv 2405.14867), Table 4, SDXL on 10,000 prompts of COCO 2014, quoted.
There FID is least without distribution matching, which the paper holds against FID: such images
follow their prompts less (CLIP score) and look worse. Digits have classes in place of prompts, so
that class accuracy stands for the CLIP score here; of patch FID they have no counterpart.

Measured on 2 CPU cores with nothing else on them, 2026-11-28: 47.1 minutes for all 12 runs, with
the teacher. docs/ablations.md has the table and what to make of it.
"""

from typing import Any

from ml_collections import ConfigDict

from dmd2_jax.config.load import load_config


def get_config() -> ConfigDict:
    """Return the config that the rows are changes of: DMD2 with four steps."""
    config = load_config("digits")
    config.name = "table4"
    config.distill.student_times = (80.0, 17.5, 2.52, 0.17)
    config.distill.cycles = 200  # of the recipe's 360, so that all takes less than an hour
    config.log.grid_every = 200  # one picture a run, at its end
    config.log.export_every = 200
    config.log.checkpoint_every = 100
    config.log.keep = 1
    return config


def get_ablation() -> dict[str, Any]:
    """Return rows, seeds, and the order that the paper finds."""
    return {
        "title": "Table 4 of DMD2 on handwritten digits, four steps",
        "seeds": (0, 1, 2),
        "metrics": ("fid", "precision_recall"),
        "rows": {
            "no_gan": {
                "label": "w/o GAN",
                "overrides": {
                    "distill.gan_generator_weight": None,
                    "distill.gan_critic_weight": None,
                },
                "published": {"fid": 26.90, "patch_fid": 27.66, "clip_score": 0.328},
            },
            "no_distribution_matching": {
                "label": "w/o distribution matching",
                "overrides": {"distill.dm_weight": None, "distill.train_critic": False},
                "published": {"fid": 13.77, "patch_fid": 27.96, "clip_score": 0.307},
            },
            "no_backward_simulation": {
                "label": "w/o backward simulation",
                "overrides": {"distill.backward_simulation": False},
                "published": {"fid": 20.66, "patch_fid": 24.21, "clip_score": 0.332},
            },
            "dmd2": {
                "label": "DMD2",
                "overrides": {},
                "published": {"fid": 19.32, "patch_fid": 20.86, "clip_score": 0.332},
            },
        },
        "ordered": (
            ("dmd2", "no_gan"),
            ("dmd2", "no_backward_simulation"),
            ("no_distribution_matching", "dmd2"),
            ("dmd2", "no_distribution_matching", "class_accuracy"),
        ),
    }
