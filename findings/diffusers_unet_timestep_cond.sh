#!/usr/bin/env bash
# Expected: a UNet2DConditionModel that was made with time_cond_proj_dim (a student that takes the guidance scale)
# refuses a call without timestep_cond, as it refuses one without class_labels where it was made with classes.
# Found: diffusers 0.42.1 runs it as with a condition of zeros, which is no scale's: another image, and no word.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python=${PYTHON:-python3}
"$python" -m pip install -q --target "$place" torch==2.13.0 numpy diffusers==0.42.1
cd "$place"
PYTHONPATH=$place "$python" - <<'PYTHON'
import diffusers
import torch

print("diffusers", diffusers.__version__)
torch.manual_seed(0)
SIZES = {"sample_size": 8, "block_out_channels": (32, 32), "cross_attention_dim": 16}
BLOCKS = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": 8,
    "norm_num_groups": 8,
}
call = torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(1, 5, 16)


def made(**more):
    return diffusers.UNet2DConditionModel(**SIZES, **BLOCKS, **more).eval()


with torch.no_grad():
    told = made(time_cond_proj_dim=256)
    torch.nn.init.normal_(told.time_embedding.cond_proj.weight)
    without = told(*call).sample
    zeros = told(*call, timestep_cond=torch.zeros(1, 256)).sample
    scale = told(*call, timestep_cond=torch.randn(1, 256)).sample
    print("without a condition, as with zeros:", (without - zeros).abs().max().item())
    print("and with one:", (without - scale).abs().max().item())
    assert torch.equal(without, zeros) and (without - scale).abs().max() > 0.1
    try:
        made(num_class_embeds=3)(*call)
        raise SystemExit("classes are not asked for either")
    except ValueError as error:
        print("of classes:", error)
PYTHON
