#!/usr/bin/env bash
# Expected: of a LoRA file with kohya's names, diffusers merges every layer with alpha / rank of its own
# `.alpha`, or refuses the file.
# Found: attention projections (to_q, to_k, to_v, to_out) all get the alpha that most layers of the file have;
# their own is dropped with a RuntimeWarning about alpha_pattern. Files whose layers have one alpha are right.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python=${PYTHON:-python3}
"$python" -m pip install -q --target "$place" torch==2.13.0 numpy diffusers==0.42.1 peft==0.21.2 \
    transformers accelerate
cd "$place"
PYTHONPATH=$place "$python" - <<'PYTHON'
import warnings

import diffusers
import peft
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel

print("diffusers", diffusers.__version__, "peft", peft.__version__, "torch", torch.__version__)
ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
LAYERS = {f"{ATTENTION}.to_q": 1.0, f"{ATTENTION}.to_k": 4.0, f"{ATTENTION}.to_out.0": 1.0}
RANK = 2


def network():
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(32,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=16,
        norm_num_groups=8,
    )


base, merged, file = network(), network(), {}
for layer, alpha in LAYERS.items():
    wide, narrow = base.get_submodule(layer).weight.shape
    name = "lora_unet_" + layer.replace(".", "_")
    file[f"{name}.lora_down.weight"] = torch.ones(RANK, narrow)
    file[f"{name}.lora_up.weight"] = torch.ones(wide, RANK)
    file[f"{name}.alpha"] = torch.tensor(alpha)
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    tensors, alphas = StableDiffusionPipeline.lora_state_dict(file)
    merged.load_lora_adapter(tensors, network_alphas=alphas, prefix="unet")
    merged.fuse_lora()
scales = {}
for layer, alpha in LAYERS.items():
    module = merged.get_submodule(layer)
    change = getattr(module, "base_layer", module).weight - base.get_submodule(layer).weight
    scales[layer] = change.mean().item() / RANK
    print(f"{layer}: alpha / rank {alpha / RANK}, merged with {scales[layer]:.3f}")
ignored = [str(it.message) for it in said if "alpha_pattern" in str(it.message)]
print(*ignored, sep="\n")
assert all(abs(scale - 1.0 / RANK) < 1e-3 for scale in scales.values()), scales
assert len(ignored) == 1 and "to_k" in ignored[0]
PYTHON
