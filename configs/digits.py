"""Real handwritten digits, 8 x 8: teacher and one-step student in minutes on two CPU cores.

    dmd2 train-teacher --config=configs/digits.py --workdir=runs/digits_teacher
    dmd2 distill --config=configs/digits.py --workdir=runs/digits_student \
        --config.teacher.weights=runs/digits_teacher
    dmd2 evaluate --workdir=runs/digits_student

Data: scikit-learn's 1,797 digits; no download.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    """Return the config."""
    config = common.get_config()
    config.name = "digits"

    config.teacher.steps = 1500
    config.teacher.lr = 2e-3

    config.distill.cycles = 300
    config.distill.gan_head_channels = 64

    config.optim.generator_lr = 1e-4
    config.optim.critic_lr = 1e-4
    config.optim.warmup = 50
    config.optim.ema_decays = (0.99,)
    return config
