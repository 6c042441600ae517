"""The EDM family: ADM and Song U-Nets under EDM's preconditioning, conditioned on a class.

Time is sigma itself, data have standard deviation sigma_data, x_t = x_0 + sigma eps, and

    D(x; sigma) = c_skip(sigma) x + c_out(sigma) F(c_in(sigma) x, ln(sigma) / 4, label).

`build` makes everything from the `model` and `schedule` parts of a config. Weights are read from
and written to .safetensors files with the tensor names of the original checkpoints.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dmd2_jax.denoiser import Denoiser
from dmd2_jax.diffusion import schedules
from dmd2_jax.diffusion.predictions import edm_scalings, edm_to_x0
from dmd2_jax.families import state_dict
from dmd2_jax.networks.adm_unet import AdmUNet
from dmd2_jax.networks.song_unet import SongUNet
from dmd2_jax.typing import Array, Float, Key, Params, expand

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class EdmFamily:
    """A Denoiser with what is needed to make, read and write its weights.

    Attributes:
      denoiser: x_0 and features; `cond` is a one-hot label [b, num_classes], or None: no class.
      module: the Flax network F.
      sigma_data: standard deviation of the data.
      image_shape: (h, w, c) of a sample.
      num_classes: number of classes; 0: unconditional.
    """

    denoiser: Denoiser
    module: AdmUNet | SongUNet
    sigma_data: float
    image_shape: tuple[int, int, int]
    num_classes: int

    def init(self, key: Key) -> Params:
        """Draw initial weights, float32, as EDM does."""
        return jax.jit(self.module.init)(key, *self._example(1))

    def x0_with_dropout(
        self,
        params: Params,
        x_t: Float[Array, "b h w c"],
        t: Float[Array, " b"],
        cond: Float[Array, "b n"] | None,
        key: Key,
    ) -> Float[Array, "b h w c"]:
        """Return `denoiser.x0` with the config's dropout active, drawn from `key`."""
        return _precondition(
            self.module, self.sigma_data, "__call__", params, x_t, t, cond, {"dropout": key}
        )

    def feature_shapes(self, batch_size: int) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Return the shapes of `denoiser.features` for a batch, without computing them."""
        image, sigma, label = self._example(batch_size)
        return jax.eval_shape(self.denoiser.features, self.param_shapes(), image, sigma, label)

    def param_shapes(self) -> Params:
        """Return the weights' pytree with shapes in place of arrays."""
        return jax.eval_shape(self.module.init, jax.random.key(0), *self._example(1))

    def from_state_dict(self, tensors: state_dict.Tensors) -> Params:
        """Turn tensors with original names into weights.

        Args:
          tensors: as `to_state_dict` returns them; `EDMPrecond.state_dict()` of the original.

        Returns:
          The weights.

        Raises:
          ValueError: if the tensors are not exactly the network's; the message lists them.
        """
        template = self.param_shapes()
        return state_dict.to_params(tensors, template, _original_name, self._buffers(template))

    def to_state_dict(self, params: Params) -> dict[str, np.ndarray]:
        """Turn weights into tensors with the original names and layouts, buffers included."""
        return state_dict.to_tensors(params, _original_name, self._buffers(params))

    def load(self, path: str | os.PathLike) -> Params:
        """Read weights from a .safetensors file with the original names.

        Raises:
          ValueError: if the file cannot be read or does not fit; the message names the file.
        """
        tensors = state_dict.read_safetensors(path)
        try:
            return self.from_state_dict(tensors)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def save(self, params: Params, path: str | os.PathLike) -> None:
        """Write weights to a .safetensors file with the original names, whole or not at all."""
        state_dict.write_safetensors(self.to_state_dict(params), path)

    def _example(self, batch_size: int) -> tuple[Array, Array, Array | None]:
        label = jnp.zeros((batch_size, self.num_classes)) if self.num_classes else None
        return jnp.zeros((batch_size, *self.image_shape)), jnp.ones(batch_size), label

    def _buffers(self, params: Params) -> dict[str, np.ndarray]:
        """Return the resampling filters, which the original keeps beside every use of them."""
        taps = np.asarray(getattr(self.module, "resample_filter", (1, 1)), np.float32)
        kernel = (np.outer(taps, taps) / taps.sum() ** 2)[None, None]
        buffers = {}
        for block in params["params"]:
            prefix = _original_name(("params", block, "resample_filter")).removesuffix(
                "resample_filter"
            )
            if block.endswith(("_up", "_down")):
                buffers[f"{prefix}conv0.resample_filter"] = kernel
                buffers[f"{prefix}skip.resample_filter"] = kernel
            elif block.endswith("_aux_residual"):
                buffers[f"{prefix}resample_filter"] = kernel
        return buffers


def build(model_config: Mapping[str, Any], schedule_config: Mapping[str, Any]) -> EdmFamily:
    """Build the family's members from a config.

    Args:
      model_config: the keys of `config.model` (see configs/common.py); optional keys
        `channel_mult_emb` (4) and `augment_dim` (0).
      schedule_config: sigma_min, sigma_max, rho, num_levels.

    Returns:
      The family.

    Raises:
      ValueError: if a value is unknown or does not fit the others.
    """
    config = dict(model_config)
    _check_config(config)
    module = _network(config)
    sigma_data = float(config["sigma_data"])

    def method(name: str):
        def call(params: Params, x_t: Array, t: Array, cond: Array | None):
            return _precondition(module, sigma_data, name, params, x_t, t, cond)

        return call

    size = config["resolution"]
    return EdmFamily(
        denoiser=Denoiser(
            x0=method("__call__"),
            features=method("bottleneck"),
            x0_and_features=method("call_with_bottleneck"),
            schedule=schedules.edm(**dict(schedule_config)),
            null_cond=lambda cond: jax.tree.map(jnp.zeros_like, cond),
        ),
        module=module,
        sigma_data=sigma_data,
        image_shape=(size, size, config["image_channels"]),
        num_classes=config["num_classes"],
    )
