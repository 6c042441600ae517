"""Write this folder's files with real torch:  python tests/weights/make.py

They let the tests read what torch and NVIDIA's persistence protocol write where torch is not
installed. Written by torch 2.13.0 (CPU), Python 3.11:

    edm.pkl            pickle.dump of {"ema": EDMPrecond, "loss_fn", "augment_pipe",
                       "dataset_kwargs"}, as EDM's training leaves it: every layer a persistent
                       object that carries its "source code"
    tensors.pth        torch.save of `examples()`, the zip format
    tensors_legacy.pth the same in the format before torch 1.6
    tensors.pkl        the same by pickle.dump
    program.pt         torch.jit.save of `program()`: modules as NVIDIA's Inception network has them

The persistence protocol is written here anew, from what it leaves in a file: an object becomes
_reconstruct_persistent_obj({type, version, module_src, class_name, state}). The module source is a
line that would leave a mark if anything ran it. The values are `edm_tensors()` and `examples()`,
which need no torch.
"""

import pickle
import sys
import types
from collections import OrderedDict
from pathlib import Path

import ml_dtypes
import numpy as np

HERE = Path(__file__).resolve().parent

SOURCE = "raise SystemExit('the module source of a pickle was executed')\n"

ARGUMENTS = {
    "img_resolution": 8,
    "img_channels": 1,
    "label_dim": 3,
    "use_fp16": False,
    "model_type": "DhariwalUNet",
    "model_channels": 4,
    "channel_mult": [1, 1],
    "num_blocks": 1,
    "attn_resolutions": [],
    "dropout": 0.1,
    "augment_dim": 0,
}
"""Keyword arguments of the EDMPrecond in edm.pkl."""


def edm_tensors(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Return the tensors of edm.pkl: drawn by sorted name, but the filters, which are 1/4."""
    random = np.random.RandomState(7)
    return {
        name: np.full(shape, 0.25, np.float32)
        if name.endswith("resample_filter")
        else random.standard_normal(shape).astype(np.float32)
        for name, shape in sorted(shapes.items())
    }


def examples() -> dict[str, np.ndarray]:
    """Return arrays of each kind that torch saves: types, strides, offsets, sizes."""
    base = np.arange(12, dtype=np.float32)
    return {
        "transposed": base.reshape(3, 4).T,
        "offset": base[4:8],
        "column": base.reshape(3, 4)[:, 1],
        "scalar": np.array(2.5, np.float32),
        "empty": np.zeros((0, 3), np.float32),
        "half": np.array([1.5, -2.0], np.float16),
        "bfloat16": np.array([1.5, -2.0], ml_dtypes.bfloat16),
        "double": np.array([[1e300]]),
        "long": np.array([2**40, -1]),
        "byte": np.array([0, 255], np.uint8),
        "bool": np.array([True, False]),
        "parameter": np.ones((2, 2), np.float32),
    }


def torch_examples():
    """Return `examples` as tensors, the first three of which share one storage."""
    import torch

    base = torch.arange(12.0)
    tensors = {
        name: torch.tensor(array.astype(np.float32)).bfloat16()
        if name == "bfloat16"
        else torch.from_numpy(array.copy())
        for name, array in examples().items()
    }
    tensors["transposed"] = base.view(3, 4).t()
    tensors["offset"] = base[4:8]
    tensors["column"] = base.view(3, 4)[:, 1]
    tensors["parameter"] = torch.nn.Parameter(tensors["parameter"])
    return OrderedDict(tensors)


def persistence() -> types.ModuleType:
    """Make the module torch_utils.persistence with the one function that files name."""
    module = types.ModuleType("torch_utils.persistence")

    def _reconstruct_persistent_obj(meta):
        raise NotImplementedError("only files are made here")  # pickle only needs its name

    _reconstruct_persistent_obj.__module__ = module.__name__
    _reconstruct_persistent_obj.__qualname__ = _reconstruct_persistent_obj.__name__
    module._reconstruct_persistent_obj = _reconstruct_persistent_obj
    sys.modules["torch_utils"] = types.ModuleType("torch_utils")
    sys.modules[module.__name__] = module
    return module


def edm_network(shapes: dict[str, tuple[int, ...]]):
    """Build the tree of persistent modules that holds these tensors, layer by layer."""
    import torch

    rebuild = persistence()._reconstruct_persistent_obj

    class Persistent(torch.nn.Module):
        def __init__(self, class_name, *args, **kwargs):
            super().__init__()
            self._class_name, self._init_args, self._init_kwargs = class_name, args, kwargs

        def __reduce__(self):
            state = {k: v for k, v in self.__dict__.items() if k != "_class_name"}
            meta = {
                "type": "class",
                "version": 6,
                "module_src": SOURCE,
                "class_name": self._class_name,
                "state": state,
            }
            return rebuild, (meta,), None

    def class_of(path):
        part, above = path[-1], path[:-1]
        if part in ("enc", "dec"):
            return None  # torch's own ModuleDict
        if part.startswith("map_layer") or part in ("map_label", "affine"):
            return "Linear"
        if "norm" in part:
            return "GroupNorm"
        return "UNetBlock" if above[-1] in ("enc", "dec") and "_conv" not in part else "Conv2d"

    root = Persistent("EDMPrecond", **ARGUMENTS)
    root.model = Persistent("DhariwalUNet", **ARGUMENTS)
    for name, array in edm_tensors(shapes).items():
        node, (*path, leaf) = root, name.split(".")
        for depth, part in enumerate(path):
            if part not in node._modules:
                kind = class_of(path[: depth + 1])
                # NumPy numbers among the arguments, as EDM's own blocks have
                layer = Persistent(kind, skip_scale=np.sqrt(0.5)) if kind else None
                node.add_module(part, layer or torch.nn.ModuleDict())
            node = node._modules[part]
        if leaf == "resample_filter":
            node.register_buffer(leaf, torch.from_numpy(array))
        else:
            node.register_parameter(leaf, torch.nn.Parameter(torch.from_numpy(array), False))
        node._parameters.setdefault("bias", None)
    root.model.register_buffer("scratch", torch.zeros(1), persistent=False)
    return root, Persistent


PROGRAM = {
    "layers.conv.weight": (2, 3, 3, 3),
    "layers.mixed.tower.conv_1.weight": (2, 2, 1, 7),
    "output.weight": (5, 2),
    "output.bias": (5,),
    **{f"{layer}.{leaf}": (2,) for layer in ("layers.conv", "layers.mixed.tower.conv_1")
       for leaf in ("beta", "mean", "var")},
}  # fmt: skip
"""Names and shapes of the tensors of program.pt."""


def program_tensors() -> dict[str, np.ndarray]:
    """Return the tensors of program.pt."""
    random = np.random.RandomState(8)
    return {
        name: random.standard_normal(shape).astype(np.float32)
        for name, shape in sorted(PROGRAM.items())
    }


def program():
    """Script a network of the layers that NVIDIA's Inception network has, with those tensors."""
    import torch

    class Conv2dLayer(torch.nn.Module):
        stride: int
        padding: list[int]  # an attribute that is no tensor

        def __init__(self, size, channels, padding):
            super().__init__()
            self.stride, self.padding = 1, padding
            self.weight = torch.nn.Parameter(torch.zeros(2, channels, *size))
            for name in ("beta", "mean", "var"):
                self.register_buffer(name, torch.zeros(2))

        def forward(self, x):
            x = torch.nn.functional.conv2d(x, self.weight, stride=self.stride, padding=self.padding)
            return torch.nn.functional.batch_norm(x, self.mean, self.var, None, self.beta)

    class Mixed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            pool = torch.nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
            layers = {"pool": pool, "conv_1": Conv2dLayer((1, 7), 2, [0, 3])}
            self.tower = torch.nn.Sequential(OrderedDict(layers))

        def forward(self, x):
            return self.tower(x)

    class InceptionV3(torch.nn.Module):
        def __init__(self):
            super().__init__()
            layers = {"conv": Conv2dLayer((3, 3), 3, [0, 0]), "mixed": Mixed()}
            self.layers = torch.nn.Sequential(OrderedDict(layers))
            self.output = torch.nn.Linear(2, 5)

        def forward(self, x):
            return self.output(self.layers(x).mean([2, 3]))

    network = InceptionV3()
    network.load_state_dict({n: torch.from_numpy(t) for n, t in program_tensors().items()})
    return torch.jit.script(network.eval())


def main() -> None:
    """Write the five files."""
    import torch

    from dmd2_jax.families.edm import family as edm

    schedule = {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0, "num_levels": 10}
    family = edm.build(edm.from_edm_kwargs(ARGUMENTS) | schedule)
    root, persistent = edm_network(family.tensor_shapes())
    record = {
        "ema": root,
        "loss_fn": persistent("EDMLoss", P_mean=-1.2),
        "augment_pipe": persistent("AugmentPipe", p=0.12, filter=np.ones(3)),
        "dataset_kwargs": {"class_name": "training.dataset.ImageFolderDataset", "path": "x.zip"},
    }
    with (HERE / "edm.pkl").open("wb") as file:
        pickle.dump(record, file)
    tensors = torch_examples()
    torch.save(tensors, HERE / "tensors.pth")
    torch.save(tensors, HERE / "tensors_legacy.pth", _use_new_zipfile_serialization=False)
    with (HERE / "tensors.pkl").open("wb") as file:
        pickle.dump(tensors, file)
    program().save(HERE / "program.pt")


if __name__ == "__main__":
    main()
