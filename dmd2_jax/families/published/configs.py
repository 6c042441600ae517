"""The config.json of the published components, reduced to what describes the networks.

Full-size shapes without any download: `PublishedModel.from_config(SDXL_UNET).param_shapes()`.

Source: the config.json files of stable-diffusion-v1-5, stable-diffusion-xl-base-1.0 and taesd on
  the Hugging Face hub; of SD 3, 3.5 and FLUX.1 those of their releases.
"""

from collections.abc import Mapping
from typing import Any

Config = Mapping[str, Any]

SD15_UNET: Config = {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "down_block_types": [
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "DownBlock2D",
    ],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": [
        "UpBlock2D",
        "CrossAttnUpBlock2D",
        "CrossAttnUpBlock2D",
        "CrossAttnUpBlock2D",
    ],
}
"""859,520,964 parameters."""

SCHEDULER: Config = {
    "_class_name": "DDIMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
"""The diffusion of SD 1.x and SDXL."""

SDXL_UNET: Config = {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "silu",
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "use_linear_projection": True,
}
"""2,567,463,684 parameters."""

SD_VAE: Config = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 512,
    "scaling_factor": 0.18215,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
"""83,653,863 parameters."""

SDXL_VAE: Config = {
    **SD_VAE,
    "force_upcast": True,
    "sample_size": 1024,
    "scaling_factor": 0.13025,
}
"""As many; other weights and another scale."""

TAESD: Config = {
    "_class_name": "AutoencoderTiny",
    "act_fn": "relu",
    "decoder_block_out_channels": [64, 64, 64, 64],
    "encoder_block_out_channels": [64, 64, 64, 64],
    "in_channels": 3,
    "latent_channels": 4,
    "latent_magnitude": 3,
    "latent_shift": 0.5,
    "num_decoder_blocks": [3, 3, 3, 1],
    "num_encoder_blocks": [1, 3, 3, 3],
    "out_channels": 3,
    "scaling_factor": 1.0,
    "upsampling_scaling_factor": 2,
}
"""2,445,063 parameters."""

CLIP_L_TEXT: Config = {
    "architectures": ["CLIPTextModel"],
    "bos_token_id": 0,
    "eos_token_id": 2,
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 1,
    "projection_dim": 768,
    "vocab_size": 49408,
}
"""OpenAI's CLIP ViT-L/14, the text encoder of SD 1.x and SDXL's first: 123,060,480 parameters."""

OPENCLIP_BIGG_TEXT: Config = {
    "architectures": ["CLIPTextModelWithProjection"],
    "bos_token_id": 0,
    "eos_token_id": 2,
    "hidden_act": "gelu",
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "pad_token_id": 1,
    "projection_dim": 1280,
    "vocab_size": 49408,
}
"""OpenCLIP's ViT-bigG/14, SDXL's second text encoder: 694,659,840 parameters."""


def _clip(
    projection: int, activation: str, text: tuple[int, int, int], vision: tuple[int, int, int, int]
) -> Config:
    """Return the config of a CLIPModel: its encoders' width, layers and heads, and the patch."""
    common = {"hidden_act": activation, "layer_norm_eps": 1e-05}
    width, layers, heads = text
    text_config = {
        **common,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "max_position_embeddings": 77,
        "model_type": "clip_text_model",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "pad_token_id": 1,
        "vocab_size": 49408,
    }
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": projection,
        "text_config": text_config,
        "vision_config": {
            **common,
            "hidden_size": vision[0],
            "image_size": 224,
            "intermediate_size": 4 * vision[0],
            "model_type": "clip_vision_model",
            "num_attention_heads": vision[2],
            "num_channels": 3,
            "num_hidden_layers": vision[1],
            "patch_size": vision[3],
        },
    }


CLIP_B32: Config = _clip(512, "quick_gelu", (512, 12, 8), (768, 12, 12, 32))
"""OpenAI's ViT-B/32, both encoders: 151,277,313 parameters."""

CLIP_L14: Config = _clip(768, "quick_gelu", (768, 12, 12), (1024, 24, 16, 14))
"""OpenAI's ViT-L/14: 427,616,513 parameters."""

_G14 = _clip(1024, "gelu", (1024, 24, 16), (1408, 40, 16, 14))
OPENCLIP_G14: Config = {
    **_G14,
    "vision_config": {**_G14["vision_config"], "intermediate_size": 6144},  # not 4 widths
}
"""OpenCLIP's ViT-g/14 of LAION-2B, not bigG/14: 1,366,678,273 parameters."""

SD3_MEDIUM: Config = {
    "_class_name": "SD3Transformer2DModel",
    "attention_head_dim": 64,
    "caption_projection_dim": 1536,
    "in_channels": 16,
    "joint_attention_dim": 4096,
    "num_attention_heads": 24,
    "num_layers": 24,
    "out_channels": 16,
    "patch_size": 2,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
    "sample_size": 128,
}
"""Stable Diffusion 3 medium: 2,028,328,000 parameters, and a table of 56,623,104 positions."""

SD35_MEDIUM: Config = {
    **SD3_MEDIUM,
    "dual_attention_layers": list(range(13)),
    "pos_embed_max_size": 384,
    "qk_norm": "rms_norm",
}
"""Stable Diffusion 3.5 medium: 2,243,171,520 parameters, and a table of 226,492,416 positions."""

SD35_LARGE: Config = {
    **SD3_MEDIUM,
    "caption_projection_dim": 2432,
    "num_attention_heads": 38,
    "num_layers": 38,
    "qk_norm": "rms_norm",
}
"""Stable Diffusion 3.5 large: 8,056,627,520 parameters, and a table of 89,653,248 positions."""

FLUX1_DEV: Config = {
    "_class_name": "FluxTransformer2DModel",
    "attention_head_dim": 128,
    "axes_dims_rope": [16, 56, 56],
    "guidance_embeds": True,
    "in_channels": 64,
    "joint_attention_dim": 4096,
    "num_attention_heads": 24,
    "num_layers": 19,
    "num_single_layers": 38,
    "patch_size": 1,
    "pooled_projection_dim": 768,
}
"""FLUX.1-dev: 11,901,408,320 parameters."""

FLUX1_SCHNELL: Config = {**FLUX1_DEV, "guidance_embeds": False}
"""FLUX.1-schnell: 11,891,178,560 parameters."""

FLUX2_KLEIN_4B: Config = {
    "_class_name": "Flux2Transformer2DModel",
    "attention_head_dim": 128,
    "axes_dims_rope": [32, 32, 32, 32],
    "eps": 1e-06,
    "guidance_embeds": False,
    "in_channels": 128,
    "joint_attention_dim": 7680,
    "mlp_ratio": 3.0,
    "num_attention_heads": 24,
    "num_layers": 5,
    "num_single_layers": 20,
    "patch_size": 1,
    "rope_theta": 2000,
    "timestep_guidance_channels": 256,
}
"""FLUX.2-klein-base-4B: 3,875,544,576 parameters."""

FLUX2_KLEIN_9B: Config = {
    **FLUX2_KLEIN_4B,
    "joint_attention_dim": 12288,
    "num_attention_heads": 32,
    "num_layers": 8,
    "num_single_layers": 24,
}
"""FLUX.2-klein-base-9B: 9,078,581,248 parameters."""

Z_IMAGE: Config = {
    "_class_name": "ZImageTransformer2DModel",
    "all_f_patch_size": [1],
    "all_patch_size": [2],
    "axes_dims": [32, 48, 48],
    "axes_lens": [1024, 512, 512],
    "cap_feat_dim": 2560,
    "dim": 3840,
    "in_channels": 16,
    "n_heads": 30,
    "n_kv_heads": 30,
    "n_layers": 30,
    "n_refiner_layers": 2,
    "norm_eps": 1e-05,
    "qk_norm": True,
    "rope_theta": 256.0,
    "t_scale": 1000.0,
}
"""Z-Image: 6,154,908,736 parameters, by diffusers' defaults of the class."""

QWEN_IMAGE: Config = {
    "_class_name": "QwenImageTransformer2DModel",
    "attention_head_dim": 128,
    "axes_dims_rope": [16, 56, 56],
    "guidance_embeds": False,
    "in_channels": 64,
    "joint_attention_dim": 3584,
    "num_attention_heads": 24,
    "num_layers": 60,
    "out_channels": 16,
    "patch_size": 2,
}
"""Qwen-Image: 20,430,401,088 parameters."""

SD3_SCHEDULER: Config = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "shift": 3.0,
}
"""The flow of SD 3 and 3.5."""

FLUX1_DEV_SCHEDULER: Config = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 4096,
    "max_shift": 1.15,
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "use_dynamic_shifting": True,
}
"""The flow of FLUX.1-dev, whose shift follows the number of tokens."""

FLUX1_SCHNELL_SCHEDULER: Config = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "shift": 1.0,
}
"""The flow of FLUX.1-schnell."""

FLUX2_SCHEDULER: Config = {**FLUX1_DEV_SCHEDULER, "time_shift_type": "exponential"}
"""The flow of FLUX.2; its pipelines give it a shift of their own."""

Z_IMAGE_SCHEDULER: Config = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "shift": 3.0,
}
"""A flow with the shift of Z-Image's release."""

QWEN_IMAGE_SCHEDULER: Config = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 8192,
    "max_shift": 0.9,
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "shift_terminal": 0.02,
    "use_dynamic_shifting": True,
}
"""The flow of Qwen-Image, whose shift follows the number of tokens, and whose steps end at 0.02."""
