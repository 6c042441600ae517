"""The non-saturating GAN losses on discriminator logits (before any sigmoid)."""

import jax
import jax.numpy as jnp

from dmd2_jax.typing import Array, Float


def generator_adversarial_loss(
    logits_fake: Float[Array, " b"],
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Return mean softplus(-D(fake)): small where the discriminator is fooled.

    Args:
      logits_fake: [b] discriminator logits of the student's samples; carries the gradient.

    Returns:
      The scalar loss and metrics: `gan_generator_loss`, `logits_generator` ([b], the logits).

    Source: DMD2 (arXiv 2405.14867) eq. 5, non-saturating form.
    """
    loss = jnp.mean(jax.nn.softplus(-logits_fake))
    return loss, {"gan_generator_loss": loss, "logits_generator": logits_fake}


def discriminator_adversarial_loss(
    logits_real: Float[Array, " b"],
    logits_fake: Float[Array, " b"],
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Return mean softplus(D(fake)) + mean softplus(-D(real)).

    Args:
      logits_real: [b] logits of real samples.
      logits_fake: [b] logits of the student's samples.

    Returns:
      The scalar loss and metrics: `gan_critic_loss`, `logits_real` and `logits_fake` ([b]).

    Source: DMD2 (arXiv 2405.14867) eq. 5.
    """
    loss = jnp.mean(jax.nn.softplus(logits_fake)) + jnp.mean(jax.nn.softplus(-logits_real))
    return loss, {
        "gan_critic_loss": loss,
        "logits_real": logits_real,
        "logits_fake": logits_fake,
    }
