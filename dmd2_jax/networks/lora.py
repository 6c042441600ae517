"""Low-rank adapters: few trained weights beside a frozen network, which several players can share.

    y = W x + (alpha / rank) B A x        A is called "down" here, B "up"

A linear layer's A is [in, rank] and its B [rank, out]. A convolution's A is a convolution of the
layer's window and stride into `rank` channels, its B a 1x1 convolution. They are a collection of
their own, "lora", in which the layers of networks/layers.py look: the adapted network is the same
module, called with `combine(base, adapters, config)`. The product B A is never made, and nothing
but the adapters is differentiated, unless `merge` is called.

Source: Hu et al. 2021 (2106.09685), section 4.1; for convolutions the layout of peft.
"""

import dataclasses
import fnmatch
import math
from collections.abc import Callable

import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from dmd2_jax.config.refused import Refused
from dmd2_jax.denoiser import Adapter
from dmd2_jax.networks.layers import FAN_IN, LORA
from dmd2_jax.runtime.random import stream_key
from dmd2_jax.typing import Key, Params

__all__ = [
    "STABLE_DIFFUSION_TARGETS",
    "LoraConfig",
    "Naming",
    "combine",
    "dotted",
    "lora_adapter",
    "lora_init",
    "matching_targets",
    "merge",
]

Path = tuple[str, ...]

Naming = Callable[[Path], str]
"""Path of a kernel, such as ("params", "mid", "conv", "kernel"), -> what targets call its layer.

A ".weight" at the end, as in the published tensors' names, is left out."""

STABLE_DIFFUSION_TARGETS = (
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "proj_in",
    "proj_out",
    "ff.net.0.proj",
    "ff.net.2",
    "conv1",
    "conv2",
    "conv_shortcut",
    "downsamplers.0.conv",
    "upsamplers.0.conv",
    "time_emb_proj",
)
"""The layers of a published U-Net that the SDXL 4-step LoRA recipe of DMD2 adapts: attention,
the transformers' outer maps and feed-forward layers, residual blocks, samplers."""

_LISTED = 5  # names a message lists


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """What an adapter is like.

    Attributes:
      rank: features between down and up, at least 1.
      alpha: the adapter is scaled by alpha / rank.
      targets: which linear layers and convolutions have one: patterns (* any characters, ? one) of
        the ends of their names at a dot, so that "to_q" and "attn*.to_q" both mean
        "blocks.0.attn1.to_q".

    Raises:
      ValueError: on construction, if a number is not positive or there is no target.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise Refused(f"rank={self.rank} of LoRA, expected at least 1; try 64.")
        if not (self.alpha > 0 and math.isfinite(self.alpha)):
            raise Refused(f"alpha={self.alpha} of LoRA, expected a positive number; try 8.")
        if not self.targets:
            raise Refused("LoRA has targets=(), expected layers' names; try ('conv*',).")

    @property
    def scale(self) -> float:
        """The factor alpha / rank."""
        return self.alpha / self.rank


def dotted(path: Path) -> str:
    """Name a layer by its modules: "mid.conv" for ("params", "mid", "conv", "kernel")."""
    return ".".join(path[1:-1])


def matching_targets(
    base: Params, targets: tuple[str, ...], naming: Naming = dotted
) -> tuple[str, ...]:
    """Return the patterns that some layer of a network matches.

    Args:
      base: the network's parameters, or their shapes.
      targets: as in `LoraConfig`.
      naming: what the layers are called.
    """
    names = _layer_names(base, naming).values()
    return tuple(t for t in targets if any(_matches(name, t) for name in names))


def lora_init(key: Key, base: Params, config: LoraConfig, naming: Naming = dotted) -> Params:
    """Make adapters with which a network begins as its base: up is zero.

    down ~ U(-1, 1) / sqrt(fan_in), as peft draws it (Kaiming's uniform with a = sqrt(5)).

    Args:
      key: the numbers of a layer are a function of it and the layer's path.
      base: the network's parameters, or their shapes.
      config: the settings.
      naming: what the targets call the layers.

    Returns:
      {"lora": {... {"down", "up"}}}, float32.

    Raises:
      ValueError: if a target matches no layer.
    """
    names = _layer_names(base, naming)
    unmatched = set(config.targets) - set(matching_targets(base, config.targets, naming))
    if unmatched:
        some = sorted(names.values())
        raise Refused(
            f"LoRA's targets {sorted(unmatched)} match no layer, expected ends of names such as "
            f"{', '.join(some[:: max(1, len(some) // _LISTED)][:_LISTED])}; correct or remove them."
        )
    flat, kernels = {}, flatten_dict(base)
    for path, name in names.items():
        if not any(_matches(name, target) for target in config.targets):
            continue
        shapes = _adapter_shapes(kernels[path].shape, config.rank)
        owner = (LORA, *path[1:-1])
        down_key = stream_key(key, "/".join(owner))
        flat[*owner, "down"] = FAN_IN(down_key, shapes["down"], shapes["down"])
        flat[*owner, "up"] = jnp.zeros(shapes["up"], jnp.float32)
    return unflatten_dict(flat)


def combine(base: Params, adapters: Params, config: LoraConfig) -> Params:
    """Return the parameters of the adapted network, in which the base's arrays are themselves.

    Args:
      base: the frozen network's parameters.
      adapters: from `lora_init`.
      config: the settings.

    Returns:
      The base with the collection "lora", its `up`s multiplied by alpha / rank.

    Raises:
      ValueError: if the adapters are of another rank or of another base.
    """
    _check(base, adapters, config)
    flat = flatten_dict(adapters)
    scaled = {p: x * config.scale if p[-1] == "up" else x for p, x in flat.items()}
    return {**base, **unflatten_dict(scaled)}


def merge(base: Params, adapters: Params, config: LoraConfig) -> Params:
    """Return full weights that compute what the adapted network computes: W + (alpha / rank) B A.

    Args:
      base: the frozen network's parameters.
      adapters: from `lora_init`.
      config: the settings.

    Returns:
      Parameters of the base's structure.

    Raises:
      ValueError: if the adapters are of another rank or of another base.
    """
    _check(base, adapters, config)
    merged, flat = flatten_dict(base), flatten_dict(adapters)
    for path, down in flat.items():
        if path[-1] == "down":
            up = flat[*path[:-1], "up"]
            kernel = ("params", *path[1:-1], "kernel")
            # The last two axes of both are matrices; a 1x1 window is one for every tap.
            merged[kernel] = merged[kernel] + config.scale * (down @ up.reshape(up.shape[-2:]))
    return unflatten_dict(merged)


def lora_adapter(config: LoraConfig, naming: Naming = dotted) -> Adapter:
    """Make what `distill.Players` needs of a player whose parameters are adapters of the teacher's.

    Args:
      config: the settings.
      naming: what the targets call the layers.
    """

    def init(key: Key, base: Params) -> Params:
        return lora_init(key, base, config, naming)

    def combined(base: Params, own: Params) -> Params:
        return combine(base, own, config)

    return Adapter(init, combined)


def _layer_names(base: Params, naming: Naming) -> dict[Path, str]:
    """Return the names of all linear layers and convolutions by their kernels' paths."""
    return {
        path: naming(path).removesuffix(".weight")
        for path, leaf in flatten_dict(base).items()
        if path[-1] == "kernel" and len(leaf.shape) in (2, 4)
    }


def _matches(name: str, target: str) -> bool:
    return fnmatch.fnmatchcase(f".{name}", f"*.{target}")


def _adapter_shapes(kernel: tuple[int, ...], rank: int) -> dict[str, tuple[int, ...]]:
    *window, channels_in, channels_out = kernel
    return {
        "down": (*window, channels_in, rank),
        "up": (*(1 for _ in window), rank, channels_out),
    }


def _check(base: Params, adapters: Params, config: LoraConfig) -> None:
    """Raise a ValueError if adapters are not such of this base and rank."""
    if set(adapters) != {LORA} or LORA in base:
        raise Refused(
            f"got a base of {sorted(base)} and adapters of {sorted(adapters)}, expected a base "
            f"without {LORA!r} and adapters of [{LORA!r}] alone; pass what `lora_init` returns, "
            "and the base as it was."
        )
    kernels, faults = flatten_dict(base), []
    for path, leaf in flatten_dict(adapters).items():
        kernel = kernels.get(("params", *path[1:-1], "kernel"))
        where = "/".join(path[1:-1])
        if kernel is None:
            faults.append(f"{where} (no such layer)")
            continue
        expected = _adapter_shapes(kernel.shape, config.rank).get(path[-1])
        if tuple(leaf.shape) != expected:
            faults.append(f"{where}/{path[-1]} (got {tuple(leaf.shape)}, expected {expected})")
    if faults:
        more = f" and {len(faults) - _LISTED} more" if len(faults) > _LISTED else ""
        raise Refused(
            f"LoRA adapters do not fit the base at rank={config.rank}: "
            f"{', '.join(faults[:_LISTED])}{more}; use the rank and the base that they were "
            "trained with."
        )
