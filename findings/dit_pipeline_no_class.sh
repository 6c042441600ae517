#!/usr/bin/env bash
# Expected: DiTPipeline guides away from the row of "no class", the last of the transformer's embedding:
# number num_embeds_ada_norm, whatever the data have for classes.
# Found: it guides away from row 1000 always. A network of 1,200 classes is guided away from its class 1000
# without a word, a smaller one ends with an IndexError, and only ImageNet's number is right (diffusers 0.42.1).
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python=${PYTHON:-python3}
"$python" -m pip install -q --target "$place" torch==2.14.1 numpy diffusers==0.42.1
cd "$place"
PYTHONPATH=$place "$python" - <<'PYTHON'
import diffusers
import torch

print("diffusers", diffusers.__version__, "torch", torch.__version__)
SIZES = {"num_attention_heads": 2, "attention_head_dim": 4, "in_channels": 4, "out_channels": 8}
KIND = {"norm_type": "ada_norm_zero", "norm_elementwise_affine": False, "activation_fn": "gelu-approximate"}


def told(classes: int) -> list[int]:
    """Return the rows that a guided call asks the transformer for."""
    torch.manual_seed(0)
    network = diffusers.DiTTransformer2DModel(
        num_layers=1, sample_size=4, patch_size=2, num_embeds_ada_norm=classes, **SIZES, **KIND
    )
    table = network.transformer_blocks[0].norm1.emb.class_embedder.embedding_table
    assert table.num_embeddings == classes + 1  # the last is of no class
    vae = diffusers.AutoencoderKL(
        block_out_channels=(4,), latent_channels=4, norm_num_groups=2, sample_size=4
    )
    pipeline = diffusers.DiTPipeline(network, vae, diffusers.DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    seen, forward = [], network.forward
    network.forward = lambda *a, **k: (seen.append(k["class_labels"].tolist()), forward(*a, **k))[1]
    pipeline([1], guidance_scale=4.0, num_inference_steps=1, output_type="np")
    return seen[0]


for classes in (1000, 1200):
    rows = told(classes)
    print(classes, "classes: conditions", rows, "no class is", classes)
    assert rows == [1, 1000]
try:
    told(7)
except IndexError as error:
    print("7 classes:", error)
else:
    raise SystemExit("7 classes are guided now")
PYTHON
