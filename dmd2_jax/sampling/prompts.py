"""Sample a text-to-image teacher or student: `dmd2 sample --prompt`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dmd2_jax.config.refused import Refused
from dmd2_jax.config.rules import check_seed
from dmd2_jax.data.reading.prompts import read_prompts
from dmd2_jax.denoiser import Denoiser
from dmd2_jax.diffusion.guidance import guided_x0
from dmd2_jax.diffusion.samplers import ddim
from dmd2_jax.families.published.pipeline import read_pipeline_index
from dmd2_jax.families.published.scheduler import ddim_times, lcm_times, recorded_times
from dmd2_jax.families.stable_diffusion import family as stable_diffusion
from dmd2_jax.families.stable_diffusion.family import StableDiffusionFamily
from dmd2_jax.pictures.grids import image_grid
from dmd2_jax.run.metrics import Progress
from dmd2_jax.sampling.samplers import Sampler, few_step_sampler, sample_noise
from dmd2_jax.sampling.text_run import TextRun, open_text_run
from dmd2_jax.text2image.pipeline import TextToImage, open_pipeline, read_scheduler_config
from dmd2_jax.typing import Array, Float, Params, PyTree

__all__ = [
    "PromptOptions",
    "ddim_sampler",
    "pipeline_sampler",
    "run_sampler",
    "sample_pipeline",
    "sample_text_run",
    "sample_texts",
]

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}
_TEACHER_STEPS, _STUDENT_STEPS = 50, 4
_GUIDANCE = {"StableDiffusionPipeline": 7.5, "StableDiffusionXLPipeline": 5.0}


@dataclass(frozen=True)
class PromptOptions:
    """What `dmd2 sample` is asked for by prompts.

    Attributes:
      prompt: texts.
      prompts: file of texts instead; "": none.
      negative: what guidance goes away from; None: no prompt.
      steps: of the sampler; None: a student's own, or 50 of a teacher.
      guidance: w of u + w (c - u), of a teacher; None: diffusers' default, 7.5, of SDXL 5.
      num: images of each prompt.
      seed: of the noise.
      batch_size: images at a time.
      which: "teacher" or "student"; None: by what the folder holds.
      dtype: of the U-Net's computation; "": float32, or a run's own.
      vae: folder of another autoencoder; "": the pipeline's.
      vae_dtype: of the autoencoder's computation.

    Raises:
      Refused: if they contradict each other or a value is out of range.
    """

    prompt: Sequence[str] = ()
    prompts: str = ""
    negative: str | None = None
    steps: int | None = None
    guidance: float | None = None
    num: int = 1
    seed: int = 0
    batch_size: int = 4
    which: str | None = None
    dtype: str = ""
    vae: str = ""
    vae_dtype: str = "float32"

    def __post_init__(self) -> None:
        if bool(self.prompt) == bool(self.prompts):
            raise Refused(
                f"got --prompt={list(self.prompt)} and --prompts={self.prompts!r}, expected one of "
                "them; give --prompt='a red fox', which may be repeated, or a file of prompts."
            )
        if blank := [text for text in self.prompt if not text.strip()]:
            raise Refused(f"--prompt={blank[0]!r} is empty, expected a text; write one.")
        for name, low in (("num", 1), ("batch_size", 1), ("steps", 1)):
            value = getattr(self, name)
            if value is not None and not low <= value < 2**31:
                raise Refused(f"--{name}={value}, expected {low} or more; try {low + 3}.")
        check_seed(self.seed, "--seed")
        if self.guidance is not None and not 0 <= self.guidance < math.inf:
            raise Refused(
                f"--guidance={self.guidance}, expected 0 or more (1 is no guidance); try 7.5."
            )
        if self.negative is not None and self.guidance == 1:
            raise Refused(
                f"--negative={self.negative!r} with --guidance=1, which is no guidance, expected "
                "some to go away from it; raise --guidance, or leave --negative away."
            )

    def texts(self) -> tuple[str, ...]:
        """Return the prompts, reading the file if there is one.

        Raises:
          FileNotFoundError: if there is no such file.
          ValueError: if it is damaged or has no prompts.
        """
        return read_prompts(self.prompts).texts if self.prompts else tuple(self.prompt)


class TextModel(NamedTuple):
    """A U-Net with all that makes images of prompts.

    Attributes:
      pipeline: everything but the U-Net.
      family: the U-Net.
      params: its weights.
      sampler: from noise to latents.
    """

    pipeline: TextToImage
    family: StableDiffusionFamily
    params: Params
    sampler: Sampler


def ddim_sampler(
    denoiser: Denoiser, scheduler: Mapping[str, Any], *, steps: int, guidance: float | None
) -> Sampler:
    """Make a teacher's sampler: diffusers' DDIMScheduler without noise, with guidance.

    Args:
      denoiser: the U-Net.
      scheduler: what scheduler_config.json holds.
      steps: their number.
      guidance: w of u + w (c - u); None or 1: no guidance.

    Raises:
      ValueError: if steps are more than the diffusion has.
    """
    times = ddim_times(scheduler, steps)
    x0_fn, schedule = guided_x0(denoiser, guidance), denoiser.schedule

    @jax.jit
    def run(params: Params, noise: Array, cond: PyTree) -> Array:
        return ddim(x0_fn, params, noise[0], cond, schedule=schedule, times=times)

    passes = 1 if guidance in (None, 1) else 2
    return Sampler(run, 1, passes * (len(times) - 1))


def pipeline_sampler(
    denoiser: Denoiser, scheduler: Mapping[str, Any], class_name: str, options: PromptOptions
) -> Sampler:
    """Choose how to sample a pipeline: as a student, if it says that it is one, or as a teacher.

    Args:
      denoiser: its U-Net.
      scheduler: what its scheduler_config.json holds.
      class_name: of the pipeline.
      options: what is asked for.

    Raises:
      ValueError: if the options do not suit it.
    """
    times = recorded_times(scheduler)
    name = scheduler.get("_class_name")
    few = times is not None or name == "LCMScheduler"
    if options.which == "student" and not few:
        raise Refused(
            f"--which=student of a pipeline with {name}, expected LCMScheduler or the times that "
            "`dmd2 export` records; leave --which away to sample it as a teacher."
        )
    if few and options.which != "teacher":
        if times is None:
            times = tuple(lcm_times(scheduler, options.steps or _STUDENT_STEPS).tolist())
        return student_steps(denoiser, times, options)
    guidance = _GUIDANCE[class_name] if options.guidance is None else options.guidance
    return ddim_sampler(
        denoiser, scheduler, steps=options.steps or _TEACHER_STEPS, guidance=guidance
    )


def student_steps(denoiser: Denoiser, times: Sequence[float], options: PromptOptions) -> Sampler:
    """Make the sampler of a student, refusing options that are a teacher's.

    Args:
      denoiser: its U-Net.
      times: its own.
      options: what is asked for.

    Raises:
      Refused: if the options want guidance or another number of steps.
    """
    for flag in ("guidance", "negative"):
        if getattr(options, flag) is not None:
            raise Refused(
                f"--{flag}={getattr(options, flag)} of a few-step student, expected none: its "
                f"teacher's guidance is in its weights; leave --{flag} away, or sample the teacher."
            )
    if options.steps not in (None, len(times)):
        raise Refused(
            f"--steps={options.steps}, expected {len(times)}: this student's times are "
            f"{','.join(f'{t:g}' for t in times)}; leave --steps away."
        )
    return few_step_sampler(denoiser, times)


def sample_pipeline(folder: str | Path, out: str | Path, options: PromptOptions) -> Path:
    """Sample a pipeline folder and write one PNG grid.

    Args:
      folder: of a diffusers pipeline, SD 1.x, 2.x or SDXL.
      out: the PNG to write.
      options: what to draw.

    Returns:
      The file written.

    Raises:
      FileNotFoundError: if the pipeline or the file of prompts is missing.
      MissingPackageError: if transformers is not installed.
      ValueError: if an option, a prompt file or a part of the pipeline is refused, or if something
        that is not a number comes out.
    """
    out, texts = check_out(out), options.texts()
    index = read_pipeline_index(folder)
    scheduler = read_scheduler_config(index)
    family, params = stable_diffusion.read(index.folder, dtype=options.dtype or "float32")
    sampler = pipeline_sampler(family.denoiser, scheduler, index.class_name, options)
    pipeline = open_pipeline(folder, vae=options.vae or None, vae_dtype=DTYPES[options.vae_dtype])
    return write_grid(TextModel(pipeline, family, params, sampler), texts, out, options)


def run_sampler(run: TextRun, options: PromptOptions) -> Sampler:
    """Make the sampler of a run's network: a student's own times, or DDIM of a teacher.

    Args:
      run: the run, whose config has steps and guidance where the options have none.
      options: what is asked for.

    Raises:
      ValueError: if the options do not suit it.
    """
    denoiser, config = run.family.denoiser, run.config
    if run.which == "student":
        return student_steps(denoiser, config.distill.student_times, options)
    wanted = (options.guidance, config.distill.guidance, _GUIDANCE[run.base.class_name])
    return ddim_sampler(
        denoiser,
        read_scheduler_config(run.base),
        steps=options.steps or config.teacher.sampler_steps,
        guidance=next(w for w in wanted if w is not None),
    )


def sample_text_run(
    workdir: str | Path,
    out: str | Path,
    options: PromptOptions,
    *,
    ema: float | None = None,
    weights: str = "",
    checkpoint: int | None = None,
    pipeline: str = "",
) -> Path:
    """Sample a run of a text-to-image model and write one PNG grid.

    A student takes its config's times; a teacher DDIM, with the config's steps and guidance where
    the options have none.

    Args:
      workdir: what train-teacher or distill wrote.
      out: the PNG to write.
      options: what to draw.
      ema, weights, checkpoint, pipeline: see `open_text_run`.

    Returns:
      The file written.

    Raises:
      ValueError: if an option is refused, the run has no such weights, or something that is not a
        number comes out.
    """
    out, texts = check_out(out), options.texts()
    run = open_text_run(
        workdir,
        which=options.which,
        ema=ema,
        weights=weights,
        checkpoint=checkpoint,
        pipeline=pipeline,
        dtype=options.dtype,
    )
    family, sampler = run.family, run_sampler(run, options)
    made = open_pipeline(
        run.base.folder,
        vae=options.vae or None,
        latent_side=family.image_shape[0],
        vae_dtype=DTYPES[options.vae_dtype],
    )
    return write_grid(TextModel(made, family, run.load(), sampler), texts, out, options)


def check_out(out: str | Path) -> Path:
    """Refuse a picture in a folder that does not exist."""
    out = Path(out)
    if not out.parent.is_dir():
        raise Refused(f"--out={out} lies in no folder, expected {out.parent} to exist; create it.")
    return out


def write_grid(model: TextModel, texts: Sequence[str], out: Path, options: PromptOptions) -> Path:
    """Sample the prompts and write a grid: a row a prompt, or about a square of one image each.

    Args:
      model: what to sample.
      texts: the prompts.
      out: the PNG to write.
      options: what to draw.

    Returns:
      The file written.

    Raises:
      ValueError: if something that is not a number comes out.
    """
    images = sample_texts(
        model,
        texts,
        num=options.num,
        seed=options.seed,
        negative=options.negative,
        batch_size=options.batch_size,
    )
    columns = options.num if options.num > 1 else math.isqrt(len(texts) - 1) + 1
    image_grid(images, out, rows=-(-len(images) // columns), cols=columns)
    return out


def sample_texts(
    model: TextModel,
    texts: Sequence[str],
    *,
    num: int = 1,
    seed: int = 0,
    negative: str | None = None,
    batch_size: int = 4,
) -> Float[np.ndarray, "n h w 3"]:
    """Sample images of prompts.

    Image i depends on (seed, i, its prompt) alone, and teacher and student start it from the same
    noise.

    Args:
      model: what to sample.
      texts: p prompts.
      num: images of each.
      seed: of the noise.
      negative: see `TextToImage.condition`.
      batch_size: images at a time.

    Returns:
      [p * num, h, w, 3] float32, about [-1, 1]; a prompt's images follow each other.

    Raises:
      ValueError: if latents or images are not finite; the message names the image and the remedy.
    """
    pipeline, family = model.pipeline, model.family
    cond = pipeline.condition(texts, negative)
    total, parts = num * len(texts), []
    batch_size = min(batch_size, total)
    with Progress(total=total, description="sampling") as progress:
        for begin in range(0, total, batch_size):
            # The last batch is filled up, so that one program serves all.
            numbers = np.arange(begin, begin + batch_size)
            rows = np.minimum(numbers, total - 1) // num
            noise = sample_noise(seed, numbers, model.sampler.num_noises, family.image_shape)
            batch = family.cond({name: x[rows] for name, x in cond.items()})
            parts.append(np.asarray(model.sampler.run(model.params, noise, batch)))
            progress.update(min(begin + batch_size, total))
    latents = np.concatenate(parts)[:total]
    names = [f"image {i + 1} ({texts[i // num]:.60})" for i in range(total)]
    bad = np.flatnonzero(~np.isfinite(latents).reshape(total, -1).all(axis=1))
    if len(bad):
        raise Refused(
            f"the U-Net's latents of {names[bad[0]]} are not finite ({len(bad)} of {total} "
            "images), expected numbers; sample with --dtype=float32 and a smaller --guidance, or "
            "export or download the weights again."
        )
    return pipeline.decode(latents, batch_size=batch_size, names=names)
