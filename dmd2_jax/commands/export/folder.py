"""What `dmd2 export` writes: a pipeline's files, copied as plain data around another network.

Of the base's folders go over: settings and vocabularies of known names (T5's spiece.model, a table
of pieces, among them), and weights as .safetensors (read without executing anything where they are
.bin). Never a pickle, never Python code, never what a link leads to outside of the base.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dmd2_jax.config.refused import Refused
from dmd2_jax.config.text import read_json
from dmd2_jax.families.published.digests import write_digests
from dmd2_jax.families.published.folder import read_component_tensors, write_component
from dmd2_jax.families.published.lora_file import kohya_tensors
from dmd2_jax.families.published.model import PublishedModel
from dmd2_jax.families.published.pipeline import (
    DISTILLED,
    INDEX,
    IS_DISTILLED,
    NETWORKS,
    PipelineIndex,
)
from dmd2_jax.families.published.scheduler import recorded_times
from dmd2_jax.runtime.links import check_inside
from dmd2_jax.typing import Params
from dmd2_jax.weights.state_dict import Tensors, write_safetensors

__all__ = [
    "LORA_FILE",
    "copied_bytes",
    "write_lora",
    "write_pipeline",
]

LORA_FILE = "pytorch_lora_weights.safetensors"
"""The name that diffusers looks for in a folder of adapters."""

_PLAIN = (
    "added_tokens.json",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "preprocessor_config.json",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
)
_STEMS = {
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
    "text_encoder_3": "model",
    "safety_checker": "model",
    "image_encoder": "model",
}
# Whose classes diffusers then imports: never what the base's index names.
_LIBRARIES = dict.fromkeys((*NETWORKS, "vae", "scheduler"), "diffusers")
_LABELS = "id2label"
_OPTIONAL = {
    "safety_checker": ("stable_diffusion", "StableDiffusionSafetyChecker"),
    "feature_extractor": ("transformers", "CLIPImageProcessor"),
    "image_encoder": ("transformers", "CLIPVisionModelWithProjection"),
}


def write_pipeline(
    base: PipelineIndex,
    network: PublishedModel,
    params: Params,
    scheduler: Mapping[str, Any],
    folder: Path,
    *,
    dtype: str = "float32",
) -> None:
    """Write a pipeline of the base's parts with another network and scheduler.

    Args:
      base: the pipeline whose other parts are copied.
      network: the one that denoises.
      params: its weights.
      scheduler: the contents of scheduler_config.json.
      folder: an empty one.
      dtype: of the network's tensors.

    Raises:
      ValueError: if a part of the base is missing or damaged, or the weights do not fit the dtype.
      OSError: if the disk refuses.
    """
    index = _index(base, scheduler)
    for part, entry in index.items():
        if part not in (base.network, "scheduler") and isinstance(entry, list) and entry[0]:
            stem, variant = _STEMS.get(part), base.variant_of(part)
            _copy_part(base, base.part(part), folder / part, stem, variant)
    write_component(network, params, folder / base.network, dtype=dtype)
    (folder / "scheduler").mkdir()
    _write_json(scheduler, folder / "scheduler" / "scheduler_config.json")
    _write_json(index, folder / INDEX)
    write_digests(folder)


def copied_bytes(base: PipelineIndex) -> int:
    """Return the size of the base's parts that `write_pipeline` copies, at most."""
    return sum(
        file.stat().st_size
        for part in (*base.parts, *_OPTIONAL)
        if part != base.network and (base.folder / part).is_dir()
        for file in (base.folder / part).iterdir()
        if file.name in _PLAIN or file.suffix in (".safetensors", ".bin")
    )


def write_lora(tensors: Tensors, folder: Path, network: str, names: str = "peft") -> None:
    """Write adapters of a network so that `pipe.load_lora_weights(folder)` loads them.

    Args:
      tensors: as `to_lora_tensors` returns them.
      folder: an empty one.
      network: the part of a pipeline that they are for, "unet" or "transformer".
      names: "peft" or "kohya", whose the names are; those of kohya are of a U-Net.

    Raises:
      OSError: if the disk refuses.
    """
    if names == "kohya":
        rank = str(next(t.shape[0] for n, t in tensors.items() if n.endswith("lora_A.weight")))
        notes = {"ss_network_module": "networks.lora", "ss_network_dim": rank}
        notes["ss_network_alpha"] = rank
        write_safetensors(kohya_tensors(tensors), folder / LORA_FILE, notes)
        return
    named = {f"{network}.{name}": tensor for name, tensor in tensors.items()}
    write_safetensors(named, folder / LORA_FILE)


def _index(base: PipelineIndex, scheduler: Mapping[str, Any]) -> dict[str, Any]:
    """Return the contents of model_index.json: known parts from known libraries, and settings."""
    theirs = read_json(base.folder / INDEX)
    index: dict[str, Any] = {
        name: value
        for name, value in theirs.items()
        if name != "_name_or_path" and (value is None or isinstance(value, bool | int | str))
    }
    if _plain_labels(labels := theirs.get(_LABELS)):
        index[_LABELS] = labels
    for part in base.parts:
        library = _LIBRARIES.get(part, "transformers")
        index[part] = [None, None] if part in base.absent else [library, theirs[part][-1]]
    for part, known in _OPTIONAL.items():
        if part in theirs:
            there = bool((theirs[part] or [None])[-1]) and (base.folder / part).is_dir()
            there = there and base.network == "unet"  # beside a transformer of other classes
            index[part] = list(known) if there else [None, None]
    index["scheduler"] = [_LIBRARIES["scheduler"], scheduler["_class_name"]]
    if base.class_name in DISTILLED and recorded_times(scheduler):
        index[IS_DISTILLED] = True  # else the pipeline guides by default, with a second call
    return index


def _plain_labels(labels: Any) -> bool:
    """Return whether these are names of classes by their numbers, as DiTPipeline has them."""
    return isinstance(labels, dict) and all(isinstance(it, str) for it in labels.values())


def _copy_part(
    base: PipelineIndex, source: Path, target: Path, stem: str | None, variant: str | None
) -> None:
    """Copy a part's plain files, and its weights as one .safetensors file."""
    target.mkdir()
    for name in _PLAIN:
        if (source / name).is_file():
            check_inside(source / name, base.folder)
            shutil.copyfile(source / name, target / name)
    if stem is None:
        return
    whole = f"{stem}.safetensors"
    if variant is None and (source / whole).is_file():
        check_inside(source / whole, base.folder)
        shutil.copyfile(source / whole, target / whole)
        return
    try:
        tensors = read_component_tensors(source, stem, variant)
    except ValueError as error:
        raise Refused(f"{source}: {error}") from error
    write_safetensors(tensors, target / whole)


def _write_json(value: Mapping[str, Any], path: Path) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
