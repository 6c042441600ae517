"""What `dmd2 cache` is asked for."""

import dataclasses

from dmd2_jax.config.flags import flag, shapes
from dmd2_jax.config.refused import Refused
from dmd2_jax.config.sizes import say_sizes, sizes_of

__all__ = ["Options"]

_DTYPES = ("float32", "bfloat16", "float16")
_IMAGES = "images"
_NUMBERS = "networks and numbers"
_LEAST = {"batch_size": 1, "max_left_out": 0, "shard_examples": 0, "seed": 0}


@dataclasses.dataclass(frozen=True)
class Options:
    """What `dmd2 cache` is asked for.

    Raises:
      Refused: if a value is out of range.
    """

    out: str = flag("the cache; new, or to go on", metavar="DIR")
    pipeline: str = flag(
        "a diffusers pipeline: SD 1.x to 3.5, SDXL, FLUX.1, FLUX.2-klein, Z-Image or Qwen-Image",
        default="",
        metavar="DIR",
    )
    images: str = flag(
        "images with captions; without --pipeline, of classes", default="", metavar="PATH"
    )
    prompts: str = flag("prompts alone", default="", metavar="FILE")
    resolution: int | tuple[int, int] | tuple[tuple[int, int], ...] = flag(
        "pixels, HEIGHTxWIDTH where they differ; several shapes between commas: each image goes "
        "to the nearest; default: the pipeline's own",
        default=0,
        metavar="SHAPES",
        parse=shapes,
        group=_IMAGES,
    )
    enlarge: bool = flag("accept images that are smaller than that", default=False, group=_IMAGES)
    max_left_out: int = flag(
        "images that may be damaged, too small or transparent", default=0, group=_IMAGES
    )
    latents: str = flag(
        "one draw of the autoencoder's distribution, or its mean",
        default="sample",
        choices=("sample", "mean"),
        group=_IMAGES,
    )
    sizes: str = flag(
        "SDXL's time_ids: those of a whole image of the resolution, as a student is asked for "
        "it, or each image's own size and crop",
        default="target",
        choices=("target", "actual"),
        group=_IMAGES,
    )
    seed: int = flag("of the draws", default=0, group=_IMAGES)
    vae: str = flag(
        "another autoencoder than the pipeline's, or one alone for images of classes",
        default="",
        metavar="DIR",
        group=_NUMBERS,
    )
    variant: str = flag(
        "of the weights' files, such as fp16", default="", metavar="NAME", group=_NUMBERS
    )
    cut_prompts: bool = flag(
        "let prompts of more tokens than the text encoders read lose their ends, with a warning",
        default=False,
        group=_NUMBERS,
    )
    vae_dtype: str = flag(
        "type the autoencoder computes in; SDXL's overflows float16",
        default="float32",
        choices=_DTYPES,
        group=_NUMBERS,
    )
    text_dtype: str = flag(
        "type the text encoders compute in", default="float32", choices=_DTYPES, group=_NUMBERS
    )
    store: str = flag(
        "type of what is written",
        default="float16",
        choices=("float16", "float32"),
        group=_NUMBERS,
    )
    batch_size: int = flag("images or prompts at a time", default=8, group=_NUMBERS)
    shard_examples: int = flag("of a shard; default: 256 MB", default=0, group=_NUMBERS)
    dry_run: bool = flag("check everything, print sizes, and stop", default=False)

    def __post_init__(self) -> None:
        if not (self.pipeline or self.vae):
            raise Refused(
                "got neither --pipeline nor --vae, expected --pipeline=FOLDER for images with "
                "captions or prompts, or --vae=FOLDER for images of classes."
            )
        if bool(self.images) == bool(self.prompts):
            raise Refused(
                f"got --images={self.images!r} and --prompts={self.prompts!r}, expected one of "
                "them: images with captions, or prompts alone."
            )
        if self.resolution and len(sizes_of(self.resolution)) > 1 and self.prompts:
            raise Refused(
                f"--resolution={say_sizes(self.resolution)} with --prompts, expected one shape: "
                "prompts alone serve students of any; give one, or leave it away."
            )
        for name, low in _LEAST.items():
            if not low <= getattr(self, name) < 2**32:
                raise Refused(f"--{name}={getattr(self, name)}, expected {low} or more.")
