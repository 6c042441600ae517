"""ImageNet 64 x 64, one step, distribution matching alone: the paper's longer first stage.

    dmd2 distill --config=configs/imagenet64_no_gan.py --workdir=runs/imagenet64_no_gan \
        --config.data.path=datasets/imagenet-64x64.zip \
        --config.teacher.weights=edm-imagenet-64x64-cond-adm.pkl
    dmd2 evaluate --workdir=runs/imagenet64_no_gan --which=student --features=inception \
        --inception_weights=pt_inception-2015-12-05-6726825d.pth --resize=edm \
        --reference=imagenet-64x64.npz

The teacher and the data are those of imagenet64.py (`dmd2 train-teacher` there), which says how
classes are numbered.

Length: 82,000 cycles = 410,000 critic turns. Published: FID 2.61 on 7 A100. Not run here.
Arithmetic: 1.35 PFLOP a cycle, 1.1e20 in all: 31 hours on 8 A100 at 40 % of their peak.
Then imagenet64_resume_gan.py.
"""

from ml_collections import ConfigDict

from dmd2_jax.config.load import load_config


def get_config() -> ConfigDict:
    """Return the config."""
    config = load_config("imagenet64")
    config.name = "imagenet64_no_gan"
    config.distill.cycles = 82_000
    config.distill.gan_generator_weight = None
    config.distill.gan_critic_weight = None
    return config
