"""Train a teacher, with EDM's objective or on eps: `dmd2 train-teacher`."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from dmd2_jax import data
from dmd2_jax.config import ConfigError
from dmd2_jax.data import Batch
from dmd2_jax.denoiser import Denoiser
from dmd2_jax.diffusion.schedules import add_noise
from dmd2_jax.distill.health import average_by_level
from dmd2_jax.drawing import draw_progress
from dmd2_jax.losses.denoising import denoising_loss, denoising_weight
from dmd2_jax.measure import training_score
from dmd2_jax.parallel import check_player_rules, mesh_rules
from dmd2_jax.recipe import (
    Family,
    Recipe,
    check_has_images,
    open_recipe,
    parameter_table,
)
from dmd2_jax.runtime.distributed import in_step, on_first, put, say, to_host
from dmd2_jax.runtime.offload import on_host
from dmd2_jax.runtime.random import stream_key
from dmd2_jax.runtime.sharding import (
    batch_sharding,
    check_rules,
    gather,
    like_params,
    pin_batch,
    replicated,
    shard_batch,
    tree_shardings,
)
from dmd2_jax.sample import teacher_sampler
from dmd2_jax.train_student import state_shapes
from dmd2_jax.training import open_training, run_training, say_idle
from dmd2_jax.typing import Array, Float, Int, Key, Params, PyTree, expand

__all__ = [
    "NAME",
    "TeacherConfig",
    "TeacherState",
    "compile_step",
    "init_teacher_state",
    "prepare",
    "read_step",
    "state_shardings",
    "teacher_batch",
    "teacher_loss",
    "teacher_step",
    "train",
]

NAME = "teacher.safetensors"
"""The file of a run folder that holds the trained weights (their moving average)."""

X0WithKey = Callable[[Params, Array, Array, PyTree, Key], Array]


@dataclasses.dataclass(frozen=True)
class TeacherConfig:
    """The settings of teacher training; the defaults are EDM's.

    Attributes:
      objective: "edm" (for families whose time is sigma) or "eps".
      lr: Adam's learning rate after the warm-up.
      warmup: steps of linear warm-up; 0 is none.
      lr_schedule: after the warm-up: "constant" or "cosine" (to 0 at step `steps`).
      steps: length of the whole training, for the cosine.
      ema_decay: of the average that is exported; min(decay, (1 + n) / (10 + n)) at step n.
      p_mean, p_std: of "edm": ln sigma is normal with these.
      label_dropout: probability that a sample is trained without its condition, for guidance.
      sigma_data: standard deviation of the data.
    """

    objective: str = "edm"
    lr: float = 1e-3
    warmup: int = 100
    lr_schedule: str = "constant"
    steps: int = 0
    ema_decay: float = 0.999
    p_mean: float = -1.2
    p_std: float = 1.2
    label_dropout: float = 0.0
    sigma_data: float = 0.5


class TeacherState(NamedTuple):
    """All that a teacher's training has learned.

    Attributes:
      step: [] int32, steps taken.
      skipped: [] int32, of these the ones without an update, for gradients that are not finite.
      in_a_row: [] int32, steps without an update since the last one.
      params: the weights.
      opt_state: Adam's.
      ema: the average of the weights.
    """

    step: Int[Array, ""]
    skipped: Int[Array, ""]
    in_a_row: Int[Array, ""]
    params: Params
    opt_state: PyTree
    ema: Params


def init_teacher_state(params: Params, places: TeacherState | None = None) -> TeacherState:
    """Make the state of step 0 from initial weights, which are copied.

    Args:
      params: the weights.
      places: where the state belongs, from `state_shardings`; the weights go there before they are
        copied, so that no device holds more than its part. None: where JAX puts new arrays.
    """
    params = params if places is None else put(params, places.params)

    def copy() -> Params:
        return jax.tree.map(lambda p: jnp.array(p, copy=True), params)

    def zero() -> Array:
        return jnp.zeros((), jnp.int32)

    # Adam's zeros are made like the weights: where these lie, and split as they are.
    return TeacherState(zero(), zero(), zero(), copy(), _adam().init(params), copy())


def teacher_loss(
    params: Params,
    x_0: Float[Array, "b ..."],
    cond: PyTree,
    key: Key,
    *,
    x0_fn: X0WithKey,
    denoiser: Denoiser,
    config: TeacherConfig,
) -> tuple[Float[Array, ""], dict[str, Any]]:
    """Return the denoising loss on one batch: mean( w (x_0(x_t, t) - x_0)^2 ).

        edm   ln t ~ N(p_mean, p_std^2), w = (t^2 + sigma_data^2) / (t sigma_data)^2; t is sigma
        eps   t uniform among the schedule's levels, w = alpha^2 / sigma^2: the error of eps

    Args:
      params: the network's parameters; the gradient is theirs.
      x_0: [b, ...], images in [-1, 1].
      cond: leading axis b, or None.
      key: of noise, levels, label dropout and dropout.
      x0_fn: (params, x_t, t, cond, key) -> x_0.
      denoiser: whose schedule noises, and whose null_cond drops labels.
      config: the settings.

    Returns:
      The loss and the metrics `denoising_loss`, `denoising_error_by_level`.

    Source: Karras et al. 2022 (arXiv 2206.00364), equation 2 and table 1, but no augmentation; Ho
      et al. 2020 (arXiv 2006.11239), equation 14.
    """
    b, schedule = x_0.shape[0], denoiser.schedule
    if config.objective == "edm":
        normal = jax.random.normal(stream_key(key, "sigma"), (b,))
        t = jnp.exp(config.p_mean + config.p_std * normal)
    else:
        number = jax.random.randint(stream_key(key, "level"), (b,), 0, len(schedule.levels))
        t = jnp.asarray(schedule.levels)[number]
    noise = jax.random.normal(stream_key(key, "noise"), x_0.shape)
    if config.label_dropout > 0:
        drop = jax.random.bernoulli(stream_key(key, "labels"), config.label_dropout, (b,))
        cond = jax.tree.map(
            lambda c, n: jnp.where(expand(drop, c), n, c), cond, denoiser.null_cond(cond)
        )
    x_0_teacher = x0_fn(
        params, add_noise(schedule, x_0, noise, t), t, cond, stream_key(key, "dropout")
    )
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    weight = denoising_weight(config.objective, alpha, sigma, sigma_data=config.sigma_data)
    loss, metrics = denoising_loss(x_0_teacher, x_0, weight=weight)
    level = jnp.clip(jnp.searchsorted(schedule.levels, t), 0, len(schedule.levels) - 1)
    errors = average_by_level(metrics.pop("denoising_errors"), level, schedule)
    return loss, metrics | {"denoising_error_by_level": errors}


def teacher_step(
    state: TeacherState,
    x_0: Float[Array, "b ..."],
    cond: PyTree,
    key: Key,
    *,
    x0_fn: X0WithKey,
    denoiser: Denoiser,
    config: TeacherConfig,
) -> tuple[TeacherState, dict[str, Any]]:
    """Take one Adam step on `teacher_loss`, and one step of the average.

    A step whose gradient is not finite changes nothing but the counts.

    Args:
      state: the state; donate it.
      x_0: see `teacher_loss`.
      cond: see `teacher_loss`.
      key: this step's own, `stream_key(root, "teacher", step)`.
      x0_fn: see `teacher_loss`.
      denoiser: see `teacher_loss`.
      config: the settings.

    Returns:
      The new state and metrics: denoising_loss, denoising_error_by_level, grad_norm, lr,
      skipped_updates, skipped_in_a_row.
    """
    loss = functools.partial(teacher_loss, x0_fn=x0_fn, denoiser=denoiser, config=config)
    gradient, metrics = jax.grad(loss, has_aux=True)(state.params, x_0, cond, key)
    norm = optax.tree.norm(gradient)
    finite = jnp.isfinite(norm)
    taken = (state.step - state.skipped).astype(jnp.float32)
    lr = _learning_rate(config, taken)
    direction, opt_state = _adam().update(gradient, state.opt_state, state.params)
    params = jax.tree.map(lambda p, d: p - lr * d, state.params, direction)
    decay = jnp.minimum(config.ema_decay, (1.0 + taken) / (10.0 + taken))
    ema = jax.tree.map(lambda a, p: a + (1.0 - decay) * (p - a), state.ema, params)
    new, old = (params, opt_state, ema), (state.params, state.opt_state, state.ema)
    params, opt_state, ema = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
    skipped = state.skipped + ~finite
    in_a_row = jnp.where(finite, 0, state.in_a_row + 1)
    metrics |= {"grad_norm": norm, "lr": jnp.float32(lr)}
    metrics |= {"skipped_updates": skipped, "skipped_in_a_row": in_a_row}
    return TeacherState(state.step + 1, skipped, in_a_row, params, opt_state, ema), metrics


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
      workdir: the run folder: config.json, metrics.jsonl, speed.jsonl, curves.png, grid_*.png,
        progress.gif, checkpoints/, teacher.safetensors.
      dry_run: check everything that can be checked before the first compilation, and stop.
      profile: see `run_loop`.
      allow_change: keys of the config that may differ from those of the run that is resumed.

    Returns:
      The file of weights; None for a dry run.

    Raises:
      ValueError: if the config, the data or the folder is refused.
      Interrupted: if asked to stop; the run is then saved.
    """
    workdir = Path(workdir)
    recipe = open_recipe(config, config.teacher.batch_size)
    family, mesh = recipe.family, recipe.mesh
    _check_objective(recipe)
    shapes = jax.eval_shape(init_teacher_state, family.param_shapes())
    shardings = state_shardings(recipe)
    resumed = open_training(
        config,
        workdir,
        "train-teacher",
        shapes,
        total=config.teacher.steps,
        allow_change=allow_change,
        dry_run=dry_run,
    )
    step = compile_step(recipe)
    say_idle(mesh)
    _say_unused(config)
    print(parameter_table({"teacher": shapes.params}), flush=True)
    if dry_run:
        x_0, cond = jax.eval_shape(lambda: teacher_batch(recipe, 0))
        jax.eval_shape(step, shapes, x_0, cond, jax.random.key(0))
        print(f"dry run: {workdir} {'would be resumed' if resumed else 'can be started'}.")
        return None
    root, step = jax.random.key(config.seed), in_step(step)

    def make_state() -> TeacherState:
        with on_host():
            weights = family.init(stream_key(root, "init"))
        return init_teacher_state(weights, shardings)

    def advance(state: TeacherState, batch: Batch, i: int) -> tuple[TeacherState, dict[str, Any]]:
        # The second step moves nothing: the batch lies there already.
        x_0, cond = jax.device_put(prepare(batch, family), batch_sharding(mesh))
        return step(state, x_0, cond, stream_key(root, "teacher", i))

    state = run_training(
        advance,
        recipe,
        workdir,
        shapes,
        shardings=shardings,
        total=config.teacher.steps,
        make_state=make_state,
        make_batch=lambda i, first: shard_batch(read_step(recipe, i, first_example=first), mesh),
        examples_per_step=config.teacher.batch_size,
        unit="step",
        images_per_step=config.teacher.batch_size,
        draw=_drawing(recipe, workdir),
        draw_key="teacher_grid_every",
        score=training_score(
            recipe, workdir, teacher_sampler(family, config), lambda state: state.ema
        ),
        shown=("denoising_loss",),
        profile=profile,
    )
    weights = to_host(state.ema)
    on_first(lambda: family.save(weights, workdir / NAME))
    return workdir / NAME


def _check_objective(recipe: Recipe) -> None:
    """Refuse an objective whose times are not the family's, and data without images."""
    levels = recipe.family.denoiser.schedule.levels
    if recipe.config.teacher.objective == "edm" and np.issubdtype(levels.dtype, np.integer):
        raise ConfigError(
            f"teacher.objective=edm with model.family={recipe.config.model.family}, whose times "
            "are steps, expected eps; set --config.teacher.objective=eps."
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


def _learning_rate(config: TeacherConfig, taken: Float[Array, ""]) -> Float[Array, ""]:
    """Return the rate of the next update after `taken` of them: warm-up, then the schedule."""
    warm = (taken + 1.0) / config.warmup if config.warmup else jnp.ones(())
    lr = config.lr * jnp.minimum(1.0, warm)
    if config.lr_schedule == "cosine":
        progress = (taken - config.warmup) / max(config.steps - config.warmup, 1)
        lr *= 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.clip(progress, 0.0, 1.0)))
    return lr


def _adam() -> optax.GradientTransformation:
    return optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8)


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
    moments = jax.eval_shape(_adam().init, params)
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
    change = functools.partial(gather, mesh=mesh, rules=mesh_rules(recipe.config.mesh))
    names = {field.name for field in dataclasses.fields(TeacherConfig)} - {"sigma_data"}
    config = TeacherConfig(
        **{name: teacher[name] for name in names}, sigma_data=recipe.config.model.sigma_data
    )

    def without_dropout(params: Params, x_t: Array, t: Array, cond: PyTree, key: Key) -> Array:
        return family.denoiser.x0(params, x_t, t, cond)

    chosen = family.x0_with_dropout if recipe.config.model.dropout > 0 else without_dropout

    def x0_fn(params: Params, x_t: Array, t: Array, cond: PyTree, key: Key) -> Array:
        x_t, t, cond = pin_batch((x_t, t, cond), mesh)
        return pin_batch(chosen(change(params), x_t, t, cond, key), mesh)

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
    return data.to_model(data.inputs_of(batch)), family.cond(data.labels_of(batch))


def teacher_batch(
    recipe: Recipe, i: int, *, first_example: int | None = None
) -> tuple[Array, PyTree]:
    """Return `read_step`'s batch prepared: (x_0 [b, h, w, c], cond)."""
    batch = read_step(recipe, i, first_example=first_example)
    return prepare(batch, recipe.family)


def _drawing(recipe: Recipe, workdir: Path) -> Callable[[TeacherState, int], dict[str, Path]]:
    """Return what exports the weights and draws the progress, from the same noise each time."""
    sampler = teacher_sampler(recipe.family, recipe.config)

    def drawn(weights: Params, done: int) -> dict[str, Path]:
        recipe.family.save(weights, workdir / NAME)
        # Half of the student's rows: the sampler calls the network many times.
        return draw_progress(recipe, sampler, weights, workdir, done, unit="step", rows=4)[1]

    def draw(state: TeacherState, done: int) -> dict[str, Path]:
        weights = to_host(state.ema)
        return on_first(lambda: drawn(weights, done)) or {}

    return draw
