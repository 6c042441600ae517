"""The training state: a pytree of arrays, and the optimiser steps that move it."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dmd2_jax.config.refused import Refused
from dmd2_jax.denoiser import trainable_mask
from dmd2_jax.distill.adam import scale_by_adam
from dmd2_jax.distill.config import DistillConfig
from dmd2_jax.distill.updates import cosine, moving_average, ramped_decay, taken_if
from dmd2_jax.runtime.distributed import put
from dmd2_jax.runtime.offload import fetched, put_back
from dmd2_jax.typing import Array, Float, Int, Params, PyTree


class Turns(NamedTuple):
    """How many turns have been taken, and updates refused for non-finite gradients: [] int32 each.

    The official "iterations" count critic turns.

    Attributes:
      critic, generator: turns taken.
      skipped: refused updates of all players.
      critic_in_a_row, generator_in_a_row: refused updates since the player's last one taken.
    """

    critic: Int[Array, ""]
    generator: Int[Array, ""]
    skipped: Int[Array, ""]
    critic_in_a_row: Int[Array, ""]
    generator_in_a_row: Int[Array, ""]


class Player(NamedTuple):
    """One network that is trained: its parameters and its optimiser's state."""

    params: Params
    opt_state: PyTree


class TrainState(NamedTuple):
    """All that a run has learned. Holds no random key, no teacher and no Python object.

    Attributes:
      step: the turns taken.
      generator, critic: the players.
      discriminator: the GAN head, or None.
      ema: averages of the generator's parameters, one for each of `config.ema_decays`.
    """

    step: Turns
    generator: Player
    critic: Player
    discriminator: Player | None
    ema: tuple[Params, ...]


class Optimizers(NamedTuple):
    """Optimisers of the user's own; None is the official AdamW of the config.

    One of your own is an ordinary `optax.GradientTransformation` that brings its learning rate: its
    updates are added. `DistillConfig`'s rates, betas and weight decay do not reach it; the warm-up
    and the cosine (`learning_rate_factor`) multiply its updates, `clip_norm` its gradients, and an
    update that is not finite is skipped.

    Attributes:
      generator: the generator's.
      critic: of critic and discriminator, each with a state of its own.
    """

    generator: optax.GradientTransformation | None = None
    critic: optax.GradientTransformation | None = None


def check_optimizers(optimizers: Optimizers) -> None:
    """Refuse one transformation without its player, and a maker of one that was not called.

    Raises:
      Refused: saying what was given.
    """
    if not isinstance(optimizers, Optimizers):
        raise Refused(
            f"optimizers={optimizers!r}, expected Optimizers(generator=..., critic=...), of which "
            "None is the official one; say whose optimiser it is."
        )
    for player, own in zip(Optimizers._fields, optimizers, strict=True):
        if own is None:
            continue
        if isinstance(own, type) or not (hasattr(own, "init") and hasattr(own, "update")):
            raise Refused(
                f"Optimizers.{player}={own!r}, expected an optax.GradientTransformation such as "
                f"optax.adam(1e-4){'; call it with its rate' if callable(own) else '; give one'}."
            )


def adamw_direction(config: DistillConfig) -> optax.GradientTransformation:
    """Make AdamW without its learning rate: gradients -> m / (sqrt(v) + eps) + weight_decay p.

    The turns multiply by the rate themselves, because the rate counts critic turns while Adam's
    bias correction counts this optimiser's own updates.
    """
    return optax.chain(
        scale_by_adam(config),
        optax.add_decayed_weights(config.weight_decay, mask=trainable_mask),
    )


def learning_rate_factor(config: DistillConfig, critic_turns: Int[Array, ""]) -> Float[Array, ""]:
    """Return the factor in [0, 1] on both learning rates after `critic_turns` turns.

        warm-up: min(1, turns / warmup);  cosine: 0.5 (1 + cos(pi progress)) after the warm-up

    The very first update has rate 0 when there is a warm-up, as in the official code.
    """
    turns = critic_turns.astype(jnp.float32)
    factor = jnp.minimum(1.0, turns / config.warmup) if config.warmup > 0 else jnp.float32(1.0)
    if config.lr_schedule == "cosine":
        progress = (turns - config.warmup) / max(config.total_turns - config.warmup, 1)
        factor *= cosine(progress)
    return factor


def init_state(
    config: DistillConfig,
    *,
    generator: Params,
    critic: Params,
    discriminator: Params | None = None,
    optimizers: Optimizers = Optimizers(),  # noqa: B008, a constant
    places: TrainState | None = None,
) -> TrainState:
    """Make the state of turn 0.

    With `places` each player goes where it belongs before the next one is made, its parameters
    before they are copied: no device holds more than its part, not even for a moment.

    Args:
      config: the settings.
      generator: initial parameters; DMD2 copies the teacher's. The adapter's if it has one.
      critic: likewise.
      discriminator: initial parameters of the GAN head; None without a GAN.
      optimizers: those that the cycle is made with.
      places: a state of `jax.sharding.Sharding`s; None: everything where JAX puts new arrays.

    Returns:
      A TrainState with arrays of its own (the cycle donates it, so it must not share buffers
      with the teacher or between players).

    Raises:
      ValueError: if the discriminator is missing or superfluous for this config, or an optimiser
        is none.
    """
    check_optimizers(optimizers)
    if config.has_discriminator != (discriminator is not None):
        raise Refused(
            f"objectives={[one.name for one in config.objectives]} but discriminator parameters "
            f"are {'missing' if discriminator is None else 'given'}; pass them exactly when an "
            "objective needs them, as the GAN's do."
        )
    official = adamw_direction(config)

    def copy(params: Params) -> Params:
        return jax.tree.map(lambda p: jnp.array(p, copy=True), params)

    def player(
        params: Params, place: Player | None, own_tx: optax.GradientTransformation | None
    ) -> Player:
        # Zeros are made like what they are for: where the copy lies, and split as it is.
        own = copy(_put(params, None if place is None else place.params))
        return _put(Player(own, (own_tx or official).init(own)), place)

    def at(part: str) -> Any:
        return None if places is None else getattr(places, part)

    made = player(generator, at("generator"), optimizers.generator)
    averages = at("ema") or (None,) * len(config.ema_decays)
    return TrainState(
        step=_put(Turns(*(jnp.zeros((), jnp.int32) for _ in Turns._fields)), at("step")),
        generator=made,
        critic=player(critic, at("critic"), optimizers.critic),
        discriminator=None
        if discriminator is None
        else player(discriminator, at("discriminator"), optimizers.critic),
        ema=tuple(_put(copy(made.params), place) for place in averages),
    )


def _put(tree: PyTree, place: PyTree | None) -> PyTree:
    return tree if place is None else put(tree, place)


def update_players(
    players: tuple[Player, ...],
    gradients: tuple[PyTree, ...],
    lr: Float[Array, ""],
    config: DistillConfig,
    own: optax.GradientTransformation | None = None,
) -> tuple[tuple[Player, ...], Float[Array, ""], Array]:
    """Take one step on players that are clipped jointly, by AdamW or an optimiser of one's own.

        p <- p - lr (m / (sqrt(v) + eps) + weight_decay p),  gradients scaled to norm clip_norm
        p <- p + lr own(gradient)

    Players stay as they are, optimiser included, if any gradient is not finite, or any update of an
    optimiser of one's own. What lies in the host's memory is fetched for the step and put back.

    Args:
      players: the players of this optimiser step.
      gradients: one gradient tree for each.
      lr: [] learning rate; the factor in [0, 1] on the updates of an optimiser of one's own.
      config: the settings.
      own: an optimiser whose updates are added; None: the official one.

    Returns:
      The new players, the gradient norm before clipping, and [] bool: whether the step was taken.
    """
    norm = optax.tree.norm(gradients)
    finite = jnp.isfinite(norm)
    scale = jnp.minimum(1.0, config.clip_norm / (norm + 1e-6))
    optimizer = own or adamw_direction(config)
    for player in players:
        _check_same_optimizer(player, optimizer)

    def step(player: Player, gradient: PyTree) -> tuple[Player, PyTree, PyTree]:
        player = fetched(player)
        gradient = jax.tree.map(lambda g: g * scale, gradient)
        return player, *optimizer.update(gradient, player.opt_state, player.params)

    def moved(host: Player, player: Player, direction: PyTree, opt_state: PyTree) -> Player:
        move = jnp.subtract if own is None else jnp.add
        params = jax.tree.map(lambda p, d: move(p, lr * d), player.params, direction)
        return put_back(taken_if(finite, Player(params, opt_state), player), host)

    # One at a time, but for an optimiser of one's own, of which all are looked at together.
    steps: Iterable[Any] = (step(p, g) for p, g in zip(players, gradients, strict=True))
    if own is not None:  # AdamW makes a finite step of every finite gradient; others need not
        steps = list(steps)
        finite &= jnp.isfinite(optax.tree.norm([direction for _, direction, _ in steps]))
    updated = tuple(moved(host, *made) for host, made in zip(players, steps, strict=True))
    return updated, norm, finite


def _check_same_optimizer(player: Player, optimizer: optax.GradientTransformation) -> None:
    def kinds(tree: PyTree) -> Any:
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), jax.eval_shape(lambda: tree))

    if kinds(jax.eval_shape(optimizer.init, player.params)) != kinds(player.opt_state):
        raise Refused(
            "the optimiser's state in the TrainState is of another optimiser than the cycle's; "
            "give `optimizers` to init_state and to make_cycle alike."
        )


def update_ema(
    ema: tuple[Params, ...], params: Params, generator_turns: Int[Array, ""], config: DistillConfig
) -> tuple[Params, ...]:
    """Average the generator: ema <- d ema + (1 - d) params, once a generator turn.

    Args:
      ema: the averages so far, one for each of `config.ema_decays`.
      params: the generator's parameters after this turn.
      generator_turns: [] turns taken before this one.
      config: the settings.

    Returns:
      The new averages.
    """
    n = generator_turns.astype(jnp.float32)

    def average(old: Params, decay: float) -> Params:
        return moving_average(old, params, ramped_decay(decay, n) if config.ema_rampup else decay)

    return tuple(average(old, d) for old, d in zip(ema, config.ema_decays, strict=True))
