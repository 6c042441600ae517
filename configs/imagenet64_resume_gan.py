"""ImageNet 64 x 64, one step: the best run without GAN goes on with one, the paper's headline.

    dmd2 distill --config=configs/imagenet64_resume_gan.py --workdir=runs/imagenet64_resume_gan \
        --config.data.path=datasets/imagenet-64x64.zip \
        --config.teacher.weights=edm-imagenet-64x64-cond-adm.pkl \
        --config.distill.start_from=runs/imagenet64_no_gan
    dmd2 evaluate --workdir=runs/imagenet64_resume_gan --which=student --features=inception \
        --inception_weights=pt_inception-2015-12-05-6726825d.pth --resize=edm \
        --reference=imagenet-64x64.npz

Generator and critic begin with the weights of the run without GAN; optimisers and counters begin
anew. The teacher and the data are those of imagenet64.py (`dmd2 train-teacher` there), which says
how classes are numbered.

Length: 28,000 cycles = 140,000 critic turns. Published: FID 1.28 (the teacher 2.32 with 511 calls)
on 7 A100. Not run here. Arithmetic: 1.8 PFLOP a cycle, 5.1e19 in all: 14 hours on 8 A100 at 40 %.
"""

from ml_collections import ConfigDict

from dmd2_jax.config.load import load_config


def get_config() -> ConfigDict:
    """Return the config."""
    config = load_config("imagenet64")
    config.name = "imagenet64_resume_gan"
    config.distill.start_from = "runs/imagenet64_no_gan"
    config.distill.cycles = 28_000
    config.optim.generator_lr = 5e-7
    config.optim.critic_lr = 5e-7
    return config
