"""Config files, overrides and the checks of values."""

import json
from pathlib import Path

import pytest

from dmd2_jax.config import defaults
from dmd2_jax.config.load import (
    allowed_changes,
    apply_overrides,
    as_recipe,
    from_plain,
    load_config,
    parse_overrides,
    plain,
)

ROOT = Path(__file__).resolve().parents[2]


def test_load_config_takes_a_path_or_a_bare_name() -> None:
    by_path = load_config(str(ROOT / "configs" / "digits.py"))
    assert by_path.name == "digits"
    assert plain(load_config("digits")) == plain(by_path)


def test_load_config_takes_a_bare_name_for_ours_and_says_where_another_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").write_text("a file of data")
    assert load_config("digits").name == "digits"
    assert capsys.readouterr().err == ""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/digits.py").write_text("def get_config(): raise AssertionError")
    assert load_config("digits").name == "digits"
    assert "the one of this folder is --config=configs/digits.py" in capsys.readouterr().err


def test_load_config_locks_it() -> None:
    with pytest.raises(AttributeError, match="locked"):
        load_config("digits").optim.generator_learning_rate = 1.0


def test_load_config_reads_a_users_recipe_from_anywhere(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from dmd2_jax.config import defaults\n"
        "def get_config():\n"
        "    config = defaults.get_config()\n"
        "    config.name = 'mine'\n"
        "    return config\n"
    )
    assert load_config(str(file)).name == "mine"


def test_load_config_lets_a_recipe_import_what_lies_beside_it(tmp_path: Path) -> None:
    (tmp_path / "rates_of_tests.py").write_text("LR = 0.5\n")
    file = tmp_path / "mine.py"
    file.write_text(
        "from rates_of_tests import LR\n"
        "from dmd2_jax.config import defaults\n"
        "def get_config():\n"
        "    config = defaults.get_config()\n"
        "    config.optim.generator_lr = LR\n"
        "    return config\n"
    )
    assert load_config(str(file)).optim.generator_lr == 0.5


def test_load_config_says_on_which_line_a_recipe_or_what_it_imports_failed(tmp_path: Path) -> None:
    (tmp_path / "broken_of_tests.py").write_text("\nimport no_such_package_of_tests\n")
    file = tmp_path / "mine.py"
    file.write_text("import broken_of_tests\n")
    with pytest.raises(match=r"no_such_package_of_tests'; line 2 of \S*broken_of_tests.py\), exp"):
        load_config(str(file))
    file.write_text("def get_config():\n    return int('x')\n")
    with pytest.raises(match=r"ValueError: .*; line 2 of \S*mine.py\), expected get_config"):
        load_config(str(file))


def test_load_config_names_the_nearest_recipe() -> None:
    with pytest.raises(match=r"is no file.*did you mean 'digits'\?"):
        load_config("digit")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(): return {}", "returned dict, expected a ConfigDict"),
        ("x = 1", "AttributeError"),
        ("def get_config(:", "SyntaxError"),
        ("raise RuntimeError('no')", "RuntimeError: no"),
        (
            "from dmd2_jax.config import defaults\n"
            "def get_config():\n"
            "    config = defaults.get_config()\n"
            "    config.optim.genrator_lr = 1.0\n"
            "    return config\n",
            'locked. Did you mean "generator_lr" instead of "genrator_lr"\\?; line 4 of .*bad.py',
        ),
    ],
)
def test_load_config_refuses_what_makes_no_config(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "bad.py"
    file.write_text(text)
    with pytest.raises(match=message) as caught:
        load_config(str(file))
    assert "Other fields present" not in str(caught.value)  # ml_collections lists the whole group
    assert "\\n" not in str(caught.value)


def test_parse_overrides_takes_both_spellings() -> None:
    overrides, others = parse_overrides(
        ["distill", "--config.optim.eps=1e-6", "--config.seed", "-3", "--workdir", "x"]
    )
    assert overrides == {"optim.eps": "1e-6", "seed": "-3"}
    assert others == ["distill", "--workdir", "x"]


def test_parse_overrides_takes_dashes_in_names_alone() -> None:
    overrides, _ = parse_overrides(["--config.optim.critic-lr=1e-4", "--config.name", "a-b"])
    assert overrides == {"optim.critic_lr": "1e-4", "name": "a-b"}


def test_as_recipe_takes_overrides_as_the_recipe_does() -> None:
    config = load_config("digits")
    made = as_recipe(json.loads(json.dumps(plain(config))))
    assert plain(made) == plain(config)
    apply_overrides(made, {"distill.guidance": "2", "distill.student_times": "80,2"})
    assert made.distill.guidance == 2.0 and made.distill.student_times == (80.0, 2.0)
    apply_overrides(made, {"distill.guidance": "None"})
    assert made.distill.guidance is None


@pytest.mark.parametrize("words", [["--config.seed"], ["--config.seed", "--workdir=x"]])
def test_parse_overrides_refuses_a_missing_value(words: list[str]) -> None:
    with pytest.raises(match=r"--config\.seed has no value"):
        parse_overrides(words)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("seed", "7", 7),
        ("optim.generator_lr", "1e-4", 1e-4),
        ("optim.generator_lr", "1", 1.0),
        ("distill.backward_simulation", "False", False),
        ("distill.shared_pass", "true", True),
        ("distill.gan_generator_weight", "None", None),
        ("distill.guidance", "1.5", 1.5),
        ("distill.student_times", "(80.0, 20)", (80.0, 20.0)),
        ("distill.student_times", "80,20,1", (80.0, 20.0, 1.0)),
        ("model.channel_mult", "[1,2,3]", (1, 2, 3)),
        ("model.attention_resolutions", "()", ()),
        ("mesh.offload", "teacher,optimizer", ("teacher", "optimizer")),
        ("optim.ema_decays", "0.9", (0.9,)),
        ("data.name", "fashion_mnist", "fashion_mnist"),
    ],
)
def test_apply_overrides_parses_as_the_values_type(key: str, text: str, value: object) -> None:
    config = defaults.get_config().lock()
    apply_overrides(config, {key: text})
    got = config
    for part in key.split("."):
        got = got[part]
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("seed", "1.5", "expected int"),
        ("distill.cycles", "None", "expected int"),
        ("optim.generator_lr", "fast", "expected float"),
        ("distill.guidance", "high", "expected float or None"),
        ("distill.shared_pass", "yes please", "expected bool"),
        ("model.channel_mult", "1,2.5", "expected a tuple like"),
        ("distill.student_times", "80,x", "expected a tuple like"),
        ("distill.student_times", "__import__('os')", "expected a tuple like"),
    ],
)
def test_apply_overrides_refuses_another_type(key: str, text: str, expected: str) -> None:
    config = defaults.get_config().lock()
    with pytest.raises(match=expected) as caught:
        apply_overrides(config, {key: text})
    assert f"--config.{key}={text!r}" in str(caught.value)
    assert plain(config) == plain(defaults.get_config())


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("optim.genrator_lr", "optim.generator_lr"),
        ("optimizer.critic_lr", "optim.critic_lr"),
        ("cycles", "distill.cycles"),
    ],
)
def test_apply_overrides_names_the_nearest_key(key: str, nearest: str) -> None:
    with pytest.raises(match=f"is no key.*did you mean '{nearest}'"):
        apply_overrides(defaults.get_config(), {key: "1"})


def test_apply_overrides_refuses_a_group() -> None:
    with pytest.raises(match="is a group of keys"):
        apply_overrides(defaults.get_config(), {"optim": "1"})


def test_allowed_changes_takes_keys_and_groups() -> None:
    config = load_config("digits")
    words = ["optim.critic_lr, data", "mesh", "optim.critic-lr"]
    assert allowed_changes(config, words) == ("optim.critic_lr", "data", "mesh", "optim.critic_lr")
    assert allowed_changes(config, []) == ()
    with pytest.raises(match=r"--allow_change=dat is no key"):
        allowed_changes(config, ["dat"])
    with pytest.raises(match=r"=schedule.rho has moved, expected --allow_change=model.rho;"):
        allowed_changes(config, ["schedule.rho"])


def test_from_plain_restores_what_json_keeps() -> None:
    config = defaults.get_config()
    restored = from_plain(json.loads(json.dumps(plain(config))))
    assert plain(restored) == plain(config)
    assert isinstance(restored.model.channel_mult, tuple)
