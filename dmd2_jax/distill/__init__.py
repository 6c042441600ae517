"""Distribution matching distillation as pure functions; knows no network, dataset, file or mesh."""

from dmd2_jax.distill.config import DistillConfig, Players
from dmd2_jax.distill.cycle import CycleBatch, CycleShardings, make_cycle, run_cycle
from dmd2_jax.distill.draws import CycleDraws, RolloutDraws, draw_cycle
from dmd2_jax.distill.objectives import Noising, Objective, Pairs, Samples, View, dmd2
from dmd2_jax.distill.rollout import backward_simulation, generate
from dmd2_jax.distill.state import Optimizers, Player, TrainState, Turns, init_state
from dmd2_jax.distill.turns import critic_turn, generator_turn

__all__ = [
    "CycleBatch",
    "CycleDraws",
    "CycleShardings",
    "DistillConfig",
    "Noising",
    "Objective",
    "Optimizers",
    "Pairs",
    "Player",
    "Players",
    "RolloutDraws",
    "Samples",
    "TrainState",
    "Turns",
    "View",
    "backward_simulation",
    "critic_turn",
    "dmd2",
    "draw_cycle",
    "generate",
    "generator_turn",
    "init_state",
    "make_cycle",
    "run_cycle",
]
