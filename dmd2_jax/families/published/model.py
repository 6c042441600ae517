"""One network of diffusers or transformers: its config.json, our module, and its tensors' names.

Our modules are called as the published tensors are, so a name is a path with dots, in which a
number at the end of a module's name is a list's index: `resnets_0` is `resnets.0`. What else older
releases wrote is brought to today's names when weights are read.
"""

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dmd2_jax.config.refused import Refused
from dmd2_jax.networks import (
    clip_config,
    dinov2,
    qwen,
    t5,
    vae,
    vae_flux2,
    vae_tiny,
    vae_video,
)
from dmd2_jax.typing import DType, Params
from dmd2_jax.weights import state_dict

__all__ = ["CLASSES", "PublishedClass", "PublishedModel", "class_of", "published_name"]

_INDEX = re.compile(r"_(\d+)$")
# Published with the underscore.
_NO_INDEX = ("linear_1", "linear_2", "proj_out_1", "proj_out_2", "wi_0", "wi_1")
_TEXT_PREFIX = "text_model."


def published_name(path: tuple[str, ...]) -> str:
    """Spell a leaf's path as the published weights do.

    Args:
      path: for example ("params", "mid_block", "resnets_0", "conv1", "kernel").

    Returns:
      For example "mid_block.resnets.0.conv1.weight".
    """
    entries = [entry if entry in _NO_INDEX else _INDEX.sub(r".\1", entry) for entry in path]
    return state_dict.torch_name(tuple(entries))


def _clip_name(path: tuple[str, ...]) -> str:
    """Leave out which of the two encoders a leaf belongs to: its own name says it."""
    owner = path[1:2]
    return published_name((path[0], *path[2:]) if owner in (("text",), ("vision",)) else path)


def _same(tensors: state_dict.Tensors) -> state_dict.Tensors:
    return tensors


def _without_positions(tensors: state_dict.Tensors) -> dict[str, np.ndarray]:
    """Drop the numbers 0, 1, 2, ... that older releases stored."""
    return {k: v for k, v in tensors.items() if not k.endswith("embeddings.position_ids")}


def _with_text_prefix(tensors: state_dict.Tensors) -> dict[str, np.ndarray]:
    """Add the prefix that transformers 5 leaves out of a CLIPTextModel."""
    tensors = _without_positions(tensors)
    if any(name.startswith(_TEXT_PREFIX) for name in tensors):
        return tensors
    return {_TEXT_PREFIX + name: tensor for name, tensor in tensors.items()}


_T5_TABLES = ("encoder.embed_tokens.weight", "shared.weight")


def _with_shared_table(tensors: state_dict.Tensors) -> dict[str, np.ndarray]:
    """Keep T5's table of tokens under one of the two names that files have for it."""
    others = {name: tensor for name, tensor in tensors.items() if name not in _T5_TABLES}
    tables = [tensors[name] for name in _T5_TABLES if name in tensors]
    return others | ({_T5_TABLES[1]: tables[-1]} if tables else {})


def _without_head(tensors: state_dict.Tensors) -> dict[str, np.ndarray]:
    """Keep of a language model what reads text: no head that writes it, no part for pictures."""
    bare = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    return {
        name.removeprefix("language_model."): tensor
        for name, tensor in bare.items()
        if not name.startswith(("lm_head.", "visual."))
    }


def _without_mask(tensors: state_dict.Tensors) -> dict[str, np.ndarray]:
    """Drop the token that stands for hidden patches while a DINOv2 is trained."""
    return {name: it for name, it in tensors.items() if name != "embeddings.mask_token"}


_OLD_ATTENTION = re.compile(
    r"((?:encoder|decoder)\.mid_block\.attentions\.0)\.(query|key|value|proj_attn)\.(weight|bias)"
)
_NEW_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def _with_new_attention(tensors: state_dict.Tensors) -> dict[str, np.ndarray]:
    """Rename the attention of SD 1.x's published autoencoder, some of it stored as convolutions."""
    renamed = {}
    for name, tensor in tensors.items():
        if match := _OLD_ATTENTION.fullmatch(name):
            name = f"{match[1]}.{_NEW_ATTENTION[match[2]]}.{match[3]}"
        if ".mid_block.attentions." in name and tensor.ndim == 4 and tensor.shape[2:] == (1, 1):
            tensor = tensor[:, :, 0, 0]
        renamed[name] = tensor
    return renamed


def _without_count(tensors: state_dict.Tensors) -> dict[str, np.ndarray]:
    """Drop the number of batches that statistics were made of."""
    return {k: v for k, v in tensors.items() if k != "bn.num_batches_tracked"}


@dataclasses.dataclass(frozen=True)
class PublishedClass:
    """What is known of a published class.

    Attributes:
      build: (config, dtype=, remat=) -> module.
      example: module -> inputs that reach every parameter.
      file_stem: of its weights' file.
      naming: spelling of its tensors.
      modernise: tensors as any release wrote them -> with today's names.
    """

    build: Callable[..., nn.Module]
    example: Callable[[Any], tuple]
    file_stem: str
    naming: state_dict.Naming = published_name
    modernise: Callable[[state_dict.Tensors], state_dict.Tensors] = _same


def _frozen(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Turn the builder of a network that is never trained into one that is told so."""

    def checked(config: Mapping[str, Any], dtype: DType, remat: str) -> nn.Module:
        if remat != "none":
            raise Refused(
                f"remat={remat!r}, expected 'none': only the denoising network is trained; leave "
                "it out."
            )
        return build(config, dtype=dtype)

    return checked


def _text(projection: bool) -> Callable[..., nn.Module]:
    def build(config: Mapping[str, Any], dtype: DType) -> nn.Module:
        return clip_config.text_from_config(config, projection=projection, dtype=dtype)

    return _frozen(build)


def _language_model(build: Callable[..., nn.Module]) -> PublishedClass:
    return PublishedClass(
        _frozen(build), qwen.example_qwen_inputs, "model", modernise=_without_head
    )


_QWEN3 = _language_model(qwen.qwen_from_config)

CLASSES: Mapping[str, PublishedClass] = {
    "AutoencoderKL": PublishedClass(
        _frozen(vae.vae_from_config),
        vae.example_vae_inputs,
        "diffusion_pytorch_model",
        modernise=_with_new_attention,
    ),
    "AutoencoderKLFlux2": PublishedClass(
        _frozen(vae_flux2.flux2_vae_from_config),
        vae.example_vae_inputs,
        "diffusion_pytorch_model",
        modernise=_without_count,
    ),
    "AutoencoderKLQwenImage": PublishedClass(
        _frozen(vae_video.video_vae_from_config),
        vae_video.example_video_vae_inputs,
        "diffusion_pytorch_model",
    ),
    "AutoencoderTiny": PublishedClass(
        _frozen(vae_tiny.tiny_vae_from_config),
        vae_tiny.example_tiny_vae_inputs,
        "diffusion_pytorch_model",
    ),
    "CLIPTextModel": PublishedClass(
        _text(projection=False),
        clip_config.example_text_inputs,
        "model",
        modernise=_with_text_prefix,
    ),
    "CLIPTextModelWithProjection": PublishedClass(
        _text(projection=True),
        clip_config.example_text_inputs,
        "model",
        modernise=_without_positions,
    ),
    "T5EncoderModel": PublishedClass(
        _frozen(t5.t5_from_config),
        t5.example_t5_inputs,
        "model",
        modernise=_with_shared_table,
    ),
    "Qwen3Model": _QWEN3,
    "Qwen3ForCausalLM": _QWEN3,
    "Qwen2_5_VLForConditionalGeneration": _language_model(qwen.qwen25_vl_from_config),
    "CLIPVisionModelWithProjection": PublishedClass(
        _frozen(clip_config.vision_from_config),
        clip_config.example_vision_inputs,
        "model",
        modernise=_without_positions,
    ),
    "Dinov2Model": PublishedClass(
        _frozen(dinov2.dinov2_from_config),
        dinov2.example_dinov2_inputs,
        "model",
        modernise=_without_mask,
    ),
    "CLIPModel": PublishedClass(
        _frozen(clip_config.clip_from_config),
        clip_config.example_clip_inputs,
        "model",
        naming=_clip_name,
        modernise=_without_positions,
    ),
}
"""The published classes that several families use, by name; a family adds its own network."""


def class_of(config: Mapping[str, Any], expected: Collection[str] = tuple(CLASSES)) -> str:
    """Return the name of the class whose config.json this is.

    Args:
      config: the file's contents.
      expected: the classes that will do.

    Raises:
      ValueError: if it names no class, or another.
    """
    # transformers 4.57 writes a Qwen2.5-VL's among what it says of the part that reads text.
    inner = config.get("text_config")
    inner = inner.get("architectures") if isinstance(inner, Mapping) else None
    architectures = config.get("architectures") or inner or [None]
    name = config.get("_class_name", architectures[0])
    if name not in expected:
        raise Refused(
            f"config.json is of class {name!r}, expected "
            f"{' or '.join(repr(known) for known in expected)}; check which folder it is, or use "
            "a model of that class."
        )
    return name


@dataclasses.dataclass(frozen=True)
class PublishedModel:
    """A network of diffusers or transformers without its weights.

    Attributes:
      class_name: what its config.json calls it.
      kind: what is known of that class.
      config: what its config.json holds.
      module: our network.
      bare_names: whether a CLIPTextModel's tensors are written without "text_model.", as
        transformers 5 does; every release reads them with it.
    """

    class_name: str
    kind: PublishedClass = dataclasses.field(repr=False)
    config: Mapping[str, Any] = dataclasses.field(compare=False)
    module: nn.Module
    bare_names: bool = False

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any],
        *,
        expected: Collection[str] | None = None,
        classes: Mapping[str, PublishedClass] = CLASSES,
        dtype: DType = jnp.float32,
        remat: str = "none",
    ) -> "PublishedModel":
        """Build the network that a config.json describes.

        Args:
          config: the file's contents.
          expected: the classes that will do; None: all of `classes`.
          classes: those that there are; a family has its own network among them.
          dtype: type of the computation.
          remat: of a U-Net, "none", "block" or "full".

        Raises:
          ValueError: if the class is none of those, or if the config asks for what our network
            does not do.
        """
        name = class_of(config, tuple(classes) if expected is None else expected)
        kind = classes[name]
        return cls(name, kind, dict(config), kind.build(config, dtype=dtype, remat=remat))

    def example_inputs(self) -> tuple:
        """Return inputs (shapes, or None) that reach every parameter, for `module.init`."""
        return self.kind.example(self.module)

    def param_shapes(self) -> Params:
        """Return the weights' pytree with shapes in place of arrays."""
        return jax.eval_shape(self.module.init, jax.random.key(0), *self.example_inputs())

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the published tensors by name, in torch's layouts."""
        shapes = state_dict.tensor_shapes(self.param_shapes(), self.kind.naming)
        return {self._written(name): shape for name, shape in shapes.items()}

    def from_tensors(self, tensors: state_dict.Tensors) -> Params:
        """Turn published tensors into weights.

        Args:
          tensors: by name, in torch's layouts, as any release of the library wrote them.

        Returns:
          The weights, float32.

        Raises:
          ValueError: if the tensors are not exactly the network's; the message lists them.
        """
        modern = self.kind.modernise(tensors)
        try:
            return state_dict.to_params(modern, self.param_shapes(), self.kind.naming)
        except ValueError as error:
            raise Refused(f"{self.class_name}: {error}") from None

    def to_tensors(self, params: Params) -> dict[str, np.ndarray]:
        """Turn weights into tensors with the published names and layouts."""
        tensors = state_dict.to_tensors(params, self.kind.naming)
        return {self._written(name): tensor for name, tensor in tensors.items()}

    def _written(self, name: str) -> str:
        return name.removeprefix(_TEXT_PREFIX) if self.bare_names else name

    def spelled_as(self, tensors: state_dict.Tensors) -> "PublishedModel":
        """Return the model that writes its tensors with the names of these."""
        bare = self.class_name == "CLIPTextModel" and not any(
            name.startswith(_TEXT_PREFIX) for name in tensors
        )
        return dataclasses.replace(self, bare_names=bare)
