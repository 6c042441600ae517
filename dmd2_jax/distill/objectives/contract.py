"""The contract of an objective, and what a tuple of them has to fulfil together."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from dmd2_jax.config.refused import Refused
from dmd2_jax.distill.objectives.noising import Draw
from dmd2_jax.distill.objectives.view import Pass, View
from dmd2_jax.typing import Array

PLAYERS = ("generator", "critic")
OUTPUTS = ("x0", "features")


class Setting(NamedTuple):
    """What an objective may look at before anything is traced; see `Objective.check`.

    Attributes:
      objectives: all of the run.
      student_steps: how many steps the student has.
      first_trained_step: the first of them that the turns draw.
      microbatches: parts that a batch is computed in.
    """

    objectives: tuple["Objective", ...]
    student_steps: int
    first_trained_step: int
    microbatches: int


@dataclasses.dataclass(frozen=True)
class Objective:
    """One term of a player's loss; a turn minimises the sum of weight * value over its player's.

    Subclass it as a frozen dataclass whose fields are the hyperparameters, in a file here or of
    your own:

        @dataclasses.dataclass(frozen=True)
        class Brightness(Objective):
            name, player = "brightness", "generator"
            target: float = 0.0

            def value(self, view, draws):
                error = jnp.mean(jnp.square(jnp.mean(view.x_0) - self.target))
                return error, {"brightness_error": error}

    `DistillConfig(objectives=(*dmd2(), Brightness(weight=0.1)))` trains with it. So does a config
    that names a module, `config.distill.objectives=("my_lab.brightness",)`, if the module has a
    function `objective()` that returns one.

    Attributes:
      weight: of its value in the loss.
      name: unlike that of every other objective of the run.
      player: whose turn it is part of: "generator" or "critic" (with the discriminator).
      needs_real: it reads `view.real`.
      needs_pairs: it reads `view.pairs`; for the generator only.
      needs_discriminator: it reads logits.
      needs_critic: it reads the critic's x_0 and so needs another one that trains it.
      trains_critic: it trains the critic's x_0.
    """

    weight: float = 1.0
    name: ClassVar[str]
    player: ClassVar[str]
    needs_real: ClassVar[bool] = False
    needs_pairs: ClassVar[bool] = False
    needs_discriminator: ClassVar[bool] = False
    needs_critic: ClassVar[bool] = False
    trains_critic: ClassVar[bool] = False

    @property
    def draws(self) -> Mapping[str, Draw]:
        """What it draws up front, by name. Names of noisings are shared: see `passes`."""
        return {}

    @property
    def passes(self) -> tuple[Pass, ...]:
        """The critic's passes it needs; at a noising of its own `draws` or of another's.

        Objectives of one turn that name the same noising share its pass.
        """
        return ()

    def check(self, setting: Setting) -> None:
        """Refuse what it cannot stand beside; nothing by default.

        Args:
          setting: the run.

        Raises:
          Refused: naming the fault.
        """

    def value(self, view: View, draws: Mapping[str, Any]) -> tuple[Array, dict[str, Any]]:
        """Return the unweighted scalar and its metrics: pure, and a mean over the samples.

        Args:
          view: the turn.
          draws: what the turn drew, by name.

        Returns:
          The scalar; metrics by names that no other objective uses: scalars (wrapped in
          `runtime.summaries.Norm` where they are norms), arrays [b], counts, averages, histograms.
        """
        raise NotImplementedError(f"{self.name!r} has no value")  # the subclass knows the loss


def of_player(objectives: Sequence[Objective], player: str) -> tuple[Objective, ...]:
    """Return the objectives of one player, in their order."""
    return tuple(one for one in objectives if one.player == player)


def merged_draws(objectives: Sequence[Objective]) -> dict[str, Draw]:
    """Return what objectives draw, by name.

    Raises:
      ValueError: if two of them draw different things under one name.
    """
    found: dict[str, Draw] = {}
    for one in objectives:
        for name, draw in one.draws.items():
            if found.setdefault(name, draw) != draw:
                raise Refused(
                    f"objective {one.name!r} draws {draw} under the name {name!r}, where another "
                    f"draws {found[name]}; use another name, or draw alike to share its pass."
                )
    return found


def check_setting(setting: Setting) -> None:
    """Let every objective look at the run; one that is no subclass of ours need not have a check.

    Raises:
      Refused: naming the first fault.
    """
    for one in setting.objectives:
        if isinstance(one, Objective):
            one.check(setting)


def check_objectives(objectives: Sequence[Objective]) -> None:
    """Refuse objectives that contradict each other.

    Raises:
      ValueError: naming the first fault.
    """
    names = [one.name for one in objectives]
    _require(
        len(set(names)) == len(names),
        f"objectives={names} have a name twice; give each one a name of its own.",
    )
    for one in objectives:
        _require(
            one.player in PLAYERS,
            f"objective {one.name!r} has player={one.player!r}; choose one of {PLAYERS}.",
        )
        _require(
            one.player == "generator" or not one.needs_pairs,
            f"objective {one.name!r} of the critic needs teacher pairs, which only the "
            "generator's turn reads; set needs_pairs=False.",
        )
    drawn = []
    for player in PLAYERS:
        own = of_player(objectives, player)
        _require(
            len(own) > 0,
            f"objectives={names}: nothing trains the {player}; add an objective with "
            f"player={player!r}.",
        )
        drawn.append(merged_draws(own))
        for one in own:
            for noising, output, _ in one.passes:
                _require(
                    noising in drawn[-1] and output in OUTPUTS,
                    f"objective {one.name!r} needs the pass {output!r} at the noising {noising!r}; "
                    f"expected one of {OUTPUTS} at one of {sorted(drawn[-1])}, which the "
                    f"objectives of the {player} draw.",
                )
    both = sorted((drawn[0].keys() & drawn[1].keys()) | ({"rollout"} & {*drawn[0], *drawn[1]}))
    _require(
        not both,
        f"the names {both} are drawn in both turns, expected each in one: they would have the same "
        "random numbers; rename them.",
    )
    needing = [one.name for one in objectives if one.needs_critic]
    _require(
        not needing or any(one.trains_critic for one in objectives),
        f"objectives {needing} need a critic that an objective with trains_critic=True trains, "
        f"got {names}; add Denoising().",
    )
    judging = [one.name for one in objectives if one.needs_discriminator]
    _require(
        not judging or any(one.needs_discriminator for one in of_player(objectives, "critic")),
        f"objectives {judging} read a discriminator that no objective of the critic trains, got "
        f"{names}; add CriticGan(), the GAN's side of the critic.",
    )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise Refused(message)
