#!/usr/bin/env bash
# Expected: Flux2KleinPipeline called with the four sigmas that num_inference_steps=4 stands for takes the same four
# steps, as FLUX.1's pipeline does, whose shift follows the size of the image alone.
# Found: FLUX.2's shift follows the number of steps too, and that is num_inference_steps, 50 unless it is said,
# however many sigmas are given: [1, 0.9547, 0.8754, 0.7007] become [1, 0.937, 0.8322, 0.6231] in diffusers 0.42.1,
# and nothing is said. With both arguments the steps are the same again.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python=${PYTHON:-python3}
"$python" -m pip install -q --target "$place" torch==2.13.0 numpy diffusers==0.42.1 transformers==5.24.0
cd "$place"
PYTHONPATH=$place "$python" - <<'PYTHON'
import diffusers
import torch

print("diffusers", diffusers.__version__)
pipe = diffusers.Flux2KleinPipeline(
    scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    vae=diffusers.AutoencoderKLFlux2(
        block_out_channels=(4,), down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",),
        layers_per_block=1, norm_num_groups=2, latent_channels=3,
    ),
    transformer=diffusers.Flux2Transformer2DModel(
        in_channels=12, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=16, axes_dims_rope=(2, 2, 2, 2), guidance_embeds=False, timestep_guidance_channels=16,
    ),
    text_encoder=None, tokenizer=None, is_distilled=True,
)
pipe.set_progress_bar_config(disable=True)


def steps(**words):
    pipe(prompt_embeds=torch.zeros(1, 4, 16), height=16, width=16, output_type="latent", **words)
    return [round(sigma, 4) for sigma in pipe.scheduler.sigmas.tolist()]


four = [1.0, 0.75, 0.5, 0.25]
by_number, given = steps(num_inference_steps=4), steps(sigmas=four)
both = steps(sigmas=four, num_inference_steps=4)
print("by their number", by_number)
print("as sigmas      ", given)
print("as both        ", both)
assert by_number == both == [1.0, 0.9547, 0.8754, 0.7007, 0.0], by_number
assert given == [1.0, 0.937, 0.8322, 0.6231, 0.0], given
PYTHON
