"""Distil a teacher into a few-step student: `dmd2 distill`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dmd2_jax.distill import CycleBatch, CycleShardings, Players, TrainState, make_cycle
from dmd2_jax.recipe.distillation import (
    build_players,
    distill_config,
    initial_state,
    starting_weights,
)
from dmd2_jax.recipe.lora import export_student, with_base
from dmd2_jax.recipe.open import (
    Recipe,
    check_has_images,
    open_recipe,
    parameter_table,
    sample_labels,
    teacher_file,
)
from dmd2_jax.recipe.placement import (
    check_player_rules,
    cycle_shardings,
    mesh_rules,
    spread_players,
)
from dmd2_jax.run.checkpoint import state_bytes
from dmd2_jax.runtime.distributed import in_step, on_first, put, to_host
from dmd2_jax.runtime.integrity import params_digest
from dmd2_jax.runtime.random import stream_key
from dmd2_jax.runtime.sharding import check_batch_size
from dmd2_jax.sampling.samplers import grid_labels, student_sampler
from dmd2_jax.training.batches import (
    HostBatch,
    cycle_batch,
    needs_images,
    prepare,
    put_batch,
    read_cycle,
)
from dmd2_jax.training.drawing import draw_progress, draw_scores, score_comparison
from dmd2_jax.training.pairs import make_pairs, pair_shapes, pairs_folder
from dmd2_jax.training.run import open_training, run_training, say_idle
from dmd2_jax.training.score import training_score
from dmd2_jax.typing import Key, Params

__all__ = [
    "student_files",
    "train",
]


def student_files(config: ConfigDict) -> tuple[str, ...]:
    """Return the names of the files of weights that a run writes: the student, its averages."""
    averages = (f"student_ema_{decay:g}.safetensors" for decay in config.optim.ema_decays)
    return ("student.safetensors", *averages)


def train(
    config: ConfigDict,
    workdir: str | Path,
    *,
    dry_run: bool = False,
    profile: tuple[int, int] | None = None,
    allow_change: Sequence[str] = (),
) -> Path | None:
    """Distil the teacher of a config in a run folder, or resume what is there.

    Args:
      config: the whole config; `config.teacher.weights` is the teacher.
      workdir: the run folder: config.json, metrics.jsonl, speed.jsonl, curves.png, grid_*.png,
        scores_*.png, progress.gif, checkpoints/, student.safetensors and one
        student_ema_DECAY.safetensors for each average; with low-rank adapters these are merged,
        and the adapters alone are beside them as NAME_lora.safetensors.
      dry_run: check everything that can be checked before the first compilation, and stop.
      profile: see `run_loop`.
      allow_change: keys of the config that may differ from those of the run that is resumed.

    Returns:
      The student's file of weights; None for a dry run.

    Raises:
      ValueError: if the config, the data, the weights or the folder is refused.
      Interrupted: if asked to stop; the run is then saved.
    """
    workdir = Path(workdir)
    recipe = open_recipe(config, config.distill.batch_size)
    job = _open(recipe)
    resumed = open_training(
        config,
        workdir,
        "distill",
        job.shapes,
        total=config.distill.cycles,
        teacher=job.teacher,
        allow_change=allow_change,
        dry_run=dry_run,
    )
    say_idle(recipe.mesh)
    print(_table(job.shapes, job.teacher_params), flush=True)
    if dry_run:
        jax.eval_shape(job.cycle, job.shapes, job.teacher_params, job.batch, job.root)
        print(f"dry run: {workdir} {'would be resumed' if resumed else 'can be started'}.")
        return None
    state = _run(job, recipe, workdir, profile)
    versions = to_host(_versions(state))
    on_first(lambda: _export(recipe, job.teacher_params, versions, workdir))
    return workdir / student_files(config)[0]


class _Job(NamedTuple):
    """A distillation that is checked; nothing of it is compiled or written yet.

    Attributes:
      teacher_params: the teacher's weights.
      teacher: their path and digest.
      players: the networks.
      make_state: (teacher's weights, `shardings.state` or None) -> the state of cycle 0.
      shapes: the state's.
      batch: the shapes of what a cycle reads.
      shardings: where all of this lies on the mesh.
      cycle: the program.
      root: the key that all random numbers come from.
    """

    teacher_params: Params
    teacher: dict[str, str]
    players: Players
    make_state: Callable[[Params, TrainState | None], TrainState]
    shapes: TrainState
    batch: CycleBatch
    shardings: CycleShardings
    cycle: Callable[..., tuple[TrainState, dict[str, Any]]]
    root: Key


def _open(recipe: Recipe) -> _Job:
    """Check everything that can be checked without compiling or writing."""
    config, family, mesh = recipe.config, recipe.family, recipe.mesh
    rules = mesh_rules(config.mesh)
    settings, players = distill_config(config, family), build_players(config, family)
    check_batch_size(settings.batch_size, mesh, settings.microbatches)
    if needs_images(config):
        check_has_images(recipe, "the GAN, or students trained on noised images")
    file = teacher_file(config)
    # Kept outside of the devices, which shall hold it only where the mesh says.
    teacher_params = to_host(family.load(file))
    teacher = {"path": str(file), "digest": params_digest(teacher_params)}
    start = starting_weights(config.distill.start_from, family, config, teacher)
    root = jax.random.key(config.seed)
    head_key = stream_key(root, "discriminator")

    def make_state(params: Params, places: TrainState | None) -> TrainState:
        return initial_state(players, settings, family, params, head_key, start, places)

    shapes = jax.eval_shape(lambda params: make_state(params, None), teacher_params)
    check_player_rules(rules, teacher_params, shapes, mesh)
    batch = jax.eval_shape(lambda: cycle_batch(recipe, 0, pair_shapes(recipe)))
    offload = config.mesh.offload
    shardings = cycle_shardings(shapes, teacher_params, batch, mesh, rules, offload)
    return _Job(
        teacher_params,
        teacher,
        players,
        make_state,
        shapes,
        batch,
        shardings,
        make_cycle(spread_players(players, mesh, rules), settings, shardings=shardings),
        root,
    )


def _run(job: _Job, recipe: Recipe, workdir: Path, profile: tuple[int, int] | None) -> TrainState:
    """Run the cycles that are left; return the last state, which is checkpointed."""
    config, family, mesh = recipe.config, recipe.family, recipe.mesh
    pairs = None
    if config.distill.regression_weight is not None:
        folder = pairs_folder(recipe, workdir)
        own = not config.distill.pairs
        pairs = make_pairs(recipe, jax.device_put(job.teacher_params), folder, own=own)
    teacher_params = put(job.teacher_params, job.shardings.teacher)
    cycle = in_step(job.cycle)

    def make_batch(i: int, first_example: int) -> HostBatch:
        return put_batch(read_cycle(recipe, i, pairs, first_example=first_example), mesh)

    def advance(state: TrainState, batch: HostBatch, i: int) -> tuple[TrainState, dict[str, Any]]:
        # The second step moves nothing: the batch lies there already.
        prepared = jax.device_put(prepare(batch, family), job.shardings.batch)
        return cycle(state, teacher_params, prepared, stream_key(job.root, "cycle", i))

    def chosen(state: TrainState) -> Params:
        return with_base(job.players.generator_adapter, job.teacher_params, _versions(state)[-1])

    b, turns = config.distill.batch_size, config.distill.critic_turns
    return run_training(
        advance,
        recipe,
        workdir,
        job.shapes,
        shardings=job.shardings.state,
        total=config.distill.cycles,
        make_state=lambda: job.make_state(teacher_params, job.shardings.state),
        make_batch=make_batch,
        examples_per_step=turns * b,
        teacher=job.teacher,
        unit="cycle",
        images_per_step=b * (1 + turns),
        updates_per_step=1 + turns,
        draw=_drawing(recipe, job, workdir),
        score=training_score(recipe, workdir, student_sampler(family, config), chosen),
        shown=("generator_loss", "critic_loss"),
        profile=profile,
    )


def _table(shapes: TrainState, teacher_params: Params) -> str:
    networks = {"teacher": teacher_params, "generator": shapes.generator.params}
    networks["critic"] = shapes.critic.params
    if shapes.discriminator is not None:
        networks["discriminator"] = shapes.discriminator.params
    size = state_bytes(shapes) / 1e6
    return f"{parameter_table(networks)}\ntraining state, one checkpoint: {size:,.1f} MB"


def _drawing(
    recipe: Recipe, job: _Job, workdir: Path
) -> Callable[[TrainState, int], dict[str, Path]]:
    """Return what exports the weights and draws the student's progress, always of the same noise.

    Where there is a critic, it is shown beside the teacher on the first row of the student's grid.
    """
    family, config, base = recipe.family, recipe.config, job.teacher_params
    sampler = student_sampler(family, config)
    compare = score_comparison(family, config.distill.guidance, config.seed)
    _, _, columns = grid_labels(recipe)
    cond = family.cond(sample_labels(recipe, np.arange(columns)))

    def drawn(versions: tuple[Params, ...], critic: Params | None, done: int) -> dict[str, Path]:
        _export(recipe, base, versions, workdir)
        student = with_base(job.players.generator_adapter, base, versions[0])
        images, pictures = draw_progress(recipe, sampler, student, workdir, done, unit="cycle")
        if critic is not None:
            x_0 = images[:columns]
            critic = with_base(job.players.critic_adapter, base, critic)
            teacher, critic = jax.device_put((base, critic), jax.local_devices()[0])
            pictures["scores"] = workdir / f"scores_{done:07d}.png"
            draw_scores(x_0, compare(teacher, critic, jnp.asarray(x_0), cond), pictures["scores"])
        return pictures

    def draw(state: TrainState, done: int) -> dict[str, Path]:
        versions = to_host(_versions(state))
        critic = to_host(state.critic.params) if config.distill.train_critic else None
        return on_first(lambda: drawn(versions, critic, done)) or {}

    return draw


def _versions(state: TrainState) -> tuple[Params, ...]:
    """Return the student's own parameters and their averages, in the order of `student_files`."""
    return (state.generator.params, *state.ema)


def _export(recipe: Recipe, base: Params, versions: tuple[Params, ...], workdir: Path) -> None:
    for name, own in zip(student_files(recipe.config), versions, strict=True):
        export_student(recipe.config, recipe.family, base, own, workdir / name)
