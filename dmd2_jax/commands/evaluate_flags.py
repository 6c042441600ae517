"""The flags of `dmd2 evaluate`."""

import argparse
from collections.abc import Callable

from dmd2_jax.commands import calls as run

__all__ = ["add_evaluate"]

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


def add_evaluate(
    add: Callable[..., argparse.ArgumentParser], commands: argparse._SubParsersAction
) -> None:
    """Add `dmd2 evaluate`.

    Args:
      add: makes a command's parser.
      commands: to add it to.
    """
    parser = add(
        commands,
        "evaluate",
        run.evaluate,
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
