"""Whole turns of the official Stable Diffusion code: images, losses and gradients."""

import numpy as np
import pytest

from tests.conformance.derive import nchw, relative
from tests.conformance.sd_world import World, check_gradients

NETWORK, LOSS, HEAD_GRADIENT = 1e-5, 3e-5, 2e-4


@pytest.fixture(params=["sd15", "sdxl"], scope="module")
def world(golden, request):
    return World(golden, request.param)


def test_text_embeddings_match(world):
    prompt, pooled = world.encode("uni_text_input_ids")
    assert relative(prompt, world.z["uni_text_embedding"]) < NETWORK
    assert relative(pooled, world.z["uni_pooled_text_embedding"]) < NETWORK


def test_generated_image_of_a_turn_matches(world):
    times = np.asarray(world.student_times, int)
    step = int(world.recorded_rollout.step)
    np.testing.assert_array_equal(world.z["uni_denoising_timestep"], times[step])
    assert relative(nchw(world.turns[0]), world.z["uni_generated_image"]) < NETWORK


@pytest.mark.parametrize(
    ("ours", "official"),
    [
        ("dm_loss", "loss_dm"),
        ("gan_generator_loss", "gen_cls_loss"),
        ("generator_loss", "generator_total_loss"),
        ("denoising_loss", "loss_fake_mean"),
        ("gan_critic_loss", "guidance_cls_loss"),
        ("critic_loss", "guidance_total_loss"),
    ],
)
def test_losses_of_the_turns_match(world, ours, official):
    assert relative(world.turns[1][ours], world.z[f"uni_{official}"]) < LOSS


def test_gradient_of_the_generator_turn_matches(world):
    check_gradients(world.turns[2], world.z, "uni_gen", HEAD_GRADIENT)
    norm = world.turns[1]["generator_grad_norm"]
    assert relative(norm, world.z["uni_gen_grad_global_norm"]) < HEAD_GRADIENT


def test_gradient_of_the_critic_turn_matches(world):
    check_gradients(world.turns[3], world.z, "uni_guid", HEAD_GRADIENT)
    norm = world.turns[1]["critic_grad_norm"]
    assert relative(norm, world.z["uni_guid_grad_global_norm"]) < HEAD_GRADIENT
