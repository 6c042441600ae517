"""A student as a diffusers pipeline folder, or as a LoRA file."""

from pathlib import Path
from typing import NamedTuple

from dmd2_jax.commands.export.command import Options
from dmd2_jax.commands.export.folder import (
    LORA_PREFIX,
    copied_bytes,
    model_card,
    write_lora,
    write_pipeline,
)
from dmd2_jax.config.refused import Refused
from dmd2_jax.families.published.lora import check_lora_tensors
from dmd2_jax.families.published.pipeline import PipelineIndex, read_pipeline_index
from dmd2_jax.families.published.scheduler import student_scheduler
from dmd2_jax.recipe.open import weights_file
from dmd2_jax.recipe.text_family import TextFamily, base_pipeline, pipeline_family, text_family
from dmd2_jax.run.checkpoint import state_bytes
from dmd2_jax.run.folder import check_free_space
from dmd2_jax.runtime.whole_file import whole_folder
from dmd2_jax.sampling.runs import open_run
from dmd2_jax.text2image.pipeline import read_scheduler_config
from dmd2_jax.typing import Params
from dmd2_jax.weights.state_dict import Tensors, read_safetensors

__all__ = ["export"]

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
        tensors = _adapters(student)
        with whole_folder(out) as folder:
            write_lora(tensors, folder)
            (folder / "README.md").write_text(model_card(student.base, scheduler, lora=True))
        return (
            f"{out}: {len(tensors) // 2} adapters, pytorch_lora_weights.safetensors\n"
            f"use it with: pipe.load_lora_weights({str(out)!r}), see README.md there"
        )
    size = state_bytes(student.params) * _ITEM_BYTES[options.dtype] // 4
    check_free_space(out.parent, size + copied_bytes(student.base), "the pipeline")
    with whole_folder(out) as folder:
        write_pipeline(
            student.base,
            student.family.model,
            student.params,
            scheduler,
            folder,
            dtype=options.dtype,
        )
        (folder / "README.md").write_text(model_card(student.base, scheduler))
    steps = f", steps at {', '.join(map(str, student.times))}" if student.times else ""
    return (
        f"{out}: {student.base.class_name} with {scheduler['_class_name']}{steps}\n"
        f"use it with: dmd2 sample --pipeline={out} --prompt='...', or in Python by README.md there"
    )


def _check_out(out: str | Path) -> Path:
    out = Path(out).expanduser()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise Refused(
            f"--out={out} is there and is not empty, expected a new folder; choose another, or "
            "remove it."
        )
    if not out.absolute().parent.is_dir():
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
    tensors = {
        name.removeprefix(LORA_PREFIX): tensor
        for name, tensor in read_safetensors(student.file).items()
    }
    try:
        check_lora_tensors(tensors, student.family.tensor_shapes(), student.rank)
    except ValueError as error:
        raise Refused(f"{student.file}: {error}") from error
    return tensors
