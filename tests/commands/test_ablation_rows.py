"""Files of ablations: those of configs/, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from dmd2_jax.commands.ablate.rows import load_ablation
from dmd2_jax.recipe.distillation import objectives
from dmd2_jax.recipe.open import check
from tests.tiny import dmd2

HEAD = "from dmd2_jax.config.defaults import get_config\n"

SMALL = (
    "--config.model.model_channels=8",
    "--config.model.channel_mult=1",
    "--config.model.attention_resolutions=()",
    "--config.distill.batch_size=8",
    "--config.mesh.data=1",
)


def written(folder: Path, **changes: Any) -> str:
    """Write a file whose ablation is a good one but for what changes; None leaves a key away."""
    rows = {"a": {"overrides": {}}, "b": {"overrides": {"distill.critic_turns": 1}}}
    values = {"rows": rows, "seeds": (0, 1), "ordered": (("a", "b"),)} | changes
    values = {key: value for key, value in values.items() if value is not None}
    file = folder / "mine.py"
    file.write_text(f"{HEAD}def get_ablation():\n    return {values!r}\n")
    return str(file)


def row(**changes: Any) -> dict[str, Any]:
    return {"a": {"overrides": {}}, "b": {"overrides": {}} | changes}


def test_load_ablation_gives_rows_the_base_and_their_own_changes(tmp_path: Path) -> None:
    ablation = load_ablation(written(tmp_path), {"optim.critic_lr": "0.5"})
    a, b = (ablation.config(name, 3, "there") for name in "ab")
    assert (a.distill.critic_turns, b.distill.critic_turns) == (5, 1)
    assert a.optim.critic_lr == b.optim.critic_lr == 0.5
    assert a.seed == b.seed == 3 and a.teacher.weights == "there"


def test_load_ablation_takes_a_value_of_none(tmp_path: Path) -> None:
    rows = row(overrides={"distill.dm_weight": None})
    assert load_ablation(written(tmp_path, rows=rows)).config("b", 0, "").distill.dm_weight is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": None}, "has no 'rows'"),
        ({"rows": {}}, "rows={}, expected a dict with a row or more"),
        ({"seeds": None}, "has no 'seeds'"),
        ({"seeds": (1, 1)}, r"seeds=\(1, 1\), expected one or more different"),
        ({"seeds": (True,)}, "different whole numbers"),
        ({"seed": (1,)}, "has 'seed', expected some of .*; did you mean 'seeds'"),
        ({"rows": {"teacher": {"overrides": {}}}}, "a row is named 'teacher'"),
        ({"rows": {"../a": {"overrides": {}}}}, "a row is named '../a'"),
        ({"rows": row(override={})}, "row 'b' of .* did you mean 'overrides'"),
        ({"rows": row(overrides={"distill.critic_turn": 1})}, "did you mean 'distill.critic_turns"),
        ({"rows": row(overrides={"distill.critic_turns": "x"})}, "row 'b' .*='x', expected int"),
        ({"rows": row(overrides={"teacher.steps": 1})}, "row 'b' .* changes teacher.steps"),
        ({"rows": row(on=("GAN",))}, "\"on\" has 'GAN'"),
        ({"rows": row(published={"fidd": 1})}, "figure 'fidd', .*; did you mean 'fid'"),
        ({"ordered": (("a", "c"),)}, "names the row 'c'"),
        ({"ordered": (("a", "a"),)}, "compares a row with itself"),
        ({"ordered": (("a", "b", "recall"),)}, "names the figure 'recall', expected one of"),
        ({"ordered": (("a",),)}, "is no pair"),
        ({"ordered": (("a", "b"), ("a", "b"))}, "twice"),
    ],
)
def test_load_ablation_refuses(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(match=message):
        load_ablation(written(tmp_path, **changes))


def test_load_ablation_refuses_pairs_that_the_published_figures_contradict(tmp_path: Path) -> None:
    rows = {"a": {"overrides": {}, "published": {"fid": 2.0}}}
    rows |= {"b": {"overrides": {}, "published": {"fid": 1.0}}}
    with pytest.raises(match=r"contradicts the published fid, 2.0 and 1.0"):
        load_ablation(written(tmp_path, rows=rows))


def test_load_ablation_refuses_a_plain_recipe() -> None:
    with pytest.raises(match=r"get_ablation.*table3.py"):
        load_ablation("digits")


@pytest.mark.parametrize("name", ["table3", "table4"])
def test_shipped_ablation_passes_its_dry_run(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = tmp_path / "table"
    assert dmd2("ablate", f"--config={name}", f"--workdir={workdir}", "--dry_run", *SMALL) == 0
    ablation = load_ablation(name)
    runs = len(ablation.rows) * len(ablation.seeds)
    assert f"{runs} runs can be made, 0 of them finished" in capsys.readouterr().out
    assert not workdir.exists()


def test_table3_switches_losses_as_the_paper_does() -> None:
    ablation = load_ablation("table3")
    configs = {name: ablation.config(name, 0, "").distill for name in ablation.rows}
    found = {
        name: (
            config.dm_weight is not None,
            config.regression_weight is None,
            config.critic_turns == 5,
            config.gan_generator_weight is not None,
        )
        for name, config in configs.items()
    }
    for name, row in ablation.rows.items():
        ticks = tuple(switch in row.on for switch in ablation.switches)
        # Without distribution matching the paper ticks neither of the first two.
        assert ticks == (found[name] if "DMD" in row.on else (False, False, *found[name][2:]))
    assert not any(found[name][0] for name in ("gan", "gan_ttur"))
    assert len({config.cycles for config in configs.values()}) == 1  # generator turns


def test_rows_of_objectives_differ_from_dmd2_in_what_their_labels_say() -> None:
    ablation = load_ablation("objectives")
    configs = {name: ablation.config(name, 0, "") for name in ablation.rows}
    for config in configs.values():
        check(config)
    kinds = {
        name: {type(one).__name__ for one in objectives(config)} for name, config in configs.items()
    }
    assert all({"GeneratorGan", "CriticGan"} <= found for found in kinds.values())
    assert "DistributionMatching" in kinds["dmd2"] and "DistributionMatching" in kinds["sid_mix"]
    for name, kind in (("f_forward_kl", "FDistill"), ("sid", "Sid")):
        assert kind in kinds[name] and "DistributionMatching" not in kinds[name]
    base = configs["dmd2"].distill
    for name, key in (("hinge", "gan_loss"), ("r1", "gan_r1_weight"), ("fastgen", "fake_labels")):
        assert configs[name].distill[key] != base[key]
    assert len({config.distill.cycles for config in configs.values()}) == 1


def test_table4_leaves_away_what_the_paper_does() -> None:
    ablation = load_ablation("table4")
    configs = {name: ablation.config(name, 0, "").distill for name in ablation.rows}
    found = {
        name: (
            config.gan_generator_weight is not None and config.gan_critic_weight is not None,
            config.dm_weight is not None and config.train_critic,
            config.backward_simulation,
        )
        for name, config in configs.items()
    }
    assert found == {
        "no_gan": (False, True, True),
        "no_distribution_matching": (True, False, True),
        "no_backward_simulation": (True, True, False),
        "dmd2": (True, True, True),
    }
    without = configs["no_gan"], configs["no_distribution_matching"]
    assert without[0].gan_generator_weight is without[0].gan_critic_weight is None
    assert without[1].dm_weight is None and not without[1].train_critic
    for config in configs.values():
        assert len(config.student_times) == 4 and config.regression_weight is None
    for key in ("cycles", "critic_turns", "student_times", "batch_size"):
        assert len({config[key] for config in configs.values()}) == 1, key
