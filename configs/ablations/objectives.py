"""What can stand in place of DMD2's objective or discriminator, on handwritten digits, one step.

    dmd2 ablate --config=configs/ablations/objectives.py --workdir=runs/objectives

Nine rows, three seeds each, one teacher and equal generator turns (`distill.cycles`, 240) for all;
rates and everything else are those of the recipe `digits`, which were chosen with DMD2. Nothing of
a row was searched for: alpha of SiD and the ratios of f-distill are their papers', and R1 has the
least weight that FastGen uses.

docs/objectives.md has the equations, docs/ablations.md the table.
"""

from typing import Any

from ml_collections import ConfigDict

from dmd2_jax.config.load import load_config


def get_config() -> ConfigDict:
    """Return the config that the rows are changes of: DMD2 itself."""
    config = load_config("digits")
    config.name = "objectives"
    config.distill.cycles = 240
    config.log.grid_every = 240  # one picture a run, at its end
    config.log.export_every = 240
    config.log.checkpoint_every = 120
    config.log.keep = 1
    return config


def get_ablation() -> dict[str, Any]:
    """Return rows and seeds, and the order of those whose authors print a lower FID than DMD2's."""

    def row(label: str, *objectives: str, **distill: Any) -> dict[str, Any]:
        changes = {f"distill.{key}": value for key, value in distill.items()}
        if objectives:
            changes["distill.objectives"] = objectives
        return {"label": label, "overrides": changes}

    rows = {
        "dmd2": row("DMD2"),
        "f_jensen_shannon": row(
            "f-distill, Jensen-Shannon", "f_distill:divergence=jensen_shannon", dm_weight=None
        ),
        "f_forward_kl": row("f-distill, forward KL", "f_distill", dm_weight=None),
        "sid": row("SiD with the GAN", "sid:alpha=1.2", dm_weight=None),
        "sid_mix": row("half SiD, half DM", "sid:weight=0.5:alpha=1.2", dm_weight=0.5),
        "hinge": row("hinge", gan_loss="hinge"),
        "r1": row("approximate R1", gan_r1_weight=100.0),
        "teacher_features": row("head on the teacher", gan_features="teacher"),
        "fastgen": row(
            "FastGen's switches",
            gan_features="teacher",
            gan_critic_weight=1.0,
            critic_turns=4,
            first_turn_reuses_images=False,
            denoising_weight="x0",
            fake_labels="real",
        ),
    }
    return {
        "title": "Objectives and discriminators on handwritten digits, one step",
        "seeds": (0, 1, 2),
        "metrics": ("fid", "precision_recall", "density_coverage"),
        "rows": rows,
        "ordered": tuple(
            (name, "dmd2")
            for name in ("f_jensen_shannon", "f_forward_kl", "sid", "sid_mix", "fastgen")
        ),
    }
