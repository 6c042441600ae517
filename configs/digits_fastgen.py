"""Digits by the variant of DMD2 in NVIDIA's FastGen, as far as it is switches here; one step.

    dmd2 train-teacher --config=configs/digits.py --workdir=runs/digits_teacher
    dmd2 distill --config=configs/digits_fastgen.py --workdir=runs/digits_fastgen \
        --config.teacher.weights=runs/digits_teacher
    dmd2 evaluate --workdir=runs/digits_fastgen

Data: scikit-learn's 1,797 digits; no download. docs/objectives.md has the table of what differs.
Rates, batch and length are those of digits.py, which shares one noised pass already.

Not measured here.
"""

from ml_collections import ConfigDict

from dmd2_jax.config.load import load_config


def get_config() -> ConfigDict:
    """Return the config."""
    config = load_config("digits")
    config.name = "digits_fastgen"

    config.model.feature_resolutions = (8, 4)

    config.distill.gan_features = "teacher"
    config.distill.gan_critic_weight = 1.0
    config.distill.critic_turns = 4
    config.distill.first_turn_reuses_images = False
    config.distill.denoising_weight = "x0"
    config.distill.fake_labels = "real"
    return config
