"""Calls of diffusers' networks, each as its pipeline calls it, with arrays in our layout."""

from collections.abc import Iterator
from typing import Any

import numpy as np

__all__ = ["FLUX2", "PACKED", "called", "unfilled", "unpacked"]

FLUX2 = "Flux2Transformer2DModel"
PACKED = ("FluxTransformer2DModel", "QwenImageTransformer2DModel")
"""The networks whose latents come as tokens of 2 x 2 pixels."""


def called(network: Any, x_t: np.ndarray, t: Any, cond: Any, scale: float | None) -> np.ndarray:
    """Call a network of diffusers as its pipeline does.

    Args:
      network: theirs.
      x_t: [b, h, w, c].
      t: the time of the schedule, one for all.
      cond: class numbers [b], or arrays by our names.
      scale: of the guidance that the network takes as an input; None: it takes none.

    Returns:
      What it predicts, [b, h, w, c].
    """
    import diffusers
    import torch

    kind = type(network).__name__
    x = torch.from_numpy(np.ascontiguousarray(x_t.transpose(0, 3, 1, 2)))
    time = torch.full((len(x_t),), float(t))
    if kind == "DiTTransformer2DModel":
        out = network(x, timestep=time, class_labels=torch.tensor(np.asarray(cond))).sample
        return out[:, : x.shape[1]].numpy().transpose(0, 2, 3, 1)
    text = {k: torch.from_numpy(np.array(v, np.float32)) for k, v in cond.items()}
    if kind == "UNet2DConditionModel":
        added = (
            {"text_embeds": text["pooled"], "time_ids": text["time_ids"]}
            if "time_ids" in text
            else {}
        )
        told = {}
        if features := network.config.time_cond_proj_dim:
            assert scale is not None  # the caller has seen that the network takes it
            less = torch.full((len(x),), scale - 1.0)
            embed = diffusers.LatentConsistencyModelPipeline
            told["timestep_cond"] = embed.get_guidance_scale_embedding(None, less, features)
        out = network(x, time, text["prompt_embeds"], added_cond_kwargs=added, **told).sample
        return out.numpy().transpose(0, 2, 3, 1)
    if kind == "ZImageTransformer2DModel":
        prompts = list(unfilled(text["prompt_embeds"], text["prompt_mask"]))
        back = (1000 - 1000 * time) / 1000
        (out,) = network(list(x[:, :, None]), back, prompts, return_dict=False)
        return -torch.stack(out)[:, :, 0].numpy().transpose(0, 2, 3, 1)
    if kind == FLUX2:
        klein, embeds = diffusers.Flux2KleinPipeline, text["prompt_embeds"]
        places = {"img_ids": klein._prepare_latent_ids(x)}
        places |= {"txt_ids": klein._prepare_text_ids(embeds)}
        tokens = klein._pack_latents(x)
        out = network(tokens, encoder_hidden_states=embeds, timestep=time, **places).sample
        return unpacked(kind, out, x_t.shape[1:])
    b, c, h, w = x.shape
    flux = diffusers.FluxPipeline
    if kind == "QwenImageTransformer2DModel":
        out = network(
            flux._pack_latents(x, b, c, h, w),
            timestep=1000 * time / 1000,
            encoder_hidden_states=text["prompt_embeds"],
            encoder_hidden_states_mask=text["prompt_mask"].long(),
            img_shapes=[[(1, h // 2, w // 2)]] * b,
        )
        return unpacked(kind, out.sample, (h, w, c))
    text = {
        "encoder_hidden_states": text["prompt_embeds"],
        "pooled_projections": text["pooled"],
    }
    if kind == "SD3Transformer2DModel":
        out = network(x, timestep=1000 * time, **text).sample
        return out.numpy().transpose(0, 2, 3, 1)
    tokens = flux._pack_latents(x, b, c, h, w)
    places = flux._prepare_latent_image_ids(b, h // 2, w // 2, "cpu", torch.float32)
    if network.config.guidance_embeds:
        assert scale is not None
        text["guidance"] = torch.full((b,), scale)
    length = text["encoder_hidden_states"].shape[1]
    out = network(tokens, timestep=time, img_ids=places, txt_ids=torch.zeros(length, 3), **text)
    return unpacked(kind, out.sample, (h, w, c))


def unpacked(kind: str, latents: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Return latents [b, h, w, c] of this shape that a network of this class has its own way."""
    from diffusers import FluxPipeline

    if kind == FLUX2:
        return latents.numpy().reshape(-1, *shape)
    if kind in PACKED:
        latents = FluxPipeline._unpack_latents(latents, *shape[:2], 1)
    return latents.numpy().transpose(0, 2, 3, 1)


def unfilled(embeds: Any, mask: Any) -> Iterator[Any]:
    """Yield the tokens of each prompt, without what fills it up."""
    for one, real in zip(embeds, mask, strict=True):
        yield one[real > 0.5]
