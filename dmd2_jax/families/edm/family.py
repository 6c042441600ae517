"""The EDM family: ADM and Song U-Nets under EDM's preconditioning, conditioned on a class.

Time is sigma itself, data have standard deviation sigma_data, x_t = x_0 + sigma eps, and

    D(x; sigma) = c_skip(sigma) x + c_out(sigma) F(c_in(sigma) x, ln(sigma) / 4, label).

`build` makes everything from the `model` part of a config. Weights are read from
and written to files with the tensor names of the original checkpoints (`weight_files`).
"""

import dataclasses
import logging
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dmd2_jax.config.refused import Refused
from dmd2_jax.config.rules import refuse, unknown_faults, unsaid_faults
from dmd2_jax.denoiser import Denoiser, Schedule
from dmd2_jax.diffusion import schedules
from dmd2_jax.diffusion.predictions import edm_scalings, edm_to_x0
from dmd2_jax.families.edm.adm_unet import AdmUNet
from dmd2_jax.families.edm.arguments import from_edm_kwargs, refuse_other_arguments
from dmd2_jax.families.edm.settings import defaults, faults
from dmd2_jax.families.edm.song_unet import SongUNet
from dmd2_jax.networks.initialise import init_variables
from dmd2_jax.typing import Array, Float, Int, Key, Params, expand
from dmd2_jax.weights import state_dict
from dmd2_jax.weights.weight_files import Weights, read_weights, strip_prefix, write_weights

__all__ = ["EdmFamily", "build", "from_edm_kwargs"]

_log = logging.getLogger(__name__)

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
_SCHEDULE = ("sigma_min", "sigma_max", "rho", "num_levels")


@dataclasses.dataclass(frozen=True)
class EdmFamily:
    """A Denoiser with what is needed to make, read and write its weights.

    Attributes:
      denoiser: x_0 and features; `cond` is a one-hot label [b, num_classes], or None: no class.
      module: the Flax network F.
      sigma_data: standard deviation of the data.
      image_shape: (h, w, c) of a sample.
      num_classes: number of classes; 0: unconditional.
      model_config: what it was built from.
    """

    denoiser: Denoiser
    module: AdmUNet | SongUNet
    sigma_data: float
    image_shape: tuple[int, int, int]
    num_classes: int
    model_config: Mapping[str, Any] = dataclasses.field(compare=False)

    @property
    def lora_targets(self) -> tuple[str, ...]:
        """All layers of the residual blocks: convolutions, skips, embedding's map, attention."""
        return ("conv0", "conv1", "skip", "affine", "qkv", "proj")

    @property
    def time_layer(self) -> str:
        """The layer that makes the embedding of the noise level."""
        return "map_layer1"

    @property
    def guidance_layer(self) -> str:
        """The layer whose input a guidance scale is added to: the first behind the sinusoids."""
        return "map_layer0"

    def tensor_name(self, path: tuple[str, ...]) -> str:
        """Return the original name of the variable at a path of the weights."""
        return _original_name(path)

    def init(self, key: Key) -> Params:
        """Draw initial weights, float32, as EDM does."""
        return init_variables(self.module, key, *self._example(1))

    def cond(self, labels: Int[np.ndarray, "..."]) -> Float[Array, "... n"] | None:
        """Turn class numbers, 0..num_classes-1, into one-hot conditions; None without classes."""
        return jax.nn.one_hot(jnp.asarray(labels), self.num_classes) if self.num_classes else None

    def cond_shapes(self, *lead: int) -> jax.ShapeDtypeStruct | None:
        """Return conditions with these leading axes, with shapes in place of arrays."""
        return jax.eval_shape(self.cond, np.zeros(lead, np.int32))

    def x0_with_dropout(
        self,
        params: Params,
        x_t: Float[Array, "b h w c"],
        t: Float[Array, " b"],
        cond: Float[Array, "b n"] | None,
        key: Key,
    ) -> Float[Array, "b h w c"]:
        """Return `denoiser.x0` with the config's dropout active, drawn from `key`."""
        sigma, scaled, noise_labels = _inputs(x_t, t, self.sigma_data, self.image_shape)
        raw = self.module.apply(params, scaled, noise_labels, cond, rngs={"dropout": key})
        return edm_to_x0(raw, x_t, sigma, self.sigma_data)

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
        buffers = self._buffers(template)
        absent = {name: it for name, it in buffers.items() if name not in tensors}
        learned = state_dict.tensor_shapes(template, _original_name)
        if absent and learned.keys() <= tensors.keys():
            if self.model_config["network"] == "song":
                _log.warning(
                    "the weights have no %s, which would say their filter: taken from "
                    "config.model.resample_filter=%s.",
                    next(iter(absent)),
                    tuple(self.model_config["resample_filter"]),
                )
            tensors = {**absent, **tensors}
        return state_dict.to_params(tensors, template, _original_name, buffers)

    def to_state_dict(self, params: Params) -> dict[str, np.ndarray]:
        """Turn weights into tensors with the original names and layouts, buffers included."""
        return state_dict.to_tensors(params, _original_name, self._buffers(params))

    def from_weights(self, weights: Weights, prefix: str | None = None) -> Params:
        """Turn what a file of weights holds into weights.

        Args:
          weights: from `read_weights`; recorded arguments must be those of the config.
          prefix: of the tensors to take, where the file holds several networks.

        Raises:
          ValueError: if they are of another network; the message lists the differences.
        """
        if weights.keywords is not None:
            refuse_other_arguments(weights, self.model_config)
        return self.from_state_dict(strip_prefix(weights.tensors, self.tensor_shapes(), prefix))

    def load(self, path: str | os.PathLike) -> Params:
        """Read weights from a .safetensors, .bin, .pt, .pth or EDM .pkl file of the original names.

        Raises:
          ValueError: if the file cannot be read or does not fit; the message names the file.
        """
        weights = read_weights(path)
        try:
            return self.from_weights(weights)
        except ValueError as error:
            raise Refused(f"{path}: {error}") from error

    def save(
        self, params: Params, path: str | os.PathLike, notes: Mapping[str, str] | None = None
    ) -> None:
        """Write weights with the original names, whole or not at all, as the suffix says."""
        write_weights(self.to_state_dict(params), path, notes)

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the network's tensors by their original names, buffers included."""
        template = self.param_shapes()
        return state_dict.tensor_shapes(template, _original_name, self._buffers(template))

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


def build(model_config: Mapping[str, Any]) -> EdmFamily:
    """Build the family's members from a config.

    Args:
      model_config: keys of `config.model`; those that are missing have their defaults.

    Returns:
      The family.

    Raises:
      ValueError: if a key or a value is unknown, does not fit the others, or is left to the data.
    """
    config = defaults().to_dict() | dict(model_config)
    refuse(list(unknown_faults(config, defaults(), "edm")) or list(faults(config)), "config.model")
    refuse(list(unsaid_faults(config)), "config.model")
    module = _network(config)
    sigma_data = float(config["sigma_data"])

    size = config["resolution"]
    image_shape = (size, size, config["image_channels"])
    schedule = schedules.edm(**{name: config[name] for name in _SCHEDULE})
    return EdmFamily(
        denoiser=_denoiser(module, sigma_data, image_shape, schedule),
        module=module,
        sigma_data=sigma_data,
        image_shape=image_shape,
        num_classes=config["num_classes"],
        model_config=config,
    )


def _denoiser(
    module: AdmUNet | SongUNet,
    sigma_data: float,
    image_shape: tuple[int, int, int],
    schedule: Schedule,
) -> Denoiser:
    """Wrap the network F in EDM's preconditioning, all scalings float32.

    The functions are jitted, so that a program which calls one several times traces and
    differentiates the network once for each batch size; XLA inlines the calls.
    """

    @jax.jit
    def x0(params: Params, x_t: Array, t: Array, cond: Array | None) -> Array:
        sigma, scaled, noise_labels = _inputs(x_t, t, sigma_data, image_shape)
        raw = module.apply(params, scaled, noise_labels, cond)
        return edm_to_x0(raw, x_t, sigma, sigma_data)

    several = bool(module.feature_resolutions)

    @jax.jit
    def features(params: Params, x_t: Array, t: Array, cond: Array | None) -> tuple[Array, ...]:
        _, scaled, noise_labels = _inputs(x_t, t, sigma_data, image_shape)
        method = "encoder_features" if several else "bottleneck"
        found = module.apply(params, scaled, noise_labels, cond, method=method)
        return found if several else (found,)

    @jax.jit
    def x0_and_features(
        params: Params, x_t: Array, t: Array, cond: Array | None
    ) -> tuple[Array, tuple[Array, ...]]:
        sigma, scaled, noise_labels = _inputs(x_t, t, sigma_data, image_shape)
        method = "call_with_features" if several else "call_with_bottleneck"
        raw, found = module.apply(params, scaled, noise_labels, cond, method=method)
        return edm_to_x0(raw, x_t, sigma, sigma_data), found if several else (found,)

    def null_cond(cond: Array | None) -> Array | None:
        return jax.tree.map(jnp.zeros_like, cond)

    return Denoiser(x0, features, x0_and_features, schedule, null_cond, gathers=True)


def _inputs(
    x_t: Array, t: Array, sigma_data: float, image_shape: tuple[int, int, int]
) -> tuple[Array, Array, Array]:
    """Return (sigma [b], c_in x_t, c_noise [b]); one sigma for the whole batch is allowed."""
    if x_t.shape[1:] != image_shape:
        raise Refused(
            f"x_t has shape {x_t.shape}, expected [b, h, w, c] with (h, w, c) = {image_shape}; "
            "change the images or model.resolution and model.image_channels."
        )
    sigma = jnp.broadcast_to(jnp.asarray(t, jnp.float32), x_t.shape[:1])
    _, _, c_in, c_noise = edm_scalings(sigma, sigma_data)
    return sigma, expand(c_in, x_t) * x_t, c_noise


def _network(config: Mapping[str, Any]) -> AdmUNet | SongUNet:
    common = {
        "resolution": config["resolution"],
        "image_channels": config["image_channels"],
        "label_dim": config["num_classes"],
        "model_channels": config["model_channels"],
        "channel_mult": tuple(config["channel_mult"]),
        "channel_mult_emb": config["channel_mult_emb"],
        "num_blocks": config["num_blocks"],
        "attention_resolutions": tuple(config["attention_resolutions"]),
        "dropout": config["dropout"],
        "augment_dim": config["augment_dim"],
        "dtype": _DTYPES[config["dtype"]],
        "remat": config["remat"],
        "feature_resolutions": tuple(config["feature_resolutions"]),
    }
    if config["network"] == "adm":
        return AdmUNet(**common)
    return SongUNet(
        **common,
        embedding_type=config["embedding_type"],
        encoder_type=config["encoder_type"],
        resample_filter=tuple(config["resample_filter"]),
        channel_mult_noise=config["channel_mult_noise"],
    )


def _original_name(path: tuple[str, ...]) -> str:
    """Spell a leaf's path as the original: enc and dec are dictionaries of blocks there."""
    name = state_dict.torch_name(path)
    for part in ("enc", "dec"):
        if name.startswith(f"{part}_"):
            name = f"{part}.{name.removeprefix(f'{part}_')}"
    return f"model.{name}"
