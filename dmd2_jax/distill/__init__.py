"""Distribution matching distillation as pure functions; knows no network, dataset, file or mesh."""

from dmd2_jax.distill.config import DistillConfig, Players
from dmd2_jax.distill.cycle import CycleBatch, CycleShardings, make_cycle, run_cycle
from dmd2_jax.distill.draws import (
    CriticDraws,
    CycleDraws,
    GeneratorDraws,
    Noising,
    RolloutDraws,
    draw_cycle,
)
from dmd2_jax.distill.rollout import backward_simulation, generate
from dmd2_jax.distill.state import Player, TrainState, Turns, init_state
from dmd2_jax.distill.turns import Pairs, Samples, critic_turn, generator_turn

__all__ = [
    "CriticDraws",
    "CycleBatch",
    "CycleDraws",
    "CycleShardings",
    "DistillConfig",
    "GeneratorDraws",
    "Noising",
    "Pairs",
    "Player",
    "Players",
    "RolloutDraws",
    "Samples",
    "TrainState",
    "Turns",
    "backward_simulation",
    "critic_turn",
    "draw_cycle",
    "generate",
    "generator_turn",
    "init_state",
    "make_cycle",
    "run_cycle",
]
