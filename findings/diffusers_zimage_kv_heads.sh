#!/usr/bin/env bash
# Expected: ZImageTransformer2DModel(n_kv_heads=1) has grouped-query attention, as the key means elsewhere, with
# a key projection of one head, and norm_eps is the epsilon of all its norms.
# Found: n_kv_heads is recorded in config.json and read by nothing, and the norms of queries and keys keep 1e-5: a
# port that does as the config says makes other tensors, and other numbers, than diffusers 0.42.1.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python=${PYTHON:-python3}
"$python" -m pip install -q --target "$place" torch==2.13.0 numpy diffusers==0.42.1
cd "$place"
PYTHONPATH=$place "$python" - <<'PYTHON'
import diffusers

print("diffusers", diffusers.__version__)
SIZES = {"dim": 32, "n_layers": 1, "n_refiner_layers": 1, "n_heads": 4, "cap_feat_dim": 16}
AXES = {"axes_dims": [4, 2, 2], "axes_lens": [64, 32, 32]}
for heads in (4, 2, 1):
    network = diffusers.ZImageTransformer2DModel(n_kv_heads=heads, norm_eps=0.25, **SIZES, **AXES)
    block = network.layers[0]
    shape, eps = tuple(block.attention.to_k.weight.shape), block.attention.norm_k.eps
    print("n_kv_heads", network.config.n_kv_heads, "keys", shape, "their norm's eps", eps)
    assert network.config.n_kv_heads == heads and shape == (32, 32)
    assert eps == 1e-5 and block.attention_norm1.eps == 0.25
PYTHON
