"""Text-to-image models for sampling: of a pipeline's folder or of a run with its pipeline."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from dmd2_jax.config.refused import Refused
from dmd2_jax.config.sizes import Size, size_of
from dmd2_jax.denoiser import Denoiser
from dmd2_jax.families.published.flow_scheduler import adds_noise
from dmd2_jax.families.published.pipeline import PipelineIndex, read_pipeline_index
from dmd2_jax.families.published.scheduler import lcm_times, recorded_scales, recorded_times
from dmd2_jax.recipe.guidance import (
    check_guided_once,
    chosen_scale,
    has_scale_input,
    in_range,
    input_scale,
    scale_range,
    told_input,
    told_network,
)
from dmd2_jax.recipe.open import student_times
from dmd2_jax.recipe.text_family import (
    TextFamily,
    base_pipeline,
    default_guidance,
    pipeline_family,
    text_family,
)
from dmd2_jax.sampling.images import Model
from dmd2_jax.sampling.runs import Run
from dmd2_jax.sampling.samplers import Sampler, ddim_sampler, few_step_sampler
from dmd2_jax.text2image.image_latents import latent_shape
from dmd2_jax.text2image.pipeline import TextToImage, open_pipeline, pipeline_autoencoder

__all__ = [
    "PROMPT_BATCH",
    "STUDENT_STEPS",
    "TEACHER_STEPS",
    "PromptSettings",
    "is_few_step",
    "pipeline_model",
    "pipeline_models",
    "pipeline_sampler",
    "run_models",
]

PROMPT_BATCH = 4
"""Images at a time, where nobody says otherwise."""

TEACHER_STEPS, STUDENT_STEPS = 50, 4
"""Of a pipeline where nobody says otherwise: DDIM's, and those of an LCM without recorded times."""

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}


@dataclass(frozen=True)
class PromptSettings:
    """How prompts are sampled.

    Attributes:
      which: "teacher" or "student" of a pipeline; None: by what its folder holds.
      shape: height and width of the images in pixels; 0: those that the network was trained on.
      steps: of the sampler; None: a student's own, or a run's, or 50 of a teacher.
      guidance: w of u + w (c - u), of a teacher; None: a run's, or diffusers' default. Or of a
        network that takes it as an input, and is called once; None: the network's own, or the
        middle of a student's range.
      negative: what guidance goes away from; None: no prompt.
      dtype: of the U-Net's computation; "": float32, or a run's own.
      vae: folder of another autoencoder; "": the pipeline's.
      vae_dtype: of the autoencoder's computation.
      variant: of the weights' files, such as "fp16"; "": a run's, or the full or the only one.

    Raises:
      Refused: if they contradict each other or a value is out of range.
    """

    which: str | None = None
    shape: Size = 0
    steps: int | None = None
    guidance: float | None = None
    negative: str | None = None
    dtype: str = ""
    vae: str = ""
    vae_dtype: str = "float32"
    variant: str = ""

    def __post_init__(self) -> None:
        if self.steps is not None and not 1 <= self.steps < 2**31:
            raise Refused(f"steps={self.steps}, expected 1 or more; try 4.")
        if self.guidance is not None and not 0 <= self.guidance < math.inf:
            raise Refused(
                f"guidance={self.guidance}, expected 0 or more (1 is no guidance); try 7.5."
            )
        if self.negative is not None and self.guidance == 1:
            raise Refused(
                f"negative={self.negative!r} with guidance=1, which is no guidance, expected "
                "some to go away from it; raise guidance, or leave negative away."
            )


def pipeline_sampler(
    denoiser: Denoiser,
    scheduler: Mapping[str, Any],
    settings: PromptSettings,
    guidance: float,
    tokens: int = 0,
    size: Size = 0,
) -> Sampler:
    """Choose how to sample a pipeline: as a student, if it says that it is one, or as a teacher.

    Args:
      denoiser: its network.
      scheduler: what its scheduler_config.json holds.
      settings: what is asked for.
      guidance: of a teacher, where the settings have none.
      tokens: of an image, as its network counts them.
      size: of its latents, by which a student of several shapes may have its times.

    Raises:
      ValueError: if the settings do not suit it.
    """
    times, few = recorded_times(scheduler, size), is_few_step(scheduler)
    name = scheduler.get("_class_name")
    if settings.which == "student" and not few:
        raise Refused(
            f"which=student of a pipeline with {name}, expected LCMScheduler or the times that "
            "`dmd2 export` records; leave it away to sample the pipeline as a teacher."
        )
    if few and settings.which != "teacher":
        if times is None:
            times = tuple(lcm_times(scheduler, settings.steps or STUDENT_STEPS).tolist())
        return _student_steps(denoiser, times, settings)
    if settings.which is None and adds_noise(scheduler):
        raise Refused(
            f"the pipeline's {name} adds noise between steps, as a few-step student's does, and "
            "records no times, expected those that `dmd2 export` writes; write them by `dmd2 "
            "export --weights=NETWORK --pipeline=FOLDER --times=1,0.75,0.5,0.25`, or give "
            "`which=teacher` to sample it without noise."
        )
    scale = guidance if settings.guidance is None else settings.guidance
    _check_negative(settings, scale)
    return ddim_sampler(
        denoiser,
        scheduler,
        steps=settings.steps or TEACHER_STEPS,
        guidance=scale,
        tokens=tokens,
    )


def _check_negative(settings: PromptSettings, scale: float) -> None:
    if settings.negative is not None and scale == 1:
        raise Refused(
            f"negative={settings.negative!r} of a teacher that is sampled without guidance, "
            "expected some to go away from it; give guidance above 1, or leave negative away."
        )


def is_few_step(scheduler: Mapping[str, Any]) -> bool:
    """Return whether a pipeline's scheduler_config.json says that it is a few-step student."""
    return recorded_times(scheduler) is not None or scheduler.get("_class_name") == "LCMScheduler"


def pipeline_model(folder: str | Path, settings: PromptSettings) -> Model:
    """Open a pipeline's folder, reading no weights.

    Args:
      folder: of a diffusers pipeline.
      settings: how to sample it.

    Raises:
      FileNotFoundError: if there is no pipeline.
      ValueError: if a setting or a part of the pipeline is refused.
    """
    return pipeline_models(folder, settings)(settings)


def pipeline_models(
    folder: str | Path, settings: PromptSettings
) -> Callable[[PromptSettings], Model]:
    """Open a pipeline's folder once, to be sampled in several ways; reads no weights.

    Args:
      folder: of a diffusers pipeline.
      settings: what is opened: dtype, autoencoder and variant.

    Returns:
      Settings -> how to sample it by their which, steps and guidance.

    Raises:
      FileNotFoundError: if there is no pipeline.
      ValueError: if a part of the pipeline is refused.
    """
    index = read_pipeline_index(folder, settings.variant)
    size = _latent_size(index, settings)
    family = pipeline_family(index, dtype=settings.dtype or "float32", resolution=size)
    pipeline = _open_pipeline(index, settings, family)

    def model(chosen: PromptSettings) -> Model:
        guidance, denoiser = default_guidance(index, family), family.denoiser
        if chosen.which != "teacher" and is_few_step(pipeline.scheduler):
            scale = _pipeline_scale(index, family, pipeline.scheduler, chosen.guidance)
        else:
            scale = _teacher_scale(family, chosen)
        if scale is not None:
            denoiser, chosen, guidance = told_input(family), replace(chosen, guidance=None), 1.0
        sampler = pipeline_sampler(
            denoiser,
            pipeline.scheduler,
            chosen,
            guidance,
            family.image_tokens,
            size_of(*family.image_shape[:2]),
        )
        load = functools.partial(family.load, index.folder)
        return Model(family, sampler, load, pipeline, guidance=scale)

    return model


def _pipeline_scale(
    index: PipelineIndex, family: TextFamily, scheduler: Mapping[str, Any], asked: float | None
) -> float | None:
    """Return the scale that a few-step pipeline's network is told; None: one of its own, if any."""
    usual, ends = input_scale(family), recorded_scales(scheduler)
    if usual is None:
        return None
    if ends is not None:
        return in_range(ends, usual if asked is None else asked)
    # Published U-Nets with such an input say nothing of a range.
    if index.network == "unet":
        return usual if asked is None else asked
    _check_trained_scale(usual, asked)
    return None


def _check_trained_scale(usual: float, asked: float | None) -> None:
    """Refuse a scale of a student that was told one alone while it was trained."""
    if asked is not None:
        raise Refused(
            f"guidance={asked:g} of a student that was trained at one scale, {usual:g}, which its "
            "network is told, expected none; leave guidance away, sample the teacher, or distil "
            "with config.distill.guidance_range=1,4 a student that takes several."
        )


def _teacher_scale(family: TextFamily, settings: PromptSettings) -> float | None:
    """Return the scale that a teacher's network is told; None: it is told none.

    Raises:
      Refused: if it takes no other guidance than its own, and some is asked for.
    """
    asked = settings.guidance
    if not has_scale_input(family):
        check_guided_once(family, asked, "guidance")
        return None
    if settings.negative is not None:
        raise Refused(
            f"negative={settings.negative!r} of a network that takes its guidance scale as an "
            "input, expected none: it is called once, with the prompt alone; leave negative away."
        )
    return input_scale(family) if asked is None else asked


def run_models(run: Run, settings: PromptSettings, pipeline: str = "") -> Callable[..., Model]:
    """Open the pipeline of a run of prompts once, for any of the run's networks.

    A student takes its config's times; a teacher DDIM, with the config's steps and guidance where
    the settings have none.

    Args:
      run: the run.
      settings: how to sample it.
      pipeline: folder of the pipeline that has everything but the U-Net; "": the run's.

    Returns:
      The run with one of its networks, and steps and guidance if they are others -> how to sample
      that; reads no weights.

    Raises:
      FileNotFoundError: if the pipeline is missing.
      ValueError: if the settings are refused, or the pipeline is of another network.
    """
    config, family = run.config, text_family(run.family)
    if family is None:
        raise Refused(
            f"{run.workdir} holds a run of model.family={config.model.family!r}, which draws "
            "classes, expected a text-to-image model; leave the prompts away."
        )
    index = base_pipeline(pipeline or config.model.pipeline, family)
    if settings.variant:
        index = index._replace(variant=settings.variant)
    if size := _latent_size(index, settings):
        family = text_family(run.at(size).family)
        assert family is not None  # as it was
    opened = _open_pipeline(index, settings, family)
    samplers: dict[tuple[str, PromptSettings], Sampler] = {}  # one each: they are compiled once

    def model(chosen: Run, settings: PromptSettings = settings) -> Model:
        scale = None
        if chosen.which == "student" and scale_range(config.distill) is not None:
            scale = chosen.scale(settings.guidance)  # which is an argument of the program
            settings = replace(settings, guidance=None)
        elif chosen.which == "student" and (usual := input_scale(family)) is not None:
            _check_trained_scale(usual, settings.guidance)
        elif chosen.which == "teacher":
            if scale_range(config.distill) is not None and has_scale_input(family):
                # Training told the teacher its scale too, and called it once.
                settings = replace(
                    settings, guidance=chosen_scale(config.distill, settings.guidance)
                )
            if (scale := _teacher_scale(family, settings)) is not None:
                settings = replace(settings, guidance=None)
        key = (chosen.which, settings)
        if key not in samplers:
            samplers[key] = _run_sampler(chosen, family, opened, settings)
        return Model(family, samplers[key], chosen.load, opened, guidance=scale)

    return model


def _open_pipeline(
    index: PipelineIndex, settings: PromptSettings, family: TextFamily
) -> TextToImage:
    return open_pipeline(
        index,
        vae=settings.vae or None,
        latent_size=size_of(*family.image_shape[:2]),
        vae_dtype=_DTYPES[settings.vae_dtype],
    )


def _latent_size(index: PipelineIndex, settings: PromptSettings) -> Size:
    """Return the size of the latents that are asked for; 0: as they were trained."""
    if not settings.shape:
        return 0
    vae, _ = pipeline_autoencoder(index, settings.vae or None)
    height, width, _ = latent_shape(vae, settings.shape)
    return size_of(height, width)


def _run_sampler(
    run: Run, family: TextFamily, pipeline: TextToImage, settings: PromptSettings
) -> Sampler:
    denoiser, config = family.denoiser, run.config
    if run.which == "student":
        times = student_times(config, denoiser.schedule)
        return _student_steps(told_network(config, family), times, settings)
    guidance: float | None = None
    if has_scale_input(family):
        denoiser = told_input(family)
    else:
        usual = (chosen_scale(config.distill), default_guidance(pipeline.index, family))
        wanted = (settings.guidance, config.distill.guidance, *usual)
        guidance = next(w for w in wanted if w is not None)
        _check_negative(settings, guidance)
    return ddim_sampler(
        denoiser,
        pipeline.scheduler,
        steps=settings.steps or config.teacher.sampler_steps,
        guidance=guidance,
        tokens=family.image_tokens,
    )


def _student_steps(denoiser: Denoiser, times: Sequence[float], settings: PromptSettings) -> Sampler:
    """Make the sampler of a student, refusing settings that are a teacher's."""
    for name, none in (("guidance", (None, 0, 1)), ("negative", (None,))):  # 0 as diffusers has it
        if getattr(settings, name) not in none:
            raise Refused(
                f"{name}={getattr(settings, name)} of a few-step student, expected none: its "
                f"teacher's guidance is in its weights; leave {name} away, or sample the teacher."
            )
    if settings.steps not in (None, len(times)):
        raise Refused(
            f"steps={settings.steps}, expected {len(times)}: this student's times are "
            f"{','.join(f'{t:g}' for t in times)}; leave steps away."
        )
    return few_step_sampler(denoiser, times)
