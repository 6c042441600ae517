"""Names that stand for files of ours or for modules of the user's own."""

import sys
from pathlib import Path

import pytest

from dmd2_jax.config import plugins
from dmd2_jax.config.refused import Refused

PACKAGE = "dmd2_jax.data"


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a module of the user's own, where dmd2 is started."""
    (tmp_path / "lab_of_tests").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    for name in ("lab_of_tests", "lab_of_tests.mine"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path / "lab_of_tests"


def load(name: str, *needs: str) -> object:
    return plugins.load_plugin(
        name, PACKAGE, "config.data.name", known=("digits", "idx"), needs=needs
    )


def test_available_lists_files_or_folders() -> None:
    assert {"digits", "idx"} <= set(plugins.available(PACKAGE))
    assert "idx" not in plugins.available(PACKAGE, but=("idx",))
    folders = plugins.available(PACKAGE, packages=True)
    assert "reading" in folders and "digits" not in folders


def test_load_plugin_imports_a_known_name() -> None:
    assert load("digits").__name__ == "dmd2_jax.data.digits"


def test_load_plugin_names_the_nearest_to_a_name_that_nobody_knows() -> None:
    expected = r"config.data.name='digit', expected one of .*mine; did you mean 'digits'\?$"
    with pytest.raises(Refused, match=expected):
        load("digit")


def test_load_plugin_finds_a_module_in_the_current_folder(lab: Path) -> None:
    (lab / "mine.py").write_text("ANSWER = 42\n")
    assert load("lab_of_tests.mine", "ANSWER").ANSWER == 42


def test_load_plugin_refuses_a_module_without_what_is_needed(lab: Path) -> None:
    (lab / "mine.py").write_text("")
    with pytest.raises(Refused, match=r"mine\.py\) does not define Options and run"):
        load("lab_of_tests.mine", "Options", "run")


def test_load_plugin_refuses_a_module_that_is_not_there(lab: Path) -> None:
    with pytest.raises(Refused, match="'lab_of_tests.mine' is no module that Python finds"):
        load("lab_of_tests.mine")


def test_load_plugin_keeps_the_error_of_a_module_that_cannot_be_imported(lab: Path) -> None:
    (lab / "mine.py").write_text("import no_such_package_of_tests\n")
    with pytest.raises(ModuleNotFoundError) as caught:
        load("lab_of_tests.mine")
    assert not isinstance(caught.value, Refused)
    assert caught.value.name == "no_such_package_of_tests"


@pytest.mark.parametrize("name", ["./mine.py", ".mine", "mine.", "a/b.c"])
def test_load_plugin_refuses_what_cannot_be_a_module(name: str) -> None:
    with pytest.raises(Refused, match="or a dotted module of your own"):
        load(name)


def test_summary_is_the_first_line_and_runs_nothing(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text('"""One line.\n\nMore.\n"""\nraise RuntimeError\n')
    assert plugins.summary(file) == "One line."
    file.write_text("x = 1\n")
    assert plugins.summary(file) == ""


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("optim.generatr_lr", "; did you mean 'optim.generator_lr'?"),
        ("generator_lr", "; did you mean 'optim.generator_lr'?"),
        ("optim.lr", "; did you mean 'optim.critic_lr' or 'optim.generator_lr'?"),
        ("optim.learning_rate", "; did you mean 'optim.critic_lr' or 'optim.generator_lr'?"),
        ("distill.lr_schedule", "; did you mean 'optim.lr_schedule'?"),
        ("distill.iterations", "; did you mean 'distill.cycles'?"),
        ("optim.ema", "; did you mean 'optim.ema_decays'?"),
        ("optim.beta2", "; did you mean 'optim.b2'?"),
        ("distill.k", ""),
        ("zzz", ""),
    ],
)
def test_nearest_suggests_by_meaning_before_spelling(word: str, expected: str) -> None:
    optim = ("generator_lr", "critic_lr", "lr_schedule", "b1", "b2", "ema_decays")
    keys = ["seed", "distill.cycles", "distill.pairs", *(f"optim.{name}" for name in optim)]
    assert plugins.nearest(word, keys) == expected
