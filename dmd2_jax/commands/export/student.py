"""A student as a diffusers pipeline folder, or as a LoRA file: `dmd2 export`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dmd2_jax.commands.export.folder import (
    LORA_PREFIX,
    copied_bytes,
    model_card,
    write_lora,
    write_pipeline,
)
from dmd2_jax.config.refused import Refused
from dmd2_jax.families.published.folder import read_component_config
from dmd2_jax.families.published.lora import check_lora_tensors
from dmd2_jax.families.published.pipeline import PipelineIndex, read_pipeline_index
from dmd2_jax.families.published.scheduler import STUDENT_SCHEDULERS, student_scheduler
from dmd2_jax.families.stable_diffusion import family as stable_diffusion
from dmd2_jax.families.stable_diffusion.family import StableDiffusionFamily
from dmd2_jax.recipe.open import weights_file
from dmd2_jax.run.checkpoint import state_bytes
from dmd2_jax.run.folder import check_free_space
from dmd2_jax.runtime.whole_file import whole_folder
from dmd2_jax.sampling.text_run import open_text_run
from dmd2_jax.text2image.pipeline import read_scheduler_config
from dmd2_jax.typing import Params
from dmd2_jax.weights.state_dict import Tensors, read_safetensors

__all__ = ["ExportOptions", "export"]

_ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class ExportOptions:
    """What `dmd2 export` is asked for.

    Attributes:
      workdir: run folder of a distillation; "": weights.
      weights: file of a student's weights, or of its adapters; "": those of the run.
      pipeline: folder of the pipeline that the student's teacher is from; "": the run's.
      times: the student's, decreasing; (): the run's.
      ema: the decay of the student's average of a run.
      checkpoint: of the run; None: its latest export.
      scheduler: "lcm" or "ddim"; "": "lcm" of a student, and its pipeline's of a teacher.
      lora: write the adapters alone.
      dtype: of the U-Net's tensors.

    Raises:
      Refused: if they contradict each other.
    """

    workdir: str = ""
    weights: str = ""
    pipeline: str = ""
    times: Sequence[int] = ()
    ema: float | None = None
    checkpoint: int | None = None
    scheduler: str = ""
    lora: bool = False
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if bool(self.workdir) == bool(self.weights):
            raise Refused(
                f"got --workdir={self.workdir!r} and --weights={self.weights!r}, expected one of "
                "them: the run of a distillation, or a file of its weights."
            )
        if self.weights and not (self.pipeline and self.times):
            raise Refused(
                f"--weights={self.weights} with --pipeline={self.pipeline!r} and --times="
                f"{','.join(map(str, self.times))!r}, expected both: the teacher's pipeline, and "
                "the student's times such as --times=999,749,499,249."
            )
        if self.workdir and self.times:
            raise Refused(
                "--times with --workdir, whose config says them, expected one; leave --times away."
            )
        if self.weights and (self.ema is not None or self.checkpoint is not None):
            raise Refused(
                "--ema or --checkpoint with --weights, expected --workdir, from whose files they "
                "choose; leave them away."
            )
        if self.lora and self.checkpoint is not None:
            raise Refused(
                f"--lora with --checkpoint={self.checkpoint}, expected one: adapters alone are "
                "taken from the run's latest export; leave one away."
            )
        if self.lora and self.dtype != "float32":
            raise Refused(
                f"--lora with --dtype={self.dtype}, which is of a whole U-Net, expected one: "
                "adapters are small and written as float32; leave --dtype away."
            )
        if self.scheduler not in ("", *STUDENT_SCHEDULERS):
            raise Refused(
                f"--scheduler={self.scheduler}, expected one of {STUDENT_SCHEDULERS}; choose one."
            )


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
    family: StableDiffusionFamily
    params: Params | None
    times: tuple[int, ...]
    file: Path = Path()
    rank: int | None = None


def export(options: ExportOptions, out: str | Path) -> str:
    """Write a student so that diffusers loads it, whole or not at all.

    Args:
      options: what to write.
      out: the folder; new or empty.

    Returns:
      What was written, and how to use it.

    Raises:
      FileNotFoundError: if the pipeline is missing.
      ValueError: if the run, the weights or the pipeline are refused, or the folder is not empty.
      OSError: if the disk refuses.
    """
    out = _check_out(out)
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


def _from_run(options: ExportOptions) -> _Student:
    """Open what a run trained."""
    run = open_text_run(
        options.workdir,
        ema=options.ema,
        checkpoint=options.checkpoint,
        pipeline=options.pipeline,
    )
    distill = run.config.distill
    times = tuple(int(t) for t in distill.student_times) if run.which == "student" else ()
    if not options.lora:
        return _Student(run.base, run.family, run.load(), times)
    if not (times and distill.lora_rank):
        raise Refused(
            f"--lora of {options.workdir}, which trained a whole network, expected a distillation "
            "with distill.lora_rank; leave --lora away."
        )
    name = f"{Path(run.file or '').stem}_lora.safetensors"
    file = weights_file(str(options.workdir), name)
    return _Student(run.base, run.family, None, times, file, distill.lora_rank)


def _from_file(options: ExportOptions) -> _Student:
    """Open the student in a file, the network being that of the pipeline's config."""
    index = read_pipeline_index(options.pipeline)
    unet = read_component_config(index.part("unet"))
    family = stable_diffusion.build({"unet": unet, "scheduler": read_scheduler_config(index)})
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
