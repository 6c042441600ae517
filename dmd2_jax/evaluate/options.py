"""What `dmd2 evaluate` was asked for, checked before anything is opened."""

import dataclasses
import difflib

from dmd2_jax import metrics
from dmd2_jax.config.refused import Refused

__all__ = ["CLIP", "PATCH", "EvaluateOptions", "check_options", "metric_names"]

PATCH, CLIP = "patch_fid", "clip_score"
"""Metrics with feature networks of their own, beside the files of `evaluation.metrics`."""


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """The flags of `dmd2 evaluate`; see its --help.

    Attributes:
      workdir: a run folder: its recipe, and its networks unless `images` or `weights` are given.
      config: a recipe in place of a run's; with `overrides` of its values.
      overrides: name -> value, as on the command line.
      images: a folder or zip to measure.
      weights: a file of weights to measure.
      pipeline: a folder of a text-to-image pipeline to measure.
      prompts: a file of what it draws.
      steps: of its sampler; None: its own.
      guidance: of a teacher's; None: the usual.
      dtype: its U-Net computes in.
      which: "teacher" or "student".
      ema: decay of the student's average.
      checkpoint: step of a kept checkpoint.
      all_checkpoints: measure every kept checkpoint.
      reference: a folder, a zip or an .npz of statistics; empty: the recipe's data.
      write_reference: an .npz to write with the real side's statistics.
      metrics: their names.
      features: "classifier" or "inception".
      inception_weights: the file of Inception's weights.
      resize: of `evaluation.resize.PREPARATIONS`.
      clip: a folder of a CLIP model, for clip_score.
      clip_prefix: words before each caption that it is given.
      num: images; 0: config.evaluate.num_samples, or all of a folder.
      seed: of the noise, or of which images are taken.
      batch_size: images at a time; 0: config.evaluate.batch_size.
      devices: how many to use; 0: all.
      out: the file of figures; empty: metrics.json, in `workdir` where there is one.
    """

    workdir: str = ""
    config: str | None = None
    overrides: dict[str, str] = dataclasses.field(default_factory=dict)
    images: str = ""
    weights: str = ""
    pipeline: str = ""
    prompts: str = ""
    steps: int | None = None
    guidance: float | None = None
    dtype: str | None = None
    which: str | None = None
    ema: float | None = None
    checkpoint: int | None = None
    all_checkpoints: bool = False
    reference: str = ""
    write_reference: str = ""
    metrics: tuple[str, ...] = ("fid",)
    features: str = "classifier"
    inception_weights: str = ""
    resize: str | None = None
    clip: str = ""
    clip_prefix: str = ""
    num: int = 0
    seed: int = 0
    batch_size: int = 0
    devices: int = 0
    out: str = ""

    @property
    def of_run(self) -> bool:
        """Whether the networks of a run are measured."""
        return bool(self.workdir) and not (self.images or self.weights or self.pipeline)

    @property
    def uses_statistics_file(self) -> bool:
        """Whether the real side is an .npz."""
        return self.reference.lower().endswith(".npz")


def metric_names() -> list[str]:
    """List the metrics that --metrics takes, in alphabetical order."""
    return sorted([*metrics.available(), PATCH, CLIP])


def check_options(options: EvaluateOptions) -> None:
    """Refuse what contradicts itself or lacks something.

    Raises:
      Refused: naming the flags.
    """
    _check_metrics(options)
    _check_source(options)
    if not 0 <= options.seed < 2**32:
        raise Refused(f"--seed={options.seed}, expected 0..{2**32 - 1}; try 0.")
    inception = options.features == "inception" or PATCH in options.metrics
    if inception and not options.inception_weights:
        raise Refused(
            "Inception without --inception_weights, expected a file of its weights; download "
            "pt_inception-2015-12-05-6726825d.pth from its GitHub release fid_weights."
        )
    if options.inception_weights and not inception:
        raise Refused(
            "--inception_weights with --features=classifier, expected --features=inception; add it."
        )
    if options.resize is not None and options.features != "inception":
        raise Refused(
            f"--resize={options.resize} with --features=classifier, which resizes nothing, "
            "expected --features=inception; add it or leave --resize away."
        )
    if options.write_reference:
        if options.uses_statistics_file:
            raise Refused(
                f"--write_reference with --reference={options.reference}, which are statistics "
                "already, expected images; copy the file."
            )
        if not options.write_reference.endswith(".npz"):
            raise Refused(
                f"--write_reference={options.write_reference}, expected a name ending in .npz; "
                "add it."
            )


def _check_metrics(options: EvaluateOptions) -> None:
    names = metric_names()
    for name in options.metrics:
        if name not in names:
            nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
            hint = f"did you mean {nearest[0]!r}?" if nearest else "choose some of these."
            raise Refused(f"--metrics={name}, expected some of {', '.join(names)}; {hint}")
    if not options.metrics:
        raise Refused(f"--metrics= is empty, expected some of {', '.join(names)}; name one.")
    captioned = options.images or options.prompts
    if CLIP in options.metrics and not (options.clip and captioned):
        raise Refused(
            "--metrics=clip_score without --clip, --images or --prompts, expected a CLIP "
            "model's folder and images with captions (metadata.jsonl, or a .txt beside each), "
            "or a model that draws prompts; add them."
        )
    for flag in ("clip", "clip_prefix"):
        if getattr(options, flag) and CLIP not in options.metrics:
            raise Refused(f"--{flag} without --metrics=clip_score, expected both; add the metric.")


def _check_source(options: EvaluateOptions) -> None:
    """Check which images are measured, and that no flag is for others."""
    if options.workdir and options.config is not None:
        raise Refused(
            "--workdir and --config together, expected one of them, as a run has its recipe; "
            "leave one away."
        )
    if options.overrides and options.config is None:
        raise Refused(
            f"--config.{next(iter(options.overrides))} without --config=FILE, expected a recipe to "
            "change (a run is measured by its own); add --config or leave it away."
        )
    chosen = {
        "--which": options.which is not None,
        "--ema": options.ema is not None,
        "--checkpoint": options.checkpoint is not None,
        "--all_checkpoints": options.all_checkpoints,
    }
    given = [flag for flag, there in chosen.items() if there]
    sources = [name for name in ("images", "weights", "pipeline") if getattr(options, name)]
    if len(sources) > 1:
        raise Refused(
            f"--{sources[0]} and --{sources[1]} together, expected one; measure them in turn."
        )
    if options.images and given:
        raise Refused(
            f"{given[0]} with --images, expected it with a run's networks; leave it away."
        )
    _check_prompts(options)
    others = [flag for flag in given if flag != "--which"]
    if others and not options.of_run:
        raise Refused(
            f"{others[0]} without a run's networks, expected --workdir without --weights; correct "
            "the command."
        )
    if options.checkpoint is not None and options.all_checkpoints:
        raise Refused("--checkpoint and --all_checkpoints together, expected one; choose.")
    if options.weights and not (options.workdir or options.config is not None):
        raise Refused(
            f"--weights={options.weights} without a recipe, expected --workdir=RUN or "
            "--config=FILE that says what network it is; add one."
        )
    if not (sources or options.workdir or options.write_reference):
        raise Refused(
            "nothing to measure, expected --workdir=RUN, --weights=FILE with --config, "
            "--pipeline=DIR or --images=PATH; add one (or --write_reference=FILE.npz for "
            "statistics alone)."
        )


def _check_prompts(options: EvaluateOptions) -> None:
    """Check that a pipeline has prompts, and nothing else its flags."""
    if options.pipeline and not options.prompts:
        raise Refused(
            f"--pipeline={options.pipeline} without --prompts, expected a file of what to draw "
            "(.txt, .jsonl or .parquet); add it."
        )
    for name in ("prompts", "steps", "guidance", "dtype"):
        value = getattr(options, name)
        if value not in (None, "") and (
            options.images or not (options.pipeline or options.workdir)
        ):
            raise Refused(
                f"--{name}={value} without --pipeline or --workdir, expected one; add it."
            )
