"""The objectives of DMD2 and of its ablations, from the keys of a config."""

from collections.abc import Sequence

from dmd2_jax.config.refused import Refused
from dmd2_jax.config.times import UNIFORM
from dmd2_jax.distill.objectives import denoising, distribution_matching
from dmd2_jax.distill.objectives.contract import Objective
from dmd2_jax.distill.objectives.denoising import Denoising
from dmd2_jax.distill.objectives.distribution_matching import DistributionMatching
from dmd2_jax.distill.objectives.gan import CriticGan, GeneratorGan
from dmd2_jax.distill.objectives.named import checked, named
from dmd2_jax.distill.objectives.regression import Regression


def dmd2(
    *,
    dm_weight: float | None = DistributionMatching.weight,
    gan_generator_weight: float | None = GeneratorGan.weight,
    gan_critic_weight: float | None = CriticGan.weight,
    regression_weight: float | None = None,
    train_critic: bool = True,
    guidance: float | None = DistributionMatching.guidance,
    dm_range: tuple[float, float] = DistributionMatching.range,
    gan_range: tuple[float, float] = GeneratorGan.range,
    diffusion_gan: bool = GeneratorGan.diffusion,
    gan_loss: str = CriticGan.loss,
    gan_r1_weight: float | None = CriticGan.r1_weight,
    gan_r1_sigma: float = CriticGan.r1_sigma,
    gan_r1_samples: str = CriticGan.r1_samples,
    dm_times: str = DistributionMatching.times,
    critic_times: str = Denoising.times,
    denoising_weight: str = Denoising.kind,
    sigma_data: float = Denoising.sigma_data,
    normalizer_floor: float = DistributionMatching.normalizer_floor,
    shared_pass: bool = False,
    objectives: Sequence[str | Objective] = (),
) -> tuple[Objective, ...]:
    """Make the objectives of a distillation; the defaults are DMD2's ImageNet-64 recipe.

    A weight of None leaves that objective out: its network passes are not even traced.

    Args:
      dm_weight: weight of distribution matching; None = GAN only.
      gan_generator_weight: weight of the GAN loss for the generator; None = no GAN.
      gan_critic_weight: weight of the GAN loss for critic and discriminator; None = no GAN.
      regression_weight: weight of DMD's regression loss on teacher ODE pairs; None = DMD2.
      train_critic: False drops denoising score matching ("GAN only" needs no score).
      guidance: w of the teacher's u + w (c - u); None = conditional teacher.
      dm_range: the part of the schedule's levels that DM draws from, last level included.
      gan_range: the part that the GAN draws from, last level left out.
      diffusion_gan: False shows the discriminator clean images at the least noisy level.
      gan_loss: "softplus" or "hinge".
      gan_r1_weight: weight of approximate R1 within the critic's GAN loss; None = none.
      gan_r1_sigma: how far R1 moves what the discriminator sees, in data units.
      gan_r1_samples: whose, "real" or "both".
      dm_times: how often each of its levels DM draws (see `noising.Levels`).
      critic_times: the same of denoising score matching.
      denoising_weight: weight of the critic's denoising loss (see losses.denoising).
      sigma_data: standard deviation of the data, for the "edm" denoising weight.
      normalizer_floor: smallest normaliser of the DM gradient.
      shared_pass: noise the student's samples once a turn and let one critic pass serve both the
        score loss and the GAN. Faster; official code draws twice.
      objectives: more of them: objects, or names of files here and dotted modules whose
        `objective()` makes one, with values of its fields behind them (see `named`).

    Returns:
      A value for `DistillConfig.objectives`.

    Raises:
      ValueError: for values that contradict each other, or a module that is none.
    """
    shared_settings = {
        "guidance": guidance,
        "dm_range": dm_range,
        "dm_times": dm_times,
        "normalizer_floor": normalizer_floor,
    }
    more = tuple(
        named(one, shared_settings) if isinstance(one, str) else checked(one) for one in objectives
    )
    own_generator = any(one.player == "generator" for one in more)
    own_critic = any(one.player == "critic" for one in more)
    has_gan = gan_critic_weight is not None
    if (gan_generator_weight is None) == has_gan:
        raise Refused(
            f"gan_generator_weight={gan_generator_weight} and "
            f"gan_critic_weight={gan_critic_weight} must both be numbers or both be None."
        )
    if dm_weight is None and not has_gan and regression_weight is None and not own_generator:
        raise Refused(
            "dm_weight, the GAN weights and regression_weight are all None: nothing trains the "
            "generator; give at least one of them a number."
        )
    trained = train_critic or any(one.trains_critic for one in more)
    if dm_weight is not None and not trained:
        raise Refused(
            "train_critic=False leaves distribution matching without a critic; set dm_weight=None "
            "(GAN only) or train_critic=True."
        )
    if not (train_critic or has_gan or own_critic):
        raise Refused(
            "train_critic=False without a GAN leaves the critic turn empty; use one of the two."
        )
    dm_noising = distribution_matching.NOISING
    has_dm = dm_weight is not None or any(dm_noising in one.draws for one in more)
    for key, times, used in (
        ("dm_times", dm_times, has_dm),
        ("critic_times", critic_times, train_critic),
    ):
        if times != UNIFORM and not used:
            raise Refused(
                f"{key}={times} of an objective that is left out, expected {UNIFORM}; set it so."
            )
    made: list[Objective] = []
    shared: dict[str, str | None] = {"generator": None, "critic": None}
    if has_dm and shared_pass:
        shared["generator"] = dm_noising
    if dm_weight is not None:
        made.append(DistributionMatching(dm_weight, guidance, dm_range, normalizer_floor, dm_times))
    if gan_generator_weight is not None:
        own = (gan_range, diffusion_gan, shared["generator"], gan_loss)
        made.append(GeneratorGan(gan_generator_weight, *own))
    if regression_weight is not None:
        made.append(Regression(regression_weight))
    if train_critic:
        shared["critic"] = denoising.NOISING if shared_pass else None
        made.append(Denoising(kind=denoising_weight, sigma_data=sigma_data, times=critic_times))
    if gan_critic_weight is not None:
        own = (gan_range, diffusion_gan, shared["critic"], gan_loss)
        r1 = (gan_r1_weight, gan_r1_sigma, gan_r1_samples)
        made.append(CriticGan(gan_critic_weight, *own, *r1))
    return (*made, *more)
