"""Draw images from a run into one picture, or into single images.

Draw images from a run, or of prompts, into one picture, or into single images with their labels.

example:
  dmd2 sample --workdir=runs/student --classes=3,7 --num=20 --out=threes_sevens.png
  dmd2 sample --workdir=runs/student --num=50000 --out=samples.npz
  dmd2 sample --workdir=runs/animals --classes=cat,dog --num=20

of a student that takes the guidance scale:
  dmd2 sample --workdir=runs/student --guidance=3

of prompts:
  dmd2 sample --pipeline=sdxl --prompt='a red fox' --prompt='a blue door' --num=4
  dmd2 sample --pipeline=student --prompts=prompts.txt --seed=1

--out decides: NAME.png is a grid; NAME.zip, NAME.npz (arr_0, arr_1) or a folder hold single
images, made on all devices. Killed, the same command makes those that lack; the result is the
same to the byte. `dmd2 evaluate --images` reads each of the three.

--shape draws images of another size, where the network takes it: --shape=832x1216.

The same seed gives teacher and student the same noise. A pipeline with an LCMScheduler,
as `dmd2 export` writes it, is sampled as a student of few steps, any other by DDIM;
--which=teacher decides otherwise.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dmd2_jax.config.flags import comma_separated, flag, given, shapes
from dmd2_jax.config.refused import Refused
from dmd2_jax.config.rules import check_seed
from dmd2_jax.config.sizes import say_sizes, sizes_of
from dmd2_jax.config.text import check_text
from dmd2_jax.runtime.places import has_folder, path_of

if TYPE_CHECKING:
    from dmd2_jax.sampling.conditions import Conditions
    from dmd2_jax.sampling.images import Model, SampledImages
    from dmd2_jax.sampling.prompts import PromptSettings
    from dmd2_jax.sampling.runs import Run

__all__ = ["GROUPS", "Options", "run"]

_TEXT = "text to image"

GROUPS = {
    _TEXT: "of a diffusers pipeline or of a run of Stable Diffusion; docs/text_to_image.md",
}

_OF_RUNS = ("classes", "ema", "weights", "checkpoint")
_SETTINGS = ("steps", "guidance", "negative", "dtype", "vae", "vae_dtype", "variant")
_OF_PROMPTS = ("pipeline", "prompt", "prompts", *_SETTINGS)
_NOTED = (
    *("seed", "which", "ema", "steps", "guidance", "negative"),
    *("dtype", "vae_dtype", "variant"),
)
_PICTURES = (".png", ".jpg", ".jpeg", ".webp")
_CLASSES_NUM, _PROMPT_NUM = 100, 1


@dataclasses.dataclass(frozen=True)
class Options:
    """What `dmd2 sample` is asked for.

    Raises:
      Refused: if a number is out of range.
    """

    workdir: str = flag("the run folder", default="", metavar="DIR")
    out: str = flag(
        "a picture (.png), or single images: a folder, a .zip or an .npz",
        default="samples.png",
        metavar="PATH",
    )
    num: int | None = flag("how many; default: 100; with prompts of each, 1", default=None)
    seed: int = flag("of the noise", default=0)
    classes: tuple[str | int, ...] | None = flag(
        "numbers or names of classes to cycle through; default: all",
        default=None,
        metavar="0,1,2",
        parse=comma_separated(str),
    )
    which: str | None = flag(
        "default: the one that the run trained; best: that at its best (log.stop_when)",
        default=None,
        choices=("teacher", "student", "best"),
    )
    batch_size: int | None = flag(
        "images at a time; default: config.evaluate.batch_size, of prompts 4", default=None
    )
    ema: float | None = flag("the student's average of this decay", default=None, metavar="DECAY")
    weights: str = flag("to use instead of the run's; also .bin, .pkl", default="", metavar="FILE")
    shape: int | tuple[int, int] = flag(
        "of the images, HEIGHTxWIDTH in pixels; default: as the network was trained",
        default=0,
        metavar="HxW",
        parse=shapes,
    )
    checkpoint: int | None = flag(
        "use the weights of this kept checkpoint; default: the run's latest export",
        default=None,
        metavar="STEP",
    )
    pipeline: str = flag(
        "a diffusers pipeline (SD 1.x, 2.x, SDXL); with --workdir, of all but the U-Net",
        default="",
        metavar="DIR",
        group=_TEXT,
    )
    prompt: tuple[str, ...] = flag(
        "what to draw; may be repeated", default=(), metavar="TEXT", repeated=True, group=_TEXT
    )
    prompts: str = flag(
        "prompts: .txt (one a line), .jsonl or .parquet", default="", metavar="FILE", group=_TEXT
    )
    steps: int | None = flag(
        "of the sampler: DDIM's of a teacher, default 50 or the run's; a student has its own, "
        "and LCM 4",
        default=None,
        group=_TEXT,
    )
    guidance: float | None = flag(
        "u + W (c - u), of a teacher; 1 is none; default: the run's, or diffusers' of the pipeline "
        "(SD 7.5, SDXL 5, SD 3 7, Qwen-Image and FLUX.2-klein 4, Z-Image 6 = their 5 and 1); what "
        "FLUX.1-dev is told, 3.5; of a student that takes it (distill.guidance_range), in its "
        "range; default: the middle",
        default=None,
        metavar="W",
    )
    negative: str | None = flag(
        "what guidance goes away from; default: no prompt, as the pipeline means it",
        default=None,
        metavar="TEXT",
        group=_TEXT,
    )
    cut_prompts: bool = flag(
        "let prompts of more tokens than the text encoders read lose their ends, with a warning",
        default=False,
        group=_TEXT,
    )
    variant: str = flag(
        "of the pipeline's weights, such as fp16; default: the full or the only one",
        default="",
        metavar="NAME",
        group=_TEXT,
    )
    dtype: str = flag(
        "type the U-Net computes in; default: the run's, or float32",
        default="",
        choices=("float32", "bfloat16"),
        group=_TEXT,
    )
    vae: str = flag(
        "another autoencoder than the pipeline's, or than config.model.vae of a run of classes",
        default="",
        metavar="DIR",
        group=_TEXT,
    )
    vae_dtype: str = flag(
        "type the autoencoder computes in; SDXL's overflows float16",
        default="float32",
        choices=("float32", "bfloat16", "float16"),
        group=_TEXT,
    )

    def __post_init__(self) -> None:
        for name in ("num", "batch_size"):
            value = getattr(self, name)
            if value is not None and not 1 <= value < 2**31:
                raise Refused(f"--{name}={value}, expected 1 or more; try 4.")
        check_seed(self.seed, "--seed")
        if self.shape and len(sizes_of(self.shape)) > 1:
            raise Refused(
                f"--shape={say_sizes(self.shape)}, expected one; sample each by a command of its "
                "own."
            )

    def texts(self) -> tuple[str, ...]:
        """Return the prompts, reading the file if there is one.

        Raises:
          FileNotFoundError: if there is no such file.
          ValueError: if there are none, or the file is damaged.
        """
        from dmd2_jax.data.reading.prompts import read_prompts

        if bool(self.prompt) == bool(self.prompts):
            raise Refused(
                f"got --prompt={list(self.prompt)} and --prompts={self.prompts!r}, expected one of "
                "them; give --prompt='a red fox', which may be repeated, or a file of prompts."
            )
        if self.prompts:
            return read_prompts(self.prompts).texts
        return tuple(check_text(text, "--prompt") for text in self.prompt)

    def settings(self) -> "PromptSettings":
        """Return how prompts are to be sampled."""
        from dmd2_jax.sampling.prompts import PromptSettings

        values = {name: getattr(self, name) for name in _SETTINGS}
        return PromptSettings(which=self.which, shape=self.shape, **values)


def run(options: Options) -> Path:
    """Draw the images, write them and say where.

    Returns:
      The picture, folder or file.

    Raises:
      FileNotFoundError: if the pipeline or the file of prompts is missing.
      MissingPackageError: if prompts are given and transformers is not installed.
      ValueError: if a flag or what it names is refused, or if something that is not a number comes
        out.
    """
    if not (options.workdir or options.pipeline):
        raise Refused(
            "got neither --workdir nor --pipeline, expected one of them: a run of dmd2, or a "
            "folder of a diffusers pipeline."
        )
    if not options.workdir:
        return _of_pipeline(options)
    from dmd2_jax.recipe.text_family import text_family
    from dmd2_jax.sampling.runs import read_run_folder

    opened = read_run_folder(options.workdir, dtype=options.dtype)
    return (_of_classes if text_family(opened.family) is None else _of_text_run)(options, opened)


def _of_classes(options: Options, run: "Run") -> Path:
    from dmd2_jax.data.reading.class_choice import chosen_classes
    from dmd2_jax.data.reading.classes import shown
    from dmd2_jax.recipe.classes import read_record
    from dmd2_jax.sampling.conditions import Classes
    from dmd2_jax.sampling.images import class_model, network_size
    from dmd2_jax.sampling.samplers import student_sampler, teacher_sampler

    if names := [name for name in given(options, _OF_PROMPTS) if name not in ("vae", "guidance")]:
        raise Refused(
            f"--{names[0]} given with the run in {options.workdir}, which draws classes, "
            "expected a text-to-image model; leave it away."
        )
    if options.shape:
        run = run.at(network_size(run.config, options.shape, options.vae))
    run = _chosen(options, run)
    classes, record = run.family.num_classes, read_record(options.workdir)
    class_names = record.class_names if record is not None and classes else None
    chosen = None
    if options.classes is not None:
        chosen = chosen_classes(options.classes, classes, class_names)
    conditions = Classes(classes, chosen)
    out = _checked_out(options)
    scale = run.scale(options.guidance)
    if run.which == "teacher":
        sampler = teacher_sampler(run.family, run.config, options.guidance)
    else:
        sampler = student_sampler(run.family, run.config)
    model = class_model(run.family, run.config, sampler, run.load, options.vae, scale)
    num = _CLASSES_NUM if options.num is None else options.num
    different = len(chosen or ())
    columns = different if different > 1 else math.isqrt(num - 1) + 1
    batch_size = options.batch_size or run.config.evaluate.batch_size
    images = _images(options, model, conditions, num, batch_size, run.name)
    what = f"{num} images"
    if class_names is not None and chosen is not None:
        what += " of " + ", ".join(f"{i} '{shown(class_names[i])}'" for i in chosen)
    return _write(options, images, out, columns, what, class_names)


def _chosen(options: Options, run: "Run") -> "Run":
    return run.choose(
        options.which, options.ema, weights=options.weights, checkpoint=options.checkpoint
    )


def _of_pipeline(options: Options) -> Path:
    from dmd2_jax.sampling.prompts import pipeline_model

    if names := given(options, _OF_RUNS):
        raise Refused(
            f"--{names[0]} given with --pipeline={options.pipeline}, expected it with a run's "
            "--workdir; leave it away, or make a pipeline of the run by `dmd2 export`."
        )
    if options.which == "best":
        raise Refused(
            f"--which=best given with --pipeline={options.pipeline}, which has one network, "
            "expected it with a run's --workdir; leave it away."
        )
    texts, out = options.texts(), _checked_out(options)
    model = pipeline_model(options.pipeline, options.settings())
    return _of_prompts(options, model, texts, out, options.pipeline)


def _of_text_run(options: Options, run: "Run") -> Path:
    from dmd2_jax.sampling.prompts import run_models

    if options.classes is not None:
        raise Refused(
            f"--classes given with the run in {options.workdir}, which draws prompts, expected "
            "--prompt or --prompts; leave it away."
        )
    texts, out = options.texts(), _checked_out(options)
    run = _chosen(options, run)
    model = run_models(run, options.settings(), options.pipeline)(run)
    return _of_prompts(options, model, texts, out, run.name)


def _of_prompts(
    options: Options, model: "Model", texts: tuple[str, ...], out: Path, name: str
) -> Path:
    """Write a grid: a row a prompt, or about a square of one image each."""
    from dmd2_jax.sampling.conditions import Prompts
    from dmd2_jax.sampling.prompts import PROMPT_BATCH
    from dmd2_jax.text2image.text_encoder import refuse_cut

    each = _PROMPT_NUM if options.num is None else options.num
    batch_size = PROMPT_BATCH if options.batch_size is None else options.batch_size
    assert model.pipeline is not None  # which a model of prompts has
    if not options.cut_prompts:
        refuse_cut(model.pipeline.encoders, [*texts, *filter(None, [options.negative])])
    conditions = Prompts(model.pipeline, texts, each=each, negative=options.negative)
    columns = each if each > 1 else math.isqrt(len(texts) - 1) + 1
    images = _images(options, model, conditions, each * len(texts), batch_size, name)
    what = f"{each} image{'' if each == 1 else 's'} of each prompt"
    return _write(options, images, out, columns, what)


def _checked_out(options: Options) -> Path:
    """Refuse what would lie in a folder that does not exist, or is of no form."""
    from dmd2_jax.sampling.files import ENDINGS

    out = path_of(options.out)
    if out.suffix and not (
        out.suffix.lower() in (*_PICTURES, *ENDINGS) or out.is_dir() or options.out.endswith("/")
    ):
        raise Refused(
            f"--out={out} ends in {out.suffix}, expected one of {', '.join(_PICTURES)} for a grid, "
            f"{', '.join(ENDINGS)} for single images, or a folder; rename it (a folder may end in "
            "/)."
        )
    if not has_folder(out.parent):
        raise Refused(f"--out={out} lies in no folder, expected {out.parent} to exist; create it.")
    return out


def _is_grid(out: str | Path) -> bool:
    out = path_of(out)
    return out.suffix.lower() in _PICTURES and not out.is_dir()


def _images(
    options: Options,
    model: "Model",
    conditions: "Conditions",
    num: int,
    batch_size: int,
    name: str,
) -> "SampledImages":
    """Return what is to be made: a grid on the first device, as ever, and many on all."""
    import jax

    from dmd2_jax.runtime.devices import say_devices
    from dmd2_jax.runtime.sharding import make_mesh
    from dmd2_jax.sampling.images import SampledImages

    devices = jax.devices()[:1] if _is_grid(options.out) else jax.devices()
    say_devices(devices)
    return SampledImages(
        "samples",
        name,
        model,
        conditions,
        num=num,
        batch_size=batch_size,
        seed=options.seed,
        mesh=make_mesh({"data": -1}, devices),
        timed=False,
    )


def _write(
    options: Options,
    images: "SampledImages",
    out: Path,
    columns: int,
    what: str,
    class_names: Sequence[str] | None = None,
) -> Path:
    if _is_grid(out):
        import numpy as np

        from dmd2_jax.pictures.grids import class_headings, image_grid

        labels = images.conditions.labels(np.arange(len(images)))
        headings = class_headings(labels, columns, class_names)
        image_grid(images.all(), out, rows=-(-len(images) // columns), cols=columns, **headings)
    else:
        from dmd2_jax.sampling.files import write_samples

        flags = {name: getattr(options, name) for name in _NOTED}
        flags |= {"shape": say_sizes(options.shape)} if options.shape else {}
        if not write_samples(images, out, {n: v for n, v in flags.items() if v not in (None, "")}):
            what += ", which were there already"
    print(f"{what}: {out}")
    return out
