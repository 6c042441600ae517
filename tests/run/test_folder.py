"""A run folder belongs to one config."""

import json
from pathlib import Path

import pytest

from dmd2_jax.run.folder import (
    RunFolderError,
    check_free_space,
    check_teacher,
    check_writable,
    open_run,
    read_run,
    write_json,
)

CONFIG = {"optim": {"lr": 0.1, "betas": (0.9, 0.99)}, "steps": 10}


def test_open_run_claims_a_new_folder(tmp_path: Path) -> None:
    assert open_run(tmp_path / "a" / "b", "distill", CONFIG) is False
    command, config = read_run(tmp_path / "a" / "b")
    assert command == "distill"
    assert config == {"optim": {"lr": 0.1, "betas": [0.9, 0.99]}, "steps": 10}


def test_open_run_recognises_its_own_config(tmp_path: Path) -> None:
    open_run(tmp_path, "distill", CONFIG)
    assert open_run(tmp_path, "distill", CONFIG) is True


def test_open_run_refuses_another_config_with_the_difference(tmp_path: Path) -> None:
    open_run(tmp_path, "distill", CONFIG)
    before = (tmp_path / "config.json").read_bytes()
    other = {"optim": {"lr": 0.2, "betas": (0.9, 0.99)}, "steps": 10, "new": 1}
    with pytest.raises(RunFolderError) as caught:
        open_run(tmp_path, "distill", other)
    assert "optim.lr: got 0.2, the run there has 0.1" in str(caught.value)
    assert "new: got 1, the run there has '(absent)'" in str(caught.value)
    assert "betas" not in str(caught.value)
    assert (tmp_path / "config.json").read_bytes() == before


def test_open_run_refuses_a_run_of_another_command(tmp_path: Path) -> None:
    open_run(tmp_path, "train-teacher", CONFIG)
    with pytest.raises(RunFolderError, match="holds a run of `train-teacher`"):
        open_run(tmp_path, "distill", CONFIG)


def test_open_run_lets_the_named_keys_differ(tmp_path: Path) -> None:
    open_run(tmp_path, "distill", CONFIG)
    longer = CONFIG | {"steps": 20}
    assert open_run(tmp_path, "distill", longer, may_differ=["steps"]) is True
    assert read_run(tmp_path)[1]["steps"] == 20


def test_open_run_allows_by_name_and_keeps_the_history(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    open_run(tmp_path, "distill", CONFIG)
    (tmp_path / "checkpoints" / "40").mkdir(parents=True)
    (tmp_path / "checkpoints" / "5").mkdir()
    other = {"optim": {"lr": 0.2, "betas": (0.9, 0.99)}, "steps": 10}
    assert open_run(tmp_path, "distill", other, allow=["optim.lr"]) is True
    assert "optim.lr: got 0.2, the run there has 0.1" in capsys.readouterr().out
    longer = other | {"steps": 20}
    open_run(tmp_path, "distill", longer, may_differ=["steps"])
    assert json.loads((tmp_path / "config.json").read_text())["changes"] == [
        {"after_step": 40, "changed": {"optim.lr": [0.1, 0.2]}},
        {"after_step": 40, "changed": {"steps": [10, 20]}},
    ]


def test_open_run_allows_no_more_than_is_named(tmp_path: Path) -> None:
    open_run(tmp_path, "distill", CONFIG)
    other = {"optim": {"lr": 0.2, "betas": (0.9, 0.99)}, "optimal": 1, "steps": 20}
    with pytest.raises(RunFolderError) as caught:
        open_run(tmp_path, "distill", other, allow=["optim"])
    assert "optim.lr" not in str(caught.value)
    assert "allow_change=optimal,steps" in str(caught.value)


def test_open_run_names_the_group_of_a_key_that_only_the_run_has(tmp_path: Path) -> None:
    """--allow_change takes keys of the config at hand."""
    open_run(tmp_path, "distill", {"optim": {"lr": 0.1, "own": 1}})
    other = {"optim": {"lr": 0.1}}
    with pytest.raises(RunFolderError, match=r"`allow_change=optim`\."):
        open_run(tmp_path, "distill", other)
    assert open_run(tmp_path, "distill", other, allow=["optim"])


def test_open_run_checks_what_is_saved_before_it_writes(tmp_path: Path) -> None:
    def misfit() -> None:
        raise ValueError("another structure")

    open_run(tmp_path, "distill", CONFIG, check=misfit)  # nothing is saved there yet
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(ValueError, match="^another structure"):
        open_run(tmp_path, "distill", CONFIG, check=misfit)
    other = CONFIG | {"steps": 20}
    with pytest.raises(RunFolderError, match="`allow_change=steps` cannot be granted: another"):
        open_run(tmp_path, "distill", other, allow=["steps"], check=misfit)
    assert (tmp_path / "config.json").read_bytes() == before


def test_check_teacher_compares_the_weights_not_the_place(
    capsys: pytest.CaptureFixture[str],
) -> None:
    here = {"path": "a", "digest": "1"}
    check_teacher(None, here)
    check_teacher(here, here)
    assert capsys.readouterr().out == ""
    check_teacher({"path": "b", "digest": "1"}, here)
    assert capsys.readouterr().out == "the teacher, b before, is now a: the same weights.\n"
    with pytest.raises(RunFolderError, match="a student cannot change its teacher"):
        check_teacher({"path": "a", "digest": "2"}, here)


def test_open_run_dry_leaves_the_disk_alone(tmp_path: Path) -> None:
    assert open_run(tmp_path / "new", "distill", CONFIG, dry_run=True) is False
    assert list(tmp_path.iterdir()) == []


def test_open_run_refuses_checkpoints_of_unknown_origin(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    with pytest.raises(RunFolderError, match="holds checkpoints and no config.json"):
        open_run(tmp_path, "distill", CONFIG)


def test_check_writable_refuses_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for keep in (False, True):
        with pytest.raises(RunFolderError, match="cannot be created .* choose another workdir"):
            check_writable(tmp_path / "file" / "run", keep=keep)
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.parametrize("content", ["{", "[]", '{"command": "distill"}'])
def test_read_run_refuses_a_damaged_record(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(RunFolderError, match="cannot be read"):
        read_run(tmp_path)


def test_read_run_names_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"no run in workdir .*config\.json"):
        read_run(tmp_path)


def test_check_free_space_refuses_what_cannot_fit(tmp_path: Path) -> None:
    check_free_space(tmp_path, 1000, "checkpoints")
    with pytest.raises(RunFolderError, match="MB free at .* for checkpoints; free some"):
        check_free_space(tmp_path / "not" / "yet", 10**18, "checkpoints")


def test_write_json_replaces_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"a": list(range(100))})
    write_json(path, {"a": 1})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.json"]


def test_open_run_records_the_devices_and_when_they_change(tmp_path: Path) -> None:
    def used(number: int) -> list[dict]:
        open_run(tmp_path, "distill", CONFIG, devices={"platform": "cpu", "number": number})
        return json.loads((tmp_path / "config.json").read_text())["devices"]

    first = {"after_step": 0, "platform": "cpu", "number": 1}
    assert used(1) == used(1) == [first]
    (tmp_path / "checkpoints" / "7").mkdir(parents=True)
    assert used(8) == [first, {"after_step": 7, "platform": "cpu", "number": 8}]


def test_workdir_that_is_a_link_to_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").symlink_to(tmp_path / "gone")
    for keep in (True, False):  # a run, a dry run
        with pytest.raises(RunFolderError, match="is a link to .*gone, which is not there"):
            check_writable(tmp_path / "run", keep=keep)
    (tmp_path / "gone").mkdir()
    check_writable(tmp_path / "run", keep=True)
