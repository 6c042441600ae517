"""Flags of the commands that only text-to-image models need."""

import argparse
from collections.abc import Callable

from dmd2_jax.commands import calls as run

__all__ = ["add_cache", "add_make_pairs"]

_DTYPES = ("float32", "bfloat16", "float16")


def add_cache(
    add: Callable[..., argparse.ArgumentParser], commands: argparse._SubParsersAction
) -> None:
    """Add `dmd2 cache`.

    Args:
      add: makes a command's parser.
      commands: to add it to.
    """
    parser = add(
        commands,
        "cache",
        run.cache,
        "write VAE latents and text embeddings once, for training on them",
        "Put images with captions, or prompts alone, through the autoencoder and the text\n"
        "encoders of a diffusers pipeline, once, and write what comes out as array_record shards.\n"
        "Training on them (--config.data.name=latents) touches neither network.\n\n"
        "examples:\n"
        "  dmd2 cache --pipeline=sdxl --images=photos/ --out=cache --dry_run\n"
        "  dmd2 cache --pipeline=sdxl --images=photos/ --out=cache --text_dtype=bfloat16\n"
        "  dmd2 cache --pipeline=sd15 --prompts=prompts.txt --out=prompts_cache\n\n"
        "--images is a folder or zip of PNG and JPEG with metadata.jsonl\n"
        '  {"file_name": "1.png", "text": "a red fox"}\n'
        "or a .txt beside each image; their middle is cut out. --prompts is a .txt (one a line),\n"
        ".jsonl or .parquet.\n\n"
        "writes into --out: shard-*.array_record, null.safetensors (the embedding of no prompt),\n"
        "and in the end manifest.json, which seals the configuration and the digest of each file.\n"
        "A killed command loses the shard that it was writing; the same command again goes on.\n"
        "`dmd2 data` with config.data.name=latents compares all digests. Needs the extra\n"
        "[text2image]. See docs/data.md.",
    )
    parser.add_argument(
        "--pipeline", required=True, metavar="DIR", help="a diffusers pipeline: SD 1.x, 2.x or SDXL"
    )
    parser.add_argument("--images", default="", metavar="PATH", help="images with captions")
    parser.add_argument("--prompts", default="", metavar="FILE", help="prompts alone")
    parser.add_argument("--out", required=True, metavar="DIR", help="the cache; new, or to go on")
    _add_images(parser)
    _add_numbers(parser)
    parser.add_argument(
        "--dry_run", action="store_true", help="check everything, print sizes, and stop"
    )


def add_make_pairs(
    add: Callable[..., argparse.ArgumentParser], commands: argparse._SubParsersAction
) -> None:
    """Add `dmd2 make-pairs`.

    Args:
      add: makes a command's parser.
      commands: to add it to.
    """
    parser = add(
        commands,
        "make-pairs",
        run.make_pairs,
        "write pairs of noise and teacher's sample, for a student's initialisation",
        "Sample the teacher of a recipe distill.regression_pairs times; write noise and samples\n"
        "into a folder. A one-step student of SDXL starts from a regression on such pairs.\n\n"
        "example:\n"
        "  dmd2 make-pairs --config=configs/sdxl_one_step_start.py --out=pairs\n"
        "  dmd2 distill --config=configs/sdxl_one_step_start.py --workdir=runs/start \\\n"
        "      --config.distill.pairs=pairs\n"
        "  dmd2 distill --config=configs/sdxl_one_step.py --workdir=runs/sdxl \\\n"
        "      --config.distill.start_from=runs/start\n\n"
        "writes into --out: pairs.json, noise_*.npy, x_0_*.npy. A killed command loses the file\n"
        "that it was writing; the same command again goes on. Every value of the config can be\n"
        "changed as --config.KEY=VALUE.",
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="a recipe")
    parser.add_argument("--out", required=True, metavar="DIR", help="the pairs; new, or to go on")
    parser.add_argument(
        "--dry_run", action="store_true", help="check everything, print the size, and stop"
    )


def _add_images(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("images")
    group.add_argument(
        "--resolution", type=int, default=0, metavar="N", help="pixels; default: the pipeline's own"
    )
    group.add_argument(
        "--enlarge", action="store_true", help="accept images that are smaller than that"
    )
    group.add_argument(
        "--max_left_out",
        type=int,
        default=0,
        metavar="N",
        help="images that may be damaged, too small or transparent; default: 0",
    )
    group.add_argument(
        "--latents",
        choices=("sample", "mean"),
        default="sample",
        help="one draw of the autoencoder's distribution, or its mean; default: sample",
    )
    group.add_argument(
        "--sizes",
        choices=("target", "actual"),
        default="target",
        help="SDXL's time_ids: those of a whole image of the resolution, as a student is asked for "
        "it, or each image's own size and crop; default: target",
    )
    group.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws; default: 0")


def _add_numbers(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("networks and numbers")
    group.add_argument(
        "--vae", default="", metavar="DIR", help="another autoencoder than the pipeline's"
    )
    group.add_argument(
        "--variant", default="", metavar="NAME", help="of the weights' files, such as fp16"
    )
    group.add_argument(
        "--vae_dtype",
        choices=_DTYPES,
        default="float32",
        help="type the autoencoder computes in; SDXL's overflows float16; default: float32",
    )
    group.add_argument(
        "--text_dtype",
        choices=_DTYPES,
        default="float32",
        help="type the text encoders compute in; default: float32",
    )
    group.add_argument(
        "--store",
        choices=("float16", "float32"),
        default="float16",
        help="type of what is written; default: float16",
    )
    group.add_argument(
        "--batch_size", type=int, default=8, metavar="N", help="at a time; default: 8"
    )
    group.add_argument(
        "--shard_examples", type=int, default=0, metavar="N", help="of a shard; default: 256 MB"
    )
