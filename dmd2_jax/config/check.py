"""Checks of a whole config that need no data, weights or device."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from dmd2_jax.config import rules
from dmd2_jax.config.family import model_faults
from dmd2_jax.config.refused import Refused
from dmd2_jax.config.rules import Rule

__all__ = ["validate"]


def validate(config: ConfigDict, choices: Mapping[str, Sequence[str]] | None = None) -> None:
    """Check every value that can be checked without data, weights or devices.

    Args:
      config: a whole config.
      choices: {dotted key: allowed names} of what the caller can provide, for example
        {"data.name": ("digits", "fashion_mnist")}.

    Raises:
      Refused: naming every bad value, with got, expected and remedy.
    """
    names = _CHOICES | dict(choices or {})
    values = {key: _get(config, key) for key in (*names, *itertools.chain(*_NUMBERS.values()))}
    rules.refuse(
        [
            *model_faults(config.model),
            *rules.choice_faults(values, names, dotted=_DOTTED),
            *rules.number_faults(values, _NUMBERS),
            *rules.seed_faults(config.seed, "seed"),
            *_distill_faults(config),
            *_other_faults(config),
        ]
    )


_CHOICES = {
    "teacher.lr_schedule": rules.LR_SCHEDULES,
    "optim.lr_schedule": rules.LR_SCHEDULES,
    "optim.moment_dtype": rules.DTYPES,
    "teacher.objective": ("edm", "eps", "flow"),
    "data.digest": rules.DIGESTS,
    "data.resize": rules.RESIZE,
    "distill.fake_labels": ("uniform", "real"),
    "distill.gan_features": rules.GAN_FEATURES,
    "distill.gan_loss": rules.GAN_LOSSES,
    "distill.gan_r1_samples": rules.R1_SAMPLES,
}
_DOTTED = ("data.name",)
_DISTILL = {
    rules.CRITIC_TURNS: ("critic_turns",),
    rules.LEVELS: ("dm_range", "gan_range"),
    rules.TIMES: ("dm_times", "critic_times"),
    rules.GUIDANCE_RANGE: ("guidance_range",),
}
_NUMBERS = {
    rules.AT_LEAST_ONE: (
        "teacher.steps",
        "teacher.batch_size",
        "distill.cycles",
        "distill.batch_size",
        "distill.microbatches",
        "distill.gan_head_channels",
        "distill.regression_pairs",
        "log.every",
        "log.grid_every",
        "log.teacher_grid_every",
        "log.checkpoint_every",
        "log.keep",
        "evaluate.batch_size",
        "optim.max_skipped_in_a_row",
    ),
    rules.AT_LEAST_TWO: (
        "teacher.sampler_steps",
        "evaluate.num_samples",
        "evaluate.training_samples",
    ),
    rules.NOT_NEGATIVE: (
        "distill.lora_rank",
        "distill.student_steps",
        "teacher.warmup",
        "optim.warmup",
        "optim.weight_decay",
        "log.export_every",
        "log.teacher_export_every",
        "log.keep_every",
        "log.keep_best",
        "log.evaluate_every",
    ),
    rules.POSITIVE: (
        "teacher.lr",
        "teacher.p_std",
        "distill.lora_alpha",
        "distill.gan_r1_sigma",
        "optim.generator_lr",
        "optim.critic_lr",
        "optim.eps",
        "optim.clip_norm",
    ),
    rules.FRACTION: (
        "teacher.ema_decay",
        "teacher.b1",
        "teacher.b2",
        "teacher.label_dropout",
        "optim.b1",
        "optim.b2",
    ),
    rules.POSITIVE_OR_NONE: (
        "distill.dm_weight",
        "distill.gan_generator_weight",
        "distill.gan_critic_weight",
        "distill.gan_r1_weight",
        "distill.regression_weight",
    ),
    Rule(math.isfinite, "a finite number"): ("teacher.lora_scale", "teacher.p_mean"),
    Rule(lambda v: v is None or math.isfinite(v), "a finite number, or None"): (
        "distill.guidance",
    ),
    Rule(lambda v: v == -1 or v >= 1, "-1 (all devices) or at least 1"): (
        "mesh.data",
        "mesh.fsdp",
        "mesh.tensor",
    ),
}


def _distill_faults(config: ConfigDict) -> Iterator[str]:
    yield from rules.value_faults(config.distill, _DISTILL, "distill.")
    distill = config.distill
    if not distill.student_steps:
        its_rule = {rules.DECREASING: ("student_times",)}
        yield from rules.value_faults(distill, its_rule, "distill.")
    elif distill.student_times:
        yield (
            f"distill.student_steps={distill.student_steps} and distill.student_times="
            f"{tuple(distill.student_times)}, expected one of the two; set "
            "config.distill.student_times=() or config.distill.student_steps=0."
        )
    if distill.guidance == 0:
        yield (
            f"distill.guidance=0, {rules.UNCONDITIONAL}, expected None for no guidance, or a scale "
            f"above 1; {rules.OTHER_SCALES}."
        )
    if distill.guidance_range and distill.guidance is not None:
        yield (
            f"distill.guidance={distill.guidance} and distill.guidance_range="
            f"{tuple(distill.guidance_range)}, expected one of the two: a scale for all samples, "
            "or one for each; set config.distill.guidance=None or config.distill.guidance_range=()."
        )
    if wrong := [one for one in distill.get("objectives", ()) if not isinstance(one, str)]:
        yield (
            f"distill.objectives has {wrong}, expected dotted modules of your own, such as "
            f"my_lab.my_loss; () is none."
        )


def _other_faults(config: ConfigDict) -> Iterator[str]:
    if config.log.keep_best and not config.log.evaluate_every:
        yield (
            f"log.keep_best={config.log.keep_best} by FID and log.evaluate_every=0 (never), "
            f"expected FID to be measured; set config.log.evaluate_every, or keep_best=0."
        )
    for decay in config.optim.ema_decays:
        if not rules.holds(lambda v: 0 < v < 1, decay):
            yield f"optim.ema_decays has {decay!r}, expected numbers in (0, 1); () is none."
    names = [f"{decay:g}" for decay in config.optim.ema_decays if isinstance(decay, int | float)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        yield (
            f"optim.ema_decays={tuple(config.optim.ema_decays)} has {', '.join(twice)} more than "
            f"once in six digits, by which files are named, expected decays that differ there; "
            f"leave one away."
        )


def _get(config: ConfigDict, key: str) -> Any:
    node: Any = config
    for part in key.split("."):
        if part not in node:
            raise Refused(
                f"the config has no {key}, expected every key of dmd2_jax/config/defaults.py; "
                f"start the recipe from it."
            )
        node = node[part]
    return node
