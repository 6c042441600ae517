"""The README.md of an export: what it is, and which program opens it with which sampler."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from dmd2_jax.families.published.pipeline import PipelineIndex
from dmd2_jax.families.published.scheduler import Diffusion, read_scheduler, recorded_times

__all__ = ["KINDS", "model_card"]

KINDS = ("pipeline", "peft", "kohya", "single_file")
"""What an export may be."""

_LORA = ("peft", "kohya")


def model_card(
    base: PipelineIndex, scheduler: Mapping[str, Any], kind: str = "pipeline", file: str = ""
) -> str:
    """Return the README.md of an export.

    Args:
      base: the teacher's pipeline.
      scheduler: of the student, from `student_scheduler`; or of a teacher.
      kind: one of `KINDS`.
      file: its name, of adapters or a single file.
    """
    times = list(recorded_times(scheduler) or ())
    head = ["---", "library_name: diffusers", "pipeline_tag: text-to-image", "---", ""]
    parts = [_what(times), "## diffusers", _diffusers(base, scheduler, kind, file, times)]
    parts += ["## ComfyUI, A1111, Forge", _others(scheduler, kind, file, times)]
    return "\n".join([*head, "\n\n".join(parts), ""])


def _what(times: list[int]) -> str:
    if not times:
        return "A pipeline with a U-Net trained by dmd2_jax."
    return (
        f"A student of {len(times)} step{'s' if len(times) > 1 else ''} at "
        f"{', '.join(map(str, times))}, distilled by distribution matching (DMD2, arXiv "
        "2405.14867) with dmd2_jax. The guidance is in its weights; the licence of its teacher's "
        "weights applies."
    )


def _diffusers(
    base: PipelineIndex, scheduler: Mapping[str, Any], kind: str, file: str, times: list[int]
) -> str:
    name, sampler = base.class_name, scheduler["_class_name"]
    steps = (
        f"timesteps={times}" if sampler == "LCMScheduler" else f"num_inference_steps={len(times)}"
    )
    call = f'pipe("a red fox", {steps}, guidance_scale=0)' if times else 'pipe("a red fox")'
    lines = [f'pipe = {name}.from_pretrained("this folder")']
    if kind != "pipeline":
        settings = {key: value for key, value in scheduler.items() if not key.startswith("_")}
        lines = [
            f'pipe = {name}.from_pretrained("the base pipeline")',
            'pipe.load_lora_weights("this folder")',
        ]
        if kind == "single_file":
            lines = [f'pipe = {name}.from_single_file("{file}", config="the base pipeline")']
        lines += [f"pipe.scheduler = diffusers.{sampler}(**{settings})"]
    code = ["```python", "import diffusers", f"from diffusers import {name}", "", *lines]
    return "\n".join([*code, f"image = {call}.images[0]", "```"])


def _others(scheduler: Mapping[str, Any], kind: str, file: str, times: list[int]) -> str:
    """Return what the programs with a window do with it."""
    if kind == "pipeline":
        return (
            "They do not open this folder. Export it again with `--single_file`, or, of adapters, "
            "with `--lora=kohya`."
        )
    if kind == "peft":
        return (
            "ComfyUI finds none of the attention layers by these names. Export it again with "
            "`--lora=kohya`."
        )
    place = {
        "kohya": f"{file}: `models/loras` of ComfyUI, `models/Lora` of A1111 and Forge; strength "
        "1, with the base checkpoint",
        "single_file": f"{file}: `models/checkpoints` of ComfyUI, `models/Stable-diffusion` of "
        "A1111 and Forge",
    }[kind]
    diffusion = read_scheduler(scheduler)
    said = [f"- {place}.", *_sampling(times, diffusion)]
    if diffusion.kind == "v":
        zero = ", zsnr on" if diffusion.zero_snr else ""
        said.append(
            f"- It predicts v{', with zero terminal SNR' if diffusion.zero_snr else ''}: of SDXL "
            "ComfyUI and Forge read that from the checkpoint; else the node ModelSamplingDiscrete, "
            f"v_prediction{zero}."
        )
    return "\n".join(said)


def _sampling(times: list[int], diffusion: Diffusion) -> list[str]:
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


def _listed(times: list[int]) -> str:
    return ", ".join(map(str, times))
