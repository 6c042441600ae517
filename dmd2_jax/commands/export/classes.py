"""A student of classes as its weights and a README.md that says how to sample them.

No pipeline of another program samples such a student, so what it is, its numbers and the lines of
Python are all that there is to write. One that was made from diffusers' DiTPipeline is written as
such a pipeline.
"""

from pathlib import Path
from typing import Any

import jax.numpy as jnp

from dmd2_jax.commands.export.command import Options
from dmd2_jax.commands.export.folder import copied_bytes, write_pipeline
from dmd2_jax.commands.export.record import Record, read_record
from dmd2_jax.commands.export.scale import open_scale
from dmd2_jax.config.family import model_defaults
from dmd2_jax.config.refused import Refused
from dmd2_jax.families.published.pipeline import (
    CLASS_PIPELINES,
    INDEX,
    PipelineIndex,
    read_pipeline_index,
)
from dmd2_jax.families.published.scheduler import student_scheduler
from dmd2_jax.recipe.classes import weights_record
from dmd2_jax.recipe.exported_weights import save_weights
from dmd2_jax.recipe.open import student_times
from dmd2_jax.run.checkpoint import state_bytes
from dmd2_jax.run.folder import check_free_space
from dmd2_jax.runtime.places import path_of
from dmd2_jax.runtime.whole_file import whole_folder
from dmd2_jax.sampling.runs import Run
from dmd2_jax.text2image.pipeline import read_scheduler_config
from dmd2_jax.version import __version__

__all__ = ["export_classes"]

_FILE = "student.safetensors"
_PIPELINES_ONLY = {
    "lora": "",
    "single_file": False,
    "scheduler": "",
    "pipeline": "",
    "variant": "",
    "dtype": "float32",
    "license": "",
    "base_model": "",
    "push": "",
}
"""Flags of what a pipeline is exported as, and their defaults."""


def export_classes(run: Run, options: Options, out: Path) -> str:
    """Write a student's weights, in float32, and its README.md, whole or not at all.

    Args:
      run: of a distillation, with the network that is exported.
      options: what is asked for.
      out: the folder.

    Returns:
      What was written; of a dry run, what would be.

    Raises:
      Refused: if the run is a teacher's, or a flag is of pipelines alone.
      OSError: if the disk refuses.
    """
    if run.which != "student":
        raise Refused(
            f"{run.workdir} holds a run of `train-teacher` without prompts, expected a student; "
            "`dmd2 convert` writes its weights."
        )
    for name, default in _PIPELINES_ONLY.items():
        if getattr(options, name) != default:
            raise Refused(
                f"--{name} of a run of classes, expected none: it is of text-to-image pipelines; "
                f"leave --{name} away."
            )
    scaled, base = open_scale(run, run.family, options), _base(run)
    shapes, size = run.family.tensor_shapes(), state_bytes(run.family.param_shapes())
    written = f"{_FILE}, {len(shapes)} tensors"
    scheduler: dict[str, Any] = {}
    if base is not None:
        times = student_times(run.config, run.family.denoiser.schedule)
        scheduler = student_scheduler(read_scheduler_config(base), times)
        written = f"{base.class_name} with {scheduler['_class_name']}"
        size += copied_bytes(base)
    check_free_space(out.parent, size, "the weights")
    what = f"{out}: {written}, and README.md with the lines that sample it"
    if options.dry_run:
        return f"dry run: {what}"
    record = read_record(run, run.workdir)
    record = record._replace(settings=(*record.settings, *scaled.rows))
    with whole_folder(out) as folder:
        if base is not None:
            network: Any = run.family  # which came from such a folder
            write_pipeline(base, network.model, scaled.load(), scheduler, folder)
        else:
            known = None if run.file is None else weights_record(run.file)
            save_weights(run.family, scaled.load(), folder / _FILE, known)
        (folder / "README.md").write_text(_readme(run, record, base), encoding="utf-8")
    return what


def _base(run: Run) -> PipelineIndex | None:
    """Return diffusers' pipeline of classes that a run was made from; None: it was from none."""
    place = run.config.model.get("pipeline", "")
    folder = path_of(place or "-").expanduser()
    if not place or not (folder / INDEX).is_file():
        return None
    return read_pipeline_index(folder, known=CLASS_PIPELINES)


def _readme(run: Run, record: Record, base: PipelineIndex | None) -> str:
    """Return how the student is sampled."""
    config, family = run.config, run.family
    times = student_times(config, family.denoiser.schedule)
    height, width, channels = family.image_shape
    classes = f"{family.num_classes} classes" if family.num_classes else "no classes"
    steps = f"{len(times)} step{'s' if len(times) > 1 else ''}"
    parts = [
        f"# {config.name}: {steps}",
        f"A student of {steps}, distilled by distribution matching (DMD2, "
        "[arXiv 2405.14867](https://arxiv.org/abs/2405.14867)) with dmd2_jax "
        f"{__version__}. It draws [{height}, {width}, {channels}] of {classes}, values as in "
        "training: images are in [-1, 1]. The guidance is in its weights.",
    ]
    sampling = f"## Sampling\n\n{_steps(run, times)}"
    if base is not None:
        parts += [sampling, f"## diffusers\n\n{_diffusers(base, times)}"]
    else:
        weights = (
            f"## Weights\n\n`{_FILE}`: float32, the names of the original program. "
            f"{getattr(family, 'weights_note', '')}"
        )
        parts += [weights.rstrip(), sampling, f"## Python\n\n{_python(run, times)}"]
    if record.figures:
        measured = f"By `dmd2 evaluate`: {record.measured}."
        parts += ["## Measured", f"```\n{record.figures}\n```", measured]
    rows = "\n".join(f"| {what} | {value} |" for what, value in record.settings)
    parts += [f"## Details\n\n| | |\n|---|---|\n{rows}"]
    return "\n\n".join(parts) + "\n"


def _steps(run: Run, times: tuple[float, ...]) -> str:
    """Say what a step is, and the numbers of each."""
    schedule = run.family.denoiser.schedule
    t = jnp.asarray(times, schedule.levels.dtype)
    alphas, sigmas = schedule.alpha(t), schedule.sigma(t)
    rows = zip(times, alphas.tolist(), sigmas.tolist(), strict=True)
    table = "\n".join(f"| {t:.7g} | {alpha:.7g} | {sigma:.7g} |" for t, alpha, sigma in rows)
    first = float(schedule.prior_scale(t[:1])[0])
    rule = (
        f"It begins with x = {first:.7g} z of standard normal z. A step at time t predicts x_0 "
        "from (x, t, class); the next one's x is alpha x_0 + sigma z with fresh z and the next "
        "row's numbers. The last x_0 is the image."
    )
    return f"{rule}\n\n| t | alpha | sigma |\n|---|---|---|\n{table}"


def _python(run: Run, times: tuple[float, ...]) -> str:
    """Return the lines that sample it by this project."""
    family = run.family
    shape = ", ".join(map(str, family.image_shape))
    settings = _settings(run)
    labels = f"jnp.arange(8) % {family.num_classes}" if family.num_classes else "jnp.zeros(8, int)"
    name = run.config.model.family
    build = f"families.{name}" if "." not in name else "own"
    imports = "from dmd2_jax import families" if "." not in name else f"import {name} as own"
    return "\n".join(
        [
            "```python",
            "import jax",
            "import jax.numpy as jnp",
            imports,
            "from dmd2_jax.distill import generate",
            "",
            f"family = {build}.build({settings!r})",
            f'params = family.load("{_FILE}")',
            f"noise = jax.random.normal(jax.random.key(0), ({len(times)}, 8, {shape}))",
            f"labels = family.cond({labels})",
            f"images = generate(family.denoiser, params, noise, labels, times={times!r})",
            "```",
        ]
    )


def _diffusers(base: PipelineIndex, times: tuple[float, ...]) -> str:
    """Return the lines that sample it by diffusers, whose call takes a number of steps alone."""
    whole = [int(t) for t in times]
    lines = [
        "```python",
        "import torch",
        f"from diffusers import {base.class_name}",
        "",
        f"pipe = {base.class_name}.from_pretrained(FOLDER)",
        "choose = pipe.scheduler.set_timesteps",
        f"pipe.scheduler.set_timesteps = lambda *_, device=None: choose(timesteps={whole}, "
        "device=device)",
        "torch.manual_seed(0)",
        f"images = pipe([1], guidance_scale=1.0, num_inference_steps={len(whole)}).images",
        "```",
    ]
    note = (
        "`guidance_scale=1.0` has to be said: by default the pipeline guides with a second call. "
        "It hands no generator to its scheduler, so that `torch.manual_seed` is what repeats an "
        "image."
    )
    return "\n".join(lines) + f"\n\n{note}"


def _settings(run: Run) -> dict[str, Any]:
    """Return the settings of a network that are not its family's defaults."""
    given = run.config.model.to_dict()
    counted = {"image_channels": run.family.image_shape[-1], "num_classes": run.family.num_classes}
    given |= {k: counted[k] for k in counted.keys() & given if given[k] is None}
    usual = model_defaults(given["family"]).to_dict()
    return {k: v for k, v in given.items() if k != "family" and usual.get(k) != v}
