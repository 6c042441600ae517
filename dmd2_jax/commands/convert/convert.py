"""Weights read from one file and written to another, proved by a forward pass."""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dmd2_jax.config.refused import Refused
from dmd2_jax.families.edm import family as edm
from dmd2_jax.families.edm.arguments import arguments_of, recipe_values
from dmd2_jax.recipe.classes import weights_record
from dmd2_jax.recipe.exported_weights import save_weights
from dmd2_jax.recipe.guidance import has_scale_input
from dmd2_jax.recipe.open import Family, build_family, check, uniform_labels
from dmd2_jax.recipe.weights_file import weights_file
from dmd2_jax.runtime.places import has_folder, path_of
from dmd2_jax.runtime.whole_file import whole_file
from dmd2_jax.sampling.runs import open_run
from dmd2_jax.typing import Params, PyTree
from dmd2_jax.weights.hub import is_hub_path
from dmd2_jax.weights.weight_files import Weights, check_writable, read_weights

__all__ = ["Converted", "convert", "recipe_lines"]

_IMAGES = 2  # of the check


class Converted(NamedTuple):
    """What a conversion did.

    Attributes:
      source: the file read.
      key: its entry that held the network, else "".
      target: the file written.
      tensors: how many tensors it holds.
      parameters: how many numbers the network learns.
      size: bytes written.
      output: mean |x_0| of the check's forward pass, the same with both files' weights.
    """

    source: Path
    key: str
    target: Path
    tensors: int
    parameters: int
    size: int
    output: float

    def __str__(self) -> str:
        """Describe it in three lines."""
        under = f" (its {self.key!r})" if self.key else ""
        return (
            f"read:    {self.source}{under}\n"
            f"written: {self.target}, {self.tensors} tensors, {self.parameters:,} parameters, "
            f"{self.size / 1e6:,.1f} MB\n"
            f"check:   forward passes with the weights read and with those written are equal bit "
            f"for bit (float32, mean |x_0| {self.output:.6f})"
        )


def convert(
    source: str,
    target: str | Path,
    *,
    config: ConfigDict | None = None,
    which: str | None = None,
    ema: float | None = None,
    prefix: str | None = None,
    force: bool = False,
) -> Converted:
    """Read weights, write them in another format, read those back and compare.

    Args:
      source: a file of weights (docs/weights.md), hf://owner/repository/file, or a run folder.
      target: .safetensors, or .bin, .pt, .pth for PyTorch; it appears when it has been checked.
      config: the recipe of the weights; a run folder and EDM's .pkl hold their own.
      which: "teacher", "student" or "best" of a run folder.
      ema: the decay of the student's average of a run folder.
      prefix: of the tensors to take, where the file holds several networks.
      force: replace `target` if it exists.

    Returns:
      What was done.

    Raises:
      ValueError: if the source is refused, the config is missing or of another network, or the
        target exists or is of another format.
      OSError: if the disk refuses, or the file read back is not what was written.
    """
    target = path_of(target)
    _check_target(target, force)
    file, weights, family = _open(source, config, which, ema)
    params = _params(family, weights, file, prefix)
    before = _forward(family, params)
    with whole_file(target) as partial:
        save_weights(family, params, partial, weights_record(file))
        written, size = family.load(partial), partial.stat().st_size
        _refuse_difference(target, params, written)
        if before.tobytes() != _forward(family, written).tobytes():
            raise OSError(
                f"{target} is not written: its forward pass differs from that of {file}, expected "
                "the same bits; check the machine's memory and try again."
            )
    count = sum(leaf.size for leaf in jax.tree.leaves(params["params"]))
    output = float(np.abs(before).mean())
    names = len(family.tensor_shapes())
    return Converted(file, weights.key, target, names, count, size, output)


def recipe_lines(source: str) -> str:
    """Return the lines of a recipe that describe the network of an EDM .pkl.

    Args:
      source: the file, or hf://owner/repository/file.

    Raises:
      ValueError: if it is refused, or records no arguments.
    """
    file = weights_file(source, "")
    model = recipe_values(edm.from_edm_kwargs(_arguments(read_weights(file), file)))
    lines = [f"config.model.{key} = {value!r}" for key, value in model.items()]
    return "\n".join([f"# the network of {file.name}", *lines])


def _check_target(target: Path, force: bool) -> None:
    check_writable(target)
    if not has_folder(target.parent):
        raise Refused(f"{target} lies in no folder, expected {target.parent} to exist; create it.")
    if target.exists() and not force:
        raise Refused(
            f"{target} exists, expected a new file; choose another name, or add --force to replace "
            "it."
        )


def _open(
    source: str, config: ConfigDict | None, which: str | None, ema: float | None
) -> tuple[Path, Weights, Family]:
    """Return the source's file, what it holds, and the network that its config describes."""
    if not is_hub_path(source) and path_of(source).is_dir():
        if config is not None:
            raise Refused(
                f"--config given with the run folder {source}, which holds its own; leave it away."
            )
        run = open_run(source, which, ema, dtype="float32")
        assert run.file is not None  # as no checkpoint is asked for
        if run.merged and run.config.teacher.lora:
            raise Refused(
                f"the teacher of {source} is {run.file} with the LoRA of {run.config.teacher.lora} "
                "merged into it, expected weights of one file; convert those files themselves."
            )
        if run.scale() is not None and not has_scale_input(run.family):
            raise Refused(
                f"the student of {source} takes a guidance scale by weights of its own, expected "
                "weights of the network alone; write them at one scale by `dmd2 export "
                "--guidance`."
            )
        return run.file, read_weights(run.file), run.family
    if which is not None or ema is not None:
        raise Refused(f"--which and --ema choose from a run folder, got {source}; leave them.")
    file = weights_file(source, "")
    weights = read_weights(file)
    if config is None:
        model = edm.from_edm_kwargs(_arguments(weights, file))
        return file, weights, build_family(ConfigDict({"model": model}))
    check(config)
    config = config.copy_and_resolve_references()
    if "dtype" in config.model:
        config.model.dtype = "float32"
    return file, weights, build_family(config)


def _arguments(weights: Weights, file: Path) -> dict:
    if weights.keywords is None:
        raise Refused(
            f"{file} holds tensors alone, expected a recipe that says of which network; add "
            "--config=RECIPE."
        )
    try:
        return arguments_of(weights)
    except ValueError as error:
        raise Refused(f"{file}: {error}") from error


def _params(family: Family, weights: Weights, file: Path, prefix: str | None) -> Params:
    try:
        return family.from_weights(weights, prefix)
    except ValueError as error:
        raise Refused(f"{file}: {error}") from error


def _forward(family: Family, params: Params) -> np.ndarray:
    """Return x_0 of a few noises at levels from low to high, float32."""
    schedule = family.denoiser.schedule
    places = np.linspace(0, len(schedule.levels) - 1, _IMAGES + 2).astype(int)[1:-1]
    t = jnp.asarray(schedule.levels)[places]
    random = np.random.RandomState(0)
    noise = random.standard_normal((_IMAGES, *family.image_shape))
    x_t = jnp.asarray(noise, jnp.float32) * schedule.sigma(t)[:, None, None, None]
    return np.asarray(family.denoiser.x0(params, x_t, t, _conditions(family, random)))


def _conditions(family: Family, random: np.random.RandomState) -> PyTree:
    """Return classes, or conditions drawn at random of the shapes that the family takes."""
    if family.num_classes:
        return family.cond(uniform_labels(_IMAGES, family.num_classes))
    return jax.tree.map(
        lambda shape: jnp.asarray(random.standard_normal(shape.shape), shape.dtype),
        family.cond_shapes(_IMAGES),
    )


def _refuse_difference(target: Path, params: Params, written: Params) -> None:
    equal = jax.tree.map(
        lambda a, b: np.asarray(a).tobytes() == np.asarray(b).tobytes(), params, written
    )
    if not all(jax.tree.leaves(equal)):
        raise OSError(
            f"{target} is not written: what was read back differs from what was written, expected "
            "the same bits; check the disk and try again."
        )
