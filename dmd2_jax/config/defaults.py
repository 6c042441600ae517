"""The base that every recipe states its difference from; all keys are listed and explained here.

A recipe is a file with `get_config()` that calls this one and changes some values:

    from dmd2_jax.config import defaults


    def get_config():
        config = defaults.get_config("edm")
        config.optim.generator_lr = 1e-4
        return config

Values only: nothing here is derived from anything else.
"""

from ml_collections import ConfigDict, config_dict

from dmd2_jax.config.family import model_defaults


def get_config(family: str = "edm") -> ConfigDict:
    """Return the base config: digits, the paper's ImageNet-64 semantics.

    Args:
      family: whose keys `config.model` has: a folder of dmd2_jax/families with a settings.py, or a
        dotted module of your own.

    Raises:
      Refused: if there is no such family.
    """
    config = ConfigDict()
    config.name = "unnamed"
    config.seed = 0

    config.data = ConfigDict()
    config.data.name = "digits"  # a file of dmd2_jax/data, or tfds:<name>; `dmd2 data` lists them
    config.data.path = ""  # where the files lie, for sources that read files
    config.data.classes = ()  # names or numbers of those that are read, and count anew; (): all
    config.data.prompts = ""  # text to image: a cache of the student's prompts; "": the data's own
    config.data.test_fraction = 0.1  # of each class, held out where the data have no test split
    config.data.digest = "sizes"  # names, sizes or contents of files tell a run's from others
    config.data.max_corrupt = 10  # undecodable images that are replaced before reading stops
    # Images of other sizes than model.resolution. none: refused | crop: resized until the shorter
    # side fits, the middle kept | enlarge: the same, and smaller ones are made larger.
    config.data.resize = "none"
    config.data.workers = 0  # threads that decode; 0: one for each processor

    # Teacher, critic and generator share one architecture; a family's keys are explained in its
    # settings.py. --config.model.family=NAME takes another family's keys.
    config.model = model_defaults(family)

    config.teacher = ConfigDict()
    # A teacher's run folder, a .safetensors, .bin or .pth of the original names, EDM's .pkl, or
    # hf://owner/repository/file (docs/weights.md).
    config.teacher.weights = ""
    config.teacher.variant = ""  # of a folder's weights, such as fp16; "": the full or the only one
    config.teacher.lora = ""  # a LoRA file that is merged into them: kohya's, peft's or diffusers'
    config.teacher.lora_scale = 1.0  # how much of it
    # edm: ln sigma normal | eps: uniform level, error of eps | flow: ln t / (1 - t) normal
    config.teacher.objective = "edm"
    config.teacher.steps = 1000
    config.teacher.batch_size = 128
    config.teacher.lr = 1e-3
    config.teacher.b1 = 0.9  # Adam's, as in optim for the players
    config.teacher.b2 = 0.999
    config.teacher.warmup = 100
    config.teacher.lr_schedule = "constant"  # constant | cosine (to 0 at the last step)
    config.teacher.ema_decay = 0.999
    config.teacher.p_mean = -1.2
    config.teacher.p_std = 1.2
    config.teacher.label_dropout = 0.0
    config.teacher.sampler_steps = 18  # sigmas, flows: Heun, 2 * steps - 1 calls; else DDIM

    config.distill = ConfigDict()
    config.distill.cycles = 200  # one cycle = one generator turn + critic_turns critic turns
    config.distill.batch_size = 128
    config.distill.microbatches = 1  # parts of a batch, one after another: same result, less memory
    config.distill.start_from = ""  # RUN or RUN@CYCLE: a distillation's weights to begin with
    config.distill.lora_rank = 0  # of the generator's low-rank adapters; 0: whole networks
    config.distill.lora_alpha = 8.0  # adapters count alpha / rank
    config.distill.lora_targets = ()  # ends of layers' names, such as "conv*"; (): the family's
    config.distill.lora_critic = False  # True: the critic is adapters of the teacher too
    config.distill.critic_turns = 5  # K of TTUR; 1 = no TTUR
    config.distill.student_times = (80.0,)  # decreasing times of the student's steps; or ()
    # Or () and here so many equal parts of the levels, with their shift (docs/transformers.md).
    config.distill.student_steps = 0
    config.distill.backward_simulation = True
    config.distill.first_trained_step = 0  # earlier steps are rolled out only (docs/ablations.md)
    config.distill.critic_knows_step = False  # True: it is told which step made its samples
    config.distill.dm_weight = config_dict.placeholder(float)
    config.distill.dm_weight = 1.0  # None: no distribution matching (GAN only)
    config.distill.gan_generator_weight = config_dict.placeholder(float)
    config.distill.gan_generator_weight = 3e-3  # None: no GAN
    config.distill.gan_critic_weight = config_dict.placeholder(float)
    config.distill.gan_critic_weight = 1e-2
    config.distill.regression_weight = config_dict.placeholder(float)  # None: DMD2; 0.25: DMD
    config.distill.regression_pairs = 2000  # teacher ODE pairs made before the first cycle
    config.distill.pairs = ""  # where they are (`dmd2 make-pairs`); "": WORKDIR/teacher_pairs
    config.distill.guidance = config_dict.placeholder(float)  # teacher's u + w (c - u)
    # Or () and here (low, high): the student takes w as an input (docs/guidance.md).
    config.distill.guidance_range = ()
    config.distill.train_critic = True  # False: no score matching; for GAN only
    config.distill.dm_range = (0.02, 0.98)  # of the schedule's levels, the end included
    config.distill.gan_range = (0.0, 1.0)  # of the schedule's levels, the end left out
    # How often levels are drawn, by distribution matching and by the critic's denoising: uniform |
    # logit_normal:MEAN:STD | shifted:S | polynomial:P (docs/method.md).
    config.distill.dm_times = "uniform"
    config.distill.critic_times = "uniform"
    config.distill.denoising_weight = "edm"  # edm | eps | x0 | flow
    config.distill.gan_head_channels = 128
    config.distill.gan_features = "critic"  # whose the discriminator reads: critic | teacher
    config.distill.gan_loss = "softplus"  # softplus | hinge
    config.distill.gan_r1_weight = config_dict.placeholder(float)  # approximate R1's; None: none
    config.distill.gan_r1_sigma = 0.1  # how far it moves noised images, in units of the data
    config.distill.gan_r1_samples = "real"  # whose logits it is of: real | both
    config.distill.diffusion_gan = True  # False: the discriminator sees clean images
    config.distill.shared_pass = False  # True: DSM and the GAN's fakes share one noised pass
    config.distill.first_turn_reuses_images = True  # official: critic turn 0 sees pre-update images
    # More of them: names with values of their fields behind, such as f_distill:ratio_range=(0.1,20)
    # (docs/objectives.md), and dotted modules of your own, such as my_lab.my_loss.
    config.distill.objectives = ()
    config.distill.fake_labels = "uniform"  # uniform | real (the real batch's)

    config.optim = ConfigDict()
    config.optim.generator_lr = 2e-6
    config.optim.critic_lr = 2e-6
    config.optim.warmup = 500  # counted in critic turns, for both players
    config.optim.lr_schedule = "constant"  # constant | cosine (to 0 at the last cycle)
    config.optim.b1 = 0.9
    config.optim.b2 = 0.999
    config.optim.eps = 1e-8
    config.optim.weight_decay = 0.01
    config.optim.moment_dtype = "float32"  # Adam's moments: float32 | bfloat16 (half the memory)
    config.optim.clip_norm = 10.0
    config.optim.ema_decays = (0.999,)  # per generator turn; () = none
    config.optim.max_skipped_in_a_row = 10  # updates refused as not finite, then the run stops

    config.mesh = ConfigDict()
    config.mesh.data = -1  # devices along the batch; -1 = all that the others leave
    config.mesh.fsdp = 1  # devices that share batch and weights, each holding a part of both
    config.mesh.tensor = 1  # devices that split every layer's output features
    config.mesh.offload = ()  # what waits in the host's memory: teacher, optimizer
    config.mesh.rules = ()  # "PATTERN=AXIS:AXIS:..." where the default placement is not wanted

    config.log = ConfigDict()
    config.log.every = 10  # cycles (teacher: steps) between metric lines
    config.log.grid_every = 50  # cycles between pictures
    config.log.teacher_grid_every = 200  # steps between the teacher's, of many network calls
    config.log.export_every = 50  # cycles between exports of weights; 0: at the end alone
    config.log.teacher_export_every = 200  # steps between those of the teacher's
    config.log.checkpoint_every = 50
    config.log.keep = 3  # the last n checkpoints stay,
    config.log.keep_every = 0  # and those of cycles that are multiples of this (0: none),
    config.log.keep_best = 0  # and the m of lowest FID
    config.log.evaluate_every = 0  # cycles between measurements of FID, each saved; 0: never
    # Conditions, any of which ends a run: fid:patience=3, recall:below=0.2, warning_mean, ...
    config.log.stop_when = ()  # (docs/health.md); with patience the best weights are kept
    config.log.tensorboard = False  # True: event files in WORKDIR/tensorboard too
    config.log.clu = False  # True: CLU's writer, with TensorFlow, in WORKDIR/clu
    config.log.wandb_project = ""  # a Weights & Biases project to report to; "": none

    config.evaluate = ConfigDict()
    config.evaluate.num_samples = 2000
    config.evaluate.training_samples = 1000  # for log.evaluate_every, generated and real
    config.evaluate.batch_size = 250
    return config.lock()  # a misspelt key in a recipe is an error, not a new key
