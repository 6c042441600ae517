"""v-prediction with zero terminal SNR: teacher and exported student make diffusers' images."""

import functools
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from dmd2_jax.families.stable_diffusion import family as stable_diffusion
from dmd2_jax.sampling.prompts import PromptSettings, pipeline_model
from dmd2_jax.sampling.samplers import sample_noise
from tests.pipelines import CAPTIONS, diffusers_pipeline, drawn, lcm_images, tiny_pipeline
from tests.tiny import dmd2, scratch

PROMPTS = (CAPTIONS[3], CAPTIONS[18])
V_ZERO_SNR = {
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}


@functools.cache
def pipeline() -> Path:
    """The tiny SDXL as one of v-prediction and zero terminal SNR; do not change it."""
    folder = Path(shutil.copytree(tiny_pipeline("sdxl"), scratch() / "zero_snr"))
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | V_ZERO_SNR))
    return folder


def test_x0_at_the_last_time_is_the_prediction_with_its_sign_turned() -> None:
    family, params = stable_diffusion.read(pipeline())
    random = np.random.RandomState(0)

    def normal(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        return random.standard_normal(leaf.shape).astype(np.float32)

    cond = jax.tree.map(normal, family.cond_shapes(1, tokens=3))
    x_t, t = random.standard_normal((1, *family.image_shape)).astype(np.float32), np.array([999])
    arguments = (cond["prompt_embeds"], cond["pooled"], cond["time_ids"])
    v = jax.jit(family.model.module.apply)(params, x_t, t.astype(np.float32), *arguments)
    np.testing.assert_allclose(family.denoiser.x0(params, x_t, t, cond), -v, rtol=1e-5, atol=1e-5)


def test_teacher_of_zero_terminal_snr_makes_the_images_of_diffusers() -> None:
    import diffusers
    import torch

    model = pipeline_model(pipeline(), PromptSettings(steps=4))
    images = np.clip(drawn(model, PROMPTS) / 2 + 0.5, 0, 1)
    noise = np.asarray(sample_noise(0, np.arange(2), 1, model.family.image_shape))[0]
    pipe = diffusers_pipeline(pipeline())
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    expected = pipe(
        list(PROMPTS),
        num_inference_steps=4,
        latents=torch.from_numpy(noise.transpose(0, 3, 1, 2).copy()),
        output_type="np",
    ).images
    assert pipe.scheduler.timesteps.tolist() == [999, 749, 499, 249]
    assert np.abs(images - expected).max() <= 2e-3
    assert expected.std() > 0.05 and np.abs(expected[0] - expected[1]).max() > 0.05


@pytest.mark.parametrize("times", ["999,499", "999"])
def test_student_of_zero_terminal_snr_makes_the_images_of_diffusers(
    times: str, tmp_path: Path
) -> None:
    weights = f"--weights={pipeline() / 'unet' / 'diffusion_pytorch_model.safetensors'}"
    words = ["export", weights, f"--pipeline={pipeline()}", f"--times={times}"]
    assert dmd2(*words, f"--out={tmp_path / 's'}") == 0
    model = pipeline_model(tmp_path / "s", PromptSettings())
    images = np.clip(drawn(model, PROMPTS) / 2 + 0.5, 0, 1)
    steps = [int(t) for t in times.split(",")]
    noise = sample_noise(0, np.arange(2), len(steps), model.family.image_shape)
    pipe = diffusers_pipeline(tmp_path / "s")
    expected = lcm_images(pipe, PROMPTS, np.asarray(noise), timesteps=steps)
    assert pipe.scheduler.alphas_cumprod[999] == 0
    assert np.abs(images - expected).max() <= 2e-3
    assert expected.std() > 0.05
