"""The official training loop, iteration by iteration, driven through the public cycle."""

import copy
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmd2_jax.distill import (
    CycleBatch,
    CycleDraws,
    DistillConfig,
    Noising,
    Players,
    RolloutDraws,
    Samples,
    dmd2,
    init_state,
    run_cycle,
)
from dmd2_jax.distill.turns import student_samples
from dmd2_jax.networks.gan_head import discriminator
from dmd2_jax.weights import state_dict
from tests.conformance.derive import check_sums, nchw, nhwc, recipe, relative, reversed_, rolled
from tests.conformance.players import golden_family, golden_head, head_from_tensors, head_to_tensors

SCALAR, NETWORK, FINAL = 1e-4, 1e-5, 1e-5


def one_hot(index, classes):
    return jnp.eye(classes)[index]


class Run:
    """The recorded run, replayed once through `run_cycle` with its own noise."""

    def __init__(self, golden):
        folder = golden / "dmd2_edm_trajectory"
        self.folder = folder
        self.recorded = json.loads((folder / "config.json").read_text())
        self.args = args = self.recorded["args"]
        self.z = z = dict(np.load(folder / "trajectory.npz"))
        self.family = golden_family(self.recorded)
        initial = state_dict.read_safetensors(folder / "initial_real_unet.safetensors")
        shapes, self.head_module = golden_head(self.recorded, self.family)
        head = self.recorded["head"]
        head = recipe(shapes, head["recipe_seed"], head["recipe_gain"])
        check_sums(rolled(initial), z, "init_generator")
        guidance = {f"fake_unet.{k}": v for k, v in reversed_(initial).items()}
        guidance |= {f"cls_pred_branch.{k}": v for k, v in head.items()}
        levels = {"karras_sigmas": self.family.denoiser.schedule.levels}
        check_sums(guidance | levels, z, "init_guidance", rtol=1e-6)

        self.teacher = self.family.from_state_dict(initial)
        denoiser = self.family.denoiser
        self.players = Players(denoiser, denoiser, denoiser, discriminator(self.head_module))
        self.config = self._config()
        self.initial = init_state(
            self.config,
            generator=self.family.from_state_dict(rolled(initial)),
            critic=self.family.from_state_dict(reversed_(initial)),
            discriminator=head_from_tensors(self.head_module, self.family, head),
        )
        cycle = jax.jit(functools.partial(run_cycle, players=self.players, config=self.config))
        state, self.metrics = self.initial, []
        for first in range(0, args["train_iters"], args["dfake_gen_update_ratio"]):
            batch, draws = self._cycle(first)
            state, metrics = cycle(state, self.teacher, batch, draws)
            self.metrics.append(jax.device_get(metrics))
        self.final = state

    def _config(self) -> DistillConfig:
        args, optimizer = self.args, self.recorded["optimizer"]
        assert optimizer["type"] == "AdamW"
        assert self.recorded["lr_scheduler"] == "constant_with_warmup"
        levels = args["num_train_timesteps"]
        return DistillConfig(
            sample_shape=self.family.image_shape,
            batch_size=args["batch_size"],
            critic_turns=args["dfake_gen_update_ratio"],
            student_times=(float(args["conditioning_sigma"]),),
            objectives=dmd2(
                gan_generator_weight=float(args["gen_cls_loss_weight"]),
                gan_critic_weight=float(args["cls_loss_weight"]),
                dm_range=(float(args["min_step_percent"]), float(args["max_step_percent"])),
                gan_range=(0.0, args["diffusion_gan_max_timestep"] / levels),
                diffusion_gan=args["diffusion_gan"],
                sigma_data=float(args["sigma_data"]),
            ),
            generator_lr=float(args["generator_lr"]),
            critic_lr=float(args["guidance_lr"]),
            warmup=args["warmup_step"],
            b1=float(optimizer["betas"][0]),
            b2=float(optimizer["betas"][1]),
            eps=float(optimizer["eps"]),
            weight_decay=float(optimizer["weight_decay"]),
            clip_norm=float(args["max_grad_norm"]),
        )

    def _cycle(self, first: int) -> tuple[CycleBatch, CycleDraws]:
        """Return the recorded batch and draws of the cycle that starts at iteration `first`."""
        z, args = self.z, self.args
        turns = slice(first, min(first + args["dfake_gen_update_ratio"], args["train_iters"]))
        g = list(z["g_iteration"]).index(first)

        def labels(name):  # a network without classes has none
            return one_hot(z[name][turns], args["label_dim"]) if name in z else None

        def noising(prefix, part):
            return Noising(
                jnp.asarray(z[f"{prefix}_timesteps"][part]), nhwc(z[f"{prefix}_noise"][part])
            )

        batch = CycleBatch(
            real=Samples(
                nhwc(z["real_images01"][turns]) * 2 - 1,
                labels("real_label_index"),
            ),
            fake_cond=labels("label_index"),
        )
        noise = nhwc(z["generator_noise"][turns])[:, None]
        draws = CycleDraws(
            rollouts=RolloutDraws(noise=noise, step=jnp.zeros(len(noise), jnp.int32)),
            generator={"dm": noising("g_dm", g), "gan": noising("g_cls", g)},
            critic={
                "denoising": noising("d_fake", turns),
                "real": noising("d_real_cls", turns),
                "fake": noising("d_fake_cls", turns),
            },
        )
        return batch, draws

    def generator_metric(self, name):
        return np.stack([m[name] for m in self.metrics])

    def critic_metric(self, name):
        return np.concatenate([m[name] for m in self.metrics])


@pytest.fixture(scope="module")
def run(golden):
    return Run(golden)


def test_first_images_match(run):
    batch, draws = run._cycle(0)
    rollout, cond = jax.tree.map(lambda x: x[0], (draws.rollouts, batch.fake_cond))
    x_0 = student_samples(
        run.players, run.initial.generator.params, rollout, cond, None, run.config
    )
    assert relative(nchw(x_0), run.z["generated_image"][0]) < NETWORK


@pytest.mark.parametrize(
    ("ours", "official"),
    [
        ("dm_loss", "g_loss_dm"),
        ("dm_grad_norm", "g_dm_gradient_norm"),
        ("gan_generator_loss", "g_gen_cls_loss"),
        ("generator_loss", "g_total_loss"),
        ("generator_grad_norm", "g_grad_norm"),
        ("generator_lr", "g_lr"),
    ],
)
def test_generator_turns_match(run, ours, official):
    got, expected = run.generator_metric(ours), run.z[official]
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=SCALAR, atol=1e-12)


@pytest.mark.parametrize(
    ("ours", "official"),
    [
        ("denoising_loss", "d_loss_fake_mean"),
        ("gan_critic_loss", "d_guidance_cls_loss"),
        ("critic_loss", "d_total_loss"),
        ("critic_grad_norm", "d_grad_norm"),
        ("critic_lr", "d_lr"),
    ],
)
def test_critic_turns_match(run, ours, official):
    got, expected = run.critic_metric(ours), run.z[official]
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=SCALAR, atol=1e-12)


def test_logits_match(run):
    assert (
        relative(run.generator_metric("logits_generator"), run.z["g_cls_logits"][..., 0]) < SCALAR
    )
    assert relative(run.critic_metric("logits_real"), run.z["d_logits_real"][..., 0]) < SCALAR
    assert relative(run.critic_metric("logits_fake"), run.z["d_logits_fake"][..., 0]) < SCALAR


def test_counters_match(run):
    assert int(run.final.step.critic) == run.args["train_iters"]
    assert int(run.final.step.generator) == int(run.z["is_generator_step"].sum())
    assert int(run.final.step.skipped) == 0


def distances(tensors, path):
    expected = state_dict.read_safetensors(path)
    assert set(tensors) == set(expected)
    total = np.concatenate([np.ravel(expected[n]) for n in sorted(expected)])
    got = np.concatenate([np.ravel(tensors[n]) for n in sorted(expected)])
    return relative(got, total)


def test_final_generator_matches(run):
    tensors = run.family.to_state_dict(run.final.generator.params)
    assert distances(tensors, run.folder / "final_generator.safetensors") < FINAL
    start = run.family.to_state_dict(run.initial.generator.params)
    moved = distances(start, run.folder / "final_generator.safetensors")
    assert moved > 10 * FINAL  # the comparison can fail


def test_final_critic_and_discriminator_match(run):
    tensors = {
        f"fake_unet.{k}": v for k, v in run.family.to_state_dict(run.final.critic.params).items()
    }
    head = head_to_tensors(run.final.discriminator.params)
    tensors |= {f"cls_pred_branch.{k}": v for k, v in head.items()}
    assert distances(tensors, run.folder / "final_guidance.safetensors") < FINAL


def test_a_trajectory_recorded_without_classes_is_read(run):
    bare = copy.copy(run)
    bare.z = {name: array for name, array in run.z.items() if "label" not in name}
    assert len(bare.z) < len(run.z)
    (batch, draws), (expected, same) = bare._cycle(0), run._cycle(0)
    assert batch.fake_cond is None and batch.real.cond is None
    np.testing.assert_array_equal(batch.real.x_0, expected.real.x_0)
    jax.tree.map(np.testing.assert_array_equal, draws, same)
