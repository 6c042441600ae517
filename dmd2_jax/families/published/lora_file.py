"""LoRA files as people share them: their names, and what they add to a network's weights.

    kohya's programs     lora_unet_LAYER.lora_down.weight, .lora_up.weight and .alpha, with _ for
                         the dots of LAYER; of SDXL with its original names (input_blocks_4_1_...)
    peft, diffusers      unet.LAYER.lora_A.weight and .lora_B.weight, alpha in the header; of a
                         transformer transformer.LAYER...
    diffusers, long ago  unet.LAYER.lora.down.weight and .lora.up.weight, or
                         unet.ATTENTION.processor.to_q_lora.down.weight and .up.weight

All of them mean W + scale (alpha / rank) up down, with alpha = rank where none is written.
"""

import json
import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dmd2_jax.config.refused import Refused
from dmd2_jax.weights.state_dict import Tensors
from dmd2_jax.weights.unpickle import shown
from dmd2_jax.weights.weight_files import Weights, read_weights

__all__ = [
    "LoraLayer",
    "add_lora",
    "is_lora",
    "kohya_tensors",
    "lora_alphas",
    "lora_layers",
    "read_lora",
]

_PARTS = ("unet.", "transformer.")
_WRAPPERS = ("base_model.model.", *_PARTS, "model.diffusion_model.", "diffusion_model.")
_FLAT = ("lora_unet_", "lycoris_")
_TEXT = ("lora_te", "text_encoder", "te.", "te1.", "te2.", "conditioner.", "cond_stage_model.")
_ENDS = {
    "down": r"\.(?:lora_A(?:\.default)?|lora\.down|lora_linear_layer\.down|lora_down)\.weight",
    "up": r"\.(?:lora_B(?:\.default)?|lora\.up|lora_linear_layer\.up|lora_up)\.weight",
    "alpha": r"\.alpha",
    "dora": r"\.dora_scale",
}
_PROCESSOR = re.compile(r"\.processor\.to_(q|k|v|out)_lora\.")
_HEADER = "lora_adapter_metadata"
_PLAIN_NAME = re.compile(r"[\w.]+")

_log = logging.getLogger(__name__)


class LoraLayer(NamedTuple):
    """What a file adds to one layer: scale * up @ down.

    Attributes:
      down: [rank, in] or [rank, in, kh, kw].
      up: [out, rank] or [out, rank, 1, 1].
      scale: alpha / rank.
    """

    down: np.ndarray
    up: np.ndarray
    scale: float


def read_lora(
    path: str | Path, shapes: Mapping[str, tuple[int, ...]], original: Mapping[str, str]
) -> dict[str, LoraLayer]:
    """Read a LoRA file for a network.

    Args:
      path: .safetensors, .pt, .bin.
      shapes: of the network's tensors by their published names.
      original: published name -> original one, of a network that has both.

    Returns:
      Published name of a layer, without ".weight" -> what is added to it.

    Raises:
      Refused: if it is no LoRA file, of another kind or another base; the message names it.
    """
    try:
        return lora_layers(read_weights(path), shapes, original)
    except ValueError as error:
        raise Refused(f"{path}: {error}") from error


def is_lora(tensors: Tensors) -> bool:
    """Return whether a file holds adapters, of whatever names."""
    ends = re.compile(f"({_ENDS['down']}|{_ENDS['up']})$")
    return any(ends.search(_PROCESSOR.sub(_modern, name)) for name in tensors)


def lora_layers(
    weights: Weights, shapes: Mapping[str, tuple[int, ...]], original: Mapping[str, str]
) -> dict[str, LoraLayer]:
    """Sort what a LoRA file holds by layers; see `read_lora`."""
    layers = [name.removesuffix(".weight") for name in shapes if name.endswith(".weight")]
    known = {layer.replace(".", "_"): layer for layer in layers}
    for layer in layers:
        first = original.get(f"{layer}.weight", layer).removesuffix(".weight")
        known.setdefault(first.replace(".", "_"), layer)
    parts = _parts(weights.tensors, known)
    alphas = lora_alphas(weights)
    found = {layer: _layer(layer, part, alphas) for layer, part in sorted(parts.items())}
    _check(found, shapes)
    return found


def add_lora(tensor: np.ndarray, layer: LoraLayer, scale: float) -> np.ndarray:
    """Return a weight with a file's adapter merged in, float32.

    Args:
      tensor: of the layer, in torch's layout.
      layer: what is added.
      scale: how much of it.
    """
    rank = layer.down.shape[0]
    up = np.asarray(layer.up, np.float32).reshape(-1, rank)
    added = up @ np.asarray(layer.down, np.float32).reshape(rank, -1)
    return tensor + np.float32(scale * layer.scale) * added.reshape(tensor.shape)


def kohya_tensors(tensors: Tensors) -> dict[str, np.ndarray]:
    """Return adapters by kohya's names, which ComfyUI, A1111 and diffusers know.

    LAYER keeps diffusers' name: of SDXL too, where all of those programs know both.

    Args:
      tensors: LAYER.lora_A.weight and LAYER.lora_B.weight, whose factor is in them.

    Returns:
      Tensors by name; every alpha is the rank, so that the factor is 1.
    """
    made = {}
    for name, tensor in tensors.items():
        layer, _, end = name.rpartition(".lora_")
        flat = _FLAT[0] + layer.replace(".", "_")
        made[f"{flat}.lora_{'down' if end.startswith('A') else 'up'}.weight"] = tensor
        if end.startswith("A"):
            made[f"{flat}.alpha"] = np.asarray(tensor.shape[0], tensor.dtype)
    return made


def _parts(tensors: Tensors, known: Mapping[str, str]) -> dict[str, dict[str, np.ndarray]]:
    """Return layer -> {"down", "up", "alpha"} of the network's own layers."""
    parts: dict[str, dict[str, np.ndarray]] = {}
    texts, dora, odd, strange = 0, 0, [], set()
    for name, tensor in tensors.items():
        if name.startswith(_TEXT) or ".text_model." in name or "_text_model_" in name:
            texts += 1
            continue
        place, kind = _split(_PROCESSOR.sub(_modern, name))
        if kind is None:
            odd.append(shown(name))
        elif kind == "dora":
            dora += 1
        elif place not in known:
            strange.add(shown(name))
        else:
            parts.setdefault(known[place], {})[kind] = tensor
    if odd:
        raise Refused(
            f"{len(odd)} tensors are no low-rank adapters of a known kind, {odd[0]} among them, "
            "expected plain LoRA (down, up and alpha): LoHa, LoKr, OFT, Tucker's and peft's DoRA "
            "are not merged here; give another file."
        )
    if strange:
        raise Refused(
            f"LoRA of another base: {len(strange)} tensors are of layers that the network has not, "
            f"{min(strange)} among them, expected those of this network; give a LoRA of it."
        )
    if not parts:
        raise Refused(
            f"no LoRA of this network: got {len(tensors)} tensors, {texts} of them of text "
            "encoders, expected adapters of the U-Net; give another file."
        )
    if texts:
        _log.warning(
            "left out %d tensors of LoRA for text encoders: they are the pipeline's.", texts
        )
    if dora:
        _log.warning("left out %d tensors dora_scale, as diffusers does: the rest is merged.", dora)
    return parts


def _modern(match: re.Match) -> str:
    """Spell the layer of an old attention processor as today: to_out is to_out.0."""
    return f".to_{match[1]}{'.0' if match[1] == 'out' else ''}.lora."


def _split(name: str) -> tuple[str, str | None]:
    """Return (layer with _ for its dots, which part of its adapter; None: of no known kind)."""
    for kind, end in _ENDS.items():
        if match := re.search(f"{end}$", name):
            layer = name[: match.start()]
            for wrapper in _WRAPPERS:
                layer = layer.removeprefix(wrapper)
            for flat in _FLAT:
                layer = layer.removeprefix(flat)
            return layer.replace(".", "_"), kind
    return name, None


def lora_alphas(weights: Weights) -> Mapping[str, Any]:
    """Return what peft says of a U-Net's adapters in a file's header, {}: nothing.

    Raises:
      Refused: if it cannot be read, or the adapters are of another kind.
    """
    notes = weights.notes
    if _HEADER not in notes:
        return {}
    try:
        said = json.loads(notes[_HEADER])
        own = {key.removeprefix(_PARTS[0]).removeprefix(_PARTS[1]): it for key, it in said.items()}
    except (ValueError, AttributeError, RecursionError) as error:
        raise Refused(
            f"the header's {_HEADER} cannot be read ({error}), expected JSON; download it again."
        ) from error
    if own.get("use_dora"):
        raise Refused("adapters with use_dora, expected plain LoRA; give another file.")
    return own


def _layer(layer: str, part: Mapping[str, np.ndarray], said: Mapping[str, Any]) -> LoraLayer:
    if "down" not in part or "up" not in part:
        raise Refused(
            f"{layer} has {sorted(part)} in the file, expected down and up; download it again."
        )
    rank = part["down"].shape[0]
    alpha: Any = rank
    if "alpha" in part:
        alpha = float(np.asarray(part["alpha"], np.float32).reshape(-1)[0])
    elif said:
        alpha = said.get("lora_alpha", rank)
        for pattern, value in dict(said.get("alpha_pattern") or {}).items():
            name = pattern.removeprefix("^").removesuffix("$").replace("\\.", ".")
            if not _PLAIN_NAME.fullmatch(name):
                raise Refused(
                    f"the header's alpha_pattern has {shown(pattern)}, expected layers' names; "
                    "give another file."
                )
            if layer == name or layer.endswith(f".{name}"):
                alpha = value
                break
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise Refused(f"{layer} has alpha={alpha!r:.40}, expected a number; download it again.")
    by = math.sqrt(rank) if said.get("use_rslora") else rank
    return LoraLayer(part["down"], part["up"], alpha / by)


def _check(layers: Mapping[str, LoraLayer], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse adapters whose product has not the shape of their layer, or that are not finite."""
    wrong = []
    for name, (down, up, _) in layers.items():
        shape, rank = shapes[f"{name}.weight"], down.shape[0]
        fits = up.size == shape[0] * rank and down.size == rank * math.prod(shape[1:])
        if not fits or up.shape[0] != shape[0]:
            wrong.append(f"{name} (up {up.shape}, down {down.shape}, base {shape})")
        elif not all(np.isfinite(np.asarray(part, np.float32)).all() for part in (down, up)):
            wrong.append(f"{name} (not finite)")
    if wrong:
        raise Refused(
            f"LoRA of another base: {len(wrong)} of {len(layers)} layers do not fit the network, "
            f"{'; '.join(wrong[:3])} among them, expected those of this network; give a LoRA of it."
        )
