"""Which checkpoints stay: the last, every n-th, the best."""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest
from orbax.checkpoint.checkpoint_managers import PreservationContext

from dmd2_jax.run.checkpoint import Checkpoints, Keep
from dmd2_jax.run.retention import Retention

FIDS = {1: 9.0, 2: 3.0, 3: 7.0, 4: None, 5: 4.0, 6: 8.0, 7: None}


class Info(NamedTuple):
    step: int


def staying(keep: Keep) -> list[int]:
    retention = Retention(Path("unused"), keep)
    for step, fid in FIDS.items():
        retention.note(step, {"metrics": {"fid": fid}})
    stays = retention.should_preserve([Info(s) for s in FIDS], context=PreservationContext())
    return [step for step, stay in zip(FIDS, stays, strict=True) if stay]


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        (Keep(2), [6, 7]),
        (Keep(1, every=3), [3, 6, 7]),
        (Keep(1, best=2), [2, 5, 7]),
        (Keep(1, every=6, best=1), [2, 6, 7]),
        (Keep(1, best=9), [1, 2, 3, 5, 6, 7]),
    ],
)
def test_retention_keeps_what_any_rule_keeps(keep: Keep, expected: list[int]) -> None:
    assert staying(keep) == expected


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "3", True])
def test_retention_takes_no_metric_that_is_no_number(value: object) -> None:
    retention = Retention(Path("unused"), Keep(1, best=1))
    retention.note(1, {"metrics": {"fid": value}})
    retention.note(2, {"metrics": {"fid": 50.0}})
    retention.note(3, {})
    infos = [Info(1), Info(2), Info(3)]
    stays = retention.should_preserve(infos, context=PreservationContext())
    assert stays == [False, True, True]


def test_checkpoints_keep_the_best_over_a_restart(tmp_path: Path) -> None:
    fids = {1: 5.0, 2: 1.0, 3: 4.0, 4: 2.0, 5: 3.0, 6: 9.0}
    for steps in ((1, 2, 3), (4, 5, 6)):
        with Checkpoints(tmp_path / "c", Keep(1, best=2)) as checkpoints:
            for step in steps:
                extra = {"metrics": {"fid": fids[step]}}
                checkpoints.save(step, {"x": jnp.float32(step)}, extra)
    with Checkpoints(tmp_path / "c", read_only=True) as checkpoints:
        assert checkpoints.all_steps() == [2, 4, 6]
        best = checkpoints.restore({"x": jax.ShapeDtypeStruct((), jnp.float32)}, step=2)
    assert (float(best.state["x"]), best.extra) == (2.0, {"metrics": {"fid": 1.0}})


def test_checkpoints_count_a_damaged_one_as_nobodys_best(tmp_path: Path) -> None:
    with Checkpoints(tmp_path / "c", Keep(1, best=1)) as checkpoints:
        checkpoints.save(1, {"x": jnp.float32(1)}, {"metrics": {"fid": 1.0}})
    (tmp_path / "c" / "1" / "meta" / "metadata").write_text("{")
    with Checkpoints(tmp_path / "c", Keep(1, best=1)) as checkpoints:
        for step in (2, 3):
            checkpoints.save(step, {"x": jnp.float32(step)}, {"metrics": {"fid": step}})
        checkpoints.wait()
        assert checkpoints.all_steps() == [2, 3]


def test_most_counts_all_rules() -> None:
    assert Keep(3, every=100, best=2).most(1000) == 3 + 2 + 10
    assert Keep(3).most(1000) == 3


@pytest.mark.parametrize(("values", "message"), [((0,), "keep=0"), ((1, -1), "keep_every=-1")])
def test_keep_refuses_numbers_out_of_range(values: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Keep(*values)
