"""A small Z-Image pipeline for captioned digits, as diffusers writes one, without torch.

Every part is of a published class, so whatever reads the folder reads Z-Image's:

| part         | class                           | here                                           |
|--------------|---------------------------------|------------------------------------------------|
| tokenizer    | Qwen2Tokenizer                  | byte pairs learned from the captions           |
| text_encoder | Qwen3Model                      | random, frozen, scaled: a token keeps its word |
| vae          | AutoencoderTiny                 | trained here; halves the resolution            |
| transformer  | ZImageTransformer2DModel        | random: what a teacher's training begins with  |
| scheduler    | FlowMatchEulerDiscreteScheduler | without a shift, as the images are small       |

Needs the package tokenizers, which the extra `[text2image]` brings.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import tokenizers

from dmd2_jax.families.published.folder import write_component
from dmd2_jax.families.published.model import PublishedModel
from dmd2_jax.families.published.pipeline import INDEX, LANGUAGE_MODELS
from dmd2_jax.families.z_image.family import NETWORK
from dmd2_jax.networks.initialise import init_variables
from dmd2_jax.typing import Key
from examples.captioned_digits.pipeline import WIDTH, write_json

__all__ = ["CLASS_NAME", "write_parts"]

CLASS_NAME = "ZImagePipeline"
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

TRANSFORMER: dict[str, Any] = {
    "_class_name": "ZImageTransformer2DModel",
    "all_f_patch_size": [1],
    "all_patch_size": [2],
    "axes_dims": [8, 8, 8],
    "axes_lens": [1024, 512, 512],
    "cap_feat_dim": WIDTH,
    "dim": 96,
    "in_channels": 4,
    "n_heads": 4,
    "n_kv_heads": 4,
    "n_layers": 5,
    "n_refiner_layers": 1,
    "norm_eps": 1e-05,
    "qk_norm": True,
    "rope_theta": 256.0,
    "t_scale": 1000.0,
}

_SCHEDULER: dict[str, Any] = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "use_dynamic_shifting": False,
}

_MODEL_INDEX: dict[str, Any] = {
    "_class_name": CLASS_NAME,
    "_diffusers_version": "0.36.0",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "Qwen3Model"],
    "tokenizer": ["transformers", "Qwen2Tokenizer"],
    "transformer": ["diffusers", "ZImageTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderTiny"],
}

# How Qwen's tokenizer cuts texts into words before it looks for pairs.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def write_parts(folder: Path, captions: Iterable[str], tokens: int, keys: Key) -> None:
    """Write a ZImagePipeline but for its autoencoder: a `WriteParts`.

    Args:
      folder: of the pipeline; made if it does not exist.
      captions: all texts whose words are to be tokens.
      tokens: not used; prompts are filled up as far as they need.
      keys: the first one is of the random weights.
    """
    keys = jax.random.split(keys[0])
    (folder / "scheduler").mkdir(parents=True, exist_ok=True)
    write_json(folder / INDEX, _MODEL_INDEX)
    write_json(folder / "scheduler" / "scheduler_config.json", _SCHEDULER)
    vocabulary = write_tokenizer(folder / "tokenizer", captions)
    _write_text_encoder(folder / "text_encoder", vocabulary, keys[0])
    model = PublishedModel.from_config(TRANSFORMER, classes=NETWORK.classes)
    weights = init_variables(model.module, keys[1], *model.example_inputs())
    write_component(model, weights, folder / "transformer")


def write_tokenizer(folder: Path, captions: Iterable[str]) -> int:
    """Write a Qwen2Tokenizer's files and return how many tokens it knows.

    Args:
      folder: made if it does not exist.
      captions: to learn byte pairs from; each is put into the chat first, so that its words are
        tokens too.
    """
    chat = LANGUAGE_MODELS[CLASS_NAME]
    texts = [f"{chat.before}{text}{chat.after}" for text in captions]
    special = [PAD, START, END]
    learned = tokenizers.Tokenizer(tokenizers.models.BPE())
    learned.normalizer = tokenizers.normalizers.NFC()
    learned.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(_WORDS), "isolated"),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    learned.decoder = tokenizers.decoders.ByteLevel()
    letters = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=1000, initial_alphabet=sorted(letters), special_tokens=special
    )
    learned.train_from_iterator(texts, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    learned.save(str(folder / "tokenizer.json"))
    learned.model.save(str(folder))
    settings = {
        "additional_special_tokens": [START, END],
        "eos_token": END,
        "model_max_length": chat.length,
        "pad_token": PAD,
        "tokenizer_class": "Qwen2Tokenizer",
        "chat_template": _CHAT,
    }
    write_json(folder / "tokenizer_config.json", settings)
    return learned.get_vocab_size()


# One turn of a user, and the beginning of an answer that may think.
_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _write_text_encoder(folder: Path, vocabulary: int, key: Key) -> None:
    """Write a random language model whose tokens keep their words through every layer.

    By embeddings of deviation 1, as in pipeline.py; layers add a fraction of that.
    """
    model = PublishedModel.from_config(
        {
            "architectures": ["Qwen3Model"],
            "attention_bias": False,
            "head_dim": 16,
            "hidden_act": "silu",
            "hidden_size": WIDTH,
            "intermediate_size": 2 * WIDTH,
            "max_position_embeddings": 512,
            "model_type": "qwen3",
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-06,
            "rope_theta": 1000000.0,
            "tie_word_embeddings": False,
            "vocab_size": vocabulary,
        }
    )
    drawn = init_variables(model.module, key, *model.example_inputs())
    embedding = drawn["params"]["embed_tokens"]
    scaled = {name: table / 0.02 for name, table in embedding.items()}
    params = {**drawn["params"], "embed_tokens": scaled}
    write_component(model, {**drawn, "params": params}, folder)
