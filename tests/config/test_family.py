"""The family's group of keys: chosen by the recipe, swapped on the command line, or one's own."""

import textwrap
from pathlib import Path

import pytest

from dmd2_jax import families
from dmd2_jax.config import defaults
from dmd2_jax.config.check import validate
from dmd2_jax.config.family import choose_family, family_names, model_defaults
from dmd2_jax.config.load import apply_overrides, load_config
from tests.tiny import dmd2, refused
from tests.tiny_unet import RECIPE

MY_UNET = '''
"""A denoiser that is one number: x_0 = scale * x_t."""

import jax
import jax.numpy as jnp
import numpy as np

from dmd2_jax.families import edm


def defaults():
    return {"resolution": 8, "image_channels": 1, "num_classes": 10, "width": 8}


def build(model):
    network = {"model_channels": model["width"], "channel_mult": (1,)}
    keys = ("resolution", "image_channels", "num_classes")
    shared = {key: model[key] for key in keys}
    return edm.build({**network, **shared, "attention_resolutions": ()})
'''


def test_family_names_are_the_folders_with_settings() -> None:
    settings = Path(families.__file__).parent.glob("*/settings.py")
    assert family_names() == sorted(file.parent.name for file in settings)
    assert {"edm", "sit", "stable_diffusion", "z_image"} <= set(family_names())


@pytest.mark.parametrize("family", ["edm", "stable_diffusion"])
def test_model_defaults_hold_no_key_that_the_rules_refuse(family: str) -> None:
    config = defaults.get_config(family)
    assert config.model.family == family
    validate(config)


def test_no_key_of_one_family_stands_in_the_others_group() -> None:
    shared = set(model_defaults("edm")) & set(model_defaults("stable_diffusion"))
    assert shared == {"family", "resolution", "dtype", "remat"}


def test_another_family_on_the_command_line_takes_its_keys_and_keeps_what_both_know() -> None:
    config = load_config("imagenet64")
    pipeline = {"model.pipeline": "sd15", "model.family": "stable_diffusion"}  # in any order
    apply_overrides(config, pipeline)
    expected = model_defaults("stable_diffusion").to_dict()
    expected |= {"pipeline": "sd15", "resolution": 64, "dtype": "bfloat16"}
    assert config.model.to_dict() == expected
    with pytest.raises(match=r"model.num_blocks is no key, expected"):
        apply_overrides(config, {"model.num_blocks": "2"})


def test_the_recipes_own_family_on_the_command_line_changes_nothing() -> None:
    config = load_config("imagenet64")
    apply_overrides(config, {"model.family": "edm"})
    assert config.model.to_dict() == load_config("imagenet64").model.to_dict()


def test_validate_names_the_key_that_the_family_does_not_know() -> None:
    config = defaults.get_config().unlock()
    config.model.unlock().num_block = 2
    with pytest.raises(match=r"model.num_block is no key of model.family=edm.*'num_blocks'"):
        validate(config)


def test_choose_family_names_the_nearest() -> None:
    with pytest.raises(match=r"config.model.family='emd', expected one of .*did you mean 'edm'"):
        choose_family(defaults.get_config(), "emd")


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the user's own, which dmd2 is started in."""
    package = tmp_path / "lab_of_families"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "my_unet.py").write_text(textwrap.dedent(MY_UNET))
    (package / "no_build.py").write_text("def defaults():\n    return {'resolution': 8}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_family_of_the_users_own_trains_and_distils(lab: Path) -> None:
    own = ("--config.model.family=lab_of_families.my_unet", "--config.model.width=12")
    words = (f"--config={RECIPE}", *own, "--config.teacher.steps=1")
    assert dmd2("train-teacher", *words, "--workdir=teacher") == 0
    assert (lab / "teacher" / "teacher.safetensors").is_file()
    words = (*words, "--config.teacher.weights=teacher")
    assert dmd2("distill", *words, "--workdir=student", "--dry_run") == 0
    # The recorded config is enough to sample: the family is found again by its name.
    assert dmd2("sample", "--workdir=teacher", "--num=2", "--out=x.png") == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--config.model.family=lab_of_families.none",), "is no module that Python finds"),
        (("--config.model.family=lab_of_families.no_build",), "does not define build"),
        (
            ("--config.model.family=lab_of_families.my_unet", "--config.model.network=song"),
            "--config.model.network is no key",
        ),
    ],
)
def test_family_of_the_users_own_is_refused(
    lab: Path, more: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (f"--config={RECIPE}", *more, "--workdir=run", "--dry_run")
    assert message in refused(capsys, "train-teacher", *words)
