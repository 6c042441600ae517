"""Weights with the names of the original programs of DiT and SiT, and of REPA's SiT."""

import logging
import re
from collections.abc import Mapping

import numpy as np

from dmd2_jax.weights.state_dict import Tensors

__all__ = ["from_original", "holds_original_names", "to_original"]

_log = logging.getLogger(__name__)

_NAMES = {
    "x_embedder.proj": "pos_embed.proj",
    "t_embedder.mlp.0": "emb.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "emb.timestep_embedder.linear_2",
    "y_embedder.embedding_table": "emb.class_embedder.embedding_table",
    "final_layer.adaLN_modulation.1": "proj_out_1",
    "final_layer.linear": "proj_out_2",
}
_BLOCK_NAMES = {
    "adaLN_modulation.1": "norm1.linear",
    "attn.proj": "attn1.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
}
_QKV = ("to_q", "to_k", "to_v")
_OURS = re.compile(r"transformer_blocks\.(\d+)\.(.+)\.(weight|bias)")
_THEIRS = re.compile(r"blocks\.(\d+)\.(.+)\.(weight|bias)")
_TABLE = "pos_embed"  # of sines and cosines, which are computed here
_PROJECTORS = "projectors."  # REPA's, of a loss of its training


def holds_original_names(tensors: Mapping[str, object]) -> bool:
    """Return whether tensors are named as the original programs do."""
    return any(name.endswith("x_embedder.proj.weight") for name in tensors)


def from_original(tensors: Tensors) -> dict[str, np.ndarray]:
    """Return tensors with diffusers' names, without those that the network does not use.

    Args:
      tensors: with the original names.
    """
    ours: dict[str, np.ndarray] = {}
    if left := [name for name in tensors if name.startswith(_PROJECTORS)]:
        _log.warning("left out REPA's %d tensors projectors.*, of its training alone.", len(left))
    for name, tensor in tensors.items():
        if name == _TABLE or name in left:
            continue
        stem, _, leaf = name.rpartition(".")
        if match := _THEIRS.fullmatch(name):
            prefix = f"transformer_blocks.{match[1]}"
            if match[2] == "attn.qkv":
                for part, third in zip(_QKV, np.split(tensor, 3), strict=True):
                    ours[f"{prefix}.attn1.{part}.{leaf}"] = third
                continue
            ours[f"{prefix}.{_BLOCK_NAMES.get(match[2], match[2])}.{leaf}"] = tensor
        else:
            ours[f"{_NAMES.get(stem, stem)}.{leaf}"] = tensor
    return ours


def to_original(tensors: Tensors) -> dict[str, np.ndarray]:
    """Return tensors with the original names.

    Args:
      tensors: with diffusers' names, of a network whose blocks share one embedding.
    """
    names = {ours: theirs for theirs, ours in _NAMES.items()}
    block_names = {ours: theirs for theirs, ours in _BLOCK_NAMES.items()}
    theirs: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        stem, _, leaf = name.rpartition(".")
        match = _OURS.fullmatch(name)
        if match is None:
            theirs[f"{names.get(stem, stem)}.{leaf}"] = tensor
            continue
        prefix, inner = f"blocks.{match[1]}", match[2]
        if inner == "attn1.to_q":
            parts = [tensors[name.replace("to_q", part)] for part in _QKV]
            theirs[f"{prefix}.attn.qkv.{leaf}"] = np.concatenate(parts)
        elif inner not in ("attn1.to_k", "attn1.to_v"):
            theirs[f"{prefix}.{block_names.get(inner, inner)}.{leaf}"] = tensor
    return theirs
