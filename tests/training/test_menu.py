"""`dmd2 distill` with objectives of the menu: they train, go on and are refused by name."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from dmd2_jax.config.load import apply_overrides, load_config
from dmd2_jax.networks.step_embedding import STEPS, with_steps
from dmd2_jax.recipe.critic_steps import critic_shapes
from dmd2_jax.recipe.open import build_family
from dmd2_jax.recipe.weights import starting_weights
from dmd2_jax.sampling.runs import checkpoint_params
from tests.tiny import contents, distill_words, dmd2, get_config, refused, scratch

STEPS_TOLD = ("--config.distill.student_times=1,0.5", "--config.distill.critic_knows_step=True")


def rows(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def told() -> Path:
    """A run of two steps with everything of the menu that can stand together."""
    workdir = scratch() / "told"
    names = (
        "f_distill:divergence=jensen_shannon",
        "sid:weight=0.5:alpha=1.2",
        "guidance_augmentation:guidance=3",
        "reward:weight=0.1:function=tests.training.rewards.dark",
        "first_step:solver_steps=2",
    )
    words = (
        "--config.distill.dm_weight=None",
        f"--config.distill.objectives={','.join(names)}",
        "--config.distill.first_trained_step=1",
        "--config.distill.gan_features=teacher",
        "--config.distill.gan_r1_weight=10",
        "--config.distill.gan_r1_samples=both",
    )
    assert dmd2(*distill_words(workdir, *STEPS_TOLD, *words)) == 0
    return workdir


def test_a_run_reports_the_objectives_it_trains_with(told: Path) -> None:
    last = rows(told)[-1]
    of_theirs = ("guidance_augmentation_norm", "reward", "first_step_loss")
    for name in ("dm_loss", "sid_loss", "gan_r1_loss", "f_distill_ratio", *of_theirs):
        assert np.isfinite(last[name]) and last[name] != 0, name
    assert 1.0 - 1e-5 <= last["f_distill_weight_square"] <= 8.0
    assert last["skipped_updates"] == 0


def test_its_critic_has_learned_of_the_steps_and_can_be_begun_with(
    told: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    critic, _ = checkpoint_params(told, part="critic.params")
    (table,) = critic[STEPS].values()
    assert table.shape[0] == 2 and np.any(table != 0)
    given = {"distill.student_times": "1,0.5", "distill.critic_knows_step": "True"}
    apply_overrides(config := get_config(), given)
    family = build_family(config)
    _, same = starting_weights(str(told), family, config)
    jax.tree.map(np.testing.assert_array_equal, same, critic)
    _, left_behind = starting_weights(str(told), family)
    assert jax.tree.structure(left_behind) == jax.tree.structure(family.param_shapes())
    words = distill_words(tmp_path / "on", f"--config.distill.start_from={told}", "--dry_run")
    three = ("--config.distill.student_times=1,0.5,0.2", STEPS_TOLD[1])
    assert "told one of 2 steps, expected 3" in refused(capsys, *words, *three)


def test_a_critic_is_told_as_many_steps_as_the_config_says_by_times_or_number() -> None:
    family = build_family(get_config())
    numbered = {"student_steps": 3, "student_times": ()}  # as runs of several shapes record it
    for given in (numbered, {"student_times": (1.0, 0.6, 0.3)}):
        told_of = given | {"critic_knows_step": True}
        (table,) = critic_shapes(family.param_shapes(), told_of, family)[STEPS].values()
        assert table.shape[0] == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (STEPS_TOLD[1:], "critic_knows_step=True and student_times=(1.0,)"),
        (
            (*STEPS_TOLD, "--config.distill.lora_rank=4", "--config.distill.lora_critic=True"),
            "set lora_critic=False",
        ),
        (("--config.distill.objectives=f_distill",), "set dm_weight=None"),
        (
            (
                "--config.distill.dm_weight=None",
                "--config.distill.gan_generator_weight=None",
                "--config.distill.gan_critic_weight=None",
                "--config.distill.objectives=f_distill",
            ),
            "a discriminator that no objective of the critic trains",
        ),
        (("--config.distill.objectives=first_step",), "the student has one, expected several"),
        (("--config.distill.objectives=reward",), "has no function"),
        (
            ("--config.distill.objectives=reward:function=tests.training.rewards.of_images",),
            "of samples (2, 8, 8, 1) is float32[2, 8, 8, 1], expected one floating number",
        ),
        (("--config.distill.objectives=guidance_augmentation",), "has guidance=1, which is none"),
        (("--config.distill.gan_loss=wgan",), "distill.gan_loss='wgan', expected one of"),
    ],
)
def test_what_excludes_each_other_is_refused_before_anything_is_written(
    words: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, *distill_words(tmp_path / "run", "--dry_run", *words))
    assert message in said
    assert contents(tmp_path) == {}


KINDS = ("imagenet64", "cifar10", "sit_xl_imagenet256", "sd15", "z_image", "qwen_image")


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_network_has_a_layer_that_steps_are_told_to(name: str) -> None:
    family = build_family(load_config(name))
    shapes = family.param_shapes()
    told = jax.eval_shape(lambda it: with_steps(it, family.time_layer, 4), shapes)
    (table,) = told[STEPS].values()
    assert table.shape[0] == 4
