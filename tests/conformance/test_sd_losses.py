"""Every loss of the official Stable Diffusion code against recorded values and gradients."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmd2_jax.distill import RolloutDraws, generate
from dmd2_jax.distill.objectives import level_bounds
from dmd2_jax.distill.turns import student_input
from dmd2_jax.families.published.folder import read_component
from dmd2_jax.networks.gan_head import GanHead
from dmd2_jax.weights import state_dict
from tests.conformance.derive import check_sums, nchw, nhwc, recipe, relative
from tests.conformance.sd_world import World, check_gradients

NETWORK, LOSS, UNET_GRADIENT, HEAD_GRADIENT = 1e-5, 3e-5, 5e-5, 2e-4

_world = functools.cache(World)


@pytest.fixture(params=["sd15", "sdxl"], scope="module")
def world(golden, request):
    return _world(golden, request.param)


@pytest.fixture(scope="module")
def sdxl(golden):
    return _world(golden, "sdxl")


def test_schedule_equals_the_recorded_table(world):
    squared = np.asarray(world.schedule.alpha(jnp.asarray(world.schedule.levels)), np.float64) ** 2
    assert relative(squared, world.z["alphas_cumprod"]) < 1e-6


def test_level_bounds_match(world):
    n = len(world.schedule.levels)
    dm, gan, *_ = world.distill_config.objectives
    assert level_bounds(dm.range, n, last=True) == tuple(world.z["dm_randint_range"])
    assert level_bounds((0.0, 1.0), n, last=True) == tuple(world.z["fake_randint_range"])
    assert level_bounds(gan.range, n, last=False) == tuple(world.z["gencls_randint_range"])


def test_distribution_matching_scores_match(world):
    x_t, x_0_teacher, x_0_critic, *_ = world.distribution_matching
    assert relative(nchw(x_t), world.z["dm_noisy_latents"]) < 1e-6
    assert relative(nchw(x_0_teacher), world.z["dm_pred_real_image"]) < NETWORK
    assert relative(nchw(x_0_critic), world.z["dm_pred_fake_image"]) < NETWORK


def test_distribution_matching_loss_matches(world):
    *_, loss, metrics, gradient = world.distribution_matching
    assert relative(loss, world.z["dm_loss"]) < LOSS
    assert relative(metrics["dm_grad_norm"], world.z["dm_gradient_norm"]) < LOSS
    assert relative(nchw(gradient), world.z["dm_dloss_dlatents"]) < UNET_GRADIENT


def test_null_condition_is_the_recorded_one(world):
    null = world.denoiser.null_cond(world.cond)
    np.testing.assert_array_equal(null["prompt_embeds"], world.z["uncond_embedding"])
    if world.family.is_sdxl:
        assert not null["pooled"].any()
        np.testing.assert_array_equal(null["time_ids"], world.z["time_ids"])


def test_denoising_loss_matches(world):
    loss, (x_t, x_0), gradient = world.denoising
    assert relative(nchw(x_t), world.z["fake_noisy_latents"]) < 1e-6
    assert relative(nchw(x_0), world.z["fake_x0_pred"]) < NETWORK
    assert relative(loss, world.z["fake_loss"]) < LOSS
    check_gradients(gradient, world.z, "fake", UNET_GRADIENT)


def test_generator_adversarial_loss_matches(world):
    loss, (logits, features), gradient = world.generator_adversarial
    assert relative(nchw(features), world.z["gencls_mid_feature"]) < NETWORK
    assert relative(logits, world.z["gencls_logits"][:, 0]) < LOSS
    assert relative(loss, world.z["gencls_loss"]) < LOSS
    assert relative(nchw(gradient), world.z["gencls_dloss_dimage"]) < HEAD_GRADIENT


def test_discriminator_adversarial_loss_matches(world):
    loss, logits, gradient = world.discriminator_adversarial
    assert relative(logits[0], world.z["guidcls_logits_real"][:, 0]) < LOSS
    assert relative(logits[1], world.z["guidcls_logits_fake"][:, 0]) < LOSS
    assert relative(loss, world.z["guidcls_loss"]) < LOSS
    check_gradients(gradient, world.z, "guidcls", HEAD_GRADIENT)


def simulation_noise(world):
    """The recorded noise of backward simulation: entry i makes the input of step i."""
    start, fresh = nhwc(world.z["sb_initial_noise"]), nhwc(world.z["sb_noises"])
    return jnp.concatenate([start[None], fresh])


def test_backward_simulation_starts_from_the_noise_itself(sdxl):
    noise = simulation_noise(sdxl)
    x_t, t, _ = sdxl.student(noise, 0)
    np.testing.assert_array_equal(x_t, noise[0])
    np.testing.assert_array_equal(t, sdxl.z["sb0_return_timesteps"])


@pytest.mark.parametrize("step", [1, 2, 3])
def test_backward_simulation_matches_at_every_step(sdxl, step):
    noise = simulation_noise(sdxl)
    _, _, x_0 = sdxl.student(noise, step - 1)
    assert relative(nchw(x_0), sdxl.z[f"sb{step}_generated_image"]) < NETWORK
    x_t, t, _ = sdxl.student(noise, step)
    np.testing.assert_array_equal(t, sdxl.z[f"sb{step}_return_timesteps"])
    table = sdxl.z["alphas_cumprod"][np.asarray(t)].astype(np.float64)[:, None, None, None]
    clean = sdxl.z[f"sb{step}_generated_image"]
    expected = np.sqrt(table) * clean + np.sqrt(1 - table) * nchw(noise[step])
    assert relative(nchw(x_t), expected) < NETWORK


@pytest.mark.parametrize("sample", [0, 1])
def test_noised_real_input_matches(sdxl, sample):
    # The original draws a step for each sample here; ours is one for the batch.
    z, part = sdxl.z, slice(sample, sample + 1)
    config = dataclasses.replace(sdxl.distill_config, backward_simulation=False)
    noise = jnp.stack([nhwc(z["pd_noise"])[part]] * len(sdxl.student_times))
    draws = RolloutDraws(noise, jnp.int32(z["pd_indices"][sample]))
    real = nhwc(z["pd_clean_images"])[part]
    x_t, t = student_input(sdxl.denoiser, sdxl.generator, draws, sdxl.cond, real, config)
    np.testing.assert_array_equal(t, z["pd_timesteps"][part])
    assert relative(nchw(x_t), z["pd_noisy_image"][part]) < 1e-6


def inference_noise(world):
    """The recorded noise of inference: entry i makes the input of step i."""
    start, fresh = nhwc(world.z["inf_initial_noise"]), nhwc(world.z["inf_noises"])
    return jnp.concatenate([start[None], fresh])


@pytest.mark.parametrize("step", [0, 1, 2, 3])
def test_inference_in_four_steps_matches_at_every_step(sdxl, step):
    _, _, x_0 = sdxl.student(inference_noise(sdxl)[:4], step)
    assert relative(nchw(x_0), sdxl.z["inf4_x0"][step]) < NETWORK


@pytest.mark.parametrize(("steps", "times"), [(1, None), (2, (999.0, 499.0))])
def test_inference_in_fewer_steps_matches(sdxl, steps, times):
    times = times or (float(sdxl.args["conditioning_timestep"]),)
    sample = functools.partial(generate, sdxl.denoiser, times=times)
    x_0 = jax.jit(sample)(sdxl.generator, inference_noise(sdxl)[:steps], sdxl.cond)
    assert relative(nchw(x_0), sdxl.z[f"inf{steps}_x0"][-1]) < NETWORK


def test_decoded_image_matches(golden, sdxl):
    z = sdxl.z
    _, _, x_0 = sdxl.student(inference_noise(sdxl)[:4], 3)
    model, params = read_component(golden / "diffusers_models" / "vae_kl")
    latents = x_0[:1] / model.module.scaling_factor
    assert relative(nchw(latents), z["inf4_vae_input_latents_scaled"]) < NETWORK
    decode = functools.partial(model.module.apply, method="decode")
    image = np.clip((np.asarray(jax.jit(decode)(params, latents)) + 1) * 127.5, 0, 255)
    off = np.abs(image.astype(np.uint8).astype(int) - z["inf4_image_uint8"])
    # A value within rounding of a whole number may be cut to either side of it.
    assert off.max() <= 1
    assert np.mean(off > 0) < 1e-3


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_head_of_either_structure_matches(golden, kind):
    folder = golden / "sd_losses"
    config = json.loads((folder / "config.json").read_text())[f"cls_head_{kind}"]
    z = dict(np.load(folder / "cls_heads.npz"))
    feature = nhwc(z[f"{kind}_feature"])
    module = GanHead(config["hidden"], config["num_stride2_stages"], config["num_groups"])
    template = jax.eval_shape(module.init, jax.random.key(0), feature)
    tensors = recipe(
        state_dict.tensor_shapes(template), config["recipe_seed"], config["recipe_gain"]
    )
    check_sums(tensors, z, kind)
    params = state_dict.to_params(tensors, template)

    def total(feature):
        logits = module.apply(params, feature)
        return logits.sum(), logits

    (_, logits), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(feature)
    assert relative(logits, z[f"{kind}_logits"][:, 0]) < LOSS
    assert relative(nchw(gradient), z[f"{kind}_dsum_dfeature"]) < HEAD_GRADIENT
    # As many stages as the feature map needs: the structure need not be named.
    assert jax.tree.structure(template) == jax.tree.structure(
        jax.eval_shape(GanHead(config["hidden"]).init, jax.random.key(0), feature)
    )
