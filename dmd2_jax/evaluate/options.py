"""What `dmd2 evaluate` was asked for, checked before anything is opened."""

import argparse
import dataclasses
import os
from collections.abc import Mapping

from dmd2_jax.config import plugins
from dmd2_jax.config.flags import comma_separated, flag, shapes
from dmd2_jax.config.refused import Refused

__all__ = [
    "APART",
    "CLIP",
    "HPS",
    "PATCH",
    "PICK",
    "RATIO",
    "EvaluateOptions",
    "check_options",
    "metric_names",
]

PATCH, RATIO = "patch_fid", "fd_ratio"
CLIP, PICK, HPS = "clip_score", "pick_score", "hps_v2"
APART = (PATCH, CLIP, PICK, HPS)
"""The metrics with networks of their own."""

_JUDGES = {CLIP: "clip", PICK: "pick", HPS: "hps"}  # metric -> the flag of its model
"""Metrics with feature networks of their own, beside the files of dmd2_jax/metrics; and one of
these that takes more networks."""


_MEASURED, _REAL, _HOW = "what is measured", "what it is compared with", "how"
_RESIZES = ("pytorch_fid", "clean_fid", "edm")  # features.resize.PREPARATIONS imports jax


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}, expected a whole number from 1")
    return int(text)


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """What `dmd2 evaluate` is asked for; `check_options` refuses what contradicts itself."""

    workdir: str = flag(
        "a run folder: its networks, its recipe", default="", metavar="DIR", group=_MEASURED
    )
    config: str | None = flag(
        "a recipe, where there is no run; also --config.KEY=VALUE",
        default=None,
        metavar="FILE",
        group=_MEASURED,
    )
    overrides: Mapping[str, str] = dataclasses.field(default_factory=dict)
    images: str = flag(
        "images of one size: a folder, a zip, or an .npz of arr_0",
        default="",
        metavar="PATH",
        group=_MEASURED,
    )
    weights: str = flag(
        "weights of the recipe's network: .safetensors, .bin, .pkl, or a run folder",
        default="",
        metavar="FILE",
        group=_MEASURED,
    )
    which: str | None = flag(
        "one of a run's networks, best: at its best (log.stop_when); of --weights, how to sample "
        "them",
        default=None,
        choices=("teacher", "student", "best"),
        group=_MEASURED,
    )
    ema: float | None = flag(
        "the student's average of this decay alone",
        default=None,
        metavar="DECAY",
        group=_MEASURED,
    )
    checkpoint: int | None = flag(
        "what the run trains, at a kept checkpoint", default=None, metavar="STEP", group=_MEASURED
    )
    all_checkpoints: bool = flag(
        "at every kept checkpoint (log.keep, log.keep_every), with a picture of FID",
        default=False,
        group=_MEASURED,
    )
    pipeline: str = flag(
        "a diffusers pipeline, as of `dmd2 export`", default="", metavar="DIR", group=_MEASURED
    )
    prompts: str = flag(
        "what it, or a run of a text-to-image model, draws: .txt, .jsonl or .parquet; one image "
        "each, or --num in turn",
        default="",
        metavar="FILE",
        group=_MEASURED,
    )
    cut_prompts: bool = flag(
        "let prompts that are too long lose their ends, as in `dmd2 sample`",
        default=False,
        group=_MEASURED,
    )
    shape: int | tuple[int, int] | None = flag(
        "of the images that prompts draw, as in `dmd2 sample`",
        default=None,
        metavar="HxW",
        parse=shapes,
        group=_MEASURED,
    )
    steps: int | None = flag(
        "of a sampler by prompts, as in `dmd2 sample`", default=None, group=_MEASURED
    )
    guidance: float | None = flag(
        "of a teacher, or of a student that takes it, as in `dmd2 sample`",
        default=None,
        metavar="W",
        group=_MEASURED,
    )
    dtype: str | None = flag(
        "likewise", default=None, choices=("float32", "bfloat16"), group=_MEASURED
    )
    variant: str = flag("likewise", default="", metavar="NAME", group=_MEASURED)
    num: int = flag(
        "images; default: config.evaluate.num_samples, all of a folder, one a prompt",
        default=0,
        parse=_count,
        group=_MEASURED,
    )
    seed: int = flag("of the noise, or of which N images of a folder", default=0, group=_MEASURED)
    batch_size: int = flag(
        "images sampled at a time; changes no figure; default: config.evaluate.batch_size, of a "
        "pipeline 4",
        default=0,
        parse=_count,
        group=_MEASURED,
    )
    reference: str = flag(
        "real images: a folder, a zip, or an .npz of arr_0; or an .npz of their statistics as "
        "EDM's programs write and read it; default: all images of the recipe's data, train and "
        "test",
        default="",
        metavar="PATH",
        group=_REAL,
    )
    write_reference: str = flag(
        "write the statistics of the real images there, for --reference",
        default="",
        metavar="NPZ",
        group=_REAL,
    )
    metrics: tuple[str, ...] = flag(
        "of fid, fd_ratio, kid, inception_score, precision_recall, density_coverage, diversity, "
        "seed_diversity, patch_fid, clip_score, pick_score, hps_v2, or dotted modules of your own",
        default=("fid",),
        metavar="A,B,...",
        group=_HOW,
    )
    features: str = flag(
        "a classifier trained on the recipe's data, which needs no download and compares models "
        "of these data alone, or the network of published FIDs",
        default="classifier",
        choices=("classifier", "inception"),
        group=_HOW,
    )
    inception_weights: str = flag(
        "pytorch-fid's pt_inception-2015-12-05-6726825d.pth, or NVIDIA's inception-2015-12-05.pkl",
        default="",
        metavar="FILE",
        group=_HOW,
    )
    resize: str | None = flag(
        "how images get to 299 x 299, which changes FID: as the program whose figures you compare "
        "with; default: pytorch_fid",
        default=None,
        choices=_RESIZES,
        group=_HOW,
    )
    encoders: tuple[str, ...] = flag(
        "folders of a CLIPModel, CLIPVisionModelWithProjection or Dinov2Model as transformers "
        "writes them, with preprocessor_config.json: fd_ratio in each of them too, and the mean",
        default=(),
        metavar="DIR,DIR,...",
        parse=comma_separated(str),
        group=_HOW,
    )
    clip: str = flag(
        "a CLIP model as transformers writes it; --images then have captions",
        default="",
        metavar="DIR",
        group=_HOW,
    )
    pick: str = flag(
        "PickScore_v1's folder, of pick_score",
        default="",
        metavar="DIR",
        group=_HOW,
    )
    hps: str = flag(
        "the folder of CLIP-ViT-H-14-laion2B-s32B-b79K, of hps_v2; its own weights are not read",
        default="",
        metavar="DIR",
        group=_HOW,
    )
    hps_weights: str = flag(
        "HPS_v2_compressed.pt or HPS_v2.1_compressed.pt, the tuned weights of hps_v2",
        default="",
        metavar="FILE",
        group=_HOW,
    )
    clip_prefix: str = flag(
        "put before each caption for CLIP, as 'A photo depicts' in many papers; default: none",
        default="",
        metavar="WORDS",
        group=_HOW,
    )
    out: str = flag("default: metrics.json, in --workdir if given", default="", metavar="JSON")
    devices: int = flag("use the first N; default: all", default=0, parse=_count)

    @property
    def of_run(self) -> bool:
        """Whether the networks of a run are measured."""
        return bool(self.workdir) and not (self.images or self.weights or self.pipeline)


def metric_names() -> list[str]:
    """List the metrics of ours that `metrics` takes, in alphabetical order."""
    return sorted([*plugins.available("dmd2_jax.metrics"), *APART])


def check_options(options: EvaluateOptions) -> None:
    """Refuse what contradicts itself or lacks something.

    Raises:
      Refused: naming the arguments.
    """
    _check_metrics(options)
    _check_source(options)
    if not 0 <= options.seed < 2**32:
        raise Refused(f"`seed={options.seed}`, expected 0..{2**32 - 1}; try 0.")
    inception = options.features == "inception" or PATCH in options.metrics
    if inception and not options.inception_weights:
        raise Refused(
            "Inception without `inception_weights=`, expected a file of its weights; download "
            "pt_inception-2015-12-05-6726825d.pth from its GitHub release fid_weights."
        )
    if options.inception_weights and not inception:
        raise Refused(
            "`inception_weights=` with `features=classifier`, expected `features=inception`; add "
            "it."
        )
    if options.resize is not None and options.features != "inception":
        raise Refused(
            f"`resize={options.resize}` with `features=classifier`, which resizes nothing, "
            "expected `features=inception`; add it or leave `resize=` away."
        )
    if options.write_reference and not options.write_reference.endswith(".npz"):
        raise Refused(
            f"`write_reference={options.write_reference}`, expected a name ending in .npz; add it."
        )


def _check_metrics(options: EvaluateOptions) -> None:
    names = metric_names()
    for name in options.metrics:
        if name not in names and not plugins.is_dotted(name):
            nearest = plugins.nearest(name, names) or "; choose some of these"
            raise Refused(
                f"`metrics={name}`, expected some of {', '.join(names)}, or a dotted module of "
                f"your own{nearest}."
            )
    if not options.metrics:
        raise Refused(f"`metrics=` is empty, expected some of {', '.join(names)}; name one.")
    _check_encoders(options)
    captioned = options.images or options.prompts
    for name, model in _JUDGES.items():
        if name in options.metrics and not (getattr(options, model) and captioned):
            raise Refused(
                f"`metrics={name}` without `{model}=`, `images=` or `prompts=`, expected a CLIP "
                "model's folder and images with captions (metadata.jsonl, or a .txt beside each), "
                "or a model that draws prompts; add them."
            )
    if HPS in options.metrics and not options.hps_weights:
        raise Refused(
            f"`metrics={HPS}` without `hps_weights=`, expected the tuned weights, as the folder's "
            "own are of a plain CLIP; give HPS_v2.1_compressed.pt, or a file of theirs by "
            "transformers' names."
        )
    needed = {model: name for name, model in _JUDGES.items()}
    for flag_, name in (needed | {"clip_prefix": CLIP, "hps_weights": HPS}).items():
        if getattr(options, flag_) and name not in options.metrics:
            raise Refused(f"`{flag_}=` without `metrics={name}`, expected both; add the metric.")


def _check_encoders(options: EvaluateOptions) -> None:
    if not options.encoders:
        return
    if RATIO not in options.metrics:
        raise Refused(
            f"`encoders=` with `metrics={','.join(options.metrics)}`, expected {RATIO} among them, "
            "which they are for; add it."
        )
    if options.write_reference:
        raise Refused(
            "`write_reference=` with `encoders=`, expected one feature network, as a file holds "
            "the statistics of one; leave `encoders=` away."
        )
    names = [os.path.basename(os.path.abspath(folder)) for folder in options.encoders]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise Refused(
            f"`encoders=` has {', '.join(twice)} more than once, expected folders of different "
            "names, by which their figures are called; rename one."
        )


def _check_source(options: EvaluateOptions) -> None:
    """Check which images are measured, and that no argument is for others."""
    if options.workdir and options.config is not None:
        raise Refused(
            "`workdir=` and `config=` together, expected one of them, as a run has its recipe; "
            "leave one away."
        )
    if options.overrides and options.config is None:
        raise Refused(
            f"`config.{next(iter(options.overrides))}=` without `config=FILE`, expected a recipe "
            "to change (a run is measured by its own); add `config=` or leave it away."
        )
    chosen = {
        "which": options.which is not None,
        "ema": options.ema is not None,
        "checkpoint": options.checkpoint is not None,
        "all_checkpoints": options.all_checkpoints,
    }
    given = [name for name, there in chosen.items() if there]
    sources = [name for name in ("images", "weights", "pipeline") if getattr(options, name)]
    if len(sources) > 1:
        raise Refused(
            f"`{sources[0]}=` and `{sources[1]}=` together, expected one; measure them in turn."
        )
    if options.which == "best" and (len(given) > 1 or not options.of_run):
        raise Refused(
            "`which=best`, expected `workdir=` of a run, and none of `weights=`, `images=`, "
            "`pipeline=`, `ema=` and checkpoints: the best weights are a file of the run; leave "
            "the others away."
        )
    if options.images and given:
        raise Refused(
            f"`{given[0]}=` with `images=`, expected it with a run's networks; leave it away."
        )
    _check_prompts(options)
    others = [name for name in given if name != "which"]
    if others and not options.of_run:
        raise Refused(
            f"`{others[0]}=` without a run's networks, expected `workdir=` without `weights=`; "
            "correct it."
        )
    if options.checkpoint is not None and options.all_checkpoints:
        raise Refused("`checkpoint=` and `all_checkpoints=` together, expected one; choose.")
    if options.weights and not (options.workdir or options.config is not None):
        raise Refused(
            f"`weights={options.weights}` without a recipe, expected `workdir=RUN` or "
            "`config=FILE` that says what network it is; add one."
        )
    if not (sources or options.workdir or options.write_reference):
        raise Refused(
            "nothing to measure, expected `workdir=RUN`, `weights=FILE` with `config=`, "
            "`pipeline=DIR` or `images=PATH`; add one (or `write_reference=FILE.npz` for "
            "statistics alone)."
        )


def _check_prompts(options: EvaluateOptions) -> None:
    """Check that a pipeline has prompts, and nothing else its arguments."""
    if options.pipeline and not options.prompts:
        raise Refused(
            f"`pipeline={options.pipeline}` without `prompts=`, expected a file of what to draw "
            "(.txt, .jsonl or .parquet); add it."
        )
    for name in ("prompts", "cut_prompts", "shape", "steps", "guidance", "dtype", "variant"):
        value = getattr(options, name)
        drawn = options.pipeline or options.workdir or (name == "guidance" and options.weights)
        if value not in (None, "") and value is not False and (options.images or not drawn):
            raise Refused(
                f"`{name}={value}` without `pipeline=` or `workdir=`, expected one; add it."
            )
