"""The README.md of an export: what it is, which program opens it and how, how it was made.

Its header is the one that the Hugging Face Hub reads.
"""

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import yaml

from dmd2_jax.commands.export.origin import Origin, hub_file
from dmd2_jax.commands.export.record import Record
from dmd2_jax.config.printable import printable
from dmd2_jax.config.sizes import Size, sides
from dmd2_jax.families.published.flow_scheduler import is_flow
from dmd2_jax.families.published.pipeline import PipelineIndex
from dmd2_jax.families.published.scheduler import (
    Diffusion,
    read_scheduler,
    recorded_scales,
    recorded_settings,
    recorded_times,
)
from dmd2_jax.version import __version__

__all__ = ["KINDS", "Card", "header", "model_card"]

KINDS = ("pipeline", "peft", "kohya", "single_file")
"""What an export may be."""

_LORA = ("peft", "kohya")
_IMAGE_FIRST = ("Flux2KleinPipeline",)  # whose first argument is an image to change
_NO_PLACE = "this folder"
_TAGS = {
    "StableDiffusionPipeline": ["stable-diffusion", "stable-diffusion-diffusers"],
    "StableDiffusionXLPipeline": ["stable-diffusion-xl", "stable-diffusion-xl-diffusers"],
    "StableDiffusion3Pipeline": ["sd3", "sd3-diffusers"],
    "FluxPipeline": ["flux", "flux-diffusers"],
    "Flux2KleinPipeline": ["flux2", "flux2-klein-diffusers"],
    "ZImagePipeline": ["z-image", "z-image-diffusers"],
    "QwenImagePipeline": ["qwen-image", "qwen-image-diffusers"],
}
_ROUNDED = {
    "FluxPipeline": "0.75 to 0.752",
    "Flux2KleinPipeline": "0.75 to 0.752",
    "QwenImagePipeline": "0.75 to 0.7539",
}
_NO_GUIDANCE = {"QwenImagePipeline": "true_cfg_scale=1.0"}
"""What says in a call that there is none, where it is not guidance_scale=0."""
_GUIDED = {"QwenImagePipeline": ', negative_prompt=""'}
"""What a teacher's call has to say for guidance, at its pipeline's own scale."""


class Card(NamedTuple):
    """What a README.md tells.

    Attributes:
      base: the teacher's pipeline.
      scheduler: of the student, from `student_scheduler` or `flow_student_scheduler`; or of a
        teacher.
      origin: what is known of the base.
      kind: one of `KINDS`.
      file: its name, of adapters or a single file.
      dtype: of the network's tensors.
      record: what the run tells; by default there is none.
      place: where it will be on the Hub, owner/name; "": nowhere.
      pixels: height and width that a call of diffusers has to give; 0: its default.
      shapes: those in pixels that the student was trained on, with its times for each; (): one.
    """

    base: PipelineIndex
    scheduler: Mapping[str, Any]
    origin: Origin
    kind: str = "pipeline"
    file: str = ""
    dtype: str = "float32"
    record: Record = Record()
    place: str = ""
    pixels: Size = 0
    shapes: tuple[tuple[Size, tuple[float, ...]], ...] = ()

    @property
    def times(self) -> list[float]:
        """Those of the student; []: it is a teacher."""
        return list(recorded_times(self.scheduler) or ())

    @property
    def flow(self) -> bool:
        """Whether the network predicts a flow."""
        return is_flow(self.scheduler)


def header(card: Card) -> str:
    """Return the YAML of a README.md that the Hub reads, between its lines of dashes."""
    licence = card.origin.licence
    tags = ["text-to-image", *_TAGS[card.base.class_name], "dmd2_jax"]
    tags += ["dmd2", "distillation", "few-step"] if card.times else []
    tags += ["lora"] if card.kind in _LORA else []
    said: dict[str, Any] = {"license": licence.id}
    said |= {"license_name": licence.name} if licence.name else {}
    said |= {"license_link": licence.link} if licence.link else {}
    said |= {"library_name": "diffusers", "pipeline_tag": "text-to-image"}
    if card.origin.hub:
        relation = "adapter" if card.kind in _LORA else "finetune"
        said |= {"base_model": card.origin.hub, "base_model_relation": relation}
    said["tags"] = tags
    return f"---\n{yaml.safe_dump(said, sort_keys=False)}---\n"


def model_card(card: Card) -> str:
    """Return the README.md of an export."""
    parts = [f"# {_title(card)}", _what(card), _origin(card.origin, card.record)]
    parts += ["## diffusers", _diffusers(card)]
    if card.flow:
        parts += ["## ComfyUI", _comfyui(card)]
    else:
        others = _others(card.scheduler, card.kind, card.file, card.times)
        parts += ["## ComfyUI, A1111, Forge", others]
    if card.record.figures:
        parts += ["## Measured", f"```\n{card.record.figures}\n```", _measured(card.record)]
    parts += ["## Details", _details(card)]
    return f"{header(card)}\n" + "\n\n".join(parts) + "\n"


def _title(card: Card) -> str:
    steps = len(card.times)
    what = f"{steps} step{'s' if steps > 1 else ''}" if steps else "trained further"
    return f"{card.place.rpartition('/')[2] or _text(card.origin.name)}: {what}"


def _what(card: Card) -> str:
    times = card.times
    if not times:
        network = "U-Net" if card.base.network == "unet" else "transformer"
        return f"A pipeline with a {network} trained by dmd2_jax."
    if "guidance" in recorded_settings(card.scheduler):
        ends = recorded_scales(card.scheduler)
        which = f"any guidance scale in {ends[0]:g} to {ends[1]:g}" if ends else "a guidance scale"
        guidance = f"A step is one call of its network, which takes {which} as an input."
    else:
        guidance = "The guidance is in its weights: it takes none when it samples."
    return (
        f"A student of {len(times)} step{'s' if len(times) > 1 else ''} at "
        f"{_listed(times)}, distilled by distribution matching (DMD2, "
        f"[arXiv 2405.14867](https://arxiv.org/abs/2405.14867)) with dmd2_jax. {guidance}"
    )


def _origin(origin: Origin, record: Record) -> str:
    name = _text(origin.name)
    base = f"[{name}](https://huggingface.co/{origin.hub})" if origin.hub else name
    said = [f"Base: {base}."]
    if record.teachers:
        said.append(f"The teacher's weights are of {', '.join(map(_text, record.teachers))}.")
    licence = origin.licence
    named = licence.name or licence.id
    link = f" ({licence.link})" if licence.link else ""
    said.append(
        {
            "you": f"Licence: {named}.",
            "base": f"Licence: {named}{link}, as that of the base.",
            "": "Licence: that of the teacher's weights applies; it is not recorded here, so "
            "look it up where they come from.",
        }[licence.said_by]
    )
    return " ".join(said)


def _diffusers(card: Card) -> str:
    name, sampler = card.base.class_name, card.scheduler["_class_name"]
    times, place = card.times, card.place or _NO_PLACE
    base = card.origin.hub or "the base pipeline"
    steps = f"num_inference_steps={len(times)}"
    if card.flow:
        steps = f"sigmas={times}"
    elif sampler == "LCMScheduler":
        steps = f"timesteps={times}"
    guidance = recorded_settings(card.scheduler).get("guidance")
    height, width = sides(card.pixels) if card.pixels else (0, 0)
    size = f"height={height}, width={width}, " if card.pixels else ""
    scale = f"guidance_scale={guidance or 0:g}"
    if guidance is None:
        scale = _NO_GUIDANCE.get(name, scale)
    given = f", {size}{steps}, {scale}" if times else _GUIDED.get(name, "")
    named = "prompt=" if name in _IMAGE_FIRST else ""
    call = f'pipe({named}"a red fox"{given})'
    # diffusers opens a pipeline that lacks a part only if it is told so.
    absent = "".join(f", {part}=None" for part in card.base.absent)
    lines = [f'pipe = {name}.from_pretrained("{place}"{absent})']
    if card.kind != "pipeline":
        settings = {key: value for key, value in card.scheduler.items() if not key.startswith("_")}
        lines = [
            f'pipe = {name}.from_pretrained("{base}"{absent})',
            f'pipe.load_lora_weights("{place}")',
        ]
        if card.kind == "single_file":
            file = hub_file(card.place, card.file) if card.place else card.file
            lines = [f'pipe = {name}.from_single_file("{file}", config="{base}")']
        lines += [f"pipe.scheduler = diffusers.{sampler}(**{settings})"]
    code = ["```python", "import diffusers", f"from diffusers import {name}", "", *lines]
    shapes = _shapes(card)
    if not (card.flow and times):
        return "\n".join([*code, f"image = {call}.images[0]", "```", *shapes])
    seeded = ["import torch", *code[1:], "torch.manual_seed(0)", f"image = {call}.images[0]"]
    return "\n".join(["```python", *seeded, "```", "", *_flow_calls(card, guidance), *shapes])


def _shapes(card: Card) -> list[str]:
    """Say what a call of each of several shapes has to give."""
    if len(card.shapes) < 2:
        return []
    what = "sigmas" if card.flow else "timesteps"
    rows = [
        f"| {sides(size)[0]} | {sides(size)[1]} | {list(times)} |" for size, times in card.shapes
    ]
    said = f"It was trained on {len(rows)} shapes; each is drawn with its own `{what}`:"
    return ["", said, "", f"| height | width | {what} |", "|---|---|---|", *rows]


def _flow_calls(card: Card, guidance: float | None) -> list[str]:
    """Say what a call of diffusers' pipelines of flows has to be."""
    said = [
        "- Give `sigmas`: by a number of steps alone the pipeline takes others. The shift is in "
        "them, so the scheduler's own is 1; another one would shift them again.",
        "- The noise between steps is `torch.manual_seed`'s: the pipeline hands its `generator` to "
        "the first noise alone.",
    ]
    if guidance is not None:
        ends = recorded_scales(card.scheduler)
        trained = (
            f"it was trained with those in {ends[0]:g} to {ends[1]:g}"
            if ends
            else "the only one that the student was trained with"
        )
        said.append(
            f"- `guidance_scale={guidance:g}` is an input of the network, and {trained}; "
            "`true_cfg_scale` stays 1."
        )
    elif card.base.class_name == "FluxPipeline":
        said.append("- The network takes no guidance: `guidance_scale` changes nothing.")
    elif card.base.class_name == "QwenImagePipeline":
        said.append(
            "- `true_cfg_scale` above 1 with a `negative_prompt` is guidance here: give neither. "
            "`guidance_scale` changes nothing."
        )
    elif card.base.class_name == "ZImagePipeline":
        said.append(
            "- `guidance_scale` above 0 is guidance here, pos + w (pos - neg): 0 is none. It is 1 "
            "less than the guidance of dmd2_jax and of most pipelines, neg + w (pos - neg)."
        )
        said.append("- Give a fresh list of prompts: the pipeline overwrites the one it is given.")
    else:
        said.append("- `guidance_scale` of 1 and less is none.")
    if rounded := _ROUNDED.get(card.base.class_name):
        said.append(
            f"- In bfloat16 the pipeline rounds the times ({rounded}); with float32 they are exact."
        )
    return said


def _comfyui(card: Card) -> str:
    """Return what is known of it for a flow's files."""
    if not card.times:
        return "It does not open this folder."
    opens = (
        "By its source it knows the names of these adapters"
        if card.kind == "peft"
        else "It does not open this folder"
    )
    return (
        f"{opens}; that was not run. The student's steps are its sampler lcm with the sigmas "
        f"{_listed(card.times)}, 0 and cfg 1.0."
    )


def _measured(record: Record) -> str:
    return (
        f"By `dmd2 evaluate`: {_text(record.measured)}. A distance compares with others that were "
        "measured in the same way, and with nothing else."
    )


def _details(card: Card) -> str:
    rows = [*card.record.settings]
    rows += [("file", "adapters, float32" if card.kind in _LORA else card.dtype)]
    rows += [("scheduler", card.scheduler["_class_name"])]
    rows += [("steps at", _listed(card.times))] if card.times else []
    rows += [("exported by", f"dmd2_jax {__version__}")]
    return "\n".join(
        ["| | |", "|---|---|", *(f"| {what} | {_text(value)} |" for what, value in rows)]
    )


def _others(scheduler: Mapping[str, Any], kind: str, file: str, times: list[float]) -> str:
    """Return what the programs with a window do with it."""
    if kind == "pipeline":
        return (
            "They do not open this folder. From the same run `dmd2 export --single_file` writes "
            "one file for them, and of adapters `--lora=kohya`."
        )
    if kind == "peft":
        return (
            "ComfyUI finds none of the attention layers by these names. From the same run `dmd2 "
            "export --lora=kohya` writes those that it knows."
        )
    place = {
        "kohya": "`models/loras` of ComfyUI, `models/Lora` of A1111 and Forge; strength 1, with "
        "the base checkpoint",
        "single_file": "`models/checkpoints` of ComfyUI, `models/Stable-diffusion` of A1111 and "
        "Forge",
    }[kind]
    diffusion = read_scheduler(scheduler)
    said = [f"- {_text(file)}: {place}.", *_sampling(times, diffusion)]
    if diffusion.kind == "v":
        zero = ", zsnr on" if diffusion.zero_snr else ""
        said.append(
            f"- It predicts v{', with zero terminal SNR' if diffusion.zero_snr else ''}: of SDXL "
            "ComfyUI and Forge read that from the checkpoint; else the node ModelSamplingDiscrete, "
            f"v_prediction{zero}."
        )
    return "\n".join(said)


def _sampling(times: list[float], diffusion: Diffusion) -> list[str]:
    """Say which sampler and scheduler of theirs take a student's times, if one does."""
    if not times:
        return ["- Any sampler and scheduler that suit the base."]
    levels, n = len(diffusion.schedule.levels), len(times)
    # "simple" counts down from the last level in equal steps, cut to whole numbers.
    simple = [levels - 1 - int(i * levels / n) for i in range(n)]
    if times == simple:
        return [
            f"- ComfyUI: sampler lcm, scheduler simple, {n} steps, cfg 1.0. They are exactly the "
            "student's times.",
            f"- A1111 and Forge: sampling method LCM, schedule type Simple, {n} steps, CFG scale "
            "1. Their LCM has a grid of 50 times, between which it interpolates.",
        ]
    t = jnp.asarray(times, diffusion.schedule.levels.dtype)
    ratios = diffusion.schedule.sigma(t) / jnp.maximum(diffusion.schedule.alpha(t), 2.0**-12)
    sigmas = ", ".join(f"{float(ratio):.4f}" for ratio in ratios)
    return [
        f"- No scheduler of theirs takes these times ({n} steps of simple: {_listed(simple)}). In "
        f"ComfyUI give the sampler lcm the sigmas {sigmas}, 0 and cfg 1.0, or use diffusers."
    ]


def _text(words: str) -> str:
    """Return names of files and runs as Markdown shows them and nothing else."""
    return re.sub(r"([\\`*\[\]|#])", r"\\\1", html.escape(" ".join(printable(words).split())))


def _listed(times: Sequence[float]) -> str:
    return ", ".join(map(str, times))
