"""What a cycle of a distillation reads: real images, classes or prompts, teacher ODE pairs."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dmd2_jax import data
from dmd2_jax.config.refused import Refused
from dmd2_jax.distill import CycleBatch, Pairs, Samples
from dmd2_jax.recipe.distillation import distill_config
from dmd2_jax.recipe.open import Family, Recipe
from dmd2_jax.runtime.sharding import shard_batch
from dmd2_jax.training.pairs import PairPool, TeacherPairs
from dmd2_jax.training.shapes import shape_of_cycle
from dmd2_jax.typing import PyTree

__all__ = [
    "HostBatch",
    "check_batch",
    "cycle_batch",
    "prepare",
    "put_batch",
    "read_cycle",
    "read_shape",
]


class HostBatch(NamedTuple):
    """What a cycle reads, as it travels to the devices: bytes and numbers.

    A label is what the data say of a sample, its class or its prompt's arrays; `Family.cond` makes
    of it the condition that the networks take.

    Attributes:
      x: uint8 [K, b, h, w, c] real images, or float32 latents; None where no loss needs them.
      label: int32 [K, b], their classes, or a dict of [K, b, ...] arrays, their prompts.
      fake_label: likewise, of the student's samples.
      pairs: teacher ODE pairs of the generator turn; None without a regression loss.
    """

    x: np.ndarray | None
    label: PyTree
    fake_label: PyTree
    pairs: TeacherPairs | None


def read_cycle(
    recipe: Recipe,
    cycle: int,
    pairs: PairPool | None = None,
    *,
    needs_real: bool,
    first_example: int | None = None,
    first_prompt: int | None = None,
) -> HostBatch:
    """Read what cycle number `cycle` needs: a function of (config, data, arguments) alone.

    Args:
      recipe: the recipe.
      cycle: 0, 1, ...
      pairs: teacher ODE pairs, for the regression loss.
      needs_real: whether real images are read, `DistillConfig.needs_real` of the recipe.
      first_example: how many real examples were read before; by default `cycle` times those of
        a cycle.
      first_prompt: likewise, of prompts that are none of the examples'; by default as many.

    Returns:
      This process's rows of the global batch.
    """
    config, classes = recipe.config, recipe.family.num_classes
    distill, seed = config.distill, config.seed
    turns, b = distill.critic_turns, distill.batch_size
    rows = data.process_rows(b, jax.process_index(), jax.process_count())
    if first_example is None:
        first_example = cycle * turns * b
    x, label = None, np.zeros((turns, b), np.int32)[:, rows]
    if needs_real or distill.fake_labels == "real":
        batch = data.batches_from(
            recipe.dataset, first_example, turns, batch_size=b, seed=seed, rows=rows
        )
        x = data.inputs_of(batch) if needs_real else None
        label = data.labels_of(batch)
    fake_label = label
    if distill.fake_labels == "uniform" and recipe.prompts is not None:
        # An order of its own: what the student is asked for is not what the real images show.
        own = first_prompt is None or recipe.prompts is recipe.dataset
        start = first_example if own else first_prompt
        assert start is not None
        asked = data.batches_from(
            recipe.prompts, start, turns, batch_size=b, seed=(seed + 1) % 2**32, rows=rows
        )
        fake_label = data.labels_of(asked)
    elif distill.fake_labels == "uniform" and classes:
        # RandomState, whose streams NumPy has frozen; the 1 keeps it apart from the data's order.
        drawn = np.random.RandomState([seed, cycle, 1]).randint(0, classes, (turns, b))
        fake_label = drawn.astype(np.int32)[:, rows]
    chosen = None
    if pairs is not None:
        start = first_example // turns
        numbers = data.example_indices(pairs.number, start=start, count=b, seed=seed)
        chosen = pairs.read(numbers[rows])
    return HostBatch(x, label, fake_label, chosen)


def read_shape(
    shapes: Sequence[Recipe],
    cycle: int,
    first_example: int,
    pairs: PairPool | None = None,
    *,
    needs_real: bool,
) -> tuple[int, HostBatch]:
    """Read what cycle number `cycle` needs, of the shape whose turn it is.

    Args:
      shapes: the recipe of each, or the one there is.
      cycle: 0, 1, ...
      first_example: how many real examples were read before, of all shapes together.
      pairs, needs_real: see `read_cycle`.

    Returns:
      (number of the shape, this process's rows of the global batch).
    """
    config = shapes[0].config
    per_cycle = config.distill.critic_turns * config.distill.batch_size
    number, first = 0, first_example
    if len(shapes) > 1:  # counted in cycles as large as this one: a batch size may have changed
        counts = tuple(len(each.dataset) for each in shapes)
        number, before = shape_of_cycle(counts, config.seed, first_example // per_cycle)
        first = before * per_cycle
    read = read_cycle(
        shapes[number],
        cycle,
        pairs,
        needs_real=needs_real,
        first_example=first,
        first_prompt=first_example,
    )
    return number, read


def prepare(batch: HostBatch, family: Family) -> CycleBatch:
    """Turn bytes into images in [-1, 1] and class numbers into conditions, where the batch is.

    Not jitted: XLA would fuse the few operations and round them otherwise, in the last bit.

    Args:
      batch: from `read_cycle`.
      family: whose conditions they become.
    """
    real = pairs = None
    if batch.x is not None:
        real = Samples(data.to_model(batch.x), family.cond(batch.label))
    if batch.pairs is not None:
        noise, x_0, labels = batch.pairs
        pairs = Pairs(jnp.asarray(noise), jnp.asarray(x_0), family.cond(labels))
    return CycleBatch(real, family.cond(batch.fake_label), pairs)


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
    needs_real = distill_config(recipe.config, recipe.family).needs_real
    batch = read_cycle(recipe, cycle, pairs, needs_real=needs_real, first_example=first_example)
    return prepare(batch, recipe.family)


def check_batch(recipe: Recipe, expected: CycleBatch) -> None:
    """Read a cycle from the data, and refuse it where it is not what the program takes.

    Args:
      recipe: the recipe.
      expected: the shapes of a batch, from `open_distillation`; pairs are no data's.

    Raises:
      ValueError: if it has other arrays, or the data cannot be read.
    """
    b = recipe.config.distill.batch_size
    own = len(range(b)[data.process_rows(b, jax.process_index(), jax.process_count())])
    found = jax.eval_shape(lambda: cycle_batch(recipe, 0))
    wanted = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((leaf.shape[0], own, *leaf.shape[2:]), leaf.dtype),
        expected._replace(pairs=None),
    )
    if found != wanted:
        raise Refused(
            f"{recipe.dataset.name} gives a cycle {_layout(found)}, expected {_layout(wanted)} "
            f"for model.family={recipe.config.model.family}; give other data, or write their cache "
            "anew with the model's own pipeline."
        )


def _layout(batch: CycleBatch) -> str:
    leaves = jax.tree_util.tree_leaves_with_path(batch)
    return ", ".join(f"{jax.tree_util.keystr(path)} {leaf.shape}" for path, leaf in leaves)


def put_batch(batch: HostBatch, mesh: Mesh) -> HostBatch:
    """Put a batch on the devices of a mesh, as the bytes and numbers that it is."""
    samples = shard_batch(batch._replace(pairs=None), mesh, axis=1)
    return samples._replace(pairs=shard_batch(batch.pairs, mesh))
