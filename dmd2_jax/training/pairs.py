"""The teacher's ODE pairs for the regression loss: made once, in a folder, and read from there.

    pairs.json          what they were made with, and the digest of each file; sealed
    noise_00000.npy     float32 [m, h, w, c], standard normal, of pairs 0 .. m - 1
    x_0_00000.npy       the teacher's samples from that noise

A killed process loses the file that it was writing; the next one goes on. Pair number n is a
function of (seed, n) and the teacher alone; `recipe.open.sample_labels` says of which class or
prompt.
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from dmd2_jax.config.refused import Refused
from dmd2_jax.config.text import read_json
from dmd2_jax.recipe.open import Recipe, check_one_shape, open_recipe, sample_labels
from dmd2_jax.recipe.teacher import load_teacher
from dmd2_jax.run.folder import check_free_space, write_json
from dmd2_jax.run.metrics import Progress
from dmd2_jax.runtime.devices import device_record, say_devices
from dmd2_jax.runtime.distributed import on_first
from dmd2_jax.runtime.fetched import fetched
from dmd2_jax.runtime.integrity import params_digest, some
from dmd2_jax.runtime.owner import check_free, holds_nothing, owned
from dmd2_jax.runtime.places import path_of
from dmd2_jax.runtime.preemption import Interrupted
from dmd2_jax.runtime.seal import SEAL, check_reached, file_digest, is_sealed, seal
from dmd2_jax.runtime.whole_file import clear_partial, whole_file
from dmd2_jax.sampling.samplers import sample_images, sample_noise, teacher_sampler
from dmd2_jax.typing import Int, Params, PyTree

__all__ = [
    "PairPool",
    "TeacherPairs",
    "make_pairs",
    "pairs_folder",
    "write_pairs",
]

_log = logging.getLogger(__name__)

_INDEX, _DEVICES, _FILES = "pairs.json", "devices", "files"
_BESIDE = {_DEVICES: 0, _FILES: 0, SEAL: 0}  # what an index has beside what they were made with
_PARTS = ("noise", "x_0")


class TeacherPairs(NamedTuple):
    """Some pairs on the host: noise [n, h, w, c] -> x_0 [n, h, w, c], labels (`sample_labels`)."""

    noise: np.ndarray
    x_0: np.ndarray
    labels: PyTree


class PairPool(NamedTuple):
    """All pairs of a recipe.

    Attributes:
      number: how many there are.
      read: numbers [n] of pairs -> these pairs, in this order.
    """

    number: int
    read: Callable[[Int[np.ndarray, " n"]], TeacherPairs]


def pairs_folder(recipe: Recipe, workdir: Path) -> Path:
    """Return where the pairs of a run are: `config.distill.pairs`, or by default in its folder."""
    return path_of(recipe.config.distill.pairs or workdir / "teacher_pairs")


def make_pairs(recipe: Recipe, teacher_params: Params, folder: Path, *, own: bool) -> PairPool:
    """Make the teacher's ODE pairs, as far as they are not there, and open them.

    Args:
      recipe: the recipe; `distill.regression_pairs` pairs by the teacher's sampler.
      teacher_params: the teacher's weights.
      folder: to keep them in.
      own: whether the folder is the run's own: pairs made otherwise are then made anew, aloud.

    Returns:
      The pairs.

    Raises:
      ValueError: if the folder has pairs that were made otherwise or are damaged and is not the
        run's own, or the teacher's samples are not finite.
      OSError: if the disk refuses.
    """
    made_with = _made_with(recipe, teacher_params)

    def make_files() -> None:
        claimed = _claim(folder, made_with)
        if not claimed and own and (folder / _INDEX).is_file():
            _log.warning(
                "the teacher pairs in %s are refused: damaged or made otherwise; anew.", folder
            )
            files = [f for part in _PARTS for f in folder.glob(f"{part}_[0-9]*[0-9].npy")]
            for file in (folder / _INDEX, *files):
                file.unlink(missing_ok=True)
            claimed = _claim(folder, made_with)
        if not claimed:
            raise _of_others(folder, made_with)
        _write(recipe, teacher_params, folder)

    def make_alone() -> None:
        if _holds(folder, made_with) and not _missing(recipe, folder, own=own):
            return  # nothing is written: other runs may read there too
        with owned(folder):
            make_files()

    on_first(make_alone)
    per_file, number = _per_file(recipe), made_with["number"]
    files = {
        part: [
            np.load(fetched(folder / f"{part}_{i:05d}.npy"), mmap_mode="r", allow_pickle=False)
            for i in range(-(-number // per_file))
        ]
        for part in _PARTS
    }

    def read(numbers: Int[np.ndarray, " n"]) -> TeacherPairs:
        noise, x_0 = (
            np.stack([files[part][n // per_file][n % per_file] for n in numbers]) for part in _PARTS
        )
        return TeacherPairs(noise, x_0, sample_labels(recipe, np.asarray(numbers)))

    return PairPool(number, read)


def write_pairs(config: ConfigDict, out: str | Path, *, dry_run: bool = False) -> str:
    """Make the pairs of a recipe before its distillation: `dmd2 make-pairs`.

    Args:
      config: the whole config.
      out: the folder, new or begun with the same config.
      dry_run: check everything, write nothing.

    Returns:
      What was written, or would be.

    Raises:
      ValueError: if the config, the data, the weights or the folder is refused.
      Interrupted: at Ctrl-C.
      OSError: if the disk refuses.
    """
    if ends := tuple(config.distill.guidance_range):
        raise Refused(
            f"config.distill.guidance_range={ends} with pairs, which the teacher makes at one "
            "scale, expected (); set config.distill.guidance_range=() and config.distill.guidance."
        )
    recipe = open_recipe(config, config.distill.batch_size)
    check_one_shape(recipe, "pairs of the teacher")
    config = recipe.config
    teacher_params = load_teacher(config, recipe.family)
    say_devices(jax.devices()[:1])
    number, folder = config.distill.regression_pairs, path_of(out)
    size = number * 8 * int(np.prod(recipe.family.image_shape)) / 1e6
    what = f"{number:,} pairs, {size:,.1f} MB"
    if dry_run:
        made_with = _made_with(recipe, teacher_params)
        if not (_holds(folder, made_with) or holds_nothing(folder)):
            raise _of_others(folder, made_with)
        check_free(folder)
        check_free_space(folder, int(size * 1e6), "teacher pairs")
        return f"dry run: {what}; {folder}: {'there' if folder.exists() else 'new'}."
    try:
        make_pairs(recipe, jax.device_put(teacher_params), folder, own=False)
    except KeyboardInterrupt:
        done = len(list(folder.glob("x_0_[0-9]*.npy")))
        raise Interrupted(
            f"{done} files of pairs are written; the same command again goes on.", 130
        ) from None
    return f"{folder}: {what}\nuse them with: config.distill.pairs={folder}"


def _made_with(recipe: Recipe, teacher_params: Params) -> dict[str, Any]:
    config = recipe.config
    prompts = recipe.prompts.identity if recipe.prompts is not None else None
    return {
        "teacher": params_digest(teacher_params),
        "number": config.distill.regression_pairs,
        "shape": list(recipe.family.image_shape),
        "seed": _seed(recipe),
        "sampler_steps": config.teacher.sampler_steps,
        "guidance": config.distill.guidance,
        "prompts": prompts,
        "per_file": _per_file(recipe),
    }


def _seed(recipe: Recipe) -> int:
    return (recipe.config.seed + 1) % 2**32  # the sample grids use config.seed


def _per_file(recipe: Recipe) -> int:
    return min(recipe.config.distill.regression_pairs, recipe.config.evaluate.batch_size)


def _claim(folder: Path, made_with: dict[str, Any]) -> bool:
    """Begin or recognise a folder of pairs; False: it has others, or something else."""
    if (folder / _INDEX).is_file():
        return _holds(folder, made_with)
    if not holds_nothing(folder):
        return False
    devices = device_record(jax.devices()[:1])
    write_json(folder / _INDEX, seal(made_with | {_DEVICES: devices, _FILES: {}}))
    return True


def _holds(folder: Path, made_with: dict[str, Any]) -> bool:
    """Return whether a folder is one of these very pairs, finished or not."""
    index = folder / _INDEX
    return index.is_file() and {**_read_index(folder), **_BESIDE} == {**made_with, **_BESIDE}


def _read_index(folder: Path) -> dict[str, Any]:
    """Return what pairs.json says; {}: it is damaged. Those of older releases have no digests."""
    try:
        found = read_json(folder / _INDEX)
    except (OSError, ValueError) as error:
        check_reached(error, folder / _INDEX)
        return {}
    plain = isinstance(found, dict) and not {SEAL, _FILES} & found.keys()
    return found if plain or is_sealed(found) else {}


def _of_others(folder: Path, made_with: dict[str, Any]) -> Refused:
    return Refused(
        f"{folder} holds something else, or pairs made otherwise, expected pairs of {made_with}; "
        "give another folder, or the config that they were made with."
    )


def _missing(recipe: Recipe, folder: Path, *, own: bool = True) -> list[int]:
    """Return the numbers of the files that are to be made: missing ones, and damaged ones of ours.

    Raises:
      Refused: naming the damaged files of a folder that is not the run's own.
    """
    number, per_file = recipe.config.distill.regression_pairs, _per_file(recipe)
    shape, missing, damaged = tuple(recipe.family.image_shape), [], list[str]()
    digests = _read_index(folder).get(_FILES)
    for i in range(-(-number // per_file)):
        expected = (min(per_file, number - i * per_file), *shape)
        files = [folder / f"{part}_{i:05d}.npy" for part in _PARTS]
        there = [f for f in files if f.exists() and (digests is None or f.name in digests)]
        faults = [f for f in there if not _is_whole(f, expected, digests)]
        damaged += [f.name for f in faults]
        if faults or len(there) < len(files):
            missing.append(i)
    if damaged and not own:
        raise Refused(
            f"{folder}: {some(damaged)} of the teacher pairs are damaged, expected the files that "
            f"{_INDEX} seals; copy them again, or remove them and let `dmd2 make-pairs` make them "
            "again."
        )
    for name in damaged:
        _log.warning("%s is damaged; making it again.", folder / name)
    return missing


def _write(recipe: Recipe, teacher_params: Params, folder: Path) -> None:
    """Write the files that are missing or damaged."""
    number, per_file = recipe.config.distill.regression_pairs, _per_file(recipe)
    shape = tuple(recipe.family.image_shape)
    clear_partial(folder)
    missing, index = _missing(recipe, folder), _read_index(folder)
    if _FILES not in index:  # of an older release: from now on its files are sealed too
        kept = [i for i in range(-(-number // per_file)) if i not in missing]
        names = [f"{part}_{i:05d}.npy" for part in _PARTS for i in kept]
        index[_FILES] = {name: file_digest(folder / name) for name in names}
    check_free_space(folder, len(missing) * per_file * 8 * int(np.prod(shape)), "teacher pairs")
    sampler, seed = teacher_sampler(recipe.family, recipe.config), _seed(recipe)
    done = number - len(missing) * per_file
    with Progress(total=number, initial=max(done, 0), description="teacher pairs") as progress:
        for i in missing:
            numbers = np.arange(i * per_file, min((i + 1) * per_file, number))
            labels = sample_labels(recipe, numbers)
            options: dict[str, Any] = {"seed": seed, "batch_size": per_file, "first": numbers[0]}
            x_0 = sample_images(sampler, recipe.family, teacher_params, labels, **options)
            if not np.isfinite(x_0).all():
                raise Refused(
                    f"the teacher's samples {numbers[0]}..{numbers[-1]} are not finite, expected "
                    "numbers; use model.dtype=float32, or check the weights."
                )
            noise = np.asarray(sample_noise(seed, numbers, 1, shape)[0])
            for part, array in zip(_PARTS, (noise, x_0), strict=True):
                with whole_file(folder / f"{part}_{i:05d}.npy") as partial:
                    np.save(partial, array)
                    index[_FILES][f"{part}_{i:05d}.npy"] = file_digest(partial)
            write_json(folder / _INDEX, seal(index))
            done += len(numbers)
            progress.update(min(max(done, 0), number))


def _is_whole(file: Path, shape: tuple[int, ...], digests: Mapping[str, str] | None) -> bool:
    """Return whether a file is as it was written; without digests, whether it can be."""
    try:
        if digests is not None:
            return file_digest(file) == digests[file.name]
        array = np.load(fetched(file), mmap_mode="r", allow_pickle=False)
        plausible = array.shape == shape and array.dtype == np.float32
        return plausible and bool(np.isfinite(array).all() and np.any(array))
    except (OSError, ValueError) as error:
        check_reached(error, file)
        return False
