"""What a run says of the weights that are exported: how they were trained, what was measured."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from dmd2_jax.config.refused import Refused
from dmd2_jax.config.text import read_json
from dmd2_jax.config.times import number_of_steps
from dmd2_jax.evaluate.sets import by_set
from dmd2_jax.evaluate.table import metrics_table
from dmd2_jax.recipe.exported_weights import written_step
from dmd2_jax.recipe.guidance import input_scale, scale_range
from dmd2_jax.run.exported import exported_step
from dmd2_jax.runtime.places import in_bucket, path_of
from dmd2_jax.sampling.runs import Run
from dmd2_jax.weights.hub import is_hub_path

__all__ = ["Record", "read_record"]

_FIGURES = "metrics.json"
_FLOOR = "real_fid_floor"
_MEASURED_BY = {
    "seed": "seed",
    "reference": "against",
    "extractor": "features",
    "clip": "CLIP",
    "clip_prefix": "its prefix",
    "pick": "PickScore",
    "hps": "HPS v2",
    "hps_weights": "its weights",
}
"""Keys of metrics.json of a whole measurement -> what a card calls them."""


class Record(NamedTuple):
    """What a card tells of a run.

    Attributes:
      settings: (what, value) of its training.
      teachers: files of the teacher's weights and adapters that are not the base pipeline's own.
      figures: a table of `dmd2 evaluate`; "": these weights were not measured.
      measured: how, in one line.
      stale: why figures that are there are not of these weights; "": there are none, or they are.
    """

    settings: tuple[tuple[str, str], ...] = ()
    teachers: tuple[str, ...] = ()
    figures: str = ""
    measured: str = ""
    stale: str = ""


def read_record(run: Run, base: Path) -> Record:
    """Return what a run says of the weights that are meant.

    Args:
      run: the run, with the network that is exported.
      base: the folder of the pipeline that has everything else.

    Raises:
      Refused: if its metrics.json is damaged.
    """
    config = run.config
    settings = _student(run) if run.which == "student" else _teacher(config)
    rows = (("recipe", config.name), *_lengths(run), *settings, ("seed", str(config.seed)))
    others = [config.teacher.weights, config.teacher.get("lora", "")]
    teachers = tuple(_short(it) for it in others if it and not _is_of(it, base))
    return Record(rows, teachers, *_measured(run))


def _is_of(path: str, base: Path) -> bool:
    """Return whether weights are those of the pipeline itself."""
    if is_hub_path(path):
        return False
    file, folder = path_of(path).expanduser().absolute(), base.absolute()
    return file == folder or folder in file.parents


def _short(path: str) -> str:
    """Return what of a path is no matter of this disk alone."""
    return path if is_hub_path(path) else Path(path).name


def _lengths(run: Run) -> Iterator[tuple[str, str]]:
    step = run.step if run.step is not None else exported_step(run.workdir)
    if run.best and run.file is not None:
        step = written_step(run.file)
    done = "" if step is None else f"{step:,} of "
    if run.trained == "student":
        distill = run.config.distill
        turns = f"each a generator turn and {distill.critic_turns} of the critic"
        yield "cycles", f"{done}{distill.cycles:,}, {turns}"
    else:
        yield "training steps", f"{done}{run.config.teacher.steps:,}"
    if run.which == "student":
        kept = "the last weights" if run.ema is None else f"the average of decay {run.ema:g}"
        yield "weights", "the best that the training measured" if run.best else kept


def _student(run: Run) -> Iterator[tuple[str, str]]:
    distill, optim = run.config.distill, run.config.optim
    yield "batch size", str(distill.batch_size)
    yield "learning rate", f"generator {optim.generator_lr:g}, critic {optim.critic_lr:g}"
    guidance = "none" if distill.guidance is None else f"{distill.guidance:g}"
    if ends := scale_range(distill):
        guidance = f"{ends[0]:g} to {ends[1]:g}, an input"
    elif (told := input_scale(run.family)) is not None:
        guidance = f"{told:g}, an input"
    yield "teacher's guidance", guidance
    for name in distill.get("objectives", ()):
        yield "objective", str(name)
    yield "distribution matching", _weight(distill.dm_weight)
    yield "GAN", _weight(distill.gan_generator_weight)
    if number_of_steps(distill) > 1:
        simulated = distill.backward_simulation
        yield "inputs in training", "its own, simulated" if simulated else "noised real latents"
    if distill.lora_rank:
        yield "adapters", f"rank {distill.lora_rank}, alpha {distill.lora_alpha:g}"


def _teacher(config: ConfigDict) -> Iterator[tuple[str, str]]:
    yield "batch size", str(config.teacher.batch_size)
    yield "learning rate", f"{config.teacher.lr:g}"
    yield "average", f"decay {config.teacher.ema_decay:g}"


def _weight(value: float | None) -> str:
    return "none" if value is None else f"weight {value:g}"


def _measured(run: Run) -> tuple[str, str, str]:
    """Return what `dmd2 evaluate` found of these weights, and of the teacher beside them.

    Returns:
      (figures, measured, stale), as a `Record` has them.
    """
    file = run.workdir / _FIGURES
    if not file.is_file():
        return "", "", ""
    try:
        return _figures(run, file, read_json(file))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refused(
            f"{file} cannot be read ({error}), expected what `dmd2 evaluate` wrote; measure again, "
            "or remove it for a README.md without figures."
        ) from error


def _figures(run: Run, file: Path, figures: Mapping[str, Any]) -> tuple[str, str, str]:
    sets, name = by_set(figures), _set_of(run)
    if name not in sets:
        return "", "", f"{file} has no figures of {name}"
    weights = None if in_bucket(run.workdir) else run.file
    if weights is not None and weights.stat().st_mtime > file.stat().st_mtime:
        return "", "", f"{file} is older than {weights.name}: its figures are of other weights"
    wanted = [it for it in ("teacher", name) if it in sets]
    shown = {f"{it}_{key}": value for it in wanted for key, value in sets[it].items()}
    shown |= {_FLOOR: figures[_FLOOR]} if figures.get(_FLOOR) is not None else {}
    return metrics_table(shown), _how(figures, sets[name]), ""


def _set_of(run: Run) -> str:
    """Return what metrics.json calls these weights."""
    return run.key if run.step is None else f"{run.key}_checkpoint_{run.step}"


def _how(figures: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    said = [f"{own['num_samples']:,} images"]
    if own.get("guidance") is not None:
        said.append(f"at guidance {own['guidance']:g}")
    for key, name in _MEASURED_BY.items():
        value = figures.get(key)
        if value not in (None, ""):
            said.append(f"{name} {_short(value) if str(value).startswith('/') else value}")
    return ", ".join(said)
