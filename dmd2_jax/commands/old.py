"""Commands whose flags are not yet fields of a dataclass: sample, convert, evaluate and export."""

import argparse
import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dmd2_jax.config.load import apply_overrides, load_config
from dmd2_jax.config.refused import Refused

if TYPE_CHECKING:
    from dmd2_jax.sampling.prompts import PromptOptions

__all__ = ["add_old", "chosen"]

_DTYPES = ("float32", "bfloat16", "float16")


def add_old(commands: argparse._SubParsersAction, but: Collection[str]) -> None:
    """Add them, but those that are there already."""
    for name, add in {
        "sample": _add_sample,
        "convert": _add_convert,
        "evaluate": add_evaluate,
        "export": add_export,
    }.items():
        if name not in but:
            add(commands)


def chosen(arguments: argparse.Namespace, command: Callable[..., Any]) -> Any:
    """Return the one of them that was chosen, as what main makes of a command."""

    def run(words: argparse.Namespace, overrides: Mapping[str, str]) -> None:
        words.overrides = overrides
        arguments.function(words)

    return command(arguments.command, run, hasattr(arguments, "config"))


def _add(
    commands: argparse._SubParsersAction,
    name: str,
    function: Callable[[argparse.Namespace], None],
    summary: str,
    description: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=summary,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(function=function, command=name)
    parser.add_argument(
        "--debug", action="store_true", help="show the traceback of refused input too"
    )
    return parser


def _add_sample(commands: argparse._SubParsersAction) -> None:
    parser = _add(
        commands,
        "sample",
        sample,
        "draw images from a run into one PNG",
        "Draw images from a run, or of prompts, into one PNG.\n\nexample:\n"
        "  dmd2 sample --workdir=runs/student --classes=3,7 --num=20 --out=threes_sevens.png\n\n"
        "of prompts:\n"
        "  dmd2 sample --pipeline=sdxl --prompt='a red fox' --prompt='a blue door' --num=4\n"
        "  dmd2 sample --pipeline=student --prompts=prompts.txt --seed=1\n\n"
        "The same seed gives teacher and student the same noise. A pipeline with an LCMScheduler,\n"
        "as `dmd2 export` writes it, is sampled as a student of few steps, any other by DDIM;\n"
        "--which=teacher decides otherwise.",
    )
    parser.add_argument("--workdir", metavar="DIR", help="the run folder")
    parser.add_argument("--out", default="samples.png", metavar="PNG", help="default: samples.png")
    parser.add_argument(
        "--num", type=int, metavar="N", help="how many; default: 100; with prompts of each, 1"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    parser.add_argument(
        "--classes", type=_classes, metavar="0,1,2", help="classes to cycle through; default: all"
    )
    parser.add_argument(
        "--which", choices=("teacher", "student"), help="default: the one that the run trained"
    )
    parser.add_argument(
        "--ema", type=float, metavar="DECAY", help="the student's average of this decay"
    )
    parser.add_argument(
        "--weights", metavar="FILE", help="to use instead of the run's; also .bin, .pkl"
    )
    parser.add_argument(
        "--checkpoint",
        type=int,
        metavar="STEP",
        help="use the weights of this kept checkpoint; default: the run's latest export",
    )
    add_prompts(parser)


def _add_convert(commands: argparse._SubParsersAction) -> None:
    parser = _add(
        commands,
        "convert",
        convert,
        "convert weights between EDM .pkl, PyTorch .bin and .safetensors",
        "Convert weights of the original names between files. SRC is a .safetensors, PyTorch's\n"
        ".bin, .pt or .pth, EDM's .pkl, hf://owner/repository/file, or the --workdir of a run; DST "
        "is\n.safetensors, .bin, .pt or .pth. Nothing in SRC is executed. DST is read back, and a\n"
        "forward pass with its weights must equal one with SRC's bit for bit.\n\n"
        "example:\n  dmd2 convert edm-imagenet-64x64-cond-adm.pkl teacher.safetensors\n"
        "  dmd2 convert runs/student generator.bin\n"
        "  dmd2 convert pytorch_model.bin student.safetensors --config=configs/imagenet64.py\n\n"
        "Without DST, the lines of a recipe that describe the network of an EDM .pkl are printed.",
    )
    parser.add_argument("source", metavar="SRC", help="what to read")
    parser.add_argument("target", metavar="DST", nargs="?", help="the file to write")
    parser.add_argument(
        "--config", metavar="FILE", help="the recipe; a run and EDM's .pkl need none"
    )
    parser.add_argument(
        "--which", choices=("teacher", "student"), help="of a run; default: the one it trained"
    )
    parser.add_argument(
        "--ema", type=float, metavar="DECAY", help="of a run: the student's average of this decay"
    )
    parser.add_argument(
        "--prefix", metavar="NAME.", help="of the tensors to take, if SRC holds several networks"
    )
    parser.add_argument("--force", action="store_true", help="replace DST if it exists")


def _classes(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}, expected numbers like 0,1,2") from None


_RESIZES = ("pytorch_fid", "clean_fid", "edm")  # evaluation.resize.PREPARATIONS imports jax

_DESCRIPTION = """\
Measure images against real ones: by default all that a run trained (and a student's teacher),
against the data of its recipe: FID and class accuracy in the features of a small classifier,
network calls and time an image.

example:
  dmd2 evaluate --workdir=runs/student
  dmd2 evaluate --workdir=runs/student --ema=0.999 --metrics=fid,kid,precision_recall
  dmd2 evaluate --workdir=runs/student --all_checkpoints
  dmd2 evaluate --config=configs/cifar10.py --weights=student.safetensors
  dmd2 evaluate --images=samples.zip --reference=imagenet-64x64.npz --features=inception \\
      --inception_weights=pt_inception-2015-12-05-6726825d.pth --resize=edm
  dmd2 evaluate --pipeline=student --prompts=prompts.txt --metrics=clip_score,diversity \\
      --clip=clip-vit-base-patch32 --features=inception --inception_weights=...

prints one table and writes metrics.json into --workdir, or where --out says; with
--all_checkpoints also fid_checkpoints.png beside it. Images go by in batches on all devices and
are never all in memory; several metrics share one pass. FID of few images is too large:
NAME_fid_bias in metrics.json says by about how much. docs/evaluation.md has the conventions.
"""


def add_evaluate(commands: argparse._SubParsersAction) -> None:
    """Add `dmd2 evaluate`.

    Args:
      commands: to add it to.
    """
    parser = _add(
        commands,
        "evaluate",
        evaluate,
        "measure a run, weights or a folder of images against real images",
        _DESCRIPTION,
    )
    _add_measured(parser)
    _add_real(parser)
    _add_metrics(parser)
    parser.add_argument(
        "--out", default="", metavar="JSON", help="default: metrics.json, in --workdir if given"
    )
    parser.add_argument(
        "--devices", type=_count, default=0, metavar="N", help="use the first N; default: all"
    )


def _add_measured(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is measured")
    group.add_argument(
        "--workdir", default="", metavar="DIR", help="a run folder: its networks, its recipe"
    )
    group.add_argument(
        "--config", metavar="FILE", help="a recipe, where there is no run; also --config.KEY=VALUE"
    )
    group.add_argument(
        "--images", default="", metavar="PATH", help="a folder or zip of PNG or JPEG of one size"
    )
    group.add_argument(
        "--weights",
        default="",
        metavar="FILE",
        help="weights of the recipe's network: .safetensors, .bin, .pkl, or a run folder",
    )
    group.add_argument(
        "--which",
        choices=("teacher", "student"),
        help="one of a run's networks; of --weights, how to sample them",
    )
    group.add_argument(
        "--ema", type=float, metavar="DECAY", help="the student's average of this decay alone"
    )
    group.add_argument(
        "--checkpoint", type=int, metavar="STEP", help="what the run trains, at a kept checkpoint"
    )
    group.add_argument(
        "--all_checkpoints",
        action="store_true",
        help="at every kept checkpoint (log.keep, log.keep_every), with a picture of FID",
    )
    group.add_argument(
        "--pipeline", default="", metavar="DIR", help="a diffusers pipeline, as of `dmd2 export`"
    )
    group.add_argument(
        "--prompts",
        default="",
        metavar="FILE",
        help="what it, or a run of a text-to-image model, draws: .txt, .jsonl or .parquet; one "
        "image each, or --num in turn",
    )
    group.add_argument(
        "--steps", type=int, metavar="N", help="of a sampler by prompts, as in `dmd2 sample`"
    )
    group.add_argument("--guidance", type=float, metavar="W", help="likewise")
    group.add_argument("--dtype", choices=("float32", "bfloat16"), help="likewise")
    group.add_argument(
        "--num",
        type=_count,
        default=0,
        metavar="N",
        help="images; default: config.evaluate.num_samples, all of a folder, one a prompt",
    )
    group.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="of the noise, or of which N images of a folder; default: 0",
    )
    group.add_argument(
        "--batch_size",
        type=_count,
        default=0,
        metavar="N",
        help="images sampled at a time; changes no figure; default: config.evaluate.batch_size, of "
        "a pipeline 4",
    )


def _add_real(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what it is compared with")
    group.add_argument(
        "--reference",
        default="",
        metavar="PATH",
        help="a folder or zip of real images, or an .npz of their statistics as EDM's programs "
        "write and read it; default: all images of the recipe's data, train and test",
    )
    group.add_argument(
        "--write_reference",
        default="",
        metavar="NPZ",
        help="write the statistics of the real images there, for --reference",
    )


def _add_metrics(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how")
    group.add_argument(
        "--metrics",
        type=_names,
        default=("fid",),
        metavar="A,B,...",
        help="of fid, kid, inception_score, precision_recall, density_coverage, diversity, "
        "patch_fid, clip_score; default: fid",
    )
    group.add_argument(
        "--features",
        choices=("classifier", "inception"),
        default="classifier",
        help="a classifier trained on the recipe's data, which needs no download and compares "
        "models of these data alone, or the network of published FIDs; default: classifier",
    )
    group.add_argument(
        "--inception_weights",
        default="",
        metavar="FILE",
        help="pytorch-fid's pt_inception-2015-12-05-6726825d.pth, or NVIDIA's "
        "inception-2015-12-05.pkl",
    )
    group.add_argument(
        "--resize",
        choices=_RESIZES,
        help="how images get to 299 x 299, which changes FID: as the program whose figures you "
        "compare with; default: pytorch_fid",
    )
    group.add_argument(
        "--clip",
        default="",
        metavar="DIR",
        help="a CLIP model as transformers writes it; --images then have a metadata.jsonl",
    )
    group.add_argument(
        "--clip_prefix",
        default="",
        metavar="WORDS",
        help="put before each caption for CLIP, as 'A photo depicts' in many papers; default: none",
    )


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}, expected a whole number from 1")
    return int(text)


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def add_prompts(parser: argparse.ArgumentParser) -> None:
    """Add the flags by which `dmd2 sample` draws images of prompts; None where not given."""
    group = parser.add_argument_group(
        "text to image",
        "of a diffusers pipeline or of a run of Stable Diffusion; docs/text_to_image.md",
    )
    group.add_argument(
        "--pipeline",
        metavar="DIR",
        help="a diffusers pipeline (SD 1.x, 2.x, SDXL); with --workdir, of all but the U-Net",
    )
    group.add_argument(
        "--prompt", action="append", metavar="TEXT", help="what to draw; may be repeated"
    )
    group.add_argument(
        "--prompts", metavar="FILE", help="prompts: .txt (one a line), .jsonl or .parquet"
    )
    group.add_argument(
        "--steps",
        type=int,
        metavar="N",
        help="of the sampler: DDIM's of a teacher, default 50 or the run's; a student has its own, "
        "and LCM 4",
    )
    group.add_argument(
        "--guidance",
        type=float,
        metavar="W",
        help="u + W (c - u), of a teacher; 1 is none; default: the run's, or 7.5, of SDXL 5",
    )
    group.add_argument(
        "--negative",
        metavar="TEXT",
        help="what guidance goes away from; default: no prompt, as the pipeline means it",
    )
    group.add_argument("--batch_size", type=int, metavar="N", help="images at a time; default: 4")
    group.add_argument(
        "--dtype",
        choices=_DTYPES[:2],
        help="type the U-Net computes in; default: the run's, or float32",
    )
    group.add_argument("--vae", metavar="DIR", help="another autoencoder than the pipeline's")
    group.add_argument(
        "--vae_dtype",
        choices=_DTYPES,
        help="type the autoencoder computes in; SDXL's overflows float16; default: float32",
    )


def add_export(commands: argparse._SubParsersAction) -> None:
    """Add `dmd2 export`.

    Args:
      commands: to add it to.
    """
    parser = _add(
        commands,
        "export",
        export,
        "write a student as a diffusers pipeline folder, or as a LoRA file",
        "Write a text-to-image student so that diffusers loads it: a folder with its U-Net, a\n"
        "scheduler with its times, and everything else copied from its teacher's pipeline.\n\n"
        "examples:\n"
        "  dmd2 export --workdir=runs/sdxl --out=student\n"
        "  dmd2 export --workdir=runs/sdxl --out=student --ema=0.999 --dtype=float16\n"
        "  dmd2 export --workdir=runs/lora --out=lora --lora\n"
        "  dmd2 export --weights=student.safetensors --pipeline=sdxl --times=999,749,499,249 \\\n"
        "      --out=student\n\n"
        "then, in Python (README.md in the folder has the lines):\n"
        "  pipe = StableDiffusionXLPipeline.from_pretrained('student')\n"
        "  pipe('a red fox', timesteps=[999, 749, 499, 249], guidance_scale=0)\n"
        "or: dmd2 sample --pipeline=student --prompt='a red fox'\n\n"
        "Only .json, .txt and .safetensors are written; the folder appears whole or not at all.\n"
        "See docs/text_to_image.md.",
    )
    parser.add_argument("--workdir", default="", metavar="DIR", help="the run of a distillation")
    parser.add_argument(
        "--weights", default="", metavar="FILE", help="a student's weights, and no --workdir"
    )
    parser.add_argument(
        "--pipeline", default="", metavar="DIR", help="the teacher's pipeline; default: the run's"
    )
    parser.add_argument(
        "--times", type=_times, default=(), metavar="999,749", help="the student's, with --weights"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder; new or empty")
    parser.add_argument(
        "--ema", type=float, metavar="DECAY", help="the student's average of this decay"
    )
    parser.add_argument(
        "--checkpoint", type=int, metavar="STEP", help="of the run; default: its latest export"
    )
    parser.add_argument(
        "--scheduler",
        choices=("lcm", "ddim"),
        default="",
        help="LCMScheduler, which takes the student's steps, or DDIMScheduler, which takes those "
        "of a one-step student at 999; default: lcm, of a teacher its pipeline's",
    )
    parser.add_argument(
        "--lora", action="store_true", help="write the adapters alone, for load_lora_weights"
    )
    parser.add_argument(
        "--dtype", choices=_DTYPES, default="float32", help="of the U-Net's file; default: float32"
    )


def _times(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}, expected whole numbers with commas; try 999,749,499,249"
        ) from None


def sample(arguments: argparse.Namespace) -> None:
    """Draw images from a run or a pipeline."""
    if not (arguments.workdir or arguments.pipeline):
        raise Refused(
            "got neither --workdir nor --pipeline, expected one of them: a run of dmd2, or a "
            "folder of a diffusers pipeline."
        )
    if not arguments.workdir:
        _sample_pipeline(arguments)
        return
    from dmd2_jax.sampling.text_run import is_text_run

    (_sample_text_run if is_text_run(arguments.workdir) else _sample_run)(arguments)


def _sample_run(arguments: argparse.Namespace) -> None:
    from dmd2_jax.sampling.samplers import sample_run

    if given := _given(arguments, ("pipeline", *PROMPT_FLAGS)):
        raise Refused(
            f"--{given[0]} given with the run in {arguments.workdir}, which draws classes, "
            "expected a text-to-image model; leave it away."
        )
    num = 100 if arguments.num is None else arguments.num
    path = sample_run(
        arguments.workdir,
        arguments.out,
        num=num,
        seed=arguments.seed,
        classes=arguments.classes,
        which=arguments.which,
        ema=arguments.ema,
        weights=arguments.weights or "",
        checkpoint=arguments.checkpoint,
    )
    print(f"{num} images: {path}")


PROMPT_FLAGS = (
    "prompt",
    "prompts",
    "negative",
    "steps",
    "guidance",
    "batch_size",
    "dtype",
    "vae",
    "vae_dtype",
)


def _sample_pipeline(arguments: argparse.Namespace) -> None:
    from dmd2_jax.sampling.prompts import sample_pipeline

    if given := _given(arguments, ("classes", "ema", "weights", "checkpoint")):
        raise Refused(
            f"--{given[0]} given with --pipeline={arguments.pipeline}, expected it with a run's "
            "--workdir; leave it away, or make a pipeline of the run by `dmd2 export`."
        )
    options = _prompt_options(arguments)
    path = sample_pipeline(arguments.pipeline, arguments.out, options)
    print(f"{_images(options.num)} of each prompt: {path}")


def _sample_text_run(arguments: argparse.Namespace) -> None:
    from dmd2_jax.sampling.prompts import sample_text_run

    if arguments.classes is not None:
        raise Refused(
            f"--classes given with the run in {arguments.workdir}, which draws prompts, expected "
            "--prompt or --prompts; leave it away."
        )
    options = _prompt_options(arguments)
    path = sample_text_run(
        arguments.workdir,
        arguments.out,
        options,
        ema=arguments.ema,
        weights=arguments.weights or "",
        checkpoint=arguments.checkpoint,
        pipeline=arguments.pipeline or "",
    )
    print(f"{_images(options.num)} of each prompt: {path}")


def _images(number: int) -> str:
    return f"{number} image{'' if number == 1 else 's'}"


def _prompt_options(arguments: argparse.Namespace) -> "PromptOptions":
    from dmd2_jax.sampling.prompts import PromptOptions

    names = _given(arguments, (*PROMPT_FLAGS, "num", "which"))
    return PromptOptions(seed=arguments.seed, **{name: getattr(arguments, name) for name in names})


def _given(arguments: argparse.Namespace, names: Sequence[str]) -> list[str]:
    """Return those of the flags that were given."""
    return [name for name in names if getattr(arguments, name) is not None]


def convert(arguments: argparse.Namespace) -> None:
    """Convert weights."""
    from dmd2_jax.commands.convert.convert import convert, recipe_lines

    if arguments.config is None and arguments.overrides:
        raise Refused(
            f"--config.{next(iter(arguments.overrides))} changes a recipe, expected one; add "
            "--config=FILE."
        )
    if arguments.target is None:
        print(recipe_lines(arguments.source))
        return
    config = None
    if arguments.config is not None:
        config = load_config(arguments.config)
        apply_overrides(config, arguments.overrides)
    options = {name: getattr(arguments, name) for name in ("which", "ema", "prefix", "force")}
    print(convert(arguments.source, arguments.target, config=config, **options))


def evaluate(arguments: argparse.Namespace) -> None:
    """Measure a run, weights or a folder."""
    from dmd2_jax.evaluate.evaluate import (
        CURVE,
        EvaluateOptions,
        evaluate,
        figures_file,
        metrics_table,
    )

    names = [field.name for field in dataclasses.fields(EvaluateOptions)]
    options = EvaluateOptions(**{name: getattr(arguments, name) for name in names})
    metrics = evaluate(options)
    file = figures_file(options)
    print(metrics_table(metrics))
    print(f"figures: {file}")
    if options.all_checkpoints:
        print(f"curve: {file.with_name(CURVE)}")
    if options.write_reference:
        print(f"statistics of {metrics['reference']}: {options.write_reference}")


def export(arguments: argparse.Namespace) -> None:
    """Write a student for diffusers."""
    from dmd2_jax.commands.export.student import ExportOptions, export

    names = [field.name for field in dataclasses.fields(ExportOptions)]
    options = ExportOptions(**{name: getattr(arguments, name) for name in names})
    print(export(options, arguments.out))
