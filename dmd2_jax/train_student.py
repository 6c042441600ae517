"""Distil a teacher into a few-step student: `dmd2 distill`."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dmd2_jax import data
from dmd2_jax.distill import (
    CycleBatch,
    DistillConfig,
    Pairs,
    Players,
    Samples,
    TrainState,
    init_state,
    make_cycle,
)
from dmd2_jax.drawing import draw_progress, draw_scores, score_comparison
from dmd2_jax.measure import training_score
from dmd2_jax.networks.gan_head import GanHead, discriminator
from dmd2_jax.pairs import PairPool, make_pairs, pair_shapes
from dmd2_jax.recipe import (
    Family,
    Recipe,
    one_hot,
    open_recipe,
    parameter_table,
    weights_file,
)
from dmd2_jax.runtime.checkpoint import state_bytes
from dmd2_jax.runtime.integrity import params_digest
from dmd2_jax.runtime.random import stream_key
from dmd2_jax.runtime.sharding import replicate, shard_batch
from dmd2_jax.sample import (
    grid_labels,
    student_sampler,
)
from dmd2_jax.training import open_training, run_training
from dmd2_jax.typing import Key, Params

__all__ = [
    "HostBatch",
    "build_players",
    "cycle_batch",
    "distill_config",
    "initial_state",
    "prepare",
    "read_cycle",
    "student_files",
    "train",
]


class HostBatch(NamedTuple):
    """What a cycle reads, as it travels to the devices: bytes and numbers.

    Attributes:
      image: uint8 [K, b, h, w, c] real images; None where no loss needs them.
      label: int32 [K, b], their classes.
      fake_label: int32 [K, b], the classes of the student's samples.
      pairs: teacher ODE pairs of the generator turn; None without a regression loss.
    """

    image: np.ndarray | None
    label: np.ndarray
    fake_label: np.ndarray
    pairs: PairPool | None


def distill_config(config: ConfigDict, family: Family) -> DistillConfig:
    """Take the algorithm's settings from `config.distill` and `config.optim`, by name.

    Raises:
      ValueError: if the values contradict each other.
    """
    given = config.distill.to_dict() | config.optim.to_dict()
    names = {field.name for field in dataclasses.fields(DistillConfig)}
    values = {name: value for name, value in given.items() if name in names}
    values |= {
        "sample_shape": tuple(family.image_shape),
        "sigma_data": config.model.sigma_data,
        "total_turns": config.distill.cycles * config.distill.critic_turns,
    }
    return DistillConfig(**values)


def build_players(config: ConfigDict, family: Family) -> Players:
    """Make the players: three times the family's denoiser, and the GAN head if there is a GAN."""
    head = None
    if config.distill.gan_critic_weight is not None:
        head = discriminator(GanHead(hidden=config.distill.gan_head_channels))
    denoiser = family.denoiser
    return Players(denoiser, denoiser, denoiser, head)


def initial_state(
    players: Players, settings: DistillConfig, family: Family, teacher_params: Params, key: Key
) -> TrainState:
    """Make the state of cycle 0: generator and critic are copies of the teacher.

    Args:
      players: from `build_players`.
      settings: from `distill_config`.
      family: the networks.
      teacher_params: the teacher's weights.
      key: of the GAN head's weights.
    """
    head = None
    if players.discriminator is not None:
        head = players.discriminator.init(key, family.feature_shapes(1))
    return init_state(settings, generator=teacher_params, critic=teacher_params, discriminator=head)


def read_cycle(
    recipe: Recipe, cycle: int, pairs: PairPool | None = None, *, first_example: int | None = None
) -> HostBatch:
    """Read what cycle number `cycle` needs: a function of (config, data, arguments) alone.

    Args:
      recipe: the recipe.
      cycle: 0, 1, ...
      pairs: teacher ODE pairs, for the regression loss.
      first_example: how many real examples were read before; by default `cycle` times those of
        a cycle.

    Returns:
      This process's rows of the global batch.
    """
    config, classes = recipe.config, recipe.family.num_classes
    distill, seed = config.distill, config.seed
    turns, b = distill.critic_turns, distill.batch_size
    rows = data.process_rows(b, jax.process_index(), jax.process_count())
    if first_example is None:
        first_example = cycle * turns * b
    noised_real = not distill.backward_simulation and len(distill.student_times) > 1
    needs_images = distill.gan_critic_weight is not None or noised_real
    image, label = None, np.zeros((turns, b), np.int32)[:, rows]
    if needs_images or distill.fake_labels == "real":
        batch = data.batches_from(
            recipe.dataset, first_example, turns, batch_size=b, seed=seed, rows=rows
        )
        image, label = batch["image"] if needs_images else None, batch["label"]
    fake_label = label
    if distill.fake_labels == "uniform" and classes:
        # RandomState, whose streams NumPy has frozen; the 1 keeps it apart from the data's order.
        drawn = np.random.RandomState([seed, cycle, 1]).randint(0, classes, (turns, b))
        fake_label = drawn.astype(np.int32)[:, rows]
    if pairs is not None:
        chosen = data.example_indices(
            len(pairs.labels), start=first_example // turns, count=b, seed=seed
        )[rows]
        pairs = PairPool(*(array[chosen] for array in pairs))
    return HostBatch(image, label, fake_label, pairs)


def prepare(batch: HostBatch, num_classes: int) -> CycleBatch:
    """Turn bytes into images in [-1, 1] and class numbers into conditions, where the batch is.

    Not jitted: XLA would fuse the few operations and round them otherwise, in the last bit.

    Args:
      batch: from `read_cycle`.
      num_classes: of the family; 0 for an unconditional model.
    """
    real = pairs = None
    if batch.image is not None:
        real = Samples(data.to_model(batch.image), one_hot(batch.label, num_classes))
    if batch.pairs is not None:
        noise, x_0, labels = batch.pairs
        pairs = Pairs(jnp.asarray(noise), jnp.asarray(x_0), one_hot(labels, num_classes))
    return CycleBatch(real, one_hot(batch.fake_label, num_classes), pairs)


def cycle_batch(
    recipe: Recipe, cycle: int, pairs: PairPool | None = None, *, first_example: int | None = None
) -> CycleBatch:
    """Return `read_cycle`'s batch prepared: real images where a loss needs them, conditions, pairs.

    Args:
      recipe: the recipe.
      cycle: see `read_cycle`.
      pairs: see `read_cycle`.
      first_example: see `read_cycle`.
    """
    batch = read_cycle(recipe, cycle, pairs, first_example=first_example)
    return prepare(batch, recipe.family.num_classes)


def _put(batch: HostBatch, mesh: Mesh) -> HostBatch:
    """Put a batch on the devices, as the bytes and numbers that it is."""
    images = shard_batch(batch._replace(pairs=None), mesh, axis=1)
    return images._replace(pairs=shard_batch(batch.pairs, mesh))


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
        student_ema_DECAY.safetensors for each average.
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
    family, mesh = recipe.family, recipe.mesh
    settings = distill_config(config, family)
    players = build_players(config, family)
    teacher_file = weights_file(config.teacher.weights, "teacher.safetensors")
    teacher_params = family.load(teacher_file)
    teacher = {"path": str(teacher_file), "digest": params_digest(teacher_params)}
    root = jax.random.key(config.seed)
    head_key = stream_key(root, "discriminator")

    def make_state(params: Params) -> TrainState:
        return initial_state(players, settings, family, params, head_key)

    shapes = jax.eval_shape(make_state, teacher_params)
    total = config.distill.cycles
    resumed = open_training(
        config,
        workdir,
        "distill",
        shapes,
        total=total,
        teacher=teacher,
        allow_change=allow_change,
        dry_run=dry_run,
    )
    print(_table(shapes, teacher_params), flush=True)
    cycle = make_cycle(players, settings)
    if dry_run:
        batch = jax.eval_shape(lambda: cycle_batch(recipe, 0, pair_shapes(recipe)))
        jax.eval_shape(cycle, shapes, teacher_params, batch, root)
        print(f"dry run: {workdir} {'would be resumed' if resumed else 'can be started'}.")
        return None
    pairs = None
    if settings.regression_weight is not None:
        pairs = make_pairs(recipe, teacher_params, workdir / "teacher_pairs.npz")
    teacher_params = replicate(teacher_params, mesh)

    def advance(state: TrainState, batch: HostBatch, i: int) -> tuple[TrainState, dict[str, Any]]:
        prepared = prepare(batch, family.num_classes)
        return cycle(state, teacher_params, prepared, stream_key(root, "cycle", i))

    b, turns = config.distill.batch_size, config.distill.critic_turns
    state = run_training(
        advance,
        recipe,
        workdir,
        shapes,
        total=total,
        make_state=lambda: make_state(teacher_params),
        make_batch=lambda i, first: _put(read_cycle(recipe, i, pairs, first_example=first), mesh),
        examples_per_step=turns * b,
        teacher=teacher,
        unit="cycle",
        images_per_step=b * (1 + turns),
        updates_per_step=1 + turns,
        draw=_drawing(recipe, teacher_params, workdir),
        score=training_score(
            recipe, workdir, student_sampler(family, config), lambda state: _versions(state)[-1]
        ),
        shown=("generator_loss", "critic_loss"),
        profile=profile,
    )
    _export(recipe, state, workdir)
    return workdir / student_files(config)[0]


def _table(shapes: TrainState, teacher_params: Params) -> str:
    networks = {"teacher": teacher_params, "generator": shapes.generator.params}
    networks["critic"] = shapes.critic.params
    if shapes.discriminator is not None:
        networks["discriminator"] = shapes.discriminator.params
    size = state_bytes(shapes) / 1e6
    return f"{parameter_table(networks)}\ntraining state, one checkpoint: {size:,.1f} MB"


def _drawing(
    recipe: Recipe, teacher_params: Params, workdir: Path
) -> Callable[[TrainState, int], dict[str, Path]]:
    """Return what exports the weights and draws the student's progress, always of the same noise.

    Where there is a critic, it is shown beside the teacher on the first row of the student's grid.
    """
    family, config = recipe.family, recipe.config
    sampler = student_sampler(family, config)
    compare = score_comparison(family, config.distill.guidance, config.seed)
    labels, columns = grid_labels(family.num_classes)
    cond = one_hot(labels[:columns], family.num_classes)

    def draw(state: TrainState, done: int) -> dict[str, Path]:
        _export(recipe, state, workdir)
        images, pictures = draw_progress(
            recipe, sampler, state.generator.params, workdir, done, unit="cycle"
        )
        if config.distill.train_critic:
            x_0 = images[:columns]
            teacher, critic = jax.device_put(
                (teacher_params, state.critic.params), jax.devices()[0]
            )
            pictures["scores"] = workdir / f"scores_{done:07d}.png"
            draw_scores(x_0, compare(teacher, critic, jnp.asarray(x_0), cond), pictures["scores"])
        return pictures

    return draw


def _versions(state: TrainState) -> tuple[Params, ...]:
    """Return the student and its averages, in the order of `student_files`."""
    return (state.generator.params, *state.ema)


def _export(recipe: Recipe, state: TrainState, workdir: Path) -> None:
    for name, params in zip(student_files(recipe.config), _versions(state), strict=True):
        recipe.family.save(jax.device_get(params), workdir / name)
