"""What a cycle of a distillation reads: real images, classes or prompts, teacher ODE pairs."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dmd2_jax import data
from dmd2_jax.distill import CycleBatch, Pairs, Samples
from dmd2_jax.recipe.distillation import objectives
from dmd2_jax.recipe.open import Family, Recipe
from dmd2_jax.runtime.sharding import shard_batch
from dmd2_jax.training.pairs import PairPool, TeacherPairs
from dmd2_jax.typing import PyTree

__all__ = ["HostBatch", "cycle_batch", "needs_images", "prepare", "put_batch", "read_cycle"]


class HostBatch(NamedTuple):
    """What a cycle reads, as it travels to the devices: bytes and numbers.

    Attributes:
      image: uint8 [K, b, h, w, c] real images, or float32 latents; None where no loss needs them.
      label: int32 [K, b], their classes, or a dict of [K, b, ...] arrays, their prompts.
      fake_label: likewise, of the student's samples.
      pairs: teacher ODE pairs of the generator turn; None without a regression loss.
    """

    image: np.ndarray | None
    label: PyTree
    fake_label: PyTree
    pairs: TeacherPairs | None


def needs_images(config: ConfigDict) -> bool:
    """Return whether an objective of the recipe, or its student's input, needs real images."""
    distill = config.distill
    noised_real = not distill.backward_simulation and len(distill.student_times) > 1
    return noised_real or any(one.needs_real for one in objectives(config))


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
    image, label = None, np.zeros((turns, b), np.int32)[:, rows]
    if needs_images(config) or distill.fake_labels == "real":
        batch = data.batches_from(
            recipe.dataset, first_example, turns, batch_size=b, seed=seed, rows=rows
        )
        image = data.inputs_of(batch) if needs_images(config) else None
        label = data.labels_of(batch)
    fake_label = label
    if distill.fake_labels == "uniform" and recipe.prompts is not None:
        # An order of its own: what the student is asked for is not what the real images show.
        asked = data.batches_from(
            recipe.prompts, first_example, turns, batch_size=b, seed=(seed + 1) % 2**32, rows=rows
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
    return HostBatch(image, label, fake_label, chosen)


def prepare(batch: HostBatch, family: Family) -> CycleBatch:
    """Turn bytes into images in [-1, 1] and class numbers into conditions, where the batch is.

    Not jitted: XLA would fuse the few operations and round them otherwise, in the last bit.

    Args:
      batch: from `read_cycle`.
      family: whose conditions they become.
    """
    real = pairs = None
    if batch.image is not None:
        real = Samples(data.to_model(batch.image), family.cond(batch.label))
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
    batch = read_cycle(recipe, cycle, pairs, first_example=first_example)
    return prepare(batch, recipe.family)


def put_batch(batch: HostBatch, mesh: Mesh) -> HostBatch:
    """Put a batch on the devices of a mesh, as the bytes and numbers that it is."""
    images = shard_batch(batch._replace(pairs=None), mesh, axis=1)
    return images._replace(pairs=shard_batch(batch.pairs, mesh))
