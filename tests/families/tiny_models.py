"""Configs of seconds-sized networks in the published format."""

UNET = {
    "_class_name": "UNet2DConditionModel",
    "attention_head_dim": [1, 2],
    "block_out_channels": [8, 16],
    "cross_attention_dim": 12,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": 8,
    "transformer_layers_per_block": 1,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}

SDXL_UNET = {
    **UNET,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "projection_class_embeddings_input_dim": 34,
    "transformer_layers_per_block": [1, 2],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "use_linear_projection": True,
}

VAE = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [4, 8],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
}

TINY_VAE = {
    "_class_name": "AutoencoderTiny",
    "decoder_block_out_channels": [4, 4],
    "encoder_block_out_channels": [4, 4],
    "num_decoder_blocks": [1, 1],
    "num_encoder_blocks": [1, 1],
}

TEXT = {
    "architectures": ["CLIPTextModel"],
    "eos_token_id": 2,
    "hidden_size": 8,
    "intermediate_size": 12,
    "max_position_embeddings": 6,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "projection_dim": 5,
    "vocab_size": 20,
}

VISION = {
    "architectures": ["CLIPVisionModelWithProjection"],
    "hidden_size": 8,
    "image_size": 8,
    "intermediate_size": 12,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "patch_size": 4,
    "projection_dim": 5,
}
