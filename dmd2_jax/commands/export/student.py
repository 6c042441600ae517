"""A student as a diffusers pipeline folder, or as a LoRA file."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from dmd2_jax.commands.export.card import Card, header, model_card
from dmd2_jax.commands.export.classes import export_classes
from dmd2_jax.commands.export.command import Options
from dmd2_jax.commands.export.folder import (
    LORA_FILE,
    copied_bytes,
    write_lora,
    write_pipeline,
)
from dmd2_jax.commands.export.origin import Licence, read_origin
from dmd2_jax.commands.export.push import check_header, check_push, push
from dmd2_jax.commands.export.record import Record, read_record
from dmd2_jax.commands.export.scale import Scaled, open_scale
from dmd2_jax.commands.export.single_file import SINGLE_FILE, write_single_file
from dmd2_jax.config.refused import Refused
from dmd2_jax.config.sizes import Size, size_of, sizes_of
from dmd2_jax.families.published.flow_scheduler import flow_student_scheduler, is_flow
from dmd2_jax.families.published.folder import read_component_config
from dmd2_jax.families.published.lora import check_lora_tensors
from dmd2_jax.families.published.lora_file import (
    LoraLayer,
    is_lora,
    lora_alphas,
    lora_layers,
)
from dmd2_jax.families.published.pipeline import PipelineIndex, read_pipeline_index
from dmd2_jax.families.published.scheduler import (
    read_scheduler,
    recorded_as,
    student_scheduler,
)
from dmd2_jax.families.stable_diffusion.original_names import unet_names
from dmd2_jax.networks.published_config import square_side
from dmd2_jax.recipe.guidance import input_scale
from dmd2_jax.recipe.open import student_times
from dmd2_jax.recipe.text_family import TextFamily, base_pipeline, pipeline_family, text_family
from dmd2_jax.recipe.weights_file import weights_file
from dmd2_jax.run.checkpoint import state_bytes
from dmd2_jax.run.folder import check_free_space
from dmd2_jax.runtime.fetched import fetched
from dmd2_jax.runtime.places import has_folder, path_of
from dmd2_jax.runtime.whole_file import whole_folder
from dmd2_jax.sampling.runs import Run, open_run
from dmd2_jax.text2image.pipeline import open_pipeline, read_scheduler_config
from dmd2_jax.typing import Params
from dmd2_jax.version import __version__
from dmd2_jax.weights.state_dict import Tensors
from dmd2_jax.weights.weight_files import read_weights

__all__ = ["export"]

_PEFT = re.compile(r"\.lora_[AB]\.weight$")
_LORA = ("peft", "kohya")
_ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


class _Student(NamedTuple):
    """What is exported.

    Attributes:
      base: the teacher's pipeline.
      family: the network.
      times: the student's; (): it is a teacher.
      load: reads its weights, whole.
      file: of the adapters.
      rank: of the adapters; None: not known.
      record: what the run tells of it.
      shapes: of the latents that it was trained on, with its times for each.
      scaled: how its guidance scale is written; None: it is a file's, at one scale.
    """

    base: PipelineIndex
    family: TextFamily
    times: tuple[float, ...]
    load: Callable[[], Params]
    file: Path = Path()
    rank: int | None = None
    record: Record = Record()
    shapes: Mapping[Size, tuple[float, ...]] = MappingProxyType({})
    scaled: Scaled | None = None

    @property
    def guidance(self) -> tuple[float | None, tuple[float, float] | None]:
        """The scale that the network takes by default, and the range; None: it takes none."""
        if self.scaled is None:
            return input_scale(self.family), None
        return self.scaled.scale, self.scaled.ends


def export(options: Options) -> str:
    """Write a student so that diffusers loads it, whole or not at all; push it if that is asked.

    Args:
      options: what to write, and where.

    Returns:
      What was written, and how to use it; of a dry run, what would be.

    Raises:
      FileNotFoundError: if the pipeline is missing.
      ValueError: if the run, the weights or the pipeline are refused, the folder is not empty, or
        the Hub would not take it; before anything is written.
      OSError: if the disk or the Hub refuses.
    """
    there = bool(options.push) and check_push(options.push, private=options.private)
    out = _check_out(options.out)
    if options.workdir:
        run = open_run(options.workdir, options.which, options.ema, checkpoint=options.checkpoint)
        if text_family(run.family) is None:
            return export_classes(run, options, out)
        student = _from_run(options, run)
    else:
        student = _from_file(options)
    _check_programs(student.base, options)
    card = _card(student, options)
    if options.push:
        check_header(options.push, header(card))
    tensors = _adapters(student) if options.lora else {}
    if not options.lora:
        size = state_bytes(student.family.param_shapes()) * _ITEM_BYTES[options.dtype] // 4
        check_free_space(out.parent, size + copied_bytes(student.base), "the pipeline")
    what = f"{out}: {_described(card, len(tensors) // 2)}"
    if options.dry_run:
        return "\n".join(["dry run: " + what, *_told(card), *_to_hub(card, there, options.private)])
    with whole_folder(out) as folder:
        _write(student, card, tensors, folder)
    said = "\n".join([what, *_told(card)])
    if options.push:
        message = f"{_described(card, len(tensors) // 2)}, by dmd2_jax {__version__}"
        address = push(fetched(out), options.push, private=options.private, message=message)
        return f"{said}\npushed to {address}"
    return f"{said}\n{_use(out, card)}"


def _card(student: _Student, options: Options) -> Card:
    """Return what the README.md tells, with the student's scheduler."""
    scheduler = read_scheduler_config(student.base)
    pixels: Size = 0
    size, (guidance, scales) = size_of(*student.family.image_shape[:2]), student.guidance
    if student.times and is_flow(scheduler):
        scheduler = flow_student_scheduler(
            scheduler,
            student.times,
            options.scheduler or "euler",
            size=size,
            guidance=guidance,
            by_size=student.shapes,
            scales=scales,
        )
        pixels = open_pipeline(student.base, latent_size=size).resolution
    elif student.times:
        scheduler = student_scheduler(scheduler, student.times, options.scheduler or "lcm")
        own = read_component_config(student.base.part(student.base.network)).get("sample_size")
        if (
            size != square_side(own) or len(student.shapes) > 1
        ):  # which diffusers draws where a call says nothing
            pixels = open_pipeline(student.base, latent_size=size).resolution
            scheduler |= recorded_as(size, times=student.shapes)
        if guidance is not None:
            scheduler |= recorded_as(size, guidance, student.shapes, scales)
    elif options.scheduler:
        raise Refused(
            f"--scheduler={options.scheduler} of a teacher's run, expected none: it keeps its "
            "pipeline's; leave --scheduler away."
        )
    origin = read_origin(student.base, base_model=options.base_model, licence=options.license)
    if student.record.teachers and origin.licence.said_by == "base":
        origin = origin._replace(licence=Licence())  # which is the pipeline's, not the teacher's
    kind = options.lora or ("single_file" if options.single_file else "pipeline")
    file = {"pipeline": "", "single_file": SINGLE_FILE}.get(kind, LORA_FILE)
    return Card(
        student.base,
        scheduler,
        origin,
        kind,
        file,
        options.dtype,
        student.record,
        options.push,
        pixels,
        tuple(
            (open_pipeline(student.base, latent_size=each).resolution, times)
            for each, times in student.shapes.items()
        ),
    )


def _write(student: _Student, card: Card, tensors: Tensors, folder: Path) -> None:
    """Write the files of an export into an empty folder."""
    base, model = student.base, student.family.model
    if student.scaled is not None and student.scaled.model is not None:
        model = student.scaled.model
    if card.kind in _LORA:
        write_lora(tensors, folder, base.network, card.kind)
    elif card.kind == "single_file":
        unet, diffusion = model.to_tensors(student.load()), read_scheduler(card.scheduler)
        write_single_file(base, unet, diffusion, folder, dtype=card.dtype)
    else:
        write_pipeline(base, model, student.load(), card.scheduler, folder, dtype=card.dtype)
    (folder / "README.md").write_text(model_card(card), encoding="utf-8")


def _check_programs(base: PipelineIndex, options: Options) -> None:
    """Refuse what other programs have names for in a U-Net alone."""
    if base.network == "unet":
        return
    asked = "--single_file" if options.single_file else f"--lora={options.lora}"
    if options.single_file or options.lora == "kohya":
        remedy = (
            "leave it away: the folder has the transformer's file, which diffusers opens"
            if options.single_file
            else "use --lora, by peft's names, which diffusers opens"
        )
        raise Refused(
            f"{asked} of a {base.class_name}, expected a pipeline with a U-Net: the names of those "
            f"programs are known here of Stable Diffusion's alone; {remedy}."
        )


def _described(card: Card, adapters: int) -> str:
    """Say in a line what an export is."""
    steps = f", steps at {', '.join(map(str, card.times))}" if card.times else ""
    if card.kind in _LORA:
        return f"{adapters} adapters, {card.file}"
    if card.kind == "single_file":
        return f"{card.file} of the original names{steps}"
    return f"{card.base.class_name} with {card.scheduler['_class_name']}{steps}"


def _told(card: Card) -> list[str]:
    """Say what of a README.md the user may want to know or to mend."""
    licence, stale = card.origin.licence, card.record.stale
    named = licence.name or licence.id
    why = {
        "you": "",
        "base": ", as README.md of the base says",
        "": ", as README.md of the base says none; --license says one",
    }
    said = [f"licence: {named}{why[licence.said_by]}"]
    if card.record.teachers and not licence.said_by:
        said = [
            f"licence: {named}, as the teacher's weights are not the base's; --license says one"
        ]
    return said + ([f"no figures in README.md: {stale}; `dmd2 evaluate` measures"] if stale else [])


def _to_hub(card: Card, there: bool, private: bool) -> list[str]:
    """Say what becomes of a repository."""
    if not card.place:
        return []
    seen = "private" if private else "public, unless its owner has new ones private"
    made = f"which is new: {seen}"
    kept = "which is there: files of the same names are replaced, others stay"
    return [f"push: to {card.place}, {kept if there else made}"]


def _use(out: Path, card: Card) -> str:
    """Say how an export is used."""
    if card.kind in _LORA:
        return f"use it with: pipe.load_lora_weights({str(out)!r}), see README.md there"
    if card.kind == "single_file":
        return "use it in ComfyUI, A1111 or Forge with the sampler that README.md there names"
    return (
        f"use it with: dmd2 sample --pipeline={out} --prompt='...', or in Python by README.md there"
    )


def _check_out(out: str | Path) -> Path:
    out = path_of(out).expanduser()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise Refused(
            f"--out={out} is there and is not empty, expected a new folder; choose another, or "
            "remove it."
        )
    if not has_folder(out.parent):
        raise Refused(f"--out={out} lies in no folder, expected {out.parent} to exist; create it.")
    return out


def _from_run(options: Options, run: Run) -> _Student:
    """Open what a run of prompts trained."""
    family = text_family(run.family)
    assert family is not None  # the caller has seen to it
    base = base_pipeline(options.pipeline or run.config.model.pipeline, family)
    if options.variant:
        base = base._replace(variant=options.variant)
    distill = run.config.distill
    is_student = run.which == "student"
    times = student_times(run.config, family.denoiser.schedule) if is_student else ()
    shapes = _times_by_shape(run) if times else {}
    record = read_record(run, base.folder)
    scaled = open_scale(run, family, options)
    record = record._replace(settings=(*record.settings, *scaled.rows))
    if not options.lora:
        load = scaled.load
        return _Student(base, family, times, load, record=record, shapes=shapes, scaled=scaled)
    if not (times and distill.lora_rank):
        raise Refused(
            f"--lora of {options.workdir}, which trained a whole network, expected a distillation "
            "with distill.lora_rank; leave --lora away."
        )
    if run.config.teacher.lora:
        raise Refused(
            f"--lora of {options.workdir}, whose teacher has the LoRA {run.config.teacher.lora} "
            "merged into it, expected a teacher that others have: adapters alone are right on "
            "those merged weights only; leave --lora away, to export merged weights."
        )
    name = f"{Path(run.file or '').stem}_lora.safetensors"
    file = weights_file(str(options.workdir), name)
    rank = distill.lora_rank
    return _Student(base, family, times, run.load, file, rank, record, shapes, scaled)


def _times_by_shape(run: Run) -> dict[Size, tuple[float, ...]]:
    """Return the student's times for each of the several shapes that a run was of; {}: of one."""
    sizes = sizes_of(run.config.model.resolution)
    if len(sizes) == 1:
        return {}
    schedules = {size: run.at(size).family.denoiser.schedule for size in sizes}
    return {size: student_times(run.config, schedule) for size, schedule in schedules.items()}


def _from_file(options: Options) -> _Student:
    """Open the student in a file, the network being that of the pipeline's config."""
    index = read_pipeline_index(options.pipeline, options.variant)
    family = pipeline_family(index)
    file, times = weights_file(options.weights, ""), tuple(options.times)
    return _Student(index, family, times, lambda: family.load(file), file)


def _adapters(student: _Student) -> Tensors:
    """Read the adapters' tensors and check them against the base."""
    shapes = student.family.tensor_shapes()
    weights = read_weights(student.file)
    prefix = f"{student.base.network}."
    tensors = {name.removeprefix(prefix): tensor for name, tensor in weights.tensors.items()}
    try:
        ours = all(_PEFT.search(name) for name in tensors) and not lora_alphas(weights)
        if is_lora(tensors) and not ours:
            original = unet_names(shapes) if student.base.network == "unet" else {}
            tensors = _as_peft(lora_layers(weights, shapes, original))
        check_lora_tensors(tensors, shapes, student.rank)
    except ValueError as error:
        raise Refused(f"{student.file}: {error}") from error
    return tensors


def _as_peft(layers: Mapping[str, LoraLayer]) -> dict[str, np.ndarray]:
    """Return adapters of another naming by peft's names, with their factor in them."""
    made = {}
    for name, (down, up, scale) in layers.items():
        made[f"{name}.lora_A.weight"] = down
        made[f"{name}.lora_B.weight"] = up if scale == 1 else np.float32(scale) * up
    return made
