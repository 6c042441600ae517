"""A language model as a text encoder: its numbers, its tokens, and lengths that differ."""

import functools
import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from dmd2_jax.families.published.folder import read_component
from dmd2_jax.networks.qwen import LlmFeatures, qwen25_vl_from_config, qwen_from_config
from dmd2_jax.text2image.llm import LlmJoin
from dmd2_jax.text2image.pipeline import open_pipeline
from dmd2_jax.text2image.text_encoder import encode_prompts, read_text_encoders, tokenize
from tests.conformance.derive import relative
from tests.flow_pipelines import CAPTIONS, flow_pipeline
from tests.llm_pipelines import QWEN25_TEXT, qwen25_vl

TEXTS = (*CAPTIONS[:2], "", "h\u00e9 \u5bb6", "seven " * 100)
LENGTHS = (37, 36, 19, 26, 512)
"""Of the texts in bytes, with the 19 tokens of the template; the last is cut."""


@functools.cache
def encoders():
    return read_text_encoders(flow_pipeline("z_image"))


def test_prompts_are_put_into_the_chat_of_one_turn():
    tokens = tokenize(encoders(), ["ab"])[0]
    backend = encoders().tokenizers[0].backend
    said = backend.decode([int(i) for i in tokens.ids[0] if i >= 0], skip_special_tokens=False)
    assert said == "<|im_start|>user\nab<|im_end|>\n<|im_start|>assistant\n"
    pad = backend.token_to_id("<|endoftext|>")
    assert set(tokens.ids[0, tokens.counts[0] :].tolist()) == {~pad}


def test_vocabulary_and_merges_alone_are_a_tokenizer_as_qwen_image_is_released(tmp_path):
    pytest.importorskip("transformers", reason="it makes one of the two files")
    folder = Path(shutil.copytree(flow_pipeline("z_image"), tmp_path / "z_image"))
    place = folder / "tokenizer"
    whole = json.loads((place / "tokenizer.json").read_text())
    (place / "vocab.json").write_text(json.dumps(whole["model"]["vocab"]))
    merges = [one if isinstance(one, str) else " ".join(one) for one in whole["model"]["merges"]]
    (place / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    settings = json.loads((place / "tokenizer_config.json").read_text())
    added = {one.pop("id"): one for one in whole["added_tokens"]}
    settings |= {"added_tokens_decoder": added, "tokenizer_class": "Qwen2Tokenizer"}
    (place / "tokenizer_config.json").write_text(json.dumps(settings))
    (place / "tokenizer.json").unlink()
    made, expected = (tokenize(it, TEXTS)[0] for it in (read_text_encoders(folder), encoders()))
    np.testing.assert_array_equal(made.ids, expected.ids)


def test_tokens_are_filled_up_no_further_than_the_longest_needs():
    assert encoders().tokenizers[0].length == 512
    assert encoders().fitted([""]).tokenizers[0].length == 32
    assert encoders().fitted(TEXTS[:4]).tokenizers[0].length == 64
    assert encoders().fitted(TEXTS).tokenizers[0].length == 512
    counts = tokenize(encoders(), TEXTS)[0].counts
    assert [min(512, int(count)) for count in counts] == list(LENGTHS)


def test_mask_tells_the_tokens_and_the_length_changes_none():
    wide = encode_prompts(encoders(), TEXTS[:4], batch_size=4)
    short = encode_prompts(encoders().fitted(TEXTS[:4]), TEXTS[:4], batch_size=4)
    assert short["prompt_embeds"].shape == (4, 64, 12) and wide["prompt_mask"].shape == (4, 512)
    np.testing.assert_array_equal(short["prompt_mask"].sum(1), LENGTHS[:4])
    assert (np.diff(short["prompt_mask"], axis=1) <= 0).all()
    assert relative(short["prompt_embeds"], wide["prompt_embeds"][:, :64]) < 1e-6
    assert not wide["prompt_embeds"][wide["prompt_mask"] == 0].any()


def test_condition_of_prompts_has_the_empty_one_at_their_length():
    pipeline = open_pipeline(flow_pipeline("z_image"), latent_size=6)
    cond = pipeline.condition(TEXTS[:2])
    assert {k: v.shape for k, v in cond.items()} == {
        "prompt_embeds": (2, 64, 12),
        "prompt_mask": (2, 64),
        "negative_prompt_embeds": (2, 64, 12),
        "negative_prompt_mask": (2, 64),
    }
    np.testing.assert_array_equal(cond["negative_prompt_mask"].sum(1), [19, 19])


def test_states_are_put_side_by_side_without_the_templates_first_tokens():
    states = tuple(jnp.full((1, 4, 2), i, jnp.float32) for i in range(4))
    mask = jnp.array([[True, True, True, False]])
    made = LlmJoin((1, 3), 1)([LlmFeatures(states, mask)])
    np.testing.assert_array_equal(made["prompt_mask"], [[1, 1, 0]])
    np.testing.assert_array_equal(made["prompt_embeds"][0], [[1, 1, 3, 3]] * 2 + [[0] * 4])


def test_states_of_a_drawn_model_are_those_of_transformers(tmp_path):
    torch = pytest.importorskip("torch", reason="transformers' Qwen3 is in torch")
    transformers = pytest.importorskip("transformers")
    random = np.random.default_rng(0)
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        vocab_size=31,
        hidden_size=10,
        intermediate_size=14,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=4,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        tie_word_embeddings=True,
    )
    theirs = transformers.Qwen3ForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path)
    model, params = read_component(tmp_path)
    ids = random.integers(31, size=(2, 9))
    real = np.arange(9) < np.array([[9], [5]])
    with torch.no_grad():
        out = theirs.model(
            torch.tensor(ids), attention_mask=torch.tensor(real), output_hidden_states=True
        )
    ours = model.module.apply(params, np.where(real, ids, ~ids))
    assert len(ours.hidden_states) == len(out.hidden_states) == 4
    np.testing.assert_array_equal(ours.mask, real)
    for mine, other in zip(ours.hidden_states, out.hidden_states, strict=True):
        assert relative(mine, other.numpy()) < 1e-5  # where there is filling, too


def test_template_of_qwen_image_is_dropped_and_its_mask_goes_with_it():
    texts = (*CAPTIONS[:2], "")
    opened = read_text_encoders(flow_pipeline("qwen_image"))
    assert opened.tokenizers[0].length == 34 + 512
    fitted = opened.fitted(texts)
    tokens = tokenize(fitted, texts)[0]
    said = fitted.tokenizers[0].backend.decode(
        [int(i) for i in tokens.ids[0] if i >= 0], skip_special_tokens=False
    )
    assert said.startswith("<|im_start|>system\nDescribe the image by detailing the color,")
    assert said.endswith(
        f"<|im_end|>\n<|im_start|>user\n{texts[0]}<|im_end|>\n<|im_start|>assistant\n"
    )
    made = encode_prompts(fitted, texts, batch_size=3)
    np.testing.assert_array_equal(made["prompt_mask"].sum(1), tokens.counts - 34)
    assert made["prompt_embeds"].shape[1] % 32 == 0
    assert not made["prompt_embeds"][made["prompt_mask"] == 0].any()


# Newer files have a text_config, older ones everything at the top.
@pytest.mark.parametrize("flat", [False, True])
def test_states_of_a_drawn_qwen25_vl_are_those_of_transformers(flat, tmp_path):
    torch = pytest.importorskip("torch", reason="transformers' Qwen2.5-VL is in torch")
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    theirs = qwen25_vl(31).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path)
    if flat:
        file = tmp_path / "config.json"
        said = json.loads(file.read_text())
        del said["text_config"]
        name = {"architectures": ["Qwen2_5_VLForConditionalGeneration"]}
        file.write_text(json.dumps(said | QWEN25_TEXT | {"vocab_size": 31} | name))
    model, params = read_component(tmp_path)
    assert model.module.theta == 500.0
    ids = np.random.default_rng(0).integers(30, size=(2, 9))
    real = np.arange(9) < np.array([[9], [5]])
    with torch.no_grad():
        out = theirs(
            input_ids=torch.tensor(ids),
            attention_mask=torch.tensor(real).long(),
            output_hidden_states=True,
        )
    ours = model.module.apply(params, np.where(real, ids, ~ids))
    assert len(ours.hidden_states) == len(out.hidden_states) == 3
    for mine, other in zip(ours.hidden_states, out.hidden_states, strict=True):
        assert relative(np.asarray(mine)[real], other.numpy()[real]) < 1e-5


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"use_sliding_window": True}, "use_sliding_window=True"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_type='yarn'"),
        ({"text_config": {"layer_types": ["sliding_attention"]}}, "layer_types"),
        ({"text_config": {"hidden_size": 30, "num_attention_heads": 4}}, "hidden_size=30 with 4"),
        ({"num_key_value_heads": 3}, "64 heads of 3 keys"),
        ({"text_config": {"hidden_size": "large"}}, "hidden_size='large'"),
    ],
)
def test_qwen25_vl_of_another_kind_is_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        qwen25_vl_from_config(settings)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"attention_bias": True}, "attention_bias=True"),
        ({"use_sliding_window": True}, "use_sliding_window=True"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_scaling="),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type='yarn'"),
        ({"layer_types": ["sliding_attention"]}, "layer_types"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"num_key_value_heads": 3}, "32 heads of 3 keys"),
        ({"hidden_size": "large"}, "hidden_size='large'"),
    ],
)
def test_model_of_another_kind_is_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        qwen_from_config(settings)


def changed(tmp_path: Path, file: str, **settings: object) -> Path:
    folder = Path(shutil.copytree(flow_pipeline("z_image"), tmp_path / "z"))
    text = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(text | settings))
    return folder


@pytest.mark.parametrize(
    "file, settings, message",
    [
        ("text_encoder/config.json", {"architectures": ["Qwen2Model"]}, "'Qwen2Model', expected"),
        ("text_encoder/config.json", {"architectures": ["Qwen3VLModel"]}, "Qwen3VLModel"),
        ("text_encoder/config.json", {"vocab_size": 300}, "embed_tokens.weight"),
        ("model_index.json", {"text_encoder": ["transformers", "T5EncoderModel"]}, "T5Encoder"),
        ("model_index.json", {"tokenizer": ["transformers", "CLIPTokenizer"]}, "CLIPTokenizer"),
        ("tokenizer/tokenizer_config.json", {"pad_token": "<pad>"}, "no token '<pad>'"),
        ("tokenizer/tokenizer.json", {"model": 3}, "cannot be read as a tokenizer"),
    ],
)
def test_text_encoder_of_another_version_is_refused_by_name(file, settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_text_encoders(changed(tmp_path, file, **settings))


def test_tokenizer_without_its_file_is_refused_by_name(tmp_path):
    folder = changed(tmp_path, "model_index.json")
    (folder / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"tokenizer\.json, or vocab\.json and merges"):
        read_text_encoders(folder)
