"""The checks of a config's values."""

import pytest
from ml_collections import ConfigDict

from dmd2_jax.config import defaults
from dmd2_jax.config.check import validate
from dmd2_jax.config.refused import Refused


def changed(**overrides: object) -> ConfigDict:
    config = defaults.get_config()
    for key, value in overrides.items():
        group, name = key.split("__")
        config[group][name] = value
    return config


def test_validate_accepts_the_base_config() -> None:
    validate(defaults.get_config())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"distill__critic_turns": 0}, r"distill.critic_turns=0, expected at least 1 \(K of TTUR"),
        ({"distill__student_times": (20.0, 80.0)}, "strictly decreasing"),
        ({"distill__student_times": (80.0, 80.0)}, "strictly decreasing"),
        ({"distill__student_times": ()}, "strictly decreasing"),
        ({"model__sigma_min": 80.0}, "expected sigma_min < sigma_max"),
        ({"model__sigma_min": -1.0}, "model.sigma_min=-1.0, expected a positive number"),
        ({"distill__batch_size": 0}, "distill.batch_size=0, expected at least 1"),
        ({"teacher__batch_size": -4}, "teacher.batch_size=-4, expected at least 1"),
        ({"optim__generator_lr": 0.0}, "optim.generator_lr=0.0, expected a positive number"),
        ({"optim__critic_lr": float("nan")}, "optim.critic_lr=nan, expected a positive number"),
        ({"optim__b2": 1.0}, r"optim.b2=1.0, expected a number in \[0, 1\)"),
        ({"optim__ema_decays": (1.5,)}, "ema_decays has 1.5"),
        ({"optim__ema_decays": (0.99999901, 0.999999)}, "has 0.999999 more than once"),
        ({"teacher__p_mean": float("nan")}, "teacher.p_mean=nan, expected a finite number"),
        ({"teacher__lora_scale": float("inf")}, "teacher.lora_scale=inf, expected a finite number"),
        ({"distill__guidance": float("nan")}, "distill.guidance=nan, expected a finite number"),
        ({"distill__guidance": 0.0}, "distill.guidance=0, .*expected None.* is w [+] 1 here"),
        ({"distill__dm_range": (0.9, 0.1)}, r"distill.dm_range=\(0.9, 0.1\), expected \(low, high"),
        ({"distill__gan_range": (0.0, 0.5, 1.0)}, r"distill.gan_range=\(0.0, 0.5, 1.0\), expected"),
        ({"distill__dm_times": "logit_normal:0"}, "dm_times='logit_normal:0', expected uniform,"),
        ({"distill__dm_times": "logit_normal:0:0"}, "STD, S and P positive"),
        ({"distill__critic_times": "shifted:inf"}, "critic_times='shifted:inf', expected uniform,"),
        ({"distill__critic_times": "normal"}, "critic_times='normal', expected uniform,"),
        ({"distill__student_steps": 4}, "student_steps=4 and .*expected one of the two"),
        ({"distill__student_steps": -1}, "student_steps=-1, expected 0 or more"),
        ({"optim__lr_schedule": "linear"}, r"optim.lr_schedule='linear', expected one of"),
        ({"optim__moment_dtype": "float16"}, r"optim.moment_dtype='float16', expected one of"),
        ({"distill__dm_weight": -1.0}, "dm_weight=-1.0, expected a positive number, or None"),
        ({"distill__fake_labels": "random"}, r"fake_labels='random', expected one of"),
        ({"model__dtype": "float16"}, r"model.dtype='float16', expected one of"),
        ({"model__remat": "True"}, r"remat='True', expected one of \['block', 'full', 'none'\]"),
        ({"model__channel_mult": ()}, "expected one multiplier a level"),
        ({"model__family": "edmm"}, r"model.family='edmm', expected one of .*did you mean 'edm'\?"),
        ({"mesh__data": 0}, r"mesh.data=0, expected -1 \(all devices\)"),
        ({"log__keep": 0}, "log.keep=0, expected at least 1"),
        ({"log__keep_every": -1}, "log.keep_every=-1, expected 0 or more"),
        ({"log__keep_best": 2}, r"log.evaluate_every=0 \(never\), expected FID to be measured"),
        ({"distill__objectives": (3,)}, r"objectives has \[3\], expected dotted modules"),
        ({"optim__max_skipped_in_a_row": 0}, "max_skipped_in_a_row=0, expected at least 1"),
    ],
)
def test_validate_refuses(overrides: dict[str, object], message: str) -> None:
    with pytest.raises(match=message):
        validate(changed(**overrides))


def test_validate_names_every_fault_of_the_config_and_its_family() -> None:
    config = changed(distill__critic_turns=0, optim__generator_lr=-1.0, model__dropout=2.0)
    with pytest.raises(Refused) as caught:
        validate(config)
    for key in ("distill.critic_turns=0", "optim.generator_lr=-1.0", "model.dropout=2.0"):
        assert key in str(caught.value)


@pytest.mark.parametrize("seed", [-1, 2**32, True])
def test_validate_refuses_a_seed_that_jax_would_cut(seed: int) -> None:
    config = defaults.get_config().unlock()
    del config.seed
    config.seed = seed
    with pytest.raises(match=rf"seed={seed}, expected a whole number in 0..4294967295"):
        validate(config)


def test_validate_accepts_every_seed_of_32_bits() -> None:
    config = defaults.get_config()
    config.seed = 2**32 - 1
    validate(config)


def test_validate_checks_the_names_that_the_caller_provides() -> None:
    said = r"data.name='digits', expected one of \['digit5'\], or a dotted module of your own, "
    with pytest.raises(match=f"{said}such as my_lab.mine; did you mean 'digit5'"):
        validate(defaults.get_config(), {"data.name": ["digit5"]})
