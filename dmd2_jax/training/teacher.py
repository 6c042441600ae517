"""Train a teacher, with EDM's objective, on eps or on a flow: `dmd2 train-teacher`."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from dmd2_jax import data
from dmd2_jax.config.load import plain
from dmd2_jax.config.refused import Refused
from dmd2_jax.data import Batch
from dmd2_jax.diffusion.schedules import is_rectified_flow
from dmd2_jax.recipe.classes import data_record
from dmd2_jax.recipe.distillation import state_shapes
from dmd2_jax.recipe.exported_weights import save_weights, whose_notes
from dmd2_jax.recipe.open import Family, Recipe, check_has_images, check_one_shape, open_recipe
from dmd2_jax.recipe.placement import check_player_rules, mesh_rules
from dmd2_jax.recipe.tables import parameter_table
from dmd2_jax.run.exported import BEST
from dmd2_jax.run.job import Job
from dmd2_jax.run.loop import run_loop
from dmd2_jax.run.places import recorded
from dmd2_jax.run.sealed_config import run_identity
from dmd2_jax.runtime.devices import say_devices
from dmd2_jax.runtime.distributed import in_step, on_first, say, to_host
from dmd2_jax.runtime.gathering import brought_together
from dmd2_jax.runtime.offload import on_host
from dmd2_jax.runtime.places import path_of
from dmd2_jax.runtime.random import stream_key
from dmd2_jax.runtime.sharding import (
    batch_sharding,
    check_rules,
    like_params,
    pin_batch,
    replicated,
    shard_batch,
    tree_shardings,
)
from dmd2_jax.sampling.samplers import Sampler, teacher_sampler
from dmd2_jax.training.drawing import draw_progress
from dmd2_jax.training.run import keep, open_training
from dmd2_jax.training.score import training_score
from dmd2_jax.training.stopping import stop_conditions, stopping
from dmd2_jax.training.teacher_step import (
    TeacherConfig,
    TeacherState,
    init_teacher_state,
    teacher_step,
)
from dmd2_jax.typing import Array, Key, Params, PyTree

__all__ = [
    "NAME",
    "compile_step",
    "prepare",
    "read_step",
    "state_shardings",
    "teacher_batch",
    "train",
]

NAME = "teacher.safetensors"
"""The file of a run folder that holds the trained weights (their moving average)."""


def train(
    config: ConfigDict,
    workdir: str | Path,
    *,
    dry_run: bool = False,
    profile: tuple[int, int] | None = None,
    allow_change: Sequence[str] = (),
) -> Path | None:
    """Train the teacher of a config in a run folder, or resume what is there.

    Args:
      config: the whole config; `teacher`, `model`, `data`, `log`, `mesh` and `seed` count.
      workdir: the run folder: config.json, data.json, metrics.jsonl, speed.jsonl, curves.png,
        grid_*.png, progress.gif, checkpoints/, teacher.safetensors.
      dry_run: check everything that can be checked before the first compilation, and stop.
      profile: see `Job`.
      allow_change: keys of the config that may differ from those of the run that is resumed.

    Returns:
      The file of weights; None for a dry run.

    Raises:
      ValueError: if the config, the data or the folder is refused.
      Interrupted: if asked to stop; the run is then saved.
    """
    workdir = path_of(workdir)
    recipe = open_recipe(config, config.teacher.batch_size)
    check_one_shape(recipe, "a teacher's training")
    config = recipe.config
    stop_conditions(config, students=False)
    family, mesh = recipe.family, recipe.mesh
    _check_objective(recipe)
    shapes = jax.eval_shape(init_teacher_state, family.param_shapes())
    shardings = state_shardings(recipe)
    with open_training(
        config,
        workdir,
        "train-teacher",
        shapes,
        dataset=recipe.dataset,
        total=config.teacher.steps,
        mesh=mesh,
        allow_change=allow_change,
        dry_run=dry_run,
    ) as resumed:
        step = compile_step(recipe)
        say_devices(mesh)
        _say_unused(config)
        print(parameter_table({"teacher": shapes.params}), flush=True)
        if dry_run:
            x_0, cond = jax.eval_shape(lambda: teacher_batch(recipe, 0))
            jax.eval_shape(step, shapes, x_0, cond, jax.random.key(0))
            print(f"dry run: {workdir} {'would be resumed' if resumed else 'can be started'}.")
            return None
        run_loop(_described(recipe, workdir, in_step(step), shapes, shardings, profile))
        return workdir / NAME


def _described(
    recipe: Recipe,
    workdir: Path,
    step: Callable[..., tuple[TeacherState, dict[str, Any]]],
    shapes: TeacherState,
    shardings: TeacherState,
    profile: tuple[int, int] | None,
) -> Job:
    """Describe the run to the loop."""
    config, family, mesh = recipe.config, recipe.family, recipe.mesh
    root, data_is = jax.random.key(config.seed), data_record(recipe.dataset)
    run = run_identity(workdir)

    def make_state() -> TeacherState:
        with on_host():
            weights = family.init(stream_key(root, "init"))
        return init_teacher_state(weights, shardings)

    def make_batch(i: int, first_example: int) -> Batch:
        return shard_batch(read_step(recipe, i, first_example=first_example), mesh)

    def advance(state: TeacherState, batch: Batch, i: int) -> tuple[TeacherState, dict[str, Any]]:
        # The second step moves nothing: the batch lies there already.
        x_0, cond = jax.device_put(prepare(batch, family), batch_sharding(mesh))
        return step(state, x_0, cond, stream_key(root, "teacher", i))

    def export(state: TeacherState, done: int, name: str = NAME) -> None:
        weights, file = to_host(state.ema), workdir / name
        whose = whose_notes(run, file, done)
        on_first(lambda: save_weights(family, weights, file, data_is, whose))

    sampler, b = teacher_sampler(family, config), config.teacher.batch_size
    return Job(
        workdir=workdir,
        unit="step",
        total=config.teacher.steps,
        total_key="teacher.steps",
        log=config.log,
        keep=keep(config),
        shapes=shapes,
        shardings=shardings,
        make_state=make_state,
        make_batch=make_batch,
        advance=advance,
        examples_per_step=b,
        images_per_step=b,
        max_skipped_in_a_row=config.optim.max_skipped_in_a_row,
        record={"config": recorded(plain(config)), "data": data_is.to_json()},
        export=export,
        export_key="teacher_export_every",
        draw=_drawing(recipe, sampler, workdir),
        draw_key="teacher_grid_every",
        score=training_score(recipe, workdir, sampler, lambda state: state.ema),
        stopper=stopping(stop_conditions(config, students=False), "step", workdir),
        export_best=lambda state, done: export(state, done, BEST),
        shown=("denoising_loss",),
        profile=profile,
    )


def _check_objective(recipe: Recipe) -> None:
    """Refuse an objective whose times are not the family's, and data without images."""
    schedule, objective = recipe.family.denoiser.schedule, recipe.config.teacher.objective
    ends = jnp.asarray(schedule.levels[[0, -1]])
    fits = {
        "edm": bool((schedule.alpha(ends) == 1.0).all()),
        "flow": is_rectified_flow(schedule),
    }
    if not fits.get(objective, True):
        better = next((name for name, its in fits.items() if its), "eps")
        raise Refused(
            f"teacher.objective={objective} with model.family={recipe.config.model.family}, whose "
            f"times are none of that objective's, expected {better}; set "
            f"config.teacher.objective={better}."
        )
    check_has_images(recipe, "a teacher's training")


def _say_unused(config: ConfigDict) -> None:
    """Say which settings of the distillation's memory do nothing here: a recipe is for both."""
    unused = []
    if config.mesh.offload:
        unused.append(f"mesh.offload={tuple(config.mesh.offload)}")
    if config.optim.moment_dtype != "float32":
        unused.append(f"optim.moment_dtype={config.optim.moment_dtype}")
    if unused:
        say(
            f"{' and '.join(unused)} apply to the distillation alone: a teacher's training keeps "
            f"its state on the devices, in float32; mesh.fsdp splits it."
        )


def state_shardings(recipe: Recipe) -> TeacherState:
    """Return where the training state of a recipe lies on its mesh.

    Raises:
      ValueError: if a rule is wrong, or nothing is split over an axis that the mesh has.
    """
    mesh, rules = recipe.mesh, mesh_rules(recipe.config.mesh)
    params = recipe.family.param_shapes()
    if rules:  # the same recipe's may be for what only the distillation has
        state = state_shapes(recipe.config, recipe.family)
        check_player_rules(rules, params, state, mesh)
    else:
        check_rules(rules, params, mesh)
    moments = jax.eval_shape(init_teacher_state, params).opt_state
    places: Any = tree_shardings(params, mesh, rules)
    everywhere: Any = replicated(mesh)
    opt_state = like_params(moments, params, mesh, rules)
    return TeacherState(everywhere, everywhere, everywhere, places, opt_state, places)


def compile_step(recipe: Recipe) -> Callable[..., tuple[TeacherState, dict[str, Any]]]:
    """Return `teacher_step` with a recipe's settings, jitted: (state, x_0, cond, key), donating.

    State and batch lie where `state_shardings` and `batch_sharding` say; the weights are gathered
    from the fsdp axis where they are used, and their gradients are scattered back.
    """
    family, teacher, mesh = recipe.family, recipe.config.teacher, recipe.mesh
    rules = mesh_rules(recipe.config.mesh)
    names = {field.name for field in dataclasses.fields(TeacherConfig)} - {"sigma_data"}
    model = recipe.config.model
    config = TeacherConfig(
        **{name: teacher[name] for name in names},
        **({"sigma_data": model.sigma_data} if "sigma_data" in model else {}),
    )

    def without_dropout(params: Params, x_t: Array, t: Array, cond: PyTree, key: Key) -> Array:
        return family.denoiser.x0(params, x_t, t, cond)

    chosen = family.x0_with_dropout if model.get("dropout", 0) else without_dropout

    def x0_fn(params: Params, x_t: Array, t: Array, cond: PyTree, key: Key) -> Array:
        x_t, t, cond = pin_batch((x_t, t, cond), mesh)
        together = brought_together(params, mesh, rules, by_layer=family.denoiser.gathers)
        # Attention's kernel asks for the mesh.
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), together as weights:
            return pin_batch(chosen(weights, x_t, t, cond, key), mesh)

    step = functools.partial(teacher_step, x0_fn=x0_fn, denoiser=family.denoiser, config=config)
    state, batch, everywhere = state_shardings(recipe), batch_sharding(mesh), replicated(mesh)
    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(state, batch, batch, everywhere),
        out_shardings=(state, everywhere),
    )


def read_step(recipe: Recipe, i: int, *, first_example: int | None = None) -> Batch:
    """Read what step number `i` needs: a function of (config, data, arguments) alone.

    Args:
      recipe: the recipe.
      i: 0, 1, ...
      first_example: how many examples were read before; by default `i` batches.

    Returns:
      This process's rows of the global batch: uint8 [b, h, w, c] `image`, int32 [b] `label`, or
      `latent` and the arrays of prompts.
    """
    b, seed = recipe.config.teacher.batch_size, recipe.config.seed
    rows = data.process_rows(b, jax.process_index(), jax.process_count())
    start = i * b if first_example is None else first_example
    stacked = data.batches_from(recipe.dataset, start, 1, batch_size=b, seed=seed, rows=rows)
    return {name: array[0] for name, array in stacked.items()}


def prepare(batch: Batch, family: Family) -> tuple[Array, PyTree]:
    """Turn bytes and class numbers into (x_0 in [-1, 1], cond), where the batch is.

    Not jitted: XLA would fuse the few operations and round them otherwise, in the last bit.
    """
    x = data.inputs_of(batch)
    assert x is not None  # `check_has_images`
    return data.to_model(x), family.cond(data.labels_of(batch))


def teacher_batch(
    recipe: Recipe, i: int, *, first_example: int | None = None
) -> tuple[Array, PyTree]:
    """Return `read_step`'s batch prepared: (x_0 [b, h, w, c], cond)."""
    batch = read_step(recipe, i, first_example=first_example)
    return prepare(batch, recipe.family)


def _drawing(
    recipe: Recipe, sampler: Sampler, workdir: Path
) -> Callable[[TeacherState, int, bool], dict[str, Path]]:
    """Return what draws the progress, from the same noise each time."""

    def drawn(weights: Params, done: int, last: bool) -> dict[str, Path]:
        # Half of the student's rows: the sampler calls the network many times.
        options: dict[str, Any] = {"unit": "step", "last": last, "rows": 4}
        return draw_progress(recipe, sampler, weights, workdir, done, **options).pictures

    def draw(state: TeacherState, done: int, last: bool) -> dict[str, Path]:
        weights = to_host(state.ema)
        return on_first(lambda: drawn(weights, done, last)) or {}

    return draw
