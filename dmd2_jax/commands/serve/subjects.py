"""What a page draws by: a run of classes, a run of prompts, or a pipeline's folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from ml_collections import ConfigDict

from dmd2_jax.config.refused import Refused
from dmd2_jax.config.rules import check_seed
from dmd2_jax.config.text import check_text
from dmd2_jax.data.reading.class_choice import chosen_classes
from dmd2_jax.data.reading.classes import shown
from dmd2_jax.families.published.scheduler import recorded_scales, recorded_times
from dmd2_jax.recipe.classes import read_record
from dmd2_jax.recipe.guidance import chosen_scale, scale_range
from dmd2_jax.recipe.text_family import TextFamily, base_pipeline, default_guidance, text_family
from dmd2_jax.run.exported import unfinished
from dmd2_jax.runtime.fetched import fetched
from dmd2_jax.runtime.places import absolute, path_of
from dmd2_jax.sampling.conditions import Classes, Conditions, Prompts
from dmd2_jax.sampling.images import Model, class_model
from dmd2_jax.sampling.prompts import (
    PROMPT_BATCH,
    STUDENT_STEPS,
    TEACHER_STEPS,
    PromptSettings,
    is_few_step,
    pipeline_models,
    run_models,
)
from dmd2_jax.sampling.runs import Run, read_run_folder
from dmd2_jax.sampling.samplers import Sampler, student_sampler, teacher_sampler

__all__ = [
    "MOST",
    "Offer",
    "Request",
    "Subject",
    "Way",
    "open_pipeline_folder",
    "open_run_folder",
    "settings_of",
]

MOST = 16
"""Pictures that are drawn at once."""

_MOST_STEPS = 1000


class Request(NamedTuple):
    """What is to be drawn.

    Attributes:
      what: a class, by its number or name, or ""; or a prompt.
      seed: of the noise.
      num: of pictures.
      ema: the decay of the student's average; None: the student itself.
      steps: of the sampler that has a choice; None: its own.
      guidance: of a teacher that has some; None: its own.
      negative: the prompt that guidance goes away from; "": none.
    """

    what: str = ""
    seed: int = 0
    num: int = 1
    ema: float | None = None
    steps: int | None = None
    guidance: float | None = None
    negative: str = ""


class Offer(NamedTuple):
    """What can be asked for.

    Attributes:
      networks: "teacher", "student" or both.
      of_prompts: prompts, not classes.
      classes: (what is shown, what is asked for) of each class; (): there are none.
      averages: decays of the student's averages.
      steps: network -> its usual number of steps, where there may be another.
      guidance: a teacher's usual one; None: it has none.
      scales: the range of a student that takes the guidance scale; None: it takes none.
    """

    networks: Sequence[str]
    of_prompts: bool = False
    classes: Sequence[tuple[str, str]] = ()
    averages: Sequence[float] = ()
    steps: Mapping[str, int] = {}
    guidance: float | None = None
    scales: tuple[float, float] | None = None


class Way(NamedTuple):
    """One network, ready to draw.

    Attributes:
      model: the network; nothing of it is read.
      name: of its weights.
      file: of its weights.
      note: what has to be said of them, or nothing.
    """

    model: Model
    name: str
    file: Path
    note: str = ""


class Subject(Protocol):
    """What a page draws by.

    Attributes:
      title: its name.
      offer: what can be asked for.
      batch_size: pictures at a time, as `dmd2 sample` makes them.
    """

    title: str
    offer: Offer
    batch_size: int

    def check(self, request: Request) -> None:
        """Refuse a request that no network can draw.

        Raises:
          Refused: if there is no such class, or a value is out of range.
        """

    def captions(self, request: Request) -> list[str]:
        """Return what stands under each picture of a request that is checked."""

    def way(self, network: str, request: Request) -> Way:
        """Find the weights of a network as they are now, reading nothing of them.

        Raises:
          Refused: if there are none, or they do not suit the request.
        """

    def conditions(self, network: str, request: Request, model: Model) -> Conditions:
        """Return what the pictures are of."""


def open_run_folder(workdir: str, *, pipeline: str = "", dtype: str = "") -> Subject:
    """Open what train-teacher or distill wrote.

    Args:
      workdir: the folder.
      pipeline: of a run of prompts: a folder with all but the U-Net; "": the run's.
      dtype: of the computation; "": the run's.

    Raises:
      Refused: if there is no run, or the pipeline does not suit it.
    """
    run = read_run_folder(workdir, dtype=dtype)
    family = text_family(run.family)
    if family is not None:
        return _PromptRun(run, family, pipeline)
    if pipeline:
        raise Refused(
            f"`pipeline={pipeline}` given with the run in {workdir}, which draws classes, expected "
            "a text-to-image run; leave one of them away."
        )
    return _ClassRun(run)


def open_pipeline_folder(folder: str, *, variant: str = "", dtype: str = "") -> Subject:
    """Open a diffusers pipeline.

    Args:
      folder: of the pipeline.
      variant: of the weights' files, such as "fp16"; "": the full or the only one.
      dtype: of the U-Net's computation; "": float32.

    Raises:
      FileNotFoundError: if there is no pipeline.
      Refused: if a part of it is.
    """
    return _PipelineFolder(folder, PromptSettings(dtype=dtype, variant=variant))


def _title(folder: Path) -> str:
    """Name a folder by its last two parts: many a run is called student."""
    return "/".join(absolute(folder).parts[-2:])


def _networks(run: Run) -> tuple[str, ...]:
    return ("teacher",) if run.trained == "teacher" else ("teacher", "student")


def _chosen(run: Run, network: str, ema: float | None) -> tuple[Run, str]:
    """Return the run with that network, and what is to be said of its weights."""
    chosen = run.choose(network, ema if network == "student" else None)
    return chosen, unfinished(run.workdir) if network == run.trained else ""


def _check(request: Request, offer: Offer) -> None:
    """Refuse values that no network takes."""
    check_seed(request.seed, "seed")
    if type(request.num) is not int or not 1 <= request.num <= MOST:
        raise Refused(f"num={request.num!r} pictures, expected 1 to {MOST}; try 4.")
    if request.steps is not None and not (
        type(request.steps) is int and 1 <= request.steps <= _MOST_STEPS
    ):
        raise Refused(f"steps={request.steps!r}, expected 1 to {_MOST_STEPS}; try 20.")
    if request.ema is not None and request.ema not in offer.averages:
        raise Refused(f"ema={request.ema!r}, expected one of {tuple(offer.averages)}; take it.")
    for network in offer.networks:
        settings_of(network, request, offer)


def settings_of(network: str, request: Request, offer: Offer) -> PromptSettings:
    """Return what of a request is meant for a network; its usual values are None.

    Raises:
      Refused: if a value is out of range.
    """
    usual = offer.steps.get(network)
    steps = None if usual is None or request.steps == usual else request.steps
    if network == "student" and offer.scales is not None:
        return PromptSettings(steps=steps, guidance=request.guidance)
    if network == "student" or offer.guidance is None:
        return PromptSettings(steps=steps)
    guidance = None if request.guidance in (None, offer.guidance) else float(request.guidance)
    return PromptSettings(steps=steps, guidance=guidance, negative=request.negative or None)


class _ClassRun:
    """A run of classes, or of no condition at all."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.title, self.batch_size = _title(run.workdir), run.config.evaluate.batch_size
        record, self._num_classes = read_record(run.workdir), run.family.num_classes
        named = record is not None and self._num_classes
        self._names = record.class_names if named and record is not None else None
        config, classes = run.config, []
        usual = config.distill.guidance
        if usual is None:
            usual = chosen_scale(config.distill)
        if self._num_classes > 1:
            words = [""] * self._num_classes
            if self._names is not None:
                words = [f" {shown(name)}" for name in self._names]
            classes = [(f"{i}{word}", f"#{i}") for i, word in enumerate(words)]
        self.offer = Offer(
            networks=_networks(run),
            classes=classes,
            averages=tuple(config.optim.ema_decays) if run.trained == "student" else (),
            steps={"teacher": config.teacher.sampler_steps},
            guidance=usual if self._num_classes else None,
            scales=scale_range(config.distill) if run.trained == "student" else None,
        )

    def check(self, request: Request) -> None:
        """See `Subject`."""
        _check(request, self.offer)
        self._classes(request)

    def captions(self, request: Request) -> list[str]:
        """See `Subject`."""
        classes = self.offer.classes
        labels = self._classes(request).labels(np.arange(request.num))
        return [classes[i][0] if classes else "" for i in labels]

    def conditions(self, network: str, request: Request, model: Model) -> Classes:
        """See `Subject`."""
        return self._classes(request)

    def _classes(self, request: Request) -> Classes:
        word, chosen = request.what.strip(), None
        if word and self.offer.classes:
            chosen = chosen_classes([word], self._num_classes, self._names)
        return Classes(self._num_classes, chosen)

    def way(self, network: str, request: Request) -> Way:
        """See `Subject`."""
        run, note = _chosen(self._run, network, request.ema)
        settings = settings_of(network, request, self.offer)
        sampler = _class_sampler(run, settings)
        assert run.file is not None  # as no checkpoint is asked for
        scale = run.scale(settings.guidance)
        model = class_model(run.family, run.config, sampler, run.load, guidance=scale)
        return Way(model, run.name, run.file, note)


def _class_sampler(run: Run, settings: PromptSettings) -> Sampler:
    if run.which == "student":
        return student_sampler(run.family, run.config)
    config: ConfigDict = run.config.copy_and_resolve_references()
    if settings.steps is not None:
        config.teacher.sampler_steps = settings.steps
    if settings.guidance is not None:
        config.distill.guidance = settings.guidance
    return teacher_sampler(run.family, config)


def _prompts(network: str, request: Request, model: Model) -> Prompts:
    assert model.pipeline is not None  # which a model of prompts has
    negative = request.negative if network == "teacher" else ""
    return Prompts(model.pipeline, [request.what], each=request.num, negative=negative or None)


def _check_prompt(request: Request, offer: Offer) -> None:
    _check(request, offer)
    check_text(request.what, "the prompt")
    check_text(request.negative, "the negative prompt")


class _PromptRun:
    """A run of Stable Diffusion, with the pipeline that has all but its U-Net."""

    def __init__(self, run: Run, family: TextFamily, pipeline: str) -> None:
        self._run, config = run, run.config
        self._models = run_models(run, PromptSettings(), pipeline)
        index = base_pipeline(pipeline or config.model.pipeline, family)
        own = config.distill.guidance
        if own is None:
            own = chosen_scale(config.distill)
        self.title, self.batch_size = _title(run.workdir), PROMPT_BATCH
        self.offer = Offer(
            networks=_networks(run),
            of_prompts=True,
            averages=tuple(config.optim.ema_decays) if run.trained == "student" else (),
            steps={"teacher": config.teacher.sampler_steps},
            guidance=default_guidance(index, family) if own is None else own,
            scales=scale_range(config.distill) if run.trained == "student" else None,
        )

    def check(self, request: Request) -> None:
        """See `Subject`."""
        _check_prompt(request, self.offer)

    def captions(self, request: Request) -> list[str]:
        """See `Subject`."""
        return [""] * request.num

    def conditions(self, network: str, request: Request, model: Model) -> Prompts:
        """See `Subject`."""
        return _prompts(network, request, model)

    def way(self, network: str, request: Request) -> Way:
        """See `Subject`."""
        run, note = _chosen(self._run, network, request.ema)
        assert run.file is not None
        model = self._models(run, settings_of(network, request, self.offer))
        return Way(model, run.name, run.file, note)


class _PipelineFolder:
    """A diffusers pipeline: one network, a student if its scheduler says so."""

    def __init__(self, folder: str, settings: PromptSettings) -> None:
        self._models, self._folder = pipeline_models(folder, settings), path_of(folder)
        model = self._models(settings)
        pipeline = model.pipeline
        assert pipeline is not None
        self.title, self.batch_size = _title(self._folder), PROMPT_BATCH
        if not is_few_step(pipeline.scheduler):
            usual = default_guidance(pipeline.index, model.family)
            steps = {"teacher": TEACHER_STEPS}
            self.offer = Offer(("teacher",), True, steps=steps, guidance=usual)
        else:
            fixed = recorded_times(pipeline.scheduler) is not None
            steps = {} if fixed else {"student": STUDENT_STEPS}
            scales = recorded_scales(pipeline.scheduler)
            told = None if scales is None else model.guidance
            self.offer = Offer(("student",), True, steps=steps, guidance=told, scales=scales)

    def check(self, request: Request) -> None:
        """See `Subject`."""
        _check_prompt(request, self.offer)

    def captions(self, request: Request) -> list[str]:
        """See `Subject`."""
        return [""] * request.num

    def conditions(self, network: str, request: Request, model: Model) -> Prompts:
        """See `Subject`."""
        return _prompts(network, request, model)

    def way(self, network: str, request: Request) -> Way:
        """See `Subject`."""
        model = self._models(settings_of(network, request, self.offer))
        return Way(model, str(self._folder), fetched(self._folder))
