"""The pictures that a run draws: what is compared, and what is in the files."""

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dmd2_jax.recipe.open import Recipe, build_family
from dmd2_jax.sampling.samplers import grid_labels
from dmd2_jax.training.drawing import GAIN, LEVELS, Comparison, draw_scores, score_comparison
from tests.tiny_unet import get_config


def test_score_comparison_shows_both_networks_the_same_noised_samples() -> None:
    family = build_family(get_config())
    teacher, critic = (family.init(jax.random.key(i)) for i in range(2))
    x_0 = jax.random.uniform(jax.random.key(2), (3, 8, 8, 1), minval=-1.0)
    cond = family.cond(np.arange(3))
    compare = score_comparison(family, None, seed=5)
    sigma, x_t, x_0_teacher, x_0_critic = compare(teacher, critic, x_0, cond)

    levels = family.denoiser.schedule.levels
    np.testing.assert_allclose(sigma, [levels[round(f * 999)] for f in LEVELS], rtol=1e-6)
    assert x_t.shape == x_0_teacher.shape == x_0_critic.shape == (len(LEVELS), 3, 8, 8, 1)
    for i in (0, len(LEVELS) - 1):
        t = jnp.full((3,), sigma[i])
        noised = x_t[i] * np.sqrt(1 + sigma[i] ** 2)  # EDM: alpha is 1
        for params, got in ((teacher, x_0_teacher[i]), (critic, x_0_critic[i])):
            expected = family.denoiser.x0(params, noised, t, cond)
            np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)
    noise = (x_t[0] * np.sqrt(1 + sigma[0] ** 2) - x_0) / sigma[0]
    assert 0.8 < np.std(noise) < 1.2
    again = compare(teacher, critic, x_0, cond)
    np.testing.assert_array_equal(again.x_t, x_t)


@pytest.mark.parametrize(
    ("classes", "shown"),
    [(0, [0] * 10), (3, [0, 1, 2]), (10, list(range(10))), (1000, [*range(0, 1000, 111)])],
)
def test_grid_labels_show_several_of_each_class(classes: int, shown: list[int]) -> None:
    family = SimpleNamespace(num_classes=classes, image_shape=(8, 8, 1))
    labels, rows, columns = grid_labels(cast(Recipe, SimpleNamespace(family=family, prompts=None)))
    assert (rows, columns) == (8, len(shown))
    assert labels.tolist() == shown * 8


def test_draw_scores_amplifies_the_difference(tmp_path: Path) -> None:
    flat = np.zeros((1, 2, 48, 48, 1), np.float32)
    scores = Comparison(np.array([0.5]), flat, flat + 0.1, flat + 0.2)
    draw_scores(flat[0], scores, tmp_path / "scores.png")
    grey = np.asarray(Image.open(tmp_path / "scores.png"))[..., 0]
    column = grey[:, -20]  # through the last sample
    values = [int(v) for v, before in zip(column[1:], column, strict=False) if v != before]
    shown = [v for v in values if v != 255]
    expected = [0.0, 0.0, 0.1, 0.2, GAIN * 0.1]  # x, x_t, teacher, critic, difference
    np.testing.assert_allclose(shown, 127.5 + 127.5 * np.array(expected), atol=1.0)
