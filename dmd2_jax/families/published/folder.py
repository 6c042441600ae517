"""A component's folder as diffusers and transformers write it: config.json beside its weights.

    unet/config.json
    unet/diffusion_pytorch_model.safetensors           or, in the same place,
    unet/diffusion_pytorch_model.fp16.safetensors      a variant
    unet/diffusion_pytorch_model.safetensors.index.json and the shards that it names
    unet/diffusion_pytorch_model.bin                   read without executing anything; its shards
                                                       and variants likewise

The folders of transformers call the file `model`, or `pytorch_model.bin`.
"""

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from dmd2_jax.config.refused import Refused
from dmd2_jax.config.text import read_json
from dmd2_jax.families.published.config_sizes import check_sizes
from dmd2_jax.families.published.digests import check_digest
from dmd2_jax.families.published.model import CLASSES, PublishedClass, PublishedModel
from dmd2_jax.runtime.fetched import fetched
from dmd2_jax.runtime.links import check_inside
from dmd2_jax.runtime.places import make_folder, path_of
from dmd2_jax.runtime.whole_file import whole_file
from dmd2_jax.typing import DType, Params
from dmd2_jax.weights.state_dict import Tensors, write_safetensors
from dmd2_jax.weights.weight_files import read_weights

__all__ = [
    "cast_tensors",
    "has_variant",
    "is_component",
    "read_component",
    "read_component_config",
    "read_component_tensors",
    "transformer_configs",
    "transformer_folder",
    "weights_file",
    "weights_variant",
    "write_component",
]

_DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
_BIN = {"diffusion_pytorch_model": "diffusion_pytorch_model", "model": "pytorch_model"}


def read_component(
    folder: str | os.PathLike,
    *,
    expected: Collection[str] | None = None,
    classes: Mapping[str, PublishedClass] = CLASSES,
    variant: str | None = None,
    dtype: DType = jnp.float32,
    remat: str = "none",
) -> tuple[PublishedModel, Params]:
    """Read one component of a pipeline.

    Args:
      folder: with config.json and the weights.
      expected: the classes that will do; None: all of `classes`.
      classes: those that there are; a family has its own network among them.
      variant: "fp16" and the like; None: full precision, or else the only variant there is.
      dtype: type of the computation; weights are float32 whatever the file has.
      remat: of a U-Net, "none", "block" or "full".

    Returns:
      (the network, its weights).

    Raises:
      ValueError: if a file is missing, damaged or of another network; the message names the folder.
    """
    try:
        config = read_component_config(folder)
        options: dict[str, Any] = {"dtype": dtype, "remat": remat}
        model = PublishedModel.from_config(config, expected=expected, classes=classes, **options)
        tensors = read_component_tensors(folder, model.kind.file_stem, variant)
        return model.spelled_as(tensors), model.from_tensors(tensors)
    except ValueError as error:
        raise Refused(f"{folder}: {error}") from error


def write_component(
    model: PublishedModel,
    params: Params,
    folder: str | os.PathLike,
    *,
    variant: str | None = None,
    dtype: str = "float32",
) -> None:
    """Write one component so that diffusers or transformers loads it.

    Args:
      model: the network.
      params: its weights.
      folder: made if it does not exist; files of the same names are replaced.
      variant: goes into the file's name, as in diffusion_pytorch_model.fp16.safetensors.
      dtype: "float32", "float16" or "bfloat16", of the tensors.

    Raises:
      ValueError: if the dtype is another, or too small for the weights.
      OSError: if the disk refuses.
    """
    tensors = cast_tensors(model.to_tensors(params), dtype)
    folder = path_of(folder)
    make_folder(folder)
    text = json.dumps(dict(model.config), indent=2, sort_keys=True) + "\n"
    with whole_file(folder / "config.json") as partial:
        partial.write_text(text)
    write_safetensors(tensors, folder / _named(f"{model.kind.file_stem}.safetensors", variant))


def read_component_config(folder: str | os.PathLike, name: str = "config.json") -> dict[str, Any]:
    """Read a folder's config.json.

    Args:
      folder: the component's.
      name: of the file; schedulers call theirs scheduler_config.json.

    Raises:
      ValueError: if there is none, it is no JSON object, or a number in it sizes no network.
    """
    config = _read_json(path_of(folder) / name)
    check_sizes(config, name)
    return config


def read_component_tensors(
    folder: str | os.PathLike, stem: str, variant: str | None = None
) -> Tensors:
    """Read a folder's tensors, from one file or from shards.

    Args:
      folder: with the weights.
      stem: the weights' file name without suffixes.
      variant: as in `read_component`.

    Raises:
      ValueError: if there are no weights, if there is a choice, or if a file is damaged.
    """
    folder = fetched(folder)
    file = weights_file(folder, stem, variant)
    check_digest(folder.parent, f"{folder.name}/{file.name}")
    if file.suffix == ".json":
        return _read_shards(file)
    return read_weights(file).tensors


def weights_file(folder: Path, stem: str, variant: str | None = None) -> Path:
    """Return the file of weights, or the index of shards, that is read of a folder.

    Raises:
      ValueError: if there are no weights, or if there is a choice.
    """
    if variant is None:
        variant = _only_variant(folder, stem)
    names = _file_names(stem, variant)
    for name in names:
        if (folder / name).is_file():
            check_inside(folder / name, folder)
            return folder / name
    present = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else "no folder"
    raise Refused(
        f"no weights: got {present}, expected {', '.join(names[:-1])} or {names[-1]}; download "
        "the missing file, or name the variant that is there."
    )


def has_variant(folder: str | os.PathLike, variant: str) -> bool:
    """Return whether a component's folder has weights of a variant."""
    folder = path_of(folder)
    stems = {stem for pair in _BIN.items() for stem in pair}
    return any((folder / name).is_file() for stem in stems for name in _file_names(stem, variant))


def weights_variant(folder: str | os.PathLike, named: str = "") -> str | None:
    """Return the variant of a component's weights that is read; None: full precision.

    Args:
      folder: the component's.
      named: that is meant where the folder has it; "": none is.

    Raises:
      ValueError: if there is a choice.
    """
    if named and has_variant(folder, named):
        return named
    found = [_only_variant(path_of(folder), stem) for stem in _BIN]
    return next((variant for variant in found if variant), None)


def transformer_configs(folder: Path) -> dict[str, Any]:
    """Read what the config files of a pipeline with a transformer hold, or of that alone.

    Args:
      folder: with transformer/ and scheduler/, or the transformer's own.

    Returns:
      "transformer" and, of a pipeline, "scheduler" -> its config.

    Raises:
      ValueError: if a file is missing or damaged.
    """
    own = transformer_folder(folder)
    found = {"transformer": read_component_config(own)}
    if own == folder:  # a component alone has no scheduler
        return found
    return found | {
        "scheduler": read_component_config(folder / "scheduler", "scheduler_config.json")
    }


def transformer_folder(folder: Path) -> Path:
    """Return a pipeline folder's transformer, or the folder itself."""
    return folder / "transformer" if (folder / "transformer").is_dir() else folder


def is_component(folder: str | os.PathLike) -> bool:
    """Return whether a folder holds weights of a network of diffusers, such as unet_ema/."""
    return any(path_of(folder).glob("diffusion_pytorch_model*"))


def _file_names(stem: str, variant: str | None) -> tuple[str, ...]:
    """Return what diffusers calls a network's weights, in the order in which it looks for them."""
    names = []
    for whole in (f"{stem}.safetensors", f"{_BIN.get(stem, stem)}.bin"):
        names += [_named(whole, variant), _named(f"{whole}.index.json", variant)]
        if variant is not None:  # the place of a variant in older releases
            names.append(f"{whole}.{variant}.index.json")
    return tuple(names)


def _named(name: str, variant: str | None) -> str:
    """Put a variant before a file name's last suffix, as diffusers does."""
    if variant is None:
        return name
    stem, suffix = name.rsplit(".", 1)
    return f"{stem}.{variant}.{suffix}"


def _only_variant(folder: Path, stem: str) -> str | None:
    """Return the variant that must be meant when none is named; None: full precision."""
    if any((folder / name).exists() for name in _file_names(stem, None)):
        return None
    found = set()
    for whole in (f"{stem}.safetensors", f"{_BIN.get(stem, stem)}.bin"):
        start, end = whole.rsplit(".", 1)
        patterns = ((f"{start}.", f".{end}"), (f"{whole}.index.", ".json"))
        found |= {
            path.name[len(before) : -len(after)]
            for before, after in (*patterns, (f"{whole}.", ".index.json"))
            for path in folder.glob(f"{before}*{after}")
        }
    found = {variant for variant in found if variant and "-of-" not in variant}
    if len(found) > 1:
        raise Refused(
            f"weights only in the variants {sorted(found)}, expected full precision or one of "
            "them; name the one that is meant by `variant=`, in a recipe by "
            "`config.teacher.variant=`."
        )
    return found.pop() if found else None


def _read_shards(index: Path) -> dict[str, np.ndarray]:
    """Read the tensors of every shard that an index names."""
    places = _read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise Refused(
            f"{index.name} has no weight_map, expected tensor names and the files that hold them; "
            "download it again."
        )
    suffix = ".safetensors" if ".safetensors." in index.name else ".bin"
    tensors: dict[str, np.ndarray] = {}
    for shard in sorted({str(file) for file in places.values()}):
        # A file from elsewhere must not choose what is read.
        if Path(shard).name != shard or not shard.endswith(suffix):
            raise Refused(
                f"{index.name} names the shard {shard!r}, expected a {suffix} file beside it; "
                "download it again."
            )
        check_inside(index.parent / shard, index.parent)
        check_digest(index.parent.parent, f"{index.parent.name}/{shard}")
        tensors |= read_weights(index.parent / shard).tensors
    if set(tensors) != set(places):
        lost = sorted(set(places) ^ set(tensors))
        raise Refused(
            f"{index.name} and its shards disagree on {len(lost)} tensors, {lost[:5]} among them, "
            "expected the same in both; download all files of one release."
        )
    return tensors


def _read_json(path: Path) -> dict[str, Any]:
    check_inside(path, path.parent)
    if path.is_file():
        check_digest(path.parent.parent, f"{path.parent.name}/{path.name}")
    try:
        value = read_json(path)
    except (OSError, ValueError) as error:
        raise Refused(
            f"{path.name} cannot be read ({error}), expected a JSON file; check the folder or "
            "download it again."
        ) from error
    if not isinstance(value, Mapping):
        raise Refused(
            f"{path.name} holds a {type(value).__name__}, expected settings by name; download it "
            "again."
        )
    return dict(value)


def cast_tensors(tensors: Tensors, dtype: str) -> dict[str, np.ndarray]:
    """Return tensors of a smaller type.

    Args:
      tensors: by name.
      dtype: "float32", "float16" or "bfloat16".

    Raises:
      ValueError: if the dtype is another, or too small for the weights.
    """
    if dtype not in _DTYPES:
        raise Refused(f"dtype={dtype!r}, expected one of {sorted(_DTYPES)}; choose one.")
    return {name: _cast(name, tensor, dtype) for name, tensor in tensors.items()}


def _cast(name: str, tensor: np.ndarray, dtype: str) -> np.ndarray:
    with np.errstate(over="ignore"):  # reported below, with its remedy
        cast = tensor.astype(_DTYPES[dtype])
    if np.isfinite(tensor).all() and not np.isfinite(cast).all():
        raise Refused(
            f"{name} reaches {np.abs(tensor).max():.3g}, expected values that {dtype} can hold; "
            "write float32 or bfloat16."
        )
    return cast
