"""`dmd2 distill` with low-rank adapters: three players on the teacher's weights."""

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from dmd2_jax.config.load import apply_overrides
from dmd2_jax.families.published.lora import from_lora_tensors, to_lora_tensors
from dmd2_jax.networks.lora import LoraConfig, combine, lora_init
from dmd2_jax.plan.cycle import open_cycle
from dmd2_jax.recipe.distillation import build_players, distill_config, initial_state
from dmd2_jax.recipe.lora import lora_config
from dmd2_jax.recipe.open import build_family
from dmd2_jax.run.metrics import read_metrics
from dmd2_jax.runtime.integrity import read_manifest
from dmd2_jax.sampling.runs import checkpoint_params
from tests.tiny import dmd2, scratch
from tests.tiny_unet import distill_words, get_config, teacher

RANK = "--config.distill.lora_rank=2"
CRITIC = "--config.distill.lora_critic=True"
FASTER = "--config.optim.generator_lr=1e-2"  # so that two cycles move the student visibly


@functools.cache
def lora_run() -> Path:
    """Return the run folder of a student and a critic of rank 2; do not change it."""
    workdir = scratch() / "lora"
    words = (RANK, CRITIC, FASTER, "--config.distill.cycles=2", "--config.log.grid_every=2")
    assert dmd2(*distill_words(workdir, *words)) == 0
    return workdir


def config_with(**distill: str) -> Any:
    config = get_config()
    apply_overrides(config, {f"distill.{key}": text for key, text in distill.items()})
    return config


LAYERS = ("conv0", "conv1", "affine")


def test_distill_with_adapters_exports_them_alone_and_merged() -> None:
    base = load_file(teacher() / "teacher.safetensors")
    for name in ("student", "student_ema_0.9"):
        merged = load_file(lora_run() / f"{name}.safetensors")
        own = load_file(lora_run() / f"{name}_lora.safetensors")
        assert merged.keys() == base.keys()
        adapted = {key.removesuffix(".lora_A.weight") for key in own if "lora_A" in key}
        assert {layer.rsplit(".", 1)[-1] for layer in adapted} >= set(LAYERS)
        assert len(own) == 2 * len(adapted)
        for key, weight in base.items():
            layer, _, kind = key.rpartition(".")
            if layer not in adapted or kind != "weight":
                np.testing.assert_array_equal(merged[key], weight, err_msg=key)
                continue
            down, up = own[f"{layer}.lora_A.weight"], own[f"{layer}.lora_B.weight"]
            assert down.shape[0] == up.shape[1] == 2
            change = np.einsum("or,r...->o...", up.reshape(up.shape[:2]), down)
            np.testing.assert_allclose(merged[key], weight + change, rtol=1e-5, atol=1e-6)
    assert np.abs(change).max() > 1e-4


def test_distill_with_adapters_saves_and_logs_what_it_trains() -> None:
    rows = read_metrics(lora_run() / "metrics.jsonl")
    assert [row["critic_turns"] for row in rows] == [2, 4]
    assert all(np.isfinite(row["generator_loss"]) for row in rows)
    arrays = read_manifest(lora_run() / "checkpoints" / "2")["arrays"].values()
    of_whole_networks = open_cycle(get_config(), jax.devices()[:1]).state
    saved = sum(int(np.prod(array["shape"])) for array in arrays)
    assert saved < 0.3 * sum(leaf.size for leaf in jax.tree.leaves(of_whole_networks))


def test_checkpoint_params_of_adapters_are_the_merged_weights() -> None:
    params, cycle = checkpoint_params(lora_run())
    exported = build_family(get_config()).load(lora_run() / "student.safetensors")
    assert cycle == 2
    for got, expected in zip(jax.tree.leaves(params), jax.tree.leaves(exported), strict=True):
        np.testing.assert_array_equal(got, expected)
    critic, _ = checkpoint_params(lora_run(), part="critic.params")
    assert jax.tree.map(np.shape, critic) == jax.tree.map(np.shape, exported)


def test_distill_with_adapters_goes_on_from_another_such_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = f"--config.distill.start_from={lora_run()}"
    assert dmd2(*distill_words(tmp_path, start, RANK, CRITIC, "--dry_run")) == 0
    assert "begin with the weights of" in capsys.readouterr().out
    for words, message in (
        (("--config.distill.lora_rank=3", CRITIC), "'lora_rank': 2"),
        ((), "expected whole networks"),
    ):
        assert dmd2(*distill_words(tmp_path, start, *words, "--dry_run")) != 0
        assert message in capsys.readouterr().err


def test_adapters_of_another_teacher_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    family = build_family(get_config())
    other = tmp_path / "other.safetensors"
    family.save(
        jax.tree.map(lambda x: 1.5 * x, family.load(teacher() / "teacher.safetensors")), other
    )
    words = distill_words(
        tmp_path / "run",
        RANK,
        CRITIC,
        f"--config.distill.start_from={lora_run()}",
        f"--config.teacher.weights={other}",
        "--dry_run",
    )
    assert dmd2(*words) != 0
    assert "has other weights" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--config.distill.lora_rank=-1",), "distill.lora_rank=-1, expected 0 or more"),
        ((RANK, "--config.distill.lora_alpha=0"), "distill.lora_alpha=0.0, expected a positive"),
        ((CRITIC,), "lora_critic=True and lora_targets=() with lora_rank=0"),
        ((RANK, "--config.distill.lora_targets=conv9"), "targets ['conv9'] match no layer"),
        ((RANK, "--config.distill.lora_targets='attn*.to_q'"), "targets ['attn*.to_q'] match no"),
    ],
)
def test_distill_refuses_adapters(
    words: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dmd2(*distill_words(tmp_path / "run", *words, "--dry_run")) != 0
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("critic", ["False", "True"])
def test_initial_state_of_adapters_is_the_teacher_itself(critic: str) -> None:
    config = config_with(lora_rank="2", lora_critic=critic)
    family = build_family(config)
    base = family.load(teacher() / "teacher.safetensors")
    players, settings = build_players(config, family), distill_config(config, family)
    state = initial_state(players, settings, family, base, jax.random.key(0))
    adapters = (state.generator.params, *state.ema)
    adapters += (state.critic.params,) if critic == "True" else ()
    lora = lora_config(config, family)
    assert lora == LoraConfig(2, 8.0, ("conv0", "conv1", "skip", "affine"))
    for own in adapters:
        assert set(own) == {"lora"}
        params = combine(base, own, lora)
        for name, layers in params["lora"].items():
            for layer in layers.values():
                assert not layer["up"].any(), name
    if critic == "False":
        assert jax.tree.structure(state.critic.params) == jax.tree.structure(base)
    else:
        own = state.critic.params["lora"]["enc_8x8_block0"]["conv0"]["down"]
        of_generator = state.generator.params["lora"]["enc_8x8_block0"]["conv0"]["down"]
        assert not np.array_equal(own, of_generator)


def test_lora_tensors_round_trip_and_other_ranks_and_bases_are_refused() -> None:
    family = build_family(get_config())
    lora = LoraConfig(2, 8.0, ("conv0", "affine"))

    def shapes(config: LoraConfig) -> Any:
        key = jax.random.key(0)
        return jax.eval_shape(
            lambda: lora_init(key, family.param_shapes(), config, family.tensor_name)
        )

    own = jax.tree.map(
        lambda x: np.random.default_rng(x.size).standard_normal(x.shape).astype(np.float32),
        shapes(lora),
    )
    tensors = to_lora_tensors(own, lora, family.tensor_name)
    block = "model.enc.8x8_block0"
    layer = own["lora"]["enc_8x8_block0"]["affine"]
    np.testing.assert_array_equal(tensors[f"{block}.affine.lora_A.weight"], layer["down"].T)
    np.testing.assert_array_equal(tensors[f"{block}.affine.lora_B.weight"], 4 * layer["up"].T)
    assert tensors[f"{block}.conv0.lora_A.weight"].shape == (2, 8, 3, 3)
    assert tensors[f"{block}.conv0.lora_B.weight"].shape == (8, 2, 1, 1)
    back = from_lora_tensors(tensors, shapes(lora), lora, family.tensor_name)
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(own), strict=True):
        np.testing.assert_array_equal(a, b)  # 4 is a power of two
    other = LoraConfig(3, 8.0, lora.targets)
    with pytest.raises(ValueError, match="LoRA file of rank 2, expected rank=3"):
        from_lora_tensors(tensors, shapes(other), other, family.tensor_name)
    fewer = LoraConfig(2, 8.0, ("affine",))
    with pytest.raises(
        ValueError, match=r"other layers or of another base[\s\S]*extra: model\.dec"
    ):
        from_lora_tensors(tensors, shapes(fewer), fewer, family.tensor_name)
