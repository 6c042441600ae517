"""Tiny pipelines whose prompts a language model reads, made by diffusers and transformers."""

from tests.flow_pipelines import write_llm_tokenizer
from tests.tiny import scratch


def z_image(make_vae):
    """Return Z-Image's, with a fresh autoencoder."""
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        ZImagePipeline,
        ZImageTransformer2DModel,
    )

    encoder, tokenizer = _qwen3(num_hidden_layers=3)
    pipeline = ZImagePipeline(
        transformer=ZImageTransformer2DModel(
            in_channels=6,
            dim=24,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=12,
            axes_dims=[2, 4, 6],
            axes_lens=[600, 64, 64],
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=make_vae(),
        text_encoder=encoder.model,
        tokenizer=tokenizer,
    )
    return _moved(pipeline, "transformer", "text_encoder")


def flux2_klein():
    """Return FLUX.2-klein's, whose autoencoder has statistics of its own."""
    from diffusers import (
        AutoencoderKLFlux2,
        FlowMatchEulerDiscreteScheduler,
        Flux2KleinPipeline,
        Flux2Transformer2DModel,
    )

    encoder, tokenizer = _qwen3(num_hidden_layers=28)  # of which the 27th is read
    pipeline = Flux2KleinPipeline(
        transformer=Flux2Transformer2DModel(
            in_channels=12,
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=12,
            num_attention_heads=2,
            joint_attention_dim=3 * 12,
            timestep_guidance_channels=16,
            axes_dims_rope=(2, 4, 4, 2),
            guidance_embeds=False,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=AutoencoderKLFlux2(
            block_out_channels=(4,),  # the patches alone halve the image
            down_block_types=("DownEncoderBlock2D",),
            up_block_types=("UpDecoderBlock2D",),
            layers_per_block=1,
            norm_num_groups=2,
            latent_channels=3,
        ),
        text_encoder=encoder,
        tokenizer=tokenizer,
    )
    statistics = pipeline.vae.bn
    statistics.running_mean.normal_()
    statistics.running_var.uniform_(0.5, 2.0)
    return _moved(pipeline, "transformer", "text_encoder")


def _qwen3(**sizes: int):
    """Return a causal Qwen3 and its tokenizer."""
    from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3ForCausalLM

    folder = scratch() / "tokenizer"
    config = Qwen3Config(
        vocab_size=write_llm_tokenizer(folder),
        hidden_size=12,
        intermediate_size=20,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=6,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        **sizes,
    )
    return Qwen3ForCausalLM(config), Qwen2Tokenizer.from_pretrained(folder)


def qwen_image():
    """Return Qwen-Image's."""
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImagePipeline,
        QwenImageTransformer2DModel,
    )
    from transformers import Qwen2Tokenizer

    folder = scratch() / "tokenizer"
    encoder = qwen25_vl(write_llm_tokenizer(folder))
    pipeline = QwenImagePipeline(
        transformer=QwenImageTransformer2DModel(
            in_channels=6 * 4,
            out_channels=6,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=12,
            axes_dims_rope=(2, 2, 4),
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(
            base_shift=0.5,
            max_shift=0.9,
            max_image_seq_len=8192,
            shift_terminal=0.02,
            use_dynamic_shifting=True,
        ),
        vae=AutoencoderKLQwenImage(
            base_dim=4,
            z_dim=6,
            dim_mult=[1, 2],
            num_res_blocks=1,
            temperal_downsample=[True],
            latents_mean=[0.1, -0.2, 0.3, -0.4, 0.5, -0.6],
            latents_std=[1.1, 0.9, 1.2, 0.8, 1.3, 0.7],
        ),
        text_encoder=encoder,
        tokenizer=Qwen2Tokenizer.from_pretrained(folder),
    )
    return _moved(pipeline, "transformer", "text_encoder", "vae")


QWEN25_TEXT = {
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "rope_theta": 500.0,
    "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 1]},
}
"""Of the part of a tiny Qwen2.5-VL that reads text."""


def qwen25_vl(vocabulary: int):
    """Return a tiny Qwen2.5-VL of transformers."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    vision = {"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 2}
    vision |= {"out_hidden_size": 12, "fullatt_block_indexes": [0]}
    marks = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    config = Qwen2_5_VLConfig(
        text_config=QWEN25_TEXT | {"vocab_size": vocabulary},
        vision_config=vision,
        **dict.fromkeys(marks, vocabulary - 1),
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def _moved(pipeline, *parts: str):
    """Move the weights of some parts: fresh pad tokens, gates and states say little."""
    for name in parts:
        for parameter in getattr(pipeline, name).parameters():
            parameter.data += 0.1 * parameter.data.new_empty(parameter.shape).normal_()
    return pipeline
