"""A config's check with the names of what there is, and its family."""

import pytest
from ml_collections import ConfigDict

from dmd2_jax.config import defaults
from dmd2_jax.config.load import apply_overrides, load_config
from dmd2_jax.config.refused import Refused
from dmd2_jax.recipe.distillation import distill_config
from dmd2_jax.recipe.open import build_family, check, open_recipe
from dmd2_jax.sampling.samplers import student_sampler


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("distill.denoising_weight=edn", r"did you mean 'edm'\?"),
        ("optim.moment_dtype=float16", "moment_dtype='float16', expected one of"),
        ("optim.lr_schedule=cosin", r"did you mean 'cosine'\?"),
        ("data.name=digit", r"data.name='digit', expected one of .*did you mean 'digits'\?"),
        ("seed=4294967296", "seed=4294967296, expected a whole number"),
    ],
)
def test_check_names_what_there_is(override: str, message: str) -> None:
    config = defaults.get_config()
    apply_overrides(config, dict([override.split("=")]))
    with pytest.raises(match=message):
        check(config)


def test_build_family_takes_times_at_both_ends_of_the_schedule() -> None:
    config = defaults.get_config()
    config.distill.student_times = (80.0, 1.0, 0.002)
    build_family(config)


@pytest.mark.parametrize("times", [(90.0, 1.0), (80.0, 0.0019)])
def test_build_family_refuses_times_outside_the_schedule(times: tuple[float, ...]) -> None:
    config = defaults.get_config()
    config.distill.student_times = times
    with pytest.raises(match=r"expected times within the schedule's \[0.002, 80\]"):
        build_family(config)


def test_build_family_refuses_steps_that_the_scheduler_has_not() -> None:
    config = load_config("sdxl_one_step")
    config.distill.student_times = (1000,)
    with pytest.raises(match=r"has \[1000\], expected whole numbers in 0..999"):
        build_family(config)


@pytest.mark.parametrize(
    ("overrides", "times"),
    [
        ({"model.family": "sit"}, (1.0, 0.75, 0.5, 0.25)),
        ({"model.family": "sit", "model.shift": "3"}, (1.0, 0.9, 0.75, 0.5)),
        ({"model.family": "sit", "model.prediction": "eps"}, (999, 749, 499, 249)),
    ],
)
def test_student_steps_are_equal_parts_of_the_levels(overrides: dict, times: tuple) -> None:
    config = defaults.get_config()
    steps = {"distill.student_steps": "4", "distill.student_times": "()"}
    apply_overrides(config, overrides | steps)
    recipe = open_recipe(config, batch_size=8)
    assert recipe.config.distill.student_times == times
    assert recipe.config.distill.student_steps == 0  # what a run records are the times
    assert distill_config(config, recipe.family).student_times == times
    assert student_sampler(recipe.family, config).nfe == 4


@pytest.mark.parametrize(("family", "time"), [("edm", 80.0), ("sit", 1.0)])
def test_open_recipe_takes_channels_and_classes_from_the_data(family: str, time: float) -> None:
    config = defaults.get_config(family)
    config.distill.student_times = (time,)
    recipe = open_recipe(config, batch_size=8)
    assert (recipe.config.model.image_channels, recipe.config.model.num_classes) == (1, 10)
    assert recipe.family.num_classes == 10 and recipe.family.image_shape == (8, 8, 1)
    assert config.model.num_classes is None  # the caller's own


def test_build_family_asks_the_data_and_refuses_where_there_are_none() -> None:
    config = defaults.get_config()
    assert build_family(config).num_classes == 10
    with pytest.raises(
        Refused, match=r"model.num_classes=None, .* expected a number where no data"
    ):
        build_family(ConfigDict({"model": config.model}))
