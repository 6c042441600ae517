"""What pickles of tensors may name, and the inert things that stand for it.

Tensors become NumPy arrays that view their storages, objects become `Record`s of their attributes.
The source code that NVIDIA's persistent objects carry is never looked at.
"""

import dataclasses
import math
import pickletools
import re
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from dmd2_jax.weights.unpickle import Buildable, Global, PickleError, shown

__all__ = [
    "ALLOWED",
    "STORAGE_TYPES",
    "UNTYPED_STORAGE",
    "NumpyArray",
    "Record",
    "Storage",
    "program_classes",
]

STORAGE_TYPES = {
    "torch.FloatStorage": np.dtype(np.float32),
    "torch.DoubleStorage": np.dtype(np.float64),
    "torch.HalfStorage": np.dtype(np.float16),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.CharStorage": np.dtype(np.int8),
    "torch.ByteStorage": np.dtype(np.uint8),
    "torch.ShortStorage": np.dtype(np.int16),
    "torch.IntStorage": np.dtype(np.int32),
    "torch.LongStorage": np.dtype(np.int64),
    "torch.BoolStorage": np.dtype(np.bool_),
}
"""torch's names of the types of storages."""

UNTYPED_STORAGE = "torch.storage.UntypedStorage"
"""A storage of bytes, whose tensors say their type themselves."""

_FLOAT8 = {
    f"torch.{kind}": np.dtype(getattr(ml_dtypes, kind))
    for kind in ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
}

_MOST_AXES = 32
_PLAIN_DTYPE = re.compile(r"[<>|=]?([fiu][1248]|b1|\?)")


_PROGRAM = "__torch__."
"""What the names of a TorchScript program's classes begin with."""


class Record(Buildable):
    """An object of the pickle that is not made: the name of its class and its attributes."""

    def __init__(self, class_name: str, state: dict[str, Any] | None = None) -> None:
        self.class_name = class_name
        self.state = state or {}

    @property
    def is_scripted(self) -> bool:
        """Whether its class is one of a TorchScript program."""
        return self.class_name.startswith(_PROGRAM)

    def build(self, state: Any) -> None:
        """Take the attributes."""
        if type(state) is not dict:
            raise PickleError(
                f"got a {type(state).__name__} as the attributes of {shown(self.class_name)}, "
                "expected a dict"
            )
        self.state = state


@dataclasses.dataclass(frozen=True)
class Storage:
    """The numbers that tensors view: a one-dimensional array."""

    array: np.ndarray


class Dtype(Buildable):
    """A NumPy dtype of plain numbers."""

    def __init__(self, code: Any, align: Any = False, copy: Any = False) -> None:
        if not isinstance(code, str) or not _PLAIN_DTYPE.fullmatch(code):
            raise PickleError(f"got the NumPy dtype {shown(code)!r}, expected plain numbers")
        self.value = np.dtype(code)

    def build(self, state: Any) -> None:
        """Take the byte order."""
        order = state[1]
        if order not in ("<", ">", "|", "="):
            raise PickleError(f"got the byte order {shown(order)!r}, expected one of '<>|='")
        self.value = self.value.newbyteorder(order)


class NumpyArray(Buildable):
    """A NumPy array, whose contents come after it.

    Attributes:
      value: the array.
    """

    def __init__(self, value: np.ndarray | None = None) -> None:
        self.value = np.zeros(0) if value is None else value

    def build(self, state: Any) -> None:
        """Take (version, shape, dtype, column-major, bytes)."""
        _, shape, dtype, column_major, raw = state
        self.value = _array(raw, dtype, shape, "F" if column_major else "C")


def _array(raw: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
    if not isinstance(raw, bytes | bytearray) or not isinstance(dtype, Dtype):
        raise PickleError("got a NumPy array of Python objects, expected plain numbers")
    shape = _sizes(shape)
    if math.prod(shape) * dtype.value.itemsize != len(raw):
        raise PickleError(
            f"got {len(raw)} bytes for a NumPy array of shape {shape}, expected "
            f"{math.prod(shape) * dtype.value.itemsize}"
        )
    return np.frombuffer(raw, dtype.value).reshape(shape, order="F" if order == "F" else "C")


def _sizes(values: Any) -> tuple[int, ...]:
    if type(values) not in (tuple, list) or len(values) > _MOST_AXES:
        raise PickleError(f"got {shown(values)} as a shape, expected at most {_MOST_AXES} sizes")
    for value in values:
        if type(value) is not int or not 0 <= value < 2**62:
            raise PickleError(f"got the size {shown(value)}, expected a number of 0 or more")
    return tuple(values)


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> np.ndarray:
    """View a storage as torch would; requires_grad, hooks and metadata are not kept."""
    if not isinstance(storage, Storage):
        raise PickleError(f"got a tensor of a {type(storage).__name__}, expected a storage")
    (start,), size, stride = _sizes([offset]), _sizes(size), _sizes(stride)
    flat = storage.array
    if len(size) != len(stride):
        raise PickleError(f"got sizes {size} and strides {stride}, expected as many of each")
    count = math.prod(size)
    if count == 0:
        return np.zeros(size, flat.dtype)
    last = start + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    # A tensor with more elements than numbers (strides of 0) would fill memory once it is copied.
    if last >= flat.size or count > flat.size:
        raise PickleError(
            f"got a tensor of sizes {size}, strides {stride}, offset {start} in a storage of "
            f"{flat.size} numbers, expected one that lies within"
        )
    steps = tuple(step * flat.itemsize for step in stride)
    return np.lib.stride_tricks.as_strided(flat[start:], size, steps, writeable=False)


def _rebuild_float8(
    storage: Any, offset: Any, size: Any, stride: Any, _: Any, __: Any, kind: Any, *___: Any
) -> np.ndarray:
    """View a storage of bytes as numbers of a type that has no storages of its own."""
    dtype = _FLOAT8.get(kind.name) if isinstance(kind, Global) else None
    if dtype is None or not isinstance(storage, Storage) or storage.array.dtype != np.uint8:
        raise PickleError(f"got a tensor of {shown(kind)} in bytes, expected {sorted(_FLOAT8)}")
    # Last, because NumPy cannot stride over all of these types.
    return _rebuild_tensor(storage, offset, size, stride).view(dtype)


def _rebuild_parameter(data: Any, *_: Any) -> np.ndarray:
    """Return the parameter's tensor; requires_grad, hooks and attributes are not kept."""
    if not isinstance(data, np.ndarray):
        raise PickleError(f"got a parameter of a {type(data).__name__}, expected a tensor")
    return data


def _rebuild_from_type(function: Any, _: Any, arguments: Any, state: Any = None) -> np.ndarray:
    """Rebuild a tensor that has attributes; they are not kept."""
    if function is not ALLOWED["torch._utils._rebuild_tensor_v2"] or type(arguments) is not tuple:
        raise PickleError("got a tensor of another making, expected torch's _rebuild_tensor_v2")
    return _rebuild_tensor(*arguments)


def _reconstruct_persistent_object(meta: Any) -> Record:
    """Keep the name and the attributes of NVIDIA's persistent object; its source is not read."""
    if type(meta) is not dict or meta.get("type") != "class":
        raise PickleError("got a persistent object of unknown kind, expected type='class'")
    if not isinstance(meta.get("class_name"), str):
        raise PickleError("got a persistent object without a class_name, expected one")
    record = Record(meta["class_name"])
    record.build(meta.get("state") if meta.get("state") is not None else {})
    return record


def _ordered_dict(pairs: Any = ()) -> dict[Any, Any]:
    if type(pairs) not in (tuple, list):
        raise PickleError(f"got an OrderedDict of a {type(pairs).__name__}, expected pairs")
    if any(type(p) not in (tuple, list) or len(p) != 2 or not isinstance(p[0], str) for p in pairs):
        raise PickleError("got an OrderedDict of other things than (name, value), expected pairs")
    return dict(pairs)


def _set_of(kind: Callable[[Any], Any]) -> Callable[..., Any]:
    def make(items: Any = ()) -> Any:
        if type(items) not in (tuple, list) or not all(type(i) in (str, int) for i in items):
            raise PickleError("got a set of other things than text and integers, expected those")
        return kind(items)

    return make


def _encode(text: Any, encoding: Any) -> bytes:
    """Return bytes as protocol 2 spells them."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise PickleError(f"got bytes in the encoding {shown(encoding)!r}, expected 'latin1'")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """Return b"" as protocol 2 spells it."""
    return b""


def _numpy_scalar(dtype: Any, raw: Any) -> Any:
    return _array(raw, dtype, (), "C").item()


def _numpy_empty(_: Any, shape: Any, __: Any) -> NumpyArray:
    return NumpyArray()


def _numpy_buffer(raw: Any, dtype: Any, shape: Any, order: Any) -> NumpyArray:
    return NumpyArray(_array(raw, dtype, shape, order))


def _recorded(name: str) -> Callable[..., Record]:
    def make(*arguments: Any) -> Record:
        if arguments:
            raise PickleError(f"got arguments for {name}, expected its state alone")
        return Record(name.rpartition(".")[2])

    return make


def program_classes(pickled: bytes) -> dict[str, Global]:
    """Return the classes of a TorchScript program that a pickle names; they become `Record`s.

    Args:
      pickled: the program's data.pkl, which defines none of them: their code lies elsewhere in
        the file and is not looked at.

    Raises:
      ValueError: if the pickle is damaged.
    """
    named = [a for op, a, _ in pickletools.genops(pickled) if op.name == "GLOBAL"]
    names = {name.replace(" ", ".") for name in named if isinstance(name, str)}

    def makes(name: str) -> Callable[[], Record]:
        return lambda: Record(name)

    return {name: Global(name, makes(name)) for name in names if name.startswith(_PROGRAM)}


def _typed_list(values: Any) -> list[Any]:
    if type(values) is not list:
        raise PickleError(f"got a {type(values).__name__}, expected TorchScript's list")
    return values


def _typed(value: Any, _: Any) -> Any:
    """Return a container of TorchScript; the types of its entries are not kept."""
    return value


def _size(values: Any = ()) -> tuple[int, ...]:
    return _sizes(values)


def _device(*parts: Any) -> str:
    return ":".join(shown(part) for part in parts)


_MODULES = tuple(
    f"torch.nn.modules.{name}"
    for name in (
        "container.ModuleDict",
        "container.ModuleList",
        "container.Sequential",
        "linear.Identity",
        "linear.Linear",
        "conv.Conv2d",
        "normalization.GroupNorm",
        "normalization.LayerNorm",
        "activation.SiLU",
        "dropout.Dropout",
        "pooling.AvgPool2d",
        "pooling.MaxPool2d",
    )
)
"""torch's own modules, of which the pickle gives the attributes."""

_LISTS = ("int", "double", "bool", "tensor")
"""TorchScript's lists of one type."""

_TYPES = (
    "torch.Tensor",
    "torch.nn.parameter.Parameter",
    "numpy.ndarray",
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",  # a key in old .ckpt files
    UNTYPED_STORAGE,
    *STORAGE_TYPES,
    *_FLOAT8,
    *(
        f"torch.{n}"
        for n in ("float32", "float64", "float16", "bfloat16", "int64", "int32", "uint8")
    ),
)
"""Names that are passed on and never called."""

_CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered_dict,
    "dnnlib.util.EasyDict": _ordered_dict,
    "torch_utils.persistence._reconstruct_persistent_obj": _reconstruct_persistent_object,
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": _rebuild_float8,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "torch.Size": _size,
    "torch.device": _device,
    "builtins.set": _set_of(set),
    "builtins.frozenset": _set_of(frozenset),
    "__builtin__.set": _set_of(set),  # of protocol 2, which spells names as Python 2 did
    "__builtin__.frozenset": _set_of(frozenset),
    "_codecs.encode": _encode,
    "__builtin__.bytes": _no_bytes,
    "numpy.dtype": Dtype,
    **{
        f"numpy.{core}.{name}": call
        for core in ("core", "_core")
        for name, call in (
            ("multiarray._reconstruct", _numpy_empty),
            ("multiarray.scalar", _numpy_scalar),
            ("numeric._frombuffer", _numpy_buffer),
        )
    },
    **{f"torch.jit._pickle.build_{kind}list": _typed_list for kind in _LISTS},
    "torch.jit._pickle.restore_type_tag": _typed,
    **{name: _recorded(name) for name in _MODULES},
}

ALLOWED = {name: Global(name) for name in _TYPES} | {
    name: Global(name, call) for name, call in _CALLS.items()
}
"""Every name that a pickle of tensors may use."""
