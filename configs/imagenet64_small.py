"""Ten classes of ImageNet 64 x 64 for one small accelerator, from no teacher to one step.

    tfds build imagenet_resized/64x64 --data_dir=tensorflow_datasets --file_format=array_record
    dmd2 data --config=configs/imagenet64_small.py --write=datasets/ten_classes
    DATA="--config.data.name=array_record --config.data.path=datasets/ten_classes \
        --config.data.classes=()"
    dmd2 train-teacher --config=configs/imagenet64_small.py --workdir=runs/small_teacher $DATA
    dmd2 distill --config=configs/imagenet64_small.py --workdir=runs/small_student $DATA \
        --config.teacher.weights=runs/small_teacher
    dmd2 evaluate --workdir=runs/small_student

The second command keeps the ten classes alone, as shards that open at once. A folder of your own,
one folder a class, needs neither: --config.data.name=image_folder --config.data.path=photos
--config.data.classes=() --config.model.num_classes=N. notebooks/small_imagenet.ipynb does all of
it on Colab. On a T4, which has no bfloat16, add --config.model.dtype=float32.

Length: 12,000 steps of the teacher, 2,000 cycles = 10,000 critic turns; 17.9 M parameters, of which
all that lasts takes 612 MB. Not run here. Arithmetic (`dmd2 plan --until=trace`): 12.4 GFLOP a
network call, 4.8 TFLOP a teacher's step, 21 TFLOP a cycle, 1e17 in all. At 40 % of the published
peaks that is 35 minutes on an L4 (121 TFLOP/s), 21 on a TPU v5e (197) and 8.5 hours on a T4 (8.1,
of float32). A disconnect costs the work since the last checkpoint, 100 steps or cycles.
"""

from ml_collections import ConfigDict

from dmd2_jax.config import defaults


def get_config() -> ConfigDict:
    """Return the config."""
    config = defaults.get_config()
    config.name = "imagenet64_small"
    config.data.name = "tfds:imagenet_resized/64x64"
    config.data.path = "~/tensorflow_datasets"
    # Those of Imagenette, which differ at first sight: tench, springer, cassette player, chain saw,
    # church, French horn, garbage truck, gas pump, golf ball, parachute.
    config.data.classes = (
        *("n01440764", "n02102040", "n02979186", "n03000684", "n03028079"),
        *("n03394916", "n03417042", "n03425413", "n03445777", "n03888257"),
    )

    config.model.resolution = 64
    config.model.image_channels = 3
    config.model.num_classes = 10
    config.model.model_channels = 64
    config.model.channel_mult = (1, 2, 3, 4)
    config.model.num_blocks = 1
    config.model.attention_resolutions = (16, 8)
    config.model.dropout = 0.1  # of the teacher's training alone
    config.model.dtype = "bfloat16"

    config.teacher.steps = 12_000
    config.teacher.batch_size = 128
    config.teacher.lr = 4e-4
    config.teacher.lr_schedule = "cosine"
    config.teacher.warmup = 500
    config.teacher.ema_decay = 0.999

    config.distill.cycles = 2_000
    config.distill.batch_size = 64
    config.distill.shared_pass = True
    config.distill.gan_head_channels = 256

    config.optim.generator_lr = 1e-4
    config.optim.critic_lr = 1e-4
    config.optim.b1 = 0.5
    config.optim.ema_decays = (0.995,)

    config.log.every = 20
    config.log.grid_every = 250
    config.log.export_every = 250
    config.log.teacher_grid_every = 2000
    config.log.teacher_export_every = 1000
    config.log.checkpoint_every = 100
    config.evaluate.num_samples = 5_000
    return config
