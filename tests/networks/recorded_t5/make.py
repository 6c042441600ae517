"""Record a tiny T5 encoder of transformers: `python tests/networks/recorded_t5/make.py`.

Needs torch and transformers; versions.json beside this file says which wrote what lies here.
"""

import json
from pathlib import Path

import numpy as np
import torch
import transformers

FOLDER = Path(__file__).resolve().parent


def main() -> None:
    """Write the encoder's folder, and tokens with what it makes of them."""
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=23,
        d_model=12,
        d_kv=4,
        d_ff=10,
        num_layers=2,
        num_heads=3,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=9,
        feed_forward_proj="gated-gelu",
    )
    model = transformers.T5EncoderModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter) + (parameter.ndim == 1))
        ids = torch.randint(0, config.vocab_size, (2, 17))
        out = model(ids)[0]
    model.save_pretrained(FOLDER / "text_encoder_3")
    np.savez(FOLDER / "text_encoder_3.npz", input_ids=ids.numpy(), last_hidden_state=out.numpy())
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    (FOLDER / "versions.json").write_text(json.dumps(versions, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
