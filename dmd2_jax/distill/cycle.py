"""One cycle = one generator turn, then K critic turns as a scan; one jitted, donated program."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from dmd2_jax.config.refused import Refused
from dmd2_jax.diffusion.guidance import Guided
from dmd2_jax.distill.accumulate import in_parts
from dmd2_jax.distill.config import DistillConfig, Players
from dmd2_jax.distill.draws import CycleDraws, RolloutDraws, ScaleDraws, draw_cycle
from dmd2_jax.distill.objectives.view import Pairs, Samples
from dmd2_jax.distill.rollout import check_student_times
from dmd2_jax.distill.state import Optimizers, TrainState, check_optimizers
from dmd2_jax.distill.turns import Metrics, critic_turn, generator_turn, student_samples
from dmd2_jax.runtime.summaries import sum_leading
from dmd2_jax.typing import Array, Float, Key, Params, PyTree


class CycleBatch(NamedTuple):
    """What a cycle reads from outside.

    Attributes:
      real: [K, b, ...] real samples for the K critic turns, with their conditions (the generator
        turn uses entry 0); None where nothing needs them, see `DistillConfig.needs_real`.
      fake_cond: [K, b, ...] conditions of the student's samples for each critic turn (the
        generator turn uses entry 0); None for unconditional models.
      pairs: teacher ODE pairs of the generator turn; None without a regression objective.
    """

    real: Samples | None = None
    fake_cond: PyTree = None
    pairs: Pairs | None = None


def run_cycle(
    state: TrainState,
    teacher_params: Params,
    batch: CycleBatch,
    draws: CycleDraws,
    *,
    players: Players,
    config: DistillConfig,
    optimizers: Optimizers = Optimizers(),  # noqa: B008, a constant
) -> tuple[TrainState, Metrics]:
    """Run one generator turn and as many critic turns as `draws.critic` has entries.

    Official semantics by default: the first critic turn sees the images that the generator turn
    made before its update, the others see fresh images of the updated generator.

    Args:
      state: the state.
      teacher_params: the frozen teacher's parameters, and the base of players with an adapter.
      batch: real samples and conditions.
      draws: all random numbers of the cycle.
      players: the networks.
      config: the settings.
      optimizers: those of `init_state`.

    Returns:
      The new state and metrics: the generator turn's scalars, and the critic turns' with a
      leading [K] axis, except averages and histograms, which are summed over the turns.
    """
    _check_batch(batch, config)
    batch = _with_scales(batch, draws.scales)
    players = players.on_base(teacher_params)
    state, x_0, generator_metrics = generator_turn(
        state,
        teacher_params,
        _entry(batch.fake_cond, 0),
        _entry(draws.rollouts, 0),
        draws.generator,
        players=players,
        config=config,
        real=_entry(batch.real, 0),
        pairs=batch.pairs,
        optimizers=optimizers,
    )
    fakes = _fresh_samples(state, batch, draws.rollouts, players, config)
    if config.first_turn_reuses_images:
        fakes = x_0[None] if fakes is None else jnp.concatenate([x_0[None], fakes])

    assert fakes is not None  # there is a first turn, of reused images or of fresh ones

    # Only what the critic turns change is carried through the loop.
    def body(carry: tuple, inputs: tuple) -> tuple[tuple, Metrics]:
        step, critic, head = carry
        fake, real, critic_draws, student_step = inputs
        before = state._replace(step=step, critic=critic, discriminator=head)
        after, metrics = critic_turn(
            before,
            fake,
            real,
            critic_draws,
            players=players,
            config=config,
            teacher_params=teacher_params,
            student_step=student_step,
            optimizers=optimizers,
        )
        return (after.step, after.critic, after.discriminator), metrics

    student_steps = draws.rollouts.step[draws.rollouts.step.shape[0] - fakes.shape[0] :]
    (step, critic, head), critic_metrics = jax.lax.scan(
        body,
        (state.step, state.critic, state.discriminator),
        (Samples(fakes, batch.fake_cond), batch.real, draws.critic, student_steps),
    )
    state = state._replace(step=step, critic=critic, discriminator=head)
    counters = {
        "critic_turns": state.step.critic,
        "generator_turns": state.step.generator,
        "skipped_updates": state.step.skipped,
        "skipped_in_a_row": jnp.maximum(state.step.critic_in_a_row, state.step.generator_in_a_row),
    }
    return state, generator_metrics | sum_leading(critic_metrics) | counters


def _check_batch(batch: CycleBatch, config: DistillConfig) -> None:
    """Refuse a batch that lacks what the settings read of it."""
    for name, needed in (("real", config.needs_real), ("pairs", config.needs_pairs)):
        if needed and getattr(batch, name) is None:
            needing = [one.name for one in config.objectives if getattr(one, f"needs_{name}")]
            whose = f"objectives {needing}" if needing else "students trained on noised images"
            kind = {"real": "Samples(x_0, cond)", "pairs": "Pairs(noise, x_0, cond)"}[name]
            raise Refused(
                f"the batch has {name}=None, expected {kind} for {whose}; give it to CycleBatch, "
                "or leave them out."
            )


def _with_scales(batch: CycleBatch, scales: ScaleDraws | None) -> CycleBatch:
    """Make conditions of the batch's and the guidance scales; without scales they stay."""
    if scales is None:
        return batch
    real = batch.real
    if real is not None:
        real = real._replace(cond=Guided(real.cond, scales.real))
    return batch._replace(real=real, fake_cond=Guided(batch.fake_cond, scales.fake))


def _entry(tree: PyTree, i: int) -> PyTree:
    return jax.tree.map(lambda x: x[i], tree)


def _fresh_samples(
    state: TrainState,
    batch: CycleBatch,
    rollouts: RolloutDraws,
    players: Players,
    config: DistillConfig,
) -> Float[Array, "k b ..."] | None:
    """Return the updated generator's samples for every rollout but the first; None if no more.

    The generator does not change during the critic turns, so all of them are made at once; with
    microbatches, as many at a time as one has.
    """
    rollouts = jax.tree.map(lambda x: x[1:], rollouts)
    turns = rollouts.step.shape[0]
    if turns == 0:
        return None
    real = None if batch.real is None else batch.real.x_0
    cond = batch.fake_cond
    cond, real = jax.tree.map(lambda x: x[x.shape[0] - turns :], (cond, real))
    params = jax.lax.stop_gradient(state.generator.params)
    if len(config.student_times) > 1:

        def one(inputs: tuple) -> Array:
            draw, cond, real = inputs

            def part(inputs: tuple) -> Array:
                noise, cond, real = inputs
                some = RolloutDraws(jnp.moveaxis(noise, 0, 1), draw.step)
                return student_samples(players, params, some, cond, real, config)

            whole = (jnp.moveaxis(draw.noise, 1, 0), cond, real)
            return in_parts(part, whole, config.microbatches)

        return jax.lax.map(one, (rollouts, cond, real))

    # One-step students: one large batch. Turns go behind the batch axis before the two merge, so
    # that a batch-sharded array stays where it is.
    def merge(x: Array) -> Array:
        return rearrange(x, "k b ... -> (b k) ...")

    def samples(inputs: tuple) -> Array:
        noise, cond = inputs
        draw = RolloutDraws(noise=noise[None], step=jnp.int32(0))
        return student_samples(players, params, draw, cond, None, config)

    parts = turns * config.microbatches if config.microbatches > 1 else 1
    x_0 = in_parts(samples, jax.tree.map(merge, (rollouts.noise[:, 0], cond)), parts)
    return rearrange(x_0, "(b k) ... -> k b ...", k=turns)


class CycleShardings(NamedTuple):
    """Where a cycle's arguments lie, as trees (or prefixes of trees) of `jax.sharding.Sharding`.

    Attributes:
      state: of the TrainState, before and after.
      teacher: of the teacher's parameters.
      batch: of the CycleBatch.
      key: of the cycle's key, and of its metrics.
    """

    state: PyTree
    teacher: PyTree
    batch: PyTree
    key: PyTree


def make_cycle(
    players: Players,
    config: DistillConfig,
    *,
    optimizers: Optimizers = Optimizers(),  # noqa: B008, a constant
    donate: bool = True,
    shardings: CycleShardings | None = None,
) -> Callable[[TrainState, Params, CycleBatch, Key], tuple[TrainState, Metrics]]:
    """Make the jitted program of one cycle.

    Args:
      players: the networks.
      config: the settings.
      optimizers: of your own, the same as given to `init_state`; by default the official AdamW.
      donate: reuse the old state's memory for the new one. The old state is unusable afterwards.
      shardings: where arguments and results lie; None: where the arguments are given.

    Returns:
      cycle(state, teacher_params, batch, key) -> (state, metrics). `key` is the cycle's own,
      `stream_key(root, "cycle", cycle_index)`.

    Raises:
      ValueError: if an objective needs a discriminator that `players` has not, an optimiser is
        none, or the student's times are none of the generator's schedule.
    """
    check_optimizers(optimizers)
    check_student_times(config.student_times, players.generator.schedule)
    if config.has_discriminator and players.discriminator is None:
        needing = [one.name for one in config.objectives if one.needs_discriminator]
        raise Refused(
            f"objectives {needing} need a discriminator, but players.discriminator is None; give "
            "a Discriminator, or leave them out (GAN weights of None)."
        )

    options = {} if shardings is None else _jit_shardings(shardings)

    @functools.partial(jax.jit, donate_argnums=(0,) if donate else (), **options)
    def cycle(
        state: TrainState, teacher_params: Params, batch: CycleBatch, key: Key
    ) -> tuple[TrainState, Metrics]:
        draws = draw_cycle(key, config, players.critic.schedule)
        return run_cycle(
            state,
            teacher_params,
            batch,
            draws,
            players=players,
            config=config,
            optimizers=optimizers,
        )

    return cycle


def _jit_shardings(shardings: CycleShardings) -> dict[str, Any]:
    # Metrics are few numbers, which every process reads: they go where the key is, everywhere.
    return {"in_shardings": tuple(shardings), "out_shardings": (shardings.state, shardings.key)}
