"""From a config to the things that it names: the family, the data, the mesh."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dmd2_jax import data
from dmd2_jax.config.check import validate
from dmd2_jax.config.family import FAMILIES, family_names
from dmd2_jax.config.load import from_plain, plain
from dmd2_jax.config.plugins import is_dotted, load_plugin
from dmd2_jax.config.recorded import completed
from dmd2_jax.config.refused import Refused
from dmd2_jax.config.rules import unsaid_faults
from dmd2_jax.config.sizes import Size, say_sizes, sides, size_of, sizes_of
from dmd2_jax.data import Source
from dmd2_jax.denoiser import Denoiser, Schedule
from dmd2_jax.diffusion.samplers import sampling_times
from dmd2_jax.distill.rollout import check_student_times
from dmd2_jax.losses.denoising import WEIGHTINGS
from dmd2_jax.recipe.latents import check_latents
from dmd2_jax.recipe.prompt_caches import open_prompts
from dmd2_jax.runtime.places import check_place
from dmd2_jax.runtime.sharding import check_batch_size, check_processes, make_mesh
from dmd2_jax.typing import Array, Int, Key, Params, PyTree
from dmd2_jax.weights import hub
from dmd2_jax.weights.weight_files import Weights

__all__ = [
    "Family",
    "Recipe",
    "at_size",
    "build_family",
    "check_has_images",
    "check_one_shape",
    "open_recipe",
    "recorded_config",
    "sample_labels",
    "settled",
    "student_times",
    "uniform_labels",
]


_PATHS = (
    ("data", "path"),
    ("data", "prompts"),
    ("model", "pipeline"),
    ("model", "vae"),
    ("teacher", "weights"),
    ("distill", "start_from"),
    ("distill", "pairs"),
)
"""Keys of a config that name a file or folder."""


class Family(Protocol):
    """What a folder of dmd2_jax/families builds: a Denoiser and its weights' making and files."""

    denoiser: Denoiser
    image_shape: tuple[int, int, int]
    num_classes: int

    @property
    def lora_targets(self) -> tuple[str, ...]:
        """Which layers low-rank adapters are for, where the config does not say."""

    def tensor_name(self, path: tuple[str, ...]) -> str:
        """Return the original name of the variable at a path."""

    def init(self, key: Key) -> Params:
        """Draw initial weights."""

    def cond(self, labels: PyTree) -> PyTree:
        """Turn what a source says of its images, such as class numbers, into conditions."""

    def cond_shapes(self, *lead: int) -> PyTree:
        """Return conditions with these leading axes, with shapes in place of arrays."""

    def param_shapes(self) -> Params:
        """Return the weights' shapes."""

    def feature_shapes(self, batch_size: int) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Return the shapes of the denoiser's features."""

    def x0_with_dropout(
        self, params: Params, x_t: Array, t: Array, cond: PyTree, key: Key
    ) -> Array:
        """Return x_0 with dropout active."""

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the weights' tensors by their original names."""

    def from_weights(self, weights: Weights, prefix: str | None = None) -> Params:
        """Take the weights out of what a file holds."""

    def load(self, path: str | Path) -> Params:
        """Read weights with the original names."""

    def save(
        self, params: Params, path: str | Path, notes: Mapping[str, str] | None = None
    ) -> None:
        """Write weights with the original names; a file may say `notes` beside them."""


class Recipe(NamedTuple):
    """A checked config with what it names.

    Attributes:
      config: the config.
      family: the networks.
      dataset: the real training examples.
      mesh: the devices.
      prompts: what a text-conditional student's conditions are drawn from; None: classes.
      buckets: the same for each of several shapes; (): all images are of one.
    """

    config: ConfigDict
    family: Family
    dataset: Source
    mesh: Mesh
    prompts: Source | None = None
    buckets: tuple["Recipe", ...] = ()


def open_recipe(config: ConfigDict, batch_size: int) -> Recipe:
    """Check a config and open what it names, compiling nothing.

    Args:
      config: the whole config.
      batch_size: the global batch of the training that is to run.

    Returns:
      The recipe; its config has the channels and classes of the data where the given one has None,
      and the times of the student's steps where that has their number.

    Raises:
      ValueError: if a value is refused, the data do not fit the model, or the batch does not
        split over the devices.
      FileNotFoundError: if data files are missing.
    """
    check(config)
    mesh = make_mesh(config.mesh)
    check_processes(mesh)
    check_batch_size(batch_size, mesh)
    # What a family refuses is refused before the data are read, unless they have to say it.
    family = None if any(unsaid_faults(config.model)) else build_family(config)
    dataset = data.load(config.data, "train", config.model.resolution)
    if family is None:
        config = _as_the_data_say(config, dataset)
        family = build_family(config)
    _check_measurable(config, dataset)
    check_latents(config, dataset)
    dataset, prompts = open_prompts(config, dataset)
    family = _conditioned(config, family, dataset)
    _check_fits(config, family, dataset)
    config = _with_times(config, family)
    recipe = Recipe(config, family, dataset, mesh, prompts)
    buckets = tuple(_bucket(recipe, size) for size in dataset.buckets)
    return recipe._replace(buckets=buckets)


def _bucket(recipe: Recipe, size: Size) -> Recipe:
    """Return the recipe of one of several shapes: its network, its times, its examples."""
    dataset, prompts = recipe.dataset.buckets[size], recipe.prompts
    config = at_size(recipe.config, size)
    family = _conditioned(config, build_family(config), dataset)
    if prompts is not None:
        prompts = dataset if prompts is recipe.dataset else prompts.buckets[size]
    return Recipe(config, family, dataset, recipe.mesh, prompts)


def settled(config: ConfigDict) -> ConfigDict:
    """Return the config with channels and classes of the data, where it leaves them to the data.

    Data are read only then, and where the config names some.
    """
    if "data" not in config or not any(unsaid_faults(config.model)):
        return config
    return _as_the_data_say(config, data.load(config.data, "train", config.model.resolution))


def _as_the_data_say(config: ConfigDict, dataset: Source) -> ConfigDict:
    """Return the config with channels and classes of the data, where it leaves them to the data."""
    said = {
        "image_channels": dataset.channels,
        "num_classes": dataset.num_classes if dataset.num_classes > 1 else 0,
    }
    settled = config.copy_and_resolve_references()
    with settled.unlocked():
        for key, value in said.items():
            if settled.model.get(key, value) is None:
                settled.model[key] = value
    return settled


def student_times(config: ConfigDict, schedule: Schedule) -> tuple[float, ...]:
    """Return the times of the student's steps: as given, or equal parts of a schedule's levels.

    Of four parts they begin at the levels of 4, 3, 2 and 1 quarters of their number: 999, 749, 499
    and 249 of a thousand steps; 1, 0.9, 0.75 and 0.5 of a flow with shift 3.

    Args:
      config: the whole config.
      schedule: the family's.

    Raises:
      Refused: if there are more steps than levels.
    """
    steps = config.distill.get("student_steps", 0)
    if not steps:
        return tuple(config.distill.student_times)
    starts = sampling_times(schedule, steps)[:-1].astype(np.float32)
    return tuple(float(str(t)) for t in starts)  # the shortest that is this float32


def _with_times(config: ConfigDict, family: Family) -> ConfigDict:
    """Return the config with the times of the student's steps in place of their number.

    Of several shapes each may have its own: there the number stays.
    """
    if not config.distill.student_steps or len(sizes_of(config.model.resolution)) > 1:
        return config
    settled = config.copy_and_resolve_references()
    settled.distill.student_times = student_times(config, family.denoiser.schedule)
    settled.distill.student_steps = 0
    return settled


def _check_fits(config: ConfigDict, family: Family, dataset: Source) -> None:
    """Refuse data of other channels or classes than the network's."""
    channels, classes = family.image_shape[-1], family.num_classes

    def remedy(key: str, value: int) -> str:
        return f"set config.model.{key}={value}" if key in config.model else "take other data"

    if dataset.channels != channels:
        raise Refused(
            f"model.image_channels={channels}, expected {dataset.channels} as in the images of "
            f"{dataset.name}; {remedy('image_channels', dataset.channels)}."
        )
    if classes not in (0, dataset.num_classes):
        raise Refused(
            f"model.num_classes={classes}, expected {dataset.num_classes} as in {dataset.name}, or "
            f"0 for an unconditional model; {remedy('num_classes', dataset.num_classes)}."
        )


def _check_measurable(config: ConfigDict, dataset: Source) -> None:
    """Refuse FID while training where there is no classifier to measure it by."""
    every = config.log.evaluate_every
    if not every:
        return
    off = "set `config.log.evaluate_every=0` and `config.log.keep_best=0`"
    if dataset.null is not None:
        raise Refused(
            f"log.evaluate_every={every} with config.data.name={config.data.name}, expected images "
            f"with classes, on which the classifier that judges is trained; {off}, and measure "
            "checkpoints by `dmd2 evaluate --all_checkpoints --features=inception --prompts=FILE`."
        )
    if dataset.channels not in (1, 3):
        raise Refused(
            f"log.evaluate_every={every} with {dataset.name}, which has latents of "
            f"{dataset.channels} channels, expected images, on which the classifier that judges is "
            f"trained; {off}."
        )
    if dataset.num_classes < 2:
        raise Refused(
            f"log.evaluate_every={every} with {dataset.name}, which has {dataset.num_classes} "
            f"class, expected 2 or more, by which the classifier that judges is trained; {off}, or "
            "sort the images into a folder a class."
        )


def _conditioned(config: ConfigDict, family: Family, dataset: Source) -> Family:
    """Give a text-conditional family the data's condition of no prompt; refuse what cannot pair."""
    null, with_null = dataset.null, getattr(family, "with_null", None)
    if (null is None) != (with_null is None):
        has = "classes, if anything" if null is None else "prompts"
        wants = "classes" if with_null is None else "prompts: `config.data.name=latents`"
        raise Refused(
            f"config.data.name={config.data.name} comes with {has}, expected what "
            f"model.family={config.model.family} is conditioned on, {wants}; see `dmd2 cache`."
        )
    return family if with_null is None else with_null(null)


def check(config: ConfigDict) -> None:
    """Run `config.check.validate` with the names of the data and settings there are.

    Raises:
      Refused: naming every bad value.
    """
    own_data = is_dotted(config.data.name.partition(":")[0])  # whose path may be anything
    for group, key in _PATHS:
        path = config[group].get(key, "")
        if isinstance(path, str) and not hub.is_hub_path(path) and not (own_data and key == "path"):
            check_place(path)
    sources = data.available()
    if data.is_known(config.data.name):
        sources.append(config.data.name)  # "tfds:mnist": what follows the colon is checked there
    validate(config, {"data.name": sources, "distill.denoising_weight": WEIGHTINGS})


def recorded_config(values: Mapping[str, Any]) -> ConfigDict:
    """Return the config that a run recorded; keys newer than the run have their defaults.

    Args:
      values: of its config.json, from `read_run`.
    """
    return from_plain(completed(values))


def build_family(config: ConfigDict) -> Family:
    """Build the family that `config.model.family` names, from a checked config.

    Data are read only where the config leaves channels or classes to them.

    Raises:
      ValueError: if it refuses the config, or the student's steps are no times of its schedule.
    """
    config = settled(config)
    model, known = config.model, family_names()
    module = load_plugin(
        model.family, FAMILIES, "config.model.family", known=known, needs=("defaults", "build")
    )
    family = _of_variant(module.build(model.to_dict()), config)
    if tuple(family.image_shape[:2]) != sides(model.resolution):
        raise Refused(
            f"model.resolution={say_sizes(model.resolution)}, expected "
            f"{say_sizes(size_of(*family.image_shape[:2]))} as in the network that "
            f"model.family={model.family} builds; set it."
        )
    # A config for converting weights has the network alone.
    schedule = family.denoiser.schedule
    times = student_times(config, schedule) if "distill" in config else ()
    check_student_times(times, schedule, "distill.student_times")
    return family


def at_size(config: ConfigDict, size: Size) -> ConfigDict:
    """Return a config whose network is for images of one size.

    Args:
      config: the whole config.
      size: in place of `config.model.resolution`; one of several becomes the first of them.
    """
    values, known = plain(config), sizes_of(config.model.resolution)
    several = len(known) > 1 and size in known
    order = (size, *(other for other in known if other != size))
    values["model"]["resolution"] = tuple(map(sides, order)) if several else size
    return from_plain(values)


def check_one_shape(recipe: Recipe, needed_by: str) -> None:
    """Refuse several shapes.

    Args:
      recipe: the recipe.
      needed_by: who takes one.

    Raises:
      Refused: if there are several.
    """
    if recipe.buckets:
        raise Refused(
            f"config.model.resolution={say_sizes(recipe.config.model.resolution)}, expected one "
            f"shape for {needed_by}; set it to one of them."
        )


def _of_variant(family: Family, config: ConfigDict) -> Family:
    """Return the family that reads the variant of a folder's weights which the config names."""
    variant = config.teacher.get("variant", "") if "teacher" in config else ""
    if not variant:
        return family
    if not dataclasses.is_dataclass(family) or not hasattr(family, "variant"):
        raise Refused(
            f"config.teacher.variant={variant} with model.family={config.model.family}, expected "
            "none: folders of a pipeline alone have variants; leave it empty."
        )
    return dataclasses.replace(family, variant=variant)


def sample_labels(recipe: "Recipe", numbers: Int[np.ndarray, " n"]) -> PyTree:
    """Return what the samples with these numbers are conditioned on, as `Family.cond` takes it.

    Args:
      recipe: the recipe.
      numbers: [n] of samples.

    Returns:
      Classes by turns, [n]; for a text-conditional model the prompts' arrays by turns.
    """
    if recipe.prompts is None:
        return numbers.astype(np.int32) % max(recipe.family.num_classes, 1)
    return data.labels_of(recipe.prompts.examples(numbers % len(recipe.prompts)))


def uniform_labels(num: int, num_classes: int) -> Int[np.ndarray, " num"]:
    """Return `num` class numbers in which every class is as frequent as can be: 0, 1, 2, ..."""
    return np.arange(num, dtype=np.int32) % max(num_classes, 1)


def check_has_images(recipe: Recipe, needed_by: str) -> None:
    """Refuse data that are prompts alone.

    Args:
      recipe: the recipe.
      needed_by: who needs images.

    Raises:
      Refused: if there are none.
    """
    if not recipe.dataset.has_images:
        raise Refused(
            f"{recipe.dataset.name} holds prompts alone, expected images with captions for "
            f"{needed_by}; write such a cache (`dmd2 cache --images`)."
        )
