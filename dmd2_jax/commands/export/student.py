"""A student as a diffusers pipeline folder, or as a LoRA file."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dmd2_jax.commands.export.card import model_card
from dmd2_jax.commands.export.command import Options
from dmd2_jax.commands.export.folder import (
    LORA_FILE,
    LORA_PREFIX,
    copied_bytes,
    write_lora,
    write_pipeline,
)
from dmd2_jax.commands.export.single_file import SINGLE_FILE, write_single_file
from dmd2_jax.config.refused import Refused
from dmd2_jax.families.published.lora import check_lora_tensors
from dmd2_jax.families.published.lora_file import (
    LoraLayer,
    is_lora,
    lora_alphas,
    lora_layers,
)
from dmd2_jax.families.published.pipeline import PipelineIndex, read_pipeline_index
from dmd2_jax.families.published.scheduler import read_scheduler, student_scheduler
from dmd2_jax.families.stable_diffusion.original_names import unet_names
from dmd2_jax.recipe.open import weights_file
from dmd2_jax.recipe.text_family import TextFamily, base_pipeline, pipeline_family, text_family
from dmd2_jax.run.checkpoint import state_bytes
from dmd2_jax.run.folder import check_free_space
from dmd2_jax.runtime.places import has_folder, path_of
from dmd2_jax.runtime.whole_file import whole_folder
from dmd2_jax.sampling.runs import open_run
from dmd2_jax.text2image.pipeline import read_scheduler_config
from dmd2_jax.typing import Params
from dmd2_jax.weights.state_dict import Tensors
from dmd2_jax.weights.weight_files import read_weights

__all__ = ["export"]

_PEFT = re.compile(r"\.lora_[AB]\.weight$")
_ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


class _Student(NamedTuple):
    """What is exported.

    Attributes:
      base: the teacher's pipeline.
      family: the U-Net.
      params: its weights; None: adapters alone are asked for.
      times: the student's; (): it is a teacher.
      file: of the adapters.
      rank: of the adapters; None: not known.
    """

    base: PipelineIndex
    family: TextFamily
    params: Params | None
    times: tuple[int, ...]
    file: Path = Path()
    rank: int | None = None


def export(options: Options) -> str:
    """Write a student so that diffusers loads it, whole or not at all.

    Args:
      options: what to write, and where.

    Returns:
      What was written, and how to use it.

    Raises:
      FileNotFoundError: if the pipeline is missing.
      ValueError: if the run, the weights or the pipeline are refused, or the folder is not empty.
      OSError: if the disk refuses.
    """
    out = _check_out(options.out)
    student = _from_run(options) if options.workdir else _from_file(options)
    scheduler = read_scheduler_config(student.base)
    if student.times:
        scheduler = student_scheduler(scheduler, student.times, options.scheduler or "lcm")
    elif options.scheduler:
        raise Refused(
            f"--scheduler={options.scheduler} of a teacher's run, expected none: it keeps its "
            "pipeline's; leave --scheduler away."
        )
    if student.params is None:
        return _write_lora(student, scheduler, out, options.lora)
    size = state_bytes(student.params) * _ITEM_BYTES[options.dtype] // 4
    check_free_space(out.parent, size + copied_bytes(student.base), "the pipeline")
    steps = f", steps at {', '.join(map(str, student.times))}" if student.times else ""
    with whole_folder(out) as folder:
        if options.single_file:
            unet = student.family.model.to_tensors(student.params)
            diffusion = read_scheduler(scheduler)
            write_single_file(student.base, unet, diffusion, folder, dtype=options.dtype)
            card = model_card(student.base, scheduler, "single_file", SINGLE_FILE)
        else:
            model, params = student.family.model, student.params
            write_pipeline(student.base, model, params, scheduler, folder, dtype=options.dtype)
            card = model_card(student.base, scheduler)
        (folder / "README.md").write_text(card)
    if options.single_file:
        return (
            f"{out}: {SINGLE_FILE} of the original names{steps}\n"
            "use it in ComfyUI, A1111 or Forge with the sampler that README.md there names"
        )
    return (
        f"{out}: {student.base.class_name} with {scheduler['_class_name']}{steps}\n"
        f"use it with: dmd2 sample --pipeline={out} --prompt='...', or in Python by README.md there"
    )


def _write_lora(student: _Student, scheduler: dict[str, Any], out: Path, names: str) -> str:
    tensors = _adapters(student)
    with whole_folder(out) as folder:
        write_lora(tensors, folder, names)
        card = model_card(student.base, scheduler, names, LORA_FILE)
        (folder / "README.md").write_text(card)
    return (
        f"{out}: {len(tensors) // 2} adapters, {LORA_FILE}\n"
        f"use it with: pipe.load_lora_weights({str(out)!r}), see README.md there"
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


def _from_run(options: Options) -> _Student:
    """Open what a run trained."""
    run = open_run(options.workdir, ema=options.ema, checkpoint=options.checkpoint)
    family = text_family(run.family)
    if family is None:
        raise Refused(
            f"{options.workdir} holds a run of model.family={run.config.model.family!r}, expected "
            "a text-to-image model; `dmd2 sample` draws its classes, `dmd2 convert` writes its "
            "weights."
        )
    base = base_pipeline(options.pipeline or run.config.model.pipeline, family)
    if options.variant:
        base = base._replace(variant=options.variant)
    distill = run.config.distill
    times = tuple(int(t) for t in distill.student_times) if run.which == "student" else ()
    if not options.lora:
        return _Student(base, family, run.load(), times)
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
    return _Student(base, family, None, times, file, distill.lora_rank)


def _from_file(options: Options) -> _Student:
    """Open the student in a file, the network being that of the pipeline's config."""
    index = read_pipeline_index(options.pipeline, options.variant)
    family = pipeline_family(index)
    file, times = weights_file(options.weights, ""), tuple(options.times)
    if options.lora:
        return _Student(index, family, None, times, file)
    return _Student(index, family, family.load(file), times)


def _adapters(student: _Student) -> Tensors:
    """Read the adapters' tensors and check them against the base."""
    shapes = student.family.tensor_shapes()
    weights = read_weights(student.file)
    tensors = {name.removeprefix(LORA_PREFIX): t for name, t in weights.tensors.items()}
    try:
        ours = all(_PEFT.search(name) for name in tensors) and not lora_alphas(weights)
        if is_lora(tensors) and not ours:
            tensors = _as_peft(lora_layers(weights, shapes, unet_names(shapes)))
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
