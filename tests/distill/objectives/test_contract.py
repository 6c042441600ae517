"""What every objective promises, ours and a user's own: one file for all of them."""

import dataclasses
import functools
import sys
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import dmd2_jax.distill.objectives
from dmd2_jax.config.refused import Refused
from dmd2_jax.distill import DistillConfig, draw_cycle, make_cycle, run_cycle
from dmd2_jax.distill.objectives import (
    CriticGan,
    Denoising,
    DistributionMatching,
    FDistill,
    FirstStep,
    GeneratorGan,
    GuidanceAugmentation,
    Levels,
    Objective,
    Pass,
    Regression,
    Reward,
    Sid,
    dmd2,
)
from dmd2_jax.runtime.summaries import Norm
from tests.distill import toy
from tests.distill.test_cycle import (
    TEACHER,
    assert_trees_close,
    looped_cycle,
    make_batch,
    make_state,
)


class Directions:
    """A draw of the user's own, which noises nothing."""

    of = "student"

    def draw(self, key, name, lead, sample_shape, schedule):
        return jax.random.normal(jax.random.fold_in(key, len(name)), (*lead, *sample_shape))

    def __eq__(self, other):
        return isinstance(other, Directions)


@dataclasses.dataclass(frozen=True)
class Projection(Objective):
    """A user's own: draws directions, and reads the student's time."""

    weight: float = 0.5
    name: ClassVar[str] = "projection"
    player: ClassVar[str] = "generator"

    @property
    def draws(self) -> Mapping[str, Any]:
        return {"directions": Directions()}

    def value(self, view, draws):
        along = jnp.mean(view.x_0 * draws["directions"], axis=(1, 2, 3)) * view.t
        norm = jnp.sqrt(jnp.sum(jnp.square(along)))
        return jnp.mean(jnp.square(along)), {"projection_norm": Norm(norm)}


@dataclasses.dataclass(frozen=True)
class Anchor(Objective):
    """A user's own critic objective on another one's pass; it asks for the teacher too."""

    name: ClassVar[str] = "anchor"
    player: ClassVar[str] = "critic"

    @property
    def passes(self) -> tuple[Pass, ...]:
        return (Pass("denoising", "x0"),)

    def value(self, view, draws):
        error = view.critic_x0("denoising") - view.teacher_x0("denoising")
        return jnp.mean(jnp.square(error)), {"anchor_error": jnp.mean(jnp.abs(error))}


CASES: dict[str, tuple[Objective, ...]] = {
    "distribution_matching": (DistributionMatching(guidance=2.0), Denoising(kind="eps")),
    "gan": (GeneratorGan(0.1), CriticGan(0.1)),
    "shared_gan": dmd2(shared_pass=True, denoising_weight="eps"),
    "regression": (Regression(), Denoising(kind="eps")),
    "own_generator": (Projection(), Denoising(kind="eps")),
    "weighted": (
        FDistill(divergence="jensen_shannon", normalized=False),
        Sid(alpha=1.2),
        GeneratorGan(0.1),
        Denoising(kind="eps"),
        CriticGan(0.1, r1_weight=1.0, r1_samples="both"),
    ),
    "few_step": (
        FirstStep(),
        GuidanceAugmentation(guidance=3.0),
        Reward(0.1, lambda x_0, cond: -jnp.abs(x_0[:, 0, 0, 0] - cond)),
        GeneratorGan(0.1, loss="hinge"),
        Denoising(kind="eps"),
        CriticGan(0.1, loss="hinge"),
    ),
    "own_critic": (Regression(), Denoising(kind="eps"), Anchor()),
}


SETTINGS: dict[str, dict[str, Any]] = {
    "few_step": {
        "student_times": (8.0, 2.0, 0.5),
        "first_trained_step": 1,
        "gan_features": "teacher",
    }
}


def config(name: str, **changes: Any) -> DistillConfig:
    it = toy.config(critic_turns=2, batch_size=16)
    changes = SETTINGS.get(name, {}) | changes
    return dataclasses.replace(it, objectives=CASES[name], **changes)


@pytest.mark.parametrize("name", CASES)
def test_scan_equals_loop(name: str) -> None:
    it, players = config(name), toy.players()
    state, batch = make_state(it), make_batch(it)
    draws = draw_cycle(jax.random.key(7), it, toy.SCHEDULE)
    run = jax.jit(functools.partial(run_cycle, players=players, config=it))
    scanned, metrics = run(state, TEACHER, batch, draws)
    looped, loss, losses = looped_cycle(state, TEACHER, batch, draws, players=players, config=it)
    np.testing.assert_allclose(metrics["critic_loss"], np.stack(losses), rtol=1e-6)
    np.testing.assert_allclose(metrics["generator_loss"], loss, rtol=1e-6)
    assert_trees_close(scanned, looped)


@pytest.mark.parametrize("name", CASES)
def test_eight_devices_and_microbatches_equal_one_and_compile_once(name: str) -> None:
    it = config(name)
    batch, key = make_batch(it), jax.random.key(11)
    cycle = make_cycle(toy.players(), it, donate=False)
    alone, metrics = cycle(make_state(it), TEACHER, batch, key)
    cycle(alone, TEACHER, make_batch(it, 4), jax.random.key(12))
    assert cycle._cache_size() == 1
    # In parts, on 8 devices: both must be right for the numbers to agree.
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    spread = batch._replace(
        pairs=jax.device_put(batch.pairs, NamedSharding(mesh, PartitionSpec("data"))),
        **jax.device_put(
            {"real": batch.real, "fake_cond": batch.fake_cond},
            NamedSharding(mesh, PartitionSpec(None, "data")),
        ),
    )
    everywhere = NamedSharding(mesh, PartitionSpec())
    given = jax.device_put((make_state(it), TEACHER), everywhere)
    in_parts = make_cycle(toy.players(), dataclasses.replace(it, microbatches=2), donate=False)
    together, other = in_parts(*given, spread, jax.device_put(key, everywhere))
    assert_trees_close(alone, together, 1e-5)
    assert metrics.keys() == other.keys()
    for metric in metrics:
        for a, b in zip(*map(jax.tree.leaves, (metrics[metric], other[metric])), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6, err_msg=metric)


@pytest.mark.parametrize("name", CASES)
def test_an_objective_alone_reads_what_it_says_it_needs(name: str) -> None:
    it, batch = config(name), make_batch(config(name))
    batch = batch._replace(
        real=batch.real if it.needs_real else None, pairs=batch.pairs if it.needs_pairs else None
    )
    cycle = make_cycle(toy.players(), it)
    _, metrics = jax.eval_shape(cycle, make_state(it), TEACHER, batch, jax.random.key(0))
    assert metrics["critic_loss"].shape == (2,)


@dataclasses.dataclass(frozen=True)
class Undeclared(Objective):
    """Reads of a turn what it does not say that it needs."""

    read: str = "real"
    name: ClassVar[str] = "undeclared"
    player: ClassVar[str] = "generator"

    def value(self, view, draws):
        found = view.logits("x") if self.read == "logits" else getattr(view, self.read).x_0
        return jnp.mean(found[0]), {}


@pytest.mark.parametrize(
    ("read", "member"),
    [("real", "needs_real"), ("pairs", "needs_pairs"), ("logits", "needs_discriminator")],
)
def test_an_objective_that_reads_what_it_does_not_declare_is_refused(
    read: str, member: str
) -> None:
    it = toy.config(gan_generator_weight=None, gan_critic_weight=None)
    it = dataclasses.replace(it, objectives=(*it.objectives, Undeclared(read=read)))
    batch = make_batch(it)._replace(real=None, pairs=None)
    cycle = make_cycle(toy.players(), it)
    with pytest.raises(Refused, match=f"'undeclared' reads .* expected {member} = True"):
        jax.eval_shape(cycle, make_state(it), TEACHER, batch, jax.random.key(0))


@pytest.mark.parametrize(
    ("name", "lacking", "expected"),
    [
        (
            "gan",
            "real",
            r"real=None, expected Samples\(x_0, cond\) for objectives \['critic_gan'\]",
        ),
        ("regression", "pairs", r"pairs=None, expected Pairs\(.* for objectives \['regression'\]"),
    ],
)
def test_a_batch_without_what_objectives_need_is_refused(
    name: str, lacking: str, expected: str
) -> None:
    it = config(name)
    batch, cycle = make_batch(it)._replace(**{lacking: None}), make_cycle(toy.players(), it)
    with pytest.raises(Refused, match=expected):
        jax.eval_shape(cycle, make_state(it), TEACHER, batch, jax.random.key(0))


def test_an_own_module_is_an_objective_by_its_name(tmp_path, monkeypatch) -> None:
    (tmp_path / "my_lab_of_objectives").mkdir()
    (tmp_path / "my_lab_of_objectives" / "__init__.py").touch()
    (tmp_path / "my_lab_of_objectives" / "bright.py").write_text(
        "from tests.distill.objectives.test_contract import Projection\n\n\n"
        "def objective():\n    return Projection(weight=2.0)\n"
    )
    (tmp_path / "my_lab_of_objectives" / "wrong.py").write_text("def objective():\n    return 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    made = dmd2(objectives=("my_lab_of_objectives.bright",))
    assert made[:-1] == dmd2()
    assert type(made[-1]).__name__ == "Projection" and made[-1].weight == 2.0
    with pytest.raises(ValueError, match="returned 3 without .*'name'"):
        dmd2(objectives=("my_lab_of_objectives.wrong",))
    with pytest.raises(ValueError, match="expected dotted modules of your own"):
        dmd2(objectives=("bright",))
    sys.modules.pop("my_lab_of_objectives", None)


def test_a_new_file_among_ours_is_an_objective_by_its_name(tmp_path) -> None:
    (tmp_path / "brightest.py").write_text(
        "from tests.distill.objectives.test_contract import Projection\n\n\n"
        "def objective():\n    return Projection(weight=3.0)\n"
    )
    folder = dmd2_jax.distill.objectives
    folder.__path__.append(str(tmp_path))
    try:
        assert dmd2(objectives=("brightest",))[-1].weight == 3.0
        with pytest.raises(ValueError, match="did you mean 'brightest'?"):
            dmd2(objectives=("brightness",))
    finally:
        folder.__path__.remove(str(tmp_path))
        sys.modules.pop(f"{folder.__name__}.brightest", None)


def test_an_own_objective_may_be_all_that_trains_the_generator() -> None:
    nothing = {"dm_weight": None, "gan_generator_weight": None, "gan_critic_weight": None}
    names = [one.name for one in dmd2(**nothing, objectives=(Projection(),))]
    assert names == ["denoising", "projection"]


@dataclasses.dataclass(frozen=True)
class Elsewhere(Objective):
    """Draws what the denoising objective draws, otherwise."""

    name: ClassVar[str] = "elsewhere"
    player: ClassVar[str] = "critic"

    @property
    def draws(self) -> Mapping[str, Levels]:
        return {"denoising": Levels((0.5, 1.0))}


@pytest.mark.parametrize(
    ("objectives", "message"),
    [
        ((Regression(), Denoising(), Denoising()), "have a name twice"),
        ((Regression(),), "nothing trains the critic"),
        ((Denoising(),), "nothing trains the generator"),
        ((Regression(), Denoising(), Elsewhere()), "use another name, or draw alike"),
        ((Regression(), Anchor()), "at the noising 'denoising'; expected one of"),
        ((DistributionMatching(), GeneratorGan(), CriticGan()), "need a critic that"),
        ((GeneratorGan(range=(0.7, 0.3)), CriticGan()), "0 <= low < high <= 1"),
    ],
)
def test_objectives_that_contradict_each_other_are_refused(objectives, message) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(toy.config(), objectives=objectives)


def test_metrics_of_one_name_are_refused() -> None:
    class Twin(Projection):
        name = "twin"

    it = dataclasses.replace(toy.config(), objectives=(Projection(), Twin(), Denoising()))
    with pytest.raises(ValueError, match=r"'twin' reports \['projection_norm'\]"):
        jax.eval_shape(
            make_cycle(toy.players(), it), make_state(it), TEACHER, make_batch(it),
            jax.random.key(0),
        )  # fmt: skip
