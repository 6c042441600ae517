"""The GAN losses on discriminator logits (before any sigmoid): non-saturating, or hinge."""

import jax
import jax.numpy as jnp

from dmd2_jax.config.refused import Refused
from dmd2_jax.config.rules import GAN_LOSSES
from dmd2_jax.typing import Array, Float


def generator_adversarial_loss(
    logits_fake: Float[Array, " b"], *, kind: str = "softplus"
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Return a loss that is small where the discriminator is fooled.

        softplus: mean softplus(-D(fake))
        hinge:    -mean D(fake)

    Args:
      logits_fake: [b] discriminator logits of the student's samples; carries the gradient.
      kind: one of `GAN_LOSSES`.

    Returns:
      The scalar loss and metrics: `gan_generator_loss`, `logits_generator` ([b], the logits).

    Raises:
      ValueError: if `kind` is unknown.

    Source: DMD2 (arXiv 2405.14867) eq. 5, non-saturating form; hinge: Lim and Ye 2017
      (arXiv 1705.02894).
    """
    _check_kind(kind)
    loss = jnp.mean(jax.nn.softplus(-logits_fake) if kind == "softplus" else -logits_fake)
    return loss, {"gan_generator_loss": loss, "logits_generator": logits_fake}


def discriminator_adversarial_loss(
    logits_real: Float[Array, " b"],
    logits_fake: Float[Array, " b"],
    *,
    kind: str = "softplus",
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Return a loss that is small where the discriminator tells real from fake.

        softplus: mean softplus(D(fake)) + mean softplus(-D(real))
        hinge:    mean max(0, 1 + D(fake)) + mean max(0, 1 - D(real))

    Args:
      logits_real: [b] logits of real samples.
      logits_fake: [b] logits of the student's samples.
      kind: one of `GAN_LOSSES`.

    Returns:
      The scalar loss and metrics: `gan_critic_loss`, `logits_real` and `logits_fake` ([b]).

    Raises:
      ValueError: if `kind` is unknown.

    Source: DMD2 (arXiv 2405.14867) eq. 5; hinge: Lim and Ye 2017 (arXiv 1705.02894).
    """
    _check_kind(kind)
    if kind == "softplus":
        loss = jnp.mean(jax.nn.softplus(logits_fake)) + jnp.mean(jax.nn.softplus(-logits_real))
    else:
        loss = jnp.mean(jax.nn.relu(1.0 + logits_fake)) + jnp.mean(jax.nn.relu(1.0 - logits_real))
    return loss, {
        "gan_critic_loss": loss,
        "logits_real": logits_real,
        "logits_fake": logits_fake,
    }


def approximate_r1_loss(
    logits: Float[Array, " b"], logits_beside: Float[Array, " b"]
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Return mean (D(x + sigma eps) - D(x))^2, about sigma^2 times the squared gradient of D.

    It holds the discriminator smooth as R1 does, without a derivative of a derivative.

    Args:
      logits: [b] D(x).
      logits_beside: [b] D(x + sigma eps), eps standard normal.

    Returns:
      The scalar loss and the metric `gan_r1_loss`.

    Source: APT (arXiv 2501.08316) section 3.3.
    """
    loss = jnp.mean(jnp.square(logits_beside - logits))
    return loss, {"gan_r1_loss": loss}


def _check_kind(kind: str) -> None:
    if kind not in GAN_LOSSES:
        raise Refused(f"gan_loss={kind!r} is unknown; choose one of {GAN_LOSSES}.")
