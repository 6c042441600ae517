"""A reward of the user's own: any differentiable function of samples and their conditions."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from dmd2_jax.config.plugins import load_plugin
from dmd2_jax.config.refused import Refused
from dmd2_jax.diffusion.guidance import Guided
from dmd2_jax.distill.objectives.contract import Objective, Setting
from dmd2_jax.distill.objectives.view import View
from dmd2_jax.typing import Array, Float, PyTree

__all__ = ["Reward", "objective"]

RewardFunction = Callable[[Array, PyTree], Array]


@dataclasses.dataclass(frozen=True)
class Reward(Objective):
    """The mean reward of the student's samples, with a minus.

        loss = -mean r(x_0, cond)

    Beside distribution matching, which holds the samples near the data: what a reward wins,
    diversity pays, so that recall is to be looked at too.

    Attributes:
      function: r: (x_0 [b, ...], cond as the network takes it) -> [b], larger is better and
        differentiable in x_0; or the name of a dotted module with such a `reward`.

    Source: DMDR (arXiv 2511.13649).
    """

    function: str | RewardFunction = ""
    name: ClassVar[str] = "reward"
    player: ClassVar[str] = "generator"

    def check(self, setting: Setting) -> None:
        """Refuse a reward that is no function."""
        self._function()

    def try_out(self, x_0: Float[Array, "b ..."], cond: PyTree) -> None:
        """Refuse a reward of another shape than [b], or that is not finite, or whose gradient.

        Args:
          x_0: [b, ...] some samples.
          cond: their conditions.
        """

        def total(x_0: Array) -> tuple[Array, Array]:
            rewards = self.rewards(x_0, cond)
            return jnp.sum(rewards), rewards

        gradient, rewards = jax.grad(total, has_aux=True)(x_0)
        for what, array in (("reward", rewards), ("gradient", gradient)):
            if not bool(jnp.all(jnp.isfinite(array))):
                raise Refused(
                    f"the reward {self._called} has a {what} that is not finite for samples of "
                    "standard normal noise, expected finite numbers; bound it."
                )

    def rewards(self, x_0: Float[Array, "b ..."], cond: PyTree) -> Float[Array, " b"]:
        """Return r(x_0, cond), float32.

        Raises:
          Refused: if its shape is not [b].
        """
        found = jnp.asarray(self._function()(x_0, cond))
        if found.shape != x_0.shape[:1] or not jnp.issubdtype(found.dtype, jnp.floating):
            raise Refused(
                f"the reward {self._called} of samples {x_0.shape} is {found.dtype}"
                f"{list(found.shape)}, expected one floating number a sample, "
                f"[{x_0.shape[0]}]; take the mean over the other axes."
            )
        return found.astype(jnp.float32)

    def value(self, view: View, draws: Mapping[str, Any]) -> tuple[Array, dict[str, Any]]:
        """Return the loss and the mean reward."""
        cond = view.cond.cond if isinstance(view.cond, Guided) else view.cond
        mean = jnp.mean(self.rewards(view.x_0, cond))
        return -mean, {"reward": mean}

    @property
    def _called(self) -> str:
        return repr(self.function if isinstance(self.function, str) else self.function.__name__)

    def _function(self) -> RewardFunction:
        if not self.function:
            raise Refused(
                "'reward' has no function, expected a dotted module that defines "
                "reward(x_0, cond); write reward:function=my_lab.reward."
            )
        if not isinstance(self.function, str):
            return self.function
        what = "config.distill.objectives, reward:function"
        module: Any = load_plugin(self.function, "", what, known=(), needs=("reward",))
        return module.reward


def objective() -> Reward:
    """Make it; its function is a field that has to be set."""
    return Reward()
