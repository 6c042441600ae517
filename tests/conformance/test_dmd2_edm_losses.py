"""Every loss of the official EDM code against recorded values and gradients."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmd2_jax.distill.objectives import Noising, level_bounds, noised
from dmd2_jax.losses.adversarial import discriminator_adversarial_loss, generator_adversarial_loss
from dmd2_jax.losses.denoising import denoising_loss, denoising_weight
from dmd2_jax.losses.distribution_matching import distribution_matching_loss
from dmd2_jax.networks.gan_head import discriminator
from dmd2_jax.weights import state_dict
from tests.conformance.derive import (
    check_sums,
    nchw,
    nhwc,
    recipe,
    recorded_or_none,
    relative,
    reversed_,
)
from tests.conformance.players import golden_family, golden_head, head_from_tensors, head_to_tensors

NETWORK, LOSS, UNET_GRADIENT, HEAD_GRADIENT = 1e-5, 3e-5, 5e-5, 2e-4


class World:
    """The recorded arrays with the networks that made them."""

    def __init__(self, golden):
        folder = golden / "dmd2_edm_losses"
        self.config = json.loads((folder / "config.json").read_text())
        self.args = self.config["args"]
        self.z = dict(np.load(folder / "losses.npz"))
        self.family = golden_family(self.config)
        self.denoiser = self.family.denoiser
        real = state_dict.read_safetensors(golden / "edm_networks" / "adm.safetensors")
        fake = reversed_(real)
        check_sums(fake, self.z, "fake_unet")
        self.real = self.family.from_state_dict(real)
        self.fake = self.family.from_state_dict(fake)
        shapes, module = golden_head(self.config, self.family)
        head = recipe(
            shapes, self.config["head"]["recipe_seed"], self.config["head"]["recipe_gain"]
        )
        check_sums(head, self.z, "cls_pred_branch")
        self.head_module = module
        self.head = head_from_tensors(module, self.family, head)
        self.logits = discriminator(module).logits
        self.x_0 = nhwc(self.z["latents"])
        self.labels = recorded_or_none(self.z, "labels")

    def draw(self, prefix: str, noise: str | None = None) -> Noising:
        noise = nhwc(self.z[f"{noise or prefix}_noise"])
        return Noising(jnp.asarray(self.z[f"{prefix}_timesteps"]), noise)


@pytest.fixture(scope="module")
def world(golden):
    return World(golden)


def test_levels_match(world):
    assert relative(world.denoiser.schedule.levels, world.z["karras_sigmas"]) < 1e-6


def test_level_bounds_match(world):
    args, n = world.args, world.args["num_train_timesteps"]
    fractions = (args["min_step_percent"], args["max_step_percent"])
    assert level_bounds(fractions, n, last=True) == tuple(world.z["dm_randint_range"])
    assert level_bounds((0.0, 1.0), n, last=True) == tuple(world.z["fake_randint_range"])
    gan = (0.0, args["diffusion_gan_max_timestep"] / n)
    assert level_bounds(gan, n, last=False) == tuple(world.z["gencls_randint_range"])


def test_distribution_matching_matches(world):
    z = world.z
    x_t, t = noised(world.denoiser.schedule, world.x_0, world.draw("dm"))
    assert relative(t, z["dm_sigma"]) < 1e-6
    assert relative(nchw(x_t), z["dm_noisy_latents"]) < 1e-6
    x_0_teacher = world.denoiser.x0(world.real, x_t, t, world.labels)
    x_0_critic = world.denoiser.x0(world.fake, x_t, t, world.labels)
    assert relative(nchw(x_0_teacher), z["dm_pred_real_image"]) < NETWORK
    assert relative(nchw(x_0_critic), z["dm_pred_fake_image"]) < NETWORK
    (loss, metrics), gradient = jax.value_and_grad(distribution_matching_loss, has_aux=True)(
        world.x_0, x_0_teacher, x_0_critic
    )
    assert relative(loss, z["dm_loss"]) < LOSS
    assert relative(metrics["dm_grad_norm"], z["dm_gradient_norm"]) < LOSS
    assert relative(nchw(gradient), z["dm_dloss_dlatents"]) < UNET_GRADIENT


def test_distribution_matching_edge_cases_match(world):
    z = world.z
    teacher, critic = (nhwc(z[f"dmedge_pred_{who}_image"]) for who in ("real", "fake"))
    (loss, _), gradient = jax.value_and_grad(distribution_matching_loss, has_aux=True)(
        world.x_0, teacher, critic
    )
    assert relative(loss, z["dmedge_loss"]) < LOSS
    assert relative(nchw(gradient), z["dmedge_dloss_dlatents"]) < UNET_GRADIENT


@pytest.mark.parametrize("case", ["fake", "fakemid"])
def test_denoising_loss_matches(world, case):
    z = world.z
    draw = world.draw(case, noise="fake")
    x_t, t = noised(world.denoiser.schedule, world.x_0, draw)
    weight = denoising_weight("edm", jnp.ones_like(t), t, sigma_data=world.args["sigma_data"])
    if case == "fake":
        assert relative(weight, z["fake_weight"]) < 1e-5
        assert relative(nchw(x_t), z["fake_noisy_latents"]) < 1e-6

    @jax.jit
    def loss_fn(params):
        x_0 = world.denoiser.x0(params, x_t, t, world.labels)
        return denoising_loss(x_0, world.x_0, weight=weight)[0], x_0

    (loss, x_0), gradient = jax.value_and_grad(loss_fn, has_aux=True)(world.fake)
    assert relative(nchw(x_0), z[f"{case}_x0_pred"]) < NETWORK
    assert relative(loss, z[f"{case}_loss"]) < LOSS
    check_gradients(world.family.to_state_dict(gradient), z, case, UNET_GRADIENT)


def check_gradients(tensors, z, case, tolerance, names=None):
    """Hold gradients by original name against the recorded norms and full arrays."""
    names = [str(n) for n in z[f"{case}_grad_names"]] if names is None else names
    index = [list(z[f"{case}_grad_names"]).index(n) for n in names]
    norms = [np.linalg.norm(tensors[n].astype(np.float64)) for n in names]
    assert relative(norms, z[f"{case}_grad_norms"][index]) < tolerance
    full = [n for n in names if f"{case}_grad/{n}" in z]
    assert full
    for name in full:
        assert relative(tensors[name], z[f"{case}_grad/{name}"]) < tolerance, name


@pytest.mark.parametrize("case", ["gencls", "genclsclean"])
def test_generator_adversarial_loss_matches(world, case):
    z = world.z
    clean = case == "genclsclean"
    draw = Noising(jnp.zeros(len(world.x_0), jnp.int32), None) if clean else world.draw(case)

    @jax.jit
    def loss_fn(x_0):
        x_t, t = noised(world.denoiser.schedule, x_0, draw)
        features = world.denoiser.features(world.fake, x_t, t, world.labels)
        logits = world.logits(world.head, features)
        return generator_adversarial_loss(logits)[0], (logits, features[0])

    (loss, (logits, features)), gradient = jax.value_and_grad(loss_fn, has_aux=True)(world.x_0)
    assert relative(logits, z[f"{case}_logits"][:, 0]) < LOSS
    assert relative(loss, z[f"{case}_loss"]) < LOSS
    assert relative(nchw(gradient), z[f"{case}_dloss_dimage"]) < HEAD_GRADIENT
    if not clean:
        assert relative(nchw(features), z["gencls_bottleneck"]) < NETWORK


def test_discriminator_adversarial_loss_matches(world):
    z = world.z
    schedule, x_real = world.denoiser.schedule, nhwc(z["guidcls_real_image"])

    @jax.jit
    def loss_fn(params):
        critic, head = params
        logits = []
        for x_0, labels, who in (
            (x_real, recorded_or_none(z, "guidcls_real_labels"), "real"),
            (world.x_0, world.labels, "fake"),
        ):
            x_t, t = noised(schedule, x_0, world.draw(f"guidcls_{who}"))
            logits.append(world.logits(head, world.denoiser.features(critic, x_t, t, labels)))
        return discriminator_adversarial_loss(*logits)[0], logits

    (loss, logits), (critic, head) = jax.value_and_grad(loss_fn, has_aux=True)(
        (world.fake, world.head)
    )
    assert relative(logits[0], z["guidcls_logits_real"][:, 0]) < LOSS
    assert relative(logits[1], z["guidcls_logits_fake"][:, 0]) < LOSS
    assert relative(loss, z["guidcls_loss"]) < LOSS
    tensors = {f"fake_unet.{k}": v for k, v in world.family.to_state_dict(critic).items()}
    tensors |= {f"cls_pred_branch.{k}": v for k, v in head_to_tensors(head).items()}
    check_gradients(tensors, z, "guidcls", HEAD_GRADIENT)
    total = np.sqrt(sum(np.sum(np.square(tensors[str(n)], dtype=np.float64))
                        for n in z["guidcls_grad_names"]))  # fmt: skip
    assert relative(total, z["guidcls_grad_global_norm"]) < HEAD_GRADIENT
