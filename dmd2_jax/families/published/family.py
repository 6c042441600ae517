"""What every family of published networks offers, whatever its network and its conditions are."""

import dataclasses
import os
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from dmd2_jax.denoiser import Denoiser
from dmd2_jax.families.published.conditions import Condition
from dmd2_jax.families.published.folder import write_component
from dmd2_jax.families.published.model import PublishedModel
from dmd2_jax.families.published.scheduler import Diffusion
from dmd2_jax.networks.initialise import init_variables
from dmd2_jax.runtime.places import path_of
from dmd2_jax.typing import Array, Float, Key, Params, PyTree, Shaped
from dmd2_jax.weights import state_dict
from dmd2_jax.weights.weight_files import SUFFIXES, write_weights

__all__ = ["PublishedFamily"]


@dataclasses.dataclass(frozen=True)
class PublishedFamily:
    """A Denoiser of prompts, with what is needed to make and write its weights.

    Attributes:
      denoiser: x_0 and features of latents.
      model: the network with its published config and names.
      image_shape: (h, w, c) of a latent.
      diffusion: what the scheduler's config says that the network was trained on.
      num_classes: 0: there are no class labels.
      null_tokens: n of the condition of no prompt; None as long as `with_null` has not given it.
      variant: of the weights in a folder, "fp16" and the like; "": none is meant.
      input_guidance: the scale that the network takes as an input, where a condition has none;
        None: it takes none.
      distilled: whether its pipeline says that guidance is in its weights, and takes no notice of
        any.
    """

    denoiser: Denoiser
    model: PublishedModel
    image_shape: tuple[int, int, int]
    diffusion: Diffusion
    num_classes: int = 0
    null_tokens: int | None = None
    variant: str = ""
    input_guidance: float | None = None
    distilled: bool = False

    @property
    def image_tokens(self) -> int:
        """How many tokens the network makes of an image: here one a pixel of the latent."""
        return self.image_shape[0] * self.image_shape[1]

    @property
    def time_layer(self) -> str:
        """The end of the name of the layer that makes the embedding of the time."""
        return "timestep_embedder.linear_2"

    @property
    def guidance_layer(self) -> str:
        """The end of the name of the layer whose input a guidance scale is added to."""
        return "timestep_embedder.linear_1"

    def tensor_name(self, path: tuple[str, ...]) -> str:
        """Return the published name of the variable at a path of the weights."""
        return self.model.kind.naming(path)

    def init(self, key: Key) -> Params:
        """Draw initial weights, float32."""
        return init_variables(self.model.module, key, *self.model.example_inputs())

    def cond(self, labels: PyTree) -> PyTree:
        """Turn embeddings of any float type into conditions: float32, on the device."""
        return {name: jnp.asarray(array, jnp.float32) for name, array in labels.items()}

    def cond_shapes(self, *lead: int) -> PyTree:
        """Return conditions with these leading axes, with shapes in place of arrays."""
        raise NotImplementedError  # the subclass knows its conditions

    def feature_shapes(self, batch_size: int) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Return the shapes of `denoiser.features` for a batch, without computing them."""
        x_t = jax.ShapeDtypeStruct((batch_size, *self.image_shape), jnp.float32)
        t = jax.ShapeDtypeStruct((batch_size,), self.denoiser.schedule.levels.dtype)
        cond = self.cond_shapes(batch_size)
        return jax.eval_shape(self.denoiser.features, self.param_shapes(), x_t, t, cond)

    def param_shapes(self) -> Params:
        """Return the weights' pytree with shapes in place of arrays."""
        return self.model.param_shapes()

    def x0_with_dropout(
        self,
        params: Params,
        x_t: Float[Array, "b h w c"],
        t: Shaped[Array, " b"],
        cond: Condition,
        key: Key,
    ) -> Float[Array, "b h w c"]:
        """Return `denoiser.x0`: the published networks have no dropout, and `key` is not used."""
        return self.denoiser.x0(params, x_t, t, cond)

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the network's tensors by their published names."""
        return self.model.tensor_shapes()

    def from_state_dict(self, tensors: state_dict.Tensors) -> Params:
        """Turn tensors with published names into weights.

        Raises:
          ValueError: if the tensors are not exactly the network's; the message lists them.
        """
        return self.model.from_tensors(tensors)

    def to_state_dict(self, params: Params) -> dict[str, np.ndarray]:
        """Turn weights into tensors with the published names and layouts."""
        return self.model.to_tensors(params)

    def save(
        self, params: Params, path: str | os.PathLike, notes: Mapping[str, str] | None = None
    ) -> None:
        """Write weights: to a file as its suffix says, else to a folder that diffusers loads."""
        if path_of(path).suffix in SUFFIXES:
            write_weights(self.to_state_dict(params), path, notes)
        else:
            write_component(self.model, params, path)
