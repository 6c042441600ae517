"""Between a checkpoint's flat dict of tensors and a pytree of Flax variables.

A checkpoint has one name a tensor and torch's layouts: convolution kernels OIHW (over time too
OIDHW), linear weights [out, in], tables of embeddings [row, feature] as in Flax. A family says how
the path of a Flax leaf is spelled there (`Naming`) and which further tensors, its `buffers`, belong
to the checkpoint although they are no variables.
"""

import json
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from dmd2_jax.config.refused import Refused
from dmd2_jax.runtime.seal import check_reached
from dmd2_jax.runtime.whole_file import whole_file
from dmd2_jax.typing import Array, Params, PyTree
from dmd2_jax.weights.sealed_tensors import NOTES, check_sealed, write_sealed
from dmd2_jax.weights.unpickle import shown

Naming = Callable[[tuple[str, ...]], str]
"""Path of a leaf, for example ("params", "conv", "kernel"), -> the tensor's name."""

Tensors = Mapping[str, np.ndarray]
"""Tensors by their checkpoint names, in torch's layouts."""

_LEAF_NAMES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
_KEPT = "embedding"  # leaves of this name are laid out as in torch
_LISTED = 10  # names a message lists of each kind of mismatch
_BUFFER_RTOL = 1e-5
_FLOAT8 = {"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2}
# Of programs whose float8 is a part of the weight: the rest is a factor beside it.
_SCALES = (".scale_weight", ".weight_scale", "scaled_fp8")


def torch_name(path: tuple[str, ...]) -> str:
    """Spell a leaf's path as torch would: without its first entry (the collection), dotted.

    Args:
      path: for example ("params", "conv", "kernel").

    Returns:
      For example "conv.weight".
    """
    return ".".join((*path[1:-1], _LEAF_NAMES.get(path[-1], path[-1])))


def read_safetensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Read every tensor of a .safetensors file.

    Args:
      path: the file.

    Returns:
      Tensors by name; float8 ones are of the types of ml_dtypes. The format holds numbers only;
      reading it executes nothing.

    Raises:
      ValueError: if the file is missing, truncated, no safetensors file, holds numbers of an
        unknown kind, or has digests that it does not match.
      OSError: if the disk does not hand it over.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.numpy import load_file

    try:
        with safe_open(path, framework="np") as file:
            kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
            float8 = [name for name, kind in kinds.items() if kind in _FLOAT8]
            _check_kinds(path, kinds, float8)
            check_sealed(path)
            if float8:
                plain = {name: file.get_tensor(name) for name in kinds if name not in float8}
                return plain | _read_float8(path, float8)
        return load_file(path)
    except Refused:
        raise
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        check_reached(error, path)
        raise Refused(
            f"weights file {str(path)!r} cannot be read ({error}), expected a complete "
            ".safetensors file; check the path or copy the file again."
        ) from error


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """Return the texts by name that the header of a .safetensors file has beside its tensors.

    Args:
      path: the file, which `read_safetensors` has read.
    """
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        return dict(file.metadata() or {})


def _check_kinds(
    path: str | os.PathLike, kinds: Mapping[str, str], float8: Collection[str]
) -> None:
    """Refuse numbers that NumPy and ml_dtypes do not have, and float8 that is not the weight."""
    unknown = {k for k in kinds.values() if k.startswith(("F8", "F6", "F4")) and k not in _FLOAT8}
    scales = [name for name in kinds if name.endswith(_SCALES)]
    if unknown:
        raise Refused(
            f"weights file {str(path)!r} holds numbers of {sorted(unknown)}, expected float8 as "
            f"{' or '.join(_FLOAT8)}, or a wider type; take the release in float16 or bfloat16."
        )
    if float8 and scales:
        raise Refused(
            f"weights file {str(path)!r} holds float8 with factors beside it ({scales[0]} among "
            f"{len(scales)}), expected float8 that is the weight itself; take the release in "
            "float16 or bfloat16."
        )


def _read_float8(path: str | os.PathLike, names: Collection[str]) -> dict[str, np.ndarray]:
    """Read tensors that safetensors hands to no NumPy; it has checked the header."""
    with Path(path).open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        tensors = {}
        for name in names:
            begin, end = header[name]["data_offsets"]
            file.seek(8 + length + begin)
            flat = np.frombuffer(file.read(end - begin), _FLOAT8[header[name]["dtype"]])
            tensors[name] = flat.reshape(header[name]["shape"])
        return tensors


def write_safetensors(
    tensors: Tensors, path: str | os.PathLike, notes: Mapping[str, str] | None = None
) -> None:
    """Write tensors to a .safetensors file, with digests in its header, whole or not at all.

    Args:
      tensors: tensors by name.
      path: the file; replaced if it exists, left alone if writing fails.
      notes: texts by name for its header.

    Raises:
      OSError: if the disk refuses.
    """
    # Not ascontiguousarray, which makes a number a vector of one.
    contiguous = {name: np.asarray(t, order="C") for name, t in tensors.items()}
    # transformers refuses a file that does not say whose layouts it has.
    kept = {name: text for name, text in (notes or {}).items() if name not in NOTES}
    with whole_file(path) as partial, partial.open("wb") as file:
        write_sealed(contiguous, {"format": "pt", **kept}, file)


def to_tensors(
    params: Params, naming: Naming = torch_name, buffers: Tensors | None = None
) -> dict[str, np.ndarray]:
    """Turn variables into a checkpoint's tensors.

    Args:
      params: nested dict of variables, numeric leaves.
      naming: the family's spelling.
      buffers: further tensors of the checkpoint.

    Returns:
      Tensors by name in torch's layouts, sorted by name.

    Raises:
      ValueError: if two leaves have one name.
    """
    leaves = _named_leaves(params, naming)
    tensors = {
        name: np.asarray(leaf) if kept else to_torch(np.asarray(leaf))
        for name, (leaf, kept) in leaves.items()
    }
    return dict(sorted({**tensors, **(buffers or {})}.items()))


def tensor_shapes(
    template: PyTree, naming: Naming = torch_name, buffers: Tensors | None = None
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a checkpoint's tensors by name, in torch's layouts.

    Args:
      template: nested dict whose leaves have the variables' shapes.
      naming: the family's spelling.
      buffers: further tensors of the checkpoint.
    """
    leaves = _named_leaves(template, naming)
    shapes = {
        name: leaf.shape if kept else _torch_shape(leaf.shape)
        for name, (leaf, kept) in leaves.items()
    }
    return shapes | {name: buffer.shape for name, buffer in (buffers or {}).items()}


def to_params(
    tensors: Tensors,
    template: PyTree,
    naming: Naming = torch_name,
    buffers: Tensors | None = None,
) -> Params:
    """Turn a checkpoint's tensors into variables, or say everything that does not fit.

    Args:
      tensors: tensors by name in torch's layouts, of any floating dtype.
      template: nested dict whose leaves have the variables' shapes (`jax.eval_shape` of init).
      naming: the family's spelling.
      buffers: further tensors that the checkpoint must hold, with the values that the family
        computes with.

    Returns:
      Variables of the template's structure, float32.

    Raises:
      ValueError: if tensors are missing, extra, misshapen, not floating point or not finite, or
        if a buffer has other values; the message lists them.
    """
    leaves = _named_leaves(template, naming)
    buffers = buffers or {}
    _check(tensors, tensor_shapes(template, naming, buffers), buffers)
    values = []
    for name, (_, kept) in leaves.items():
        tensor = np.asarray(tensors[name], dtype=np.float32)
        values.append(jnp.asarray(tensor if kept else from_torch(tensor)))
    return jax.tree.unflatten(jax.tree.structure(template), values)


def _named_leaves(tree: PyTree, naming: Naming) -> dict[str, tuple[Array, bool]]:
    """Return (leaf, whether it is laid out as in torch) by checkpoint name, in the tree's order."""
    named: dict[str, tuple[Array, bool]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        keys = tuple(str(entry.key) for entry in path)
        name = naming(keys)
        if name in named:
            raise Refused(
                f"two variables are named {name!r}, expected one name each; "
                "give a `naming` that tells them apart."
            )
        named[name] = (leaf, keys[-1] == _KEPT)
    return named


def to_torch(leaf: np.ndarray) -> np.ndarray:
    """Turn a kernel's HWIO into OIHW, DHWIO into OIDHW, and [in, out] into [out, in]."""
    if leaf.ndim in (4, 5):
        *window, channels, features = range(leaf.ndim)
        return leaf.transpose(features, channels, *window)
    return leaf.T if leaf.ndim == 2 else leaf


def from_torch(tensor: np.ndarray) -> np.ndarray:
    """Turn OIHW into HWIO, OIDHW into DHWIO, and [out, in] into [in, out]."""
    if tensor.ndim in (4, 5):
        return tensor.transpose(*range(2, tensor.ndim), 1, 0)
    return tensor.T if tensor.ndim == 2 else tensor


def _torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return to_torch(np.empty(shape, np.bool_)).shape


def _check(tensors: Tensors, shapes: dict[str, tuple[int, ...]], buffers: Tensors) -> None:
    """Raise one ValueError that lists every way in which `tensors` is not what is expected."""
    common = [name for name in shapes if name in tensors]
    fitting = [name for name in common if tuple(tensors[name].shape) == tuple(shapes[name])]
    floating = [name for name in fitting if jnp.issubdtype(tensors[name].dtype, jnp.floating)]
    problems = {
        "missing": sorted(set(shapes) - set(tensors)),
        "extra": [shown(name) for name in sorted(set(tensors) - set(shapes))],
        "misshapen": [
            f"{name} (got {tuple(tensors[name].shape)}, expected {tuple(shapes[name])})"
            for name in sorted(set(common) - set(fitting))
        ],
        "not floating point": [
            f"{name} (got {tensors[name].dtype})" for name in sorted(set(fitting) - set(floating))
        ],
        "not finite": sorted(
            name for name in floating if not np.isfinite(tensors[name].astype(np.float32)).all()
        ),
        "of another value than the configuration implies": sorted(
            name
            for name in floating
            if name in buffers
            and not np.allclose(
                tensors[name].astype(np.float32), buffers[name], rtol=_BUFFER_RTOL, atol=0
            )
        ),
    }
    lines = [
        f"  {len(names)} {kind}: {', '.join(names[:_LISTED])}"
        + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
        for kind, names in problems.items()
        if names
    ]
    if lines:
        raise Refused(
            f"weights do not fit the network: got {len(tensors)} tensors, expected "
            f"{len(shapes)}.\n" + "\n".join(lines) + "\nCheck that the model configuration "
            "(widths, levels, classes, resolution, network) is the one of the weights."
        )
