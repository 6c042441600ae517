"""What is verified: a pipeline's folder or a network's, maybe with other weights in it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp

from dmd2_jax import families
from dmd2_jax.config.refused import Missing, Refused
from dmd2_jax.config.sizes import size_of
from dmd2_jax.config.text import read_json
from dmd2_jax.families.published.family import PublishedFamily
from dmd2_jax.families.published.folder import is_component, read_component_config
from dmd2_jax.families.published.pipeline import (
    CLASS_PIPELINES,
    INDEX,
    NETWORKS,
    PIPELINES,
    PipelineIndex,
    read_pipeline_index,
)
from dmd2_jax.families.published.scheduler import recorded_settings, recorded_times
from dmd2_jax.recipe.guidance import baked, input_scale
from dmd2_jax.recipe.open import student_times
from dmd2_jax.recipe.text_family import default_guidance
from dmd2_jax.runtime.fetched import fetched
from dmd2_jax.runtime.places import path_of
from dmd2_jax.sampling.prompts import PromptSettings, is_few_step, pipeline_model
from dmd2_jax.sampling.runs import open_run
from dmd2_jax.sampling.samplers import Sampler, ddim_sampler, few_step_sampler, with_scale
from dmd2_jax.text2image.pipeline import TextToImage, open_pipeline
from dmd2_jax.typing import Array, Params, PyTree
from dmd2_jax.weights.hub import is_hub_path

__all__ = ["STEPS", "Subject", "open_subject"]

STEPS = 4
"""Of a teacher's sampler, and of an LCM without times of its own."""

_GUIDANCE = 4.0  # of a call of DiTPipeline
_GUIDED_CLASSES = 1000  # whose next number DiTPipeline takes for no class, whatever the network has


_WANTED = (
    "expected the folder of a diffusers pipeline, or of its unet/ or transformer/, which diffusers "
    "reads too; give that, and a run or a file of its weights as `weights=`."
)
_NONE_READS = (
    "Of EDM's U-Nets, and of DiT and SiT by their original names, no installed program reads the "
    "weights, so there is nothing to compare with: the recorded vectors of the tests hold these "
    "networks."
)


class Subject(NamedTuple):
    """A network with what is around it; weights are read when they are asked for.

    Attributes:
      folder: of the pipeline, or of the network alone.
      network: folder of the network.
      family: the network.
      load: reads its weights.
      replaced: whether these are others than the folder's.
      pipeline: what is around the network; None: nothing is.
      sampler: from noise to latents; None without a pipeline.
      times: of a student; None: its scheduler chooses them, or a teacher is sampled.
      guidance: of a teacher's two calls; None: a student's, that has none, or a DiT's of other
        classes than ImageNet's, which its pipeline cannot guide.
    """

    folder: Path
    network: Path
    family: PublishedFamily
    load: Callable[[], Params]
    replaced: bool = False
    pipeline: TextToImage | None = None
    sampler: Sampler | None = None
    times: tuple[float, ...] | None = None
    guidance: float | None = None

    @property
    def pipeline_index(self) -> PipelineIndex:
        """What model_index.json says."""
        assert self.pipeline is not None  # which the caller has seen to
        return self.pipeline.index


def open_subject(pipeline: str, weights: str = "", variant: str = "") -> Subject:
    """Open what is to be verified; of a pipeline no weights are read yet.

    Args:
      pipeline: a diffusers folder: of a pipeline, or of a network of a class that a family reads.
      weights: a run of `train-teacher` or `distill`, or a file or folder of weights, to take the
        place of the network's own; "": none.
      variant: of the weights' files, such as fp16.

    Raises:
      Refused: if something is missing, of a class that is not built here, or another network.
    """
    folder = fetched(path_of(pipeline).expanduser())
    _check_folder(folder)
    file = folder / INDEX
    name = _class_name(file) if file.is_file() else ""
    openers = dict.fromkeys(PIPELINES, _of_pipeline) | dict.fromkeys(CLASS_PIPELINES, _of_classes)
    subject = openers.get(name, _alone)(folder, variant)
    return _with_weights(subject, weights) if weights else subject


def _check_folder(folder: Path) -> None:
    """Refuse what no other program reads, or what is not there."""
    if folder.is_file():
        raise Refused(f"{folder} is one file, {_WANTED} {_NONE_READS}")
    if not folder.is_dir():
        raise Missing(f"{folder} does not exist, {_WANTED}")
    if _is_run(folder / "config.json"):
        raise Refused(f"{folder} is a run, {_WANTED} {_NONE_READS}")
    settings = (INDEX, "config.json", *(f"{part}/config.json" for part in NETWORKS))
    if not any((folder / name).is_file() for name in settings):
        raise Missing(f"{folder} has none of {', '.join(settings)}, {_WANTED} {_NONE_READS}")


def _is_run(file: Path) -> bool:
    try:
        return "command" in read_json(file)
    except (OSError, ValueError, TypeError):
        return False  # what is damaged is named by who reads it


def _class_name(file: Path) -> Any:
    try:
        return read_json(file).get("_class_name")
    except (OSError, ValueError, AttributeError) as error:
        raise Refused(
            f"{file} cannot be read ({type(error).__name__}: {error}), expected the index of a "
            "diffusers pipeline; download it again."
        ) from error


def _of_pipeline(folder: Path, variant: str) -> Subject:
    model = pipeline_model(folder, PromptSettings(variant=variant))
    pipeline, family = model.pipeline, model.family
    assert pipeline is not None and isinstance(family, PublishedFamily)  # as those of prompts are
    times, few = recorded_times(pipeline.scheduler), is_few_step(pipeline.scheduler)
    settings = PromptSettings(variant=variant, steps=None if times else STEPS)
    chosen = pipeline_model(folder, settings)
    sampler = _at_scale(chosen.sampler, chosen.guidance)
    guidance = None if few else default_guidance(pipeline.index, family)
    network = pipeline.index.part(pipeline.index.network)
    return Subject(folder, network, family, model.load, False, pipeline, sampler, times, guidance)


def _of_classes(folder: Path, variant: str) -> Subject:
    alone, index = _alone(folder, variant), read_pipeline_index(folder, variant, CLASS_PIPELINES)
    pipeline = open_pipeline(index, latent_size=size_of(*alone.family.image_shape[:2]))
    guided = alone.family.num_classes == _GUIDED_CLASSES
    guidance, denoiser = _GUIDANCE if guided else None, alone.family.denoiser
    sampler = ddim_sampler(denoiser, pipeline.scheduler, steps=STEPS, guidance=guidance)
    return alone._replace(pipeline=pipeline, sampler=sampler, guidance=guidance)


def _at_scale(sampler: Sampler, guidance: float | None) -> Sampler:
    """Return the sampler at the scale that its network is told; None: it is told none."""

    def run(params: Params, noise: Array, cond: PyTree) -> Array:
        return sampler.run(params, noise, with_scale(cond, guidance, noise.shape[1]))

    return sampler if guidance is None else sampler._replace(run=run)


def _alone(folder: Path, variant: str) -> Subject:
    options = {"variant": variant} if variant else {}
    family, params = families.read(folder, **options)
    network = folder / "transformer" if (folder / "transformer").is_dir() else folder
    return Subject(folder, network, family, lambda: params)


def _with_weights(subject: Subject, weights: str) -> Subject:
    """Put other weights into the network, and a student's times into its sampler."""
    place = path_of(weights).expanduser()
    if not place.exists() and not is_hub_path(weights):
        raise Missing(
            f"weights={weights} does not exist, expected a run, a file or a folder of weights; "
            "give another path."
        )
    if not place.is_dir() or is_component(place) or (place / INDEX).is_file():
        family: Any = subject.family
        subject = subject._replace(load=lambda: family.load(weights), replaced=True)
        return _as_exported(subject, place if (place / INDEX).is_file() else place.parent)
    run = open_run(place)
    shapes = getattr(run.family, "tensor_shapes", dict)()
    if shapes != subject.family.tensor_shapes():
        raise Refused(
            f"the run in {weights} is of another network than {subject.folder}, expected the "
            "pipeline that it was made from; give its folder."
        )
    scale = run.scale()  # at which a student is compared that takes one
    subject = subject._replace(load=lambda: baked(run.load(), run.family, scale), replaced=True)
    subject = _told(subject, input_scale(run.family) if scale is None else scale)
    if run.which != "student":
        return subject
    return _student(subject, student_times(run.config, run.family.denoiser.schedule))


def _as_exported(subject: Subject, folder: Path) -> Subject:
    """Sample weights of a pipeline's folder as that says of a student that was exported there."""
    file = folder / "scheduler" / "scheduler_config.json"
    if not (folder / INDEX).is_file() or not file.is_file():
        return subject
    scheduler = read_component_config(file.parent, file.name)
    subject = _told(subject, recorded_settings(scheduler).get("guidance"))
    times = recorded_times(scheduler)
    return subject if times is None else _student(subject, times)


def _student(subject: Subject, times: tuple[float, ...]) -> Subject:
    if subject.pipeline is None:
        return subject
    sampler = few_step_sampler(subject.family.denoiser, times)
    return subject._replace(sampler=sampler, times=times, guidance=None)


def _told(subject: Subject, scale: float | None) -> Subject:
    """Tell a network that takes a guidance scale as an input this one, wherever it is called."""
    family = subject.family
    if scale is None or family.input_guidance in (None, scale):
        return subject
    denoiser = family.denoiser

    def x0(params: Params, x_t: Array, t: Array, cond: PyTree) -> Array:
        return denoiser.x0(params, x_t, t, {"guidance": jnp.full(x_t.shape[:1], scale), **cond})

    told = replace(family, denoiser=denoiser._replace(x0=x0), input_guidance=scale)
    subject = subject._replace(family=told)
    if subject.pipeline is None:
        return subject
    if subject.times is not None:
        return _student(subject, subject.times)
    scheduler, tokens = subject.pipeline.scheduler, family.image_tokens
    sampler = ddim_sampler(told.denoiser, scheduler, steps=STEPS, guidance=None, tokens=tokens)
    return subject._replace(sampler=sampler)
