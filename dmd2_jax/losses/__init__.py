"""One pure function a file: (arrays, keyword-only hyperparameters) -> (scalar loss, metrics)."""

from dmd2_jax.losses.adversarial import (
    approximate_r1_loss,
    discriminator_adversarial_loss,
    generator_adversarial_loss,
)
from dmd2_jax.losses.denoising import denoising_loss, denoising_weight
from dmd2_jax.losses.distribution_matching import distribution_matching_loss
from dmd2_jax.losses.regression import feature_distance, regression_loss, squared_error
from dmd2_jax.losses.score_identity import score_identity_loss

__all__ = [
    "approximate_r1_loss",
    "denoising_loss",
    "denoising_weight",
    "discriminator_adversarial_loss",
    "distribution_matching_loss",
    "feature_distance",
    "generator_adversarial_loss",
    "regression_loss",
    "score_identity_loss",
    "squared_error",
]
