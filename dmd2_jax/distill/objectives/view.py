"""What an objective sees of a turn: samples, networks, and their passes by name of the noising."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from dmd2_jax.config.refused import Refused
from dmd2_jax.denoiser import Denoiser, Schedule
from dmd2_jax.diffusion.guidance import guided_x0
from dmd2_jax.distill.objectives.noising import noised
from dmd2_jax.typing import Array, Float, Params, PyTree, Shaped

Features = tuple[Array, ...]


class Samples(NamedTuple):
    """A batch of samples with their conditions: x_0 [b, ...], cond with leading axis b or None."""

    x_0: Array
    cond: PyTree


class Pairs(NamedTuple):
    """Teacher ODE pairs for the regression loss: noise [b, ...] (standard normal) -> x_0, cond."""

    noise: Float[Array, "b ..."]
    x_0: Float[Array, "b ..."]
    cond: PyTree


class Network(NamedTuple):
    """A network with its parameters in this turn."""

    denoiser: Denoiser
    params: Params


class Pass(NamedTuple):
    """A pass of the critic that an objective needs.

    Attributes:
      noising: the name under which its input is drawn.
      output: "x0", or "features": what the discriminator reads (of the critic, by default).
      frozen: the objective wants no gradient through the pass to the samples. Where all who share
        the pass say so, none is computed.
    """

    noising: str
    output: str
    frozen: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class View:
    """One turn as its objectives see it.

    A pass is computed when it is first asked for, and once: objectives that name the same noising
    share it, and one pass gives both outputs where both are declared.

    Attributes:
      x_0: [b, ...] the student's samples; they carry the gradient in the generator's turn.
      cond: their conditions, leading axis b.
      step: [] which of the student's steps made them.
      t: [b] that step's time.
      teacher, generator, critic: the networks. Which parameters carry the gradient depends on the
        turn: the generator's in its own, the critic's in the critic's.
      head: features -> logits [b] of the discriminator; None without one.
      from_noise: (standard normal [b, ...], cond) -> the student's x_0 by its first step.
      draws: what this turn drew, by name.
      sources: name -> whose samples are noised under it, "student" or "real".
      asked: the critic's passes that this turn's objectives declare.
      gan_features: whose features the discriminator reads, "critic" or "teacher".
      given_real: real samples; None where no objective needs them. Objectives read `real`.
      given_pairs: the teacher's ODE pairs, likewise `pairs`; None in critic turns.
      reader: the objective that looks, by name.
    """

    x_0: Array
    cond: PyTree
    step: Any
    t: Any
    teacher: Network
    generator: Network
    critic: Network
    head: Callable[[Features], Array] | None
    from_noise: Callable[[Array, PyTree], Array]
    draws: Mapping[str, PyTree]
    sources: Mapping[str, str]
    asked: tuple[Pass, ...]
    gan_features: str = "critic"
    given_real: Samples | None = None
    given_pairs: Pairs | None = None
    reader: str = ""
    _kept: dict[tuple[str, str], Any] = dataclasses.field(default_factory=dict, repr=False)

    @property
    def real(self) -> Samples:
        """Real samples, for an objective with `needs_real`."""
        if self.given_real is None:
            raise self._undeclared("real samples", "needs_real")
        return self.given_real

    @property
    def pairs(self) -> Pairs:
        """The teacher's ODE pairs, for an objective of the generator with `needs_pairs`."""
        if self.given_pairs is None:
            raise self._undeclared("teacher pairs", "needs_pairs")
        return self.given_pairs

    @property
    def schedule(self) -> Schedule:
        """The critic's schedule, whose levels are drawn."""
        return self.critic.denoiser.schedule

    def samples(self, name: str) -> Samples:
        """Return the samples that are noised under a name."""
        if self.sources[name] == "student":
            return Samples(self.x_0, self.cond)
        return self.real

    def noised(self, name: str) -> tuple[Float[Array, "b ..."], Shaped[Array, " b"]]:
        """Return (x_t, t) of a noising."""
        return self._once(
            ("noised", name),
            lambda: noised(self.schedule, self.samples(name).x_0, self.draws[name]),
        )

    def teacher_x0(
        self, name: str, guidance: float | None = None, *, through: bool = False
    ) -> Float[Array, "b ..."]:
        """Return the teacher's estimate at a noising.

        Args:
          name: of the noising.
          guidance: w of u + w (c - u); None: the conditional estimate.
          through: let gradients flow through the teacher to the samples.
        """

        def call() -> Array:
            x_t, t = self.noised(name)
            x0 = guided_x0(self.teacher.denoiser, guidance)
            cond = self.samples(name).cond
            return x0(self.teacher.params, x_t if through else jax.lax.stop_gradient(x_t), t, cond)

        return self._once((f"teacher {guidance} {through}", name), call)

    def critic_x0(self, name: str) -> Float[Array, "b ..."]:
        """Return the critic's estimate at a noising."""
        return self._critic(name)["x0"]

    def critic_features(self, name: str) -> Features:
        """Return the critic's features at a noising."""
        if self.gan_features == "critic":
            return self._critic(name)["features"]
        return self._once(("critic features", name), lambda: self._features(self.critic, name))

    def logits(self, *names: str) -> tuple[Float[Array, " b"], ...]:
        """Return the discriminator's logits at each of the noisings.

        Noisings that nobody else has a use for go through the networks as one batch.
        """
        head = self._head
        if len(names) > 1 and all(self._outputs(name) == ["features"] for name in names):
            return self._judged([(*self.noised(name), self.samples(name).cond) for name in names])
        return tuple(head(self._read_features(name)) for name in names)

    def logits_beside(
        self, names: Sequence[str], shifts: Sequence[Array]
    ) -> tuple[Float[Array, " b"], ...]:
        """Return the discriminator's logits where each noising's x_t is moved by a shift.

        Args:
          names: of the noisings.
          shifts: [b, ...], one for each.
        """
        moved = []
        for name, shift in zip(names, shifts, strict=True):
            x_t, t = self.noised(name)
            moved.append((x_t + shift, t, self.samples(name).cond))
        return self._judged(moved)

    @property
    def _head(self) -> Callable[[Features], Array]:
        if self.head is None:
            raise self._undeclared("a discriminator's logits", "needs_discriminator")
        return self.head

    @property
    def _read(self) -> Network:
        """The network whose features the discriminator reads."""
        return self.critic if self.gan_features == "critic" else self.teacher

    def _judged(self, inputs: Sequence[tuple[Array, Array, PyTree]]) -> tuple[Array, ...]:
        """Return the logits of several (x_t, t, cond), from one pass."""
        head, merged = self._head, jax.tree.map(_interleave, *inputs)
        logits = head(self._read.denoiser.features(self._read.params, *merged))
        return tuple(logits[i :: len(inputs)] for i in range(len(inputs)))

    def _read_features(self, name: str) -> Features:
        if self.gan_features == "critic":
            return self.critic_features(name)
        return self._once(("teacher features", name), lambda: self._features(self.teacher, name))

    def _features(self, network: Network, name: str) -> Features:
        x_t, t = self.noised(name)
        if self._frozen(name, "features"):
            x_t = jax.lax.stop_gradient(x_t)
        return network.denoiser.features(network.params, x_t, t, self.samples(name).cond)

    def _undeclared(self, what: str, member: str) -> Refused:
        return Refused(
            f"objective {self.reader!r} reads {what}, and this turn has none, expected {member} = "
            "True in it, by which they are there; set it (a turn called by hand is given them)."
        )

    def _outputs(self, name: str) -> list[str]:
        return [one.output for one in self.asked if one.noising == name]

    def _frozen(self, name: str, *outputs: str) -> bool:
        """Return whether nobody who asks for these outputs wants a gradient to the samples."""
        asked = (one for one in self.asked if one.noising == name and one.output in outputs)
        return all(one.frozen for one in asked)

    def _critic(self, name: str) -> dict[str, Any]:
        """Return the critic's outputs at a noising, of one pass."""

        def call() -> dict[str, Any]:
            x_t, t = self.noised(name)
            outputs = set(self._outputs(name))
            if self.gan_features != "critic":
                outputs -= {"features"}
            if self._frozen(name, *outputs):
                x_t = jax.lax.stop_gradient(x_t)
            arguments = (self.critic.params, x_t, t, self.samples(name).cond)
            if outputs == {"x0"}:
                return {"x0": self.critic.denoiser.x0(*arguments)}
            if outputs == {"features"}:
                return {"features": self.critic.denoiser.features(*arguments)}
            x_0, features = self.critic.denoiser.x0_and_features(*arguments)
            return {"x0": x_0, "features": features}

        return self._once(("critic", name), call)

    def _once(self, what: tuple[str, str], call: Callable[[], Any]) -> Any:
        if what not in self._kept:
            self._kept[what] = call()
        return self._kept[what]


def _interleave(*batches: Array) -> Array:
    """Merge n batches [b, ...] to one [b n, ...], sample by sample.

    One pass over all is faster than n; alternating them keeps every sample on its own device
    when the batch is sharded, which a concatenation would not.
    """
    return rearrange(jnp.stack(batches, axis=1), "b n ... -> (b n) ...")
