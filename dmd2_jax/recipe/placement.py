"""How a distillation is spread over a mesh: the players, the state and the batches."""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from dmd2_jax.config.refused import Refused
from dmd2_jax.denoiser import Adapter, Denoiser, map_params
from dmd2_jax.distill import CycleBatch, CycleShardings, Player, Players, TrainState
from dmd2_jax.runtime.gathering import brought_together, gather
from dmd2_jax.runtime.offload import check_offload, fetched, host_shardings
from dmd2_jax.runtime.sharding import (
    Rules,
    batch_sharding,
    check_rules,
    like_params,
    pin_batch,
    replicated,
    tree_shardings,
)
from dmd2_jax.typing import Array, Params, PyTree

__all__ = ["OFFLOAD", "check_player_rules", "cycle_shardings", "mesh_rules", "spread_players"]

OFFLOAD = ("teacher", "optimizer")
"""What may wait in the host's memory: the teacher's parameters, all players' Adam moments."""


def mesh_rules(mesh_config: Mapping[str, Any]) -> Rules:
    """Return the sharding rules that `config.mesh.rules` spells: "PATTERN=axis:axis:...".

    An axis is "data", "fsdp", "tensor" or "-" for none, one for each axis of the arrays.

    Raises:
      ValueError: if one is spelled otherwise.
    """
    rules = []
    for text in mesh_config["rules"]:
        pattern, equals, axes = text.rpartition("=")
        if not equals or not pattern:
            raise Refused(
                f"config.mesh.rules has {text!r}, expected PATTERN=AXIS:AXIS:... such as "
                f"'map_label/kernel=-:fsdp'; correct it."
            )
        try:
            re.compile(pattern)
        except re.error as error:
            raise Refused(
                f"config.mesh.rules has {text!r}, whose {pattern!r} is no regular expression "
                f"({error}); correct it, perhaps with a backslash before what is special."
            ) from error
        names = [axis.strip() for axis in axes.split(":")]
        rules.append((pattern, tuple(None if axis == "-" else axis for axis in names)))
    return tuple(rules)


def check_player_rules(rules: Rules, teacher_params: Params, state: TrainState, mesh: Mesh) -> None:
    """Check the rules over all players: adapters and the GAN head have parameters of their own.

    Args:
      rules: from `mesh_rules`.
      teacher_params: the teacher's parameters, or their shapes.
      state: the training state, or its shapes.
      mesh: from `make_mesh`.

    Raises:
      ValueError: see `check_rules`.
    """
    players = (state.generator, state.critic, state.discriminator)
    own = (player.params for player in players if player is not None)
    check_rules(rules, teacher_params, mesh, *own)


def spread_players(players: Players, mesh: Mesh, rules: Rules = ()) -> Players:
    """Return players that bring their parameters together where they use them.

    They gather them from the fsdp axis, layer by layer where their networks do; the teacher, and
    who shares its parameters, fetches them from the host's memory first, if they lie there.

    What goes into a network and comes out of it stays split over the batch.

    Args:
      players: the players.
      mesh: from `make_mesh`; if it splits nothing but the batch, over the data axis, only who
        uses the teacher's parameters is changed.
      rules: where the parameters lie.
    """
    players = _gathering(_on(players, mesh), mesh, rules)
    # Who has an adapter uses the teacher's parameters too.
    return players._replace(
        teacher=map_params(players.teacher, fetched),
        generator=_fetching(players.generator, players.generator_adapter),
        critic=_fetching(players.critic, players.critic_adapter),
    )


def _on(players: Players, mesh: Mesh) -> Players:
    """Return players whose networks see which mesh they run on: attention's kernel needs it."""

    def on(function: Callable[..., PyTree]) -> Callable[..., PyTree]:
        def run(*args: Any) -> PyTree:
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                return function(*args)

        return run

    def all_on(denoiser: Denoiser) -> Denoiser:
        return denoiser._replace(
            x0=on(denoiser.x0),
            features=on(denoiser.features),
            x0_and_features=on(denoiser.x0_and_features),
        )

    return players._replace(
        teacher=all_on(players.teacher),
        generator=all_on(players.generator),
        critic=all_on(players.critic),
    )


def _fetching(denoiser: Denoiser, adapter: Adapter | None) -> Denoiser:
    return denoiser if adapter is None else map_params(denoiser, fetched)


def _gathering(players: Players, mesh: Mesh, rules: Rules) -> Players:
    if mesh.shape["fsdp"] == mesh.shape["tensor"] == 1:
        return players
    change = functools.partial(gather, mesh=mesh, rules=rules)
    head = players.discriminator
    if head is not None:
        logits = head.logits

        def gathered_logits(params: Params, features: tuple[Array, ...]) -> Array:
            return logits(change(params), pin_batch(features, mesh))

        head = head._replace(logits=gathered_logits)
    return players._replace(
        teacher=_spread(players.teacher, mesh, rules),
        generator=_spread(players.generator, mesh, rules),
        critic=_spread(players.critic, mesh, rules),
        discriminator=head,
    )


def _spread(denoiser: Denoiser, mesh: Mesh, rules: Rules) -> Denoiser:
    def spread(function: Callable[..., PyTree]) -> Callable[..., PyTree]:
        def run(params: Params, x_t: Array, t: Array, cond: PyTree) -> PyTree:
            inputs = pin_batch((x_t, t, cond), mesh)
            with brought_together(params, mesh, rules, by_layer=denoiser.gathers) as weights:
                return pin_batch(function(weights, *inputs), mesh)

        return run

    return denoiser._replace(
        x0=spread(denoiser.x0),
        features=spread(denoiser.features),
        x0_and_features=spread(denoiser.x0_and_features),
    )


def cycle_shardings(
    state: TrainState,
    teacher_params: Params,
    batch: CycleBatch,
    mesh: Mesh,
    rules: Rules = (),
    offload: Sequence[str] = (),
) -> CycleShardings:
    """Return where everything that a cycle takes lies.

    Args:
      state: the state, or its shapes.
      teacher_params: the teacher's parameters, or their shapes.
      batch: a batch, or its shapes: [K, b, ...] real samples and conditions, [b, ...] pairs.
      mesh: from `make_mesh`.
      rules: where parameters lie.
      offload: what of `OFFLOAD` waits in the host's memory; the cycle fetches it where it uses it.

    Raises:
      ValueError: if a rule does not fit an array, or nothing can be offloaded on these devices.
    """
    check_offload(offload, OFFLOAD, mesh)
    turns = jax.tree.map(lambda _: batch_sharding(mesh, axis=1), (batch.real, batch.fake_cond))
    pairs = jax.tree.map(lambda _: batch_sharding(mesh), batch.pairs)
    places = _state_shardings(state, mesh, rules)
    teacher = tree_shardings(teacher_params, mesh, rules)
    if "teacher" in offload:
        teacher = host_shardings(teacher_params, teacher)
    if "optimizer" in offload:
        for name in ("generator", "critic", "discriminator"):
            player, place = getattr(state, name), getattr(places, name)
            if player is not None:
                moved = place._replace(opt_state=host_shardings(player.opt_state, place.opt_state))
                places = places._replace(**{name: moved})
    return CycleShardings(
        state=places,
        teacher=teacher,
        batch=CycleBatch(turns[0], turns[1], pairs),
        key=replicated(mesh),
    )


def _state_shardings(state: TrainState, mesh: Mesh, rules: Rules) -> TrainState:
    """Return where a state lies: moments and averages where their parameters do."""

    def player(it: Player) -> Player:
        opt_state = like_params(it.opt_state, it.params, mesh, rules)
        return Player(tree_shardings(it.params, mesh, rules), opt_state)

    return TrainState(
        step=jax.tree.map(lambda _: replicated(mesh), state.step),
        generator=player(state.generator),
        critic=player(state.critic),
        discriminator=None if state.discriminator is None else player(state.discriminator),
        ema=tuple(tree_shardings(it, mesh, rules) for it in state.ema),
    )
