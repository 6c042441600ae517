"""What a distillation minimises: one objective a file, found by the names of their noisings."""

from dmd2_jax.distill.objectives.contract import Objective
from dmd2_jax.distill.objectives.denoising import Denoising
from dmd2_jax.distill.objectives.distribution_matching import DistributionMatching
from dmd2_jax.distill.objectives.f_distill import FDistill
from dmd2_jax.distill.objectives.first_step import FirstStep
from dmd2_jax.distill.objectives.gan import CriticGan, GeneratorGan
from dmd2_jax.distill.objectives.guidance_augmentation import GuidanceAugmentation
from dmd2_jax.distill.objectives.noising import Draw, Levels, Noising, level_bounds, noised
from dmd2_jax.distill.objectives.official import dmd2
from dmd2_jax.distill.objectives.regression import Regression
from dmd2_jax.distill.objectives.reward import Reward
from dmd2_jax.distill.objectives.sid import Sid
from dmd2_jax.distill.objectives.view import Network, Pairs, Pass, Samples, View

__all__ = [
    "CriticGan",
    "Denoising",
    "DistributionMatching",
    "Draw",
    "FDistill",
    "FirstStep",
    "GeneratorGan",
    "GuidanceAugmentation",
    "Levels",
    "Network",
    "Noising",
    "Objective",
    "Pairs",
    "Pass",
    "Regression",
    "Reward",
    "Samples",
    "Sid",
    "View",
    "dmd2",
    "level_bounds",
    "noised",
]
