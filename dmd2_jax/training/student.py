"""Distil a teacher into a few-step student: `dmd2 distill`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from dmd2_jax.config.load import plain
from dmd2_jax.distill import TrainState
from dmd2_jax.recipe.classes import check_teacher_data, data_record
from dmd2_jax.recipe.distillation import (
    Distillation,
    initial_state,
    open_distillation,
    trace,
)
from dmd2_jax.recipe.guidance import chosen_scale, drawn_scales, guided_teacher, told_network
from dmd2_jax.recipe.lora import export_student, with_base
from dmd2_jax.recipe.open import Recipe, check_has_images, check_one_shape, open_recipe
from dmd2_jax.recipe.tables import parameter_table
from dmd2_jax.recipe.weights import read_teacher, starting_weights
from dmd2_jax.recipe.weights_file import teacher_file
from dmd2_jax.run.checkpoint import state_bytes
from dmd2_jax.run.exported import BEST
from dmd2_jax.run.job import Job
from dmd2_jax.run.loop import run_loop
from dmd2_jax.run.places import recorded
from dmd2_jax.run.sealed_config import run_identity
from dmd2_jax.runtime.devices import say_devices
from dmd2_jax.runtime.distributed import in_step, is_first, on_first, put, to_host
from dmd2_jax.runtime.places import path_of
from dmd2_jax.runtime.random import stream_key
from dmd2_jax.sampling.samplers import grid_labels, student_sampler, with_scale
from dmd2_jax.training.batches import HostBatch, check_batch, prepare, put_batch, read_shape
from dmd2_jax.training.drawing import (
    draw_progress,
    draw_scores,
    draw_shape,
    score_comparison,
)
from dmd2_jax.training.health import Health, guidance_key, real_statistics
from dmd2_jax.training.pairs import make_pairs, pairs_folder
from dmd2_jax.training.run import keep, open_training
from dmd2_jax.training.score import training_score
from dmd2_jax.training.stopping import stop_conditions, stopping
from dmd2_jax.typing import Params

__all__ = ["open_student", "open_students", "student_files", "train"]


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
      workdir: the run folder: config.json, data.json, metrics.jsonl, speed.jsonl, grid_*.png,
        curves.png, scores_*.png, progress.gif, checkpoints/, student.safetensors and one
        student_ema_DECAY.safetensors for each average; with low-rank adapters these are merged,
        and the adapters alone are beside them as NAME_lora.safetensors.
      dry_run: check everything that can be checked before the first compilation, and stop.
      profile: see `Job`.
      allow_change: keys of the config that may differ from those of the run that is resumed.

    Returns:
      The student's file of weights; None for a dry run.

    Raises:
      ValueError: if the config, the data, the weights or the folder is refused.
      Interrupted: if asked to stop; the run is then saved.
    """
    workdir = path_of(workdir)
    recipe = open_recipe(config, config.distill.batch_size)
    config = recipe.config
    jobs = open_students(recipe)
    job = jobs[0]
    stop_conditions(config, students=True)
    file, classes = teacher_file(config), recipe.family.num_classes
    check_teacher_data(file, recipe.dataset, classes, allow_change)
    base, teacher = read_teacher(config, recipe.family, file)
    start = starting_weights(
        config.distill.start_from, recipe.family, config, teacher, recipe.dataset
    )
    with open_training(
        config,
        workdir,
        "distill",
        job.state,
        dataset=recipe.dataset,
        total=config.distill.cycles,
        mesh=recipe.mesh,
        teacher=teacher,
        allow_change=allow_change,
        dry_run=dry_run,
    ) as resumed:
        say_devices(recipe.mesh)
        print(_table(job.state, job.teacher), flush=True)
        if dry_run:
            for each in jobs:
                trace(each)
            print(f"dry run: {workdir} {'would be resumed' if resumed else 'can be started'}.")
            return None
        run_loop(_described(_Student(recipe, jobs, base, start), workdir, teacher, profile))
        return workdir / student_files(config)[0]


def open_student(recipe: Recipe) -> Distillation:
    """Check all of a recipe's distillation that needs no weights, compiling and writing nothing.

    Args:
      recipe: the recipe.

    Raises:
      ValueError: if the settings, the placement or the data are refused.
    """
    job = open_distillation(recipe.config, recipe.family, recipe.mesh)
    if job.settings.needs_real:
        check_has_images(recipe, "the GAN, or students trained on noised images")
    check_batch(recipe, job.batch)
    return job


def open_students(recipe: Recipe) -> tuple[Distillation, ...]:
    """Check all of a recipe's distillation as `open_student` does, for each of its shapes.

    Args:
      recipe: the recipe.

    Returns:
      One for each of `Recipe.buckets`, or the one.

    Raises:
      ValueError: if the settings, the placement or the data are refused.
    """
    jobs = tuple(open_student(each) for each in _each_shape(recipe))
    if jobs[0].settings.needs_pairs:
        check_one_shape(recipe, "pairs of the teacher (config.distill.regression_weight)")
    return jobs


def _each_shape(recipe: Recipe) -> tuple[Recipe, ...]:
    return recipe.buckets or (recipe,)


class _Student(NamedTuple):
    """A distillation with the weights that it begins with.

    Attributes:
      recipe: the recipe.
      jobs: its set-up for each shape; they differ in the batch and the program alone.
      base: the teacher's weights, on the host.
      start: weights of generator and critic to begin with instead of the teacher's.
    """

    recipe: Recipe
    jobs: tuple[Distillation, ...]
    base: Params
    start: tuple[Params, Params] | None

    @property
    def job(self) -> Distillation:
        """The set-up of the first shape, or of the only one."""
        return self.jobs[0]

    def generator(self, own: Params) -> Params:
        """Return what the denoiser takes of the generator's own parameters."""
        return with_base(self.job.players.generator_adapter, self.base, own)

    def critic(self, own: Params) -> Params:
        """Return what the denoiser takes of the critic's own parameters, for the last step."""
        players, last = self.job.players, len(self.job.settings.student_times) - 1
        if players.critic_step is not None:
            own = players.critic_step(own, last)
        return with_base(players.critic_adapter, self.base, own)


def _described(
    it: _Student, workdir: Path, teacher: dict[str, str], profile: tuple[int, int] | None
) -> Job:
    """Describe the run to the loop; the teacher's pairs are made, where a loss needs them."""
    recipe, job = it.recipe, it.job
    config, family, mesh = recipe.config, recipe.family, recipe.mesh
    pairs = None
    if job.settings.needs_pairs:
        folder = pairs_folder(recipe, workdir)
        pairs = make_pairs(recipe, jax.device_put(it.base), folder, own=not config.distill.pairs)
    teacher_params = put(it.base, job.shardings.teacher)
    cycles, root = [in_step(each.cycle) for each in it.jobs], jax.random.key(config.seed)
    shapes, b, turns = _each_shape(recipe), config.distill.batch_size, config.distill.critic_turns

    def make_state() -> TrainState:
        key, places = stream_key(root, "discriminator"), job.shardings.state
        return initial_state(
            job.players, job.settings, family, teacher_params, key, it.start, places
        )

    def make_batch(i: int, first_example: int) -> tuple[int, HostBatch]:
        needs_real = job.settings.needs_real
        number, read = read_shape(shapes, i, first_example, pairs, needs_real=needs_real)
        return number, put_batch(read, mesh)

    def advance(
        state: TrainState, batch: tuple[int, HostBatch], i: int
    ) -> tuple[TrainState, dict[str, Any]]:
        number, read = batch
        # The second step moves nothing: the batch lies there already.
        placed = it.jobs[number].shardings.batch
        prepared = jax.device_put(prepare(read, shapes[number].family), placed)
        return cycles[number](state, teacher_params, prepared, stream_key(root, "cycle", i))

    def chosen(state: TrainState) -> Params:
        return it.generator(_versions(state)[-1])

    run = run_identity(workdir)
    return Job(
        workdir=workdir,
        unit="cycle",
        total=config.distill.cycles,
        total_key="distill.cycles",
        log=config.log,
        keep=keep(config),
        shapes=job.state,
        shardings=job.shardings.state,
        make_state=make_state,
        make_batch=make_batch,
        advance=advance,
        examples_per_step=turns * b,
        images_per_step=b * (1 + turns),
        updates_per_step=1 + turns,
        max_skipped_in_a_row=config.optim.max_skipped_in_a_row,
        record={
            "config": recorded(plain(config)),
            "teacher": teacher,
            "data": data_record(recipe.dataset).to_json(),
        },
        export=lambda state, done: _export(it, state, workdir, run, done),
        draw=_drawing(it, workdir),
        score=training_score(
            recipe,
            workdir,
            student_sampler(family, config),
            chosen,
            chosen_scale(config.distill),
        ),
        judge=_judge(it),
        stopper=stopping(stop_conditions(config, students=True), "cycle", workdir),
        export_best=lambda state, done: _export_best(it, state, workdir, run, done),
        shown=("generator_loss", "critic_loss"),
        profile=profile,
    )


def _judge(it: _Student) -> Health:
    """Return what looks whether the student is alive, as the data are where no real is reported."""
    recipe, config = it.recipe, it.recipe.config
    real = None
    if is_first() and recipe.dataset.has_images and not it.job.settings.needs_real:
        real = real_statistics(_each_shape(recipe)[0].dataset)
    return Health(
        total=config.distill.cycles,
        every=config.log.every,
        real=real,
        latents=recipe.family.image_shape[-1] not in (1, 3),
        guidance=guidance_key(config.distill),
    )


def _table(shapes: TrainState, teacher_params: Params) -> str:
    networks = {"teacher": teacher_params, "generator": shapes.generator.params}
    networks["critic"] = shapes.critic.params
    if shapes.discriminator is not None:
        networks["discriminator"] = shapes.discriminator.params
    size = state_bytes(shapes) / 1e6
    return f"{parameter_table(networks)}\ntraining state, one checkpoint: {size:,.1f} MB"


def _drawing(it: _Student, workdir: Path) -> Callable[[TrainState, int, bool], dict[str, Path]]:
    """Return what draws the student's progress, always of the same noise.

    Where there is a critic, it is shown beside the teacher on the first row of the student's grid.
    """
    recipe = _each_shape(it.recipe)[0]
    config, family = recipe.config, recipe.family
    sampler = student_sampler(family, config)
    others = [(each, student_sampler(each.family, each.config)) for each in it.recipe.buckets[1:]]
    labels, rows, columns = grid_labels(recipe)
    cond = family.cond(jax.tree.map(lambda array: array[:columns], labels))
    scales, told = drawn_scales(config.distill, rows), None
    if scales:
        told = (guided_teacher(config, family), told_network(config, family))
        cond = with_scale(cond, scales[0], columns)  # as the first row is
    compare = score_comparison(family, config.distill.guidance, config.seed, told)

    def drawn(own: Params, critic: Params | None, done: int, last: bool) -> dict[str, Path]:
        progress = draw_progress(
            recipe,
            sampler,
            it.generator(own),
            workdir,
            done,
            unit="cycle",
            last=last,
            scales=scales,
        )
        for each, its_sampler in others:
            picture = draw_shape(each, its_sampler, it.generator(own), workdir, done, scales)
            progress.pictures[picture.stem.rpartition("_")[0]] = picture
        if critic is not None:
            x_0 = progress.images[:columns]
            device = jax.local_devices()[0]
            teacher, critic = jax.device_put((it.base, it.critic(critic)), device)
            progress.pictures["scores"] = workdir / f"scores_{done:07d}.png"
            scores = compare(teacher, critic, jnp.asarray(x_0), cond)
            draw_scores(x_0, scores, progress.pictures["scores"])
        return progress.pictures

    def draw(state: TrainState, done: int, last: bool) -> dict[str, Path]:
        own = to_host(state.generator.params)
        critic = to_host(state.critic.params) if config.distill.train_critic else None
        return on_first(lambda: drawn(own, critic, done, last)) or {}

    return draw


def _versions(state: TrainState) -> tuple[Params, ...]:
    """Return the student's own parameters and their averages, in the order of `student_files`."""
    return (state.generator.params, *state.ema)


def _export(it: _Student, state: TrainState, workdir: Path, run: str | None, done: int) -> None:
    """Write the weights of the student and of its averages."""
    files = dict(zip(student_files(it.recipe.config), _versions(state), strict=True))
    _write(it, files, workdir, run, done)


def _export_best(
    it: _Student, state: TrainState, workdir: Path, run: str | None, done: int
) -> None:
    """Write the weights that are measured as the run goes on, under a name that they keep."""
    _write(it, {BEST: _versions(state)[-1]}, workdir, run, done)


def _write(
    it: _Student, files: dict[str, Params], workdir: Path, run: str | None, done: int
) -> None:
    versions, config = to_host(tuple(files.values())), it.recipe.config
    record = data_record(it.recipe.dataset)

    def write() -> None:
        for name, own in zip(files, versions, strict=True):
            family, file = it.recipe.family, workdir / name
            export_student(config, family, it.base, own, file, record, run=run, step=done)

    on_first(write)
