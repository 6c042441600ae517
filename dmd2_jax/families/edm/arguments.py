"""The constructor arguments that EDM's checkpoints record, and the model config they mean."""

import logging
from collections.abc import Mapping
from typing import Any

from dmd2_jax.config.refused import Refused
from dmd2_jax.families.edm.settings import defaults, recorded
from dmd2_jax.weights.unpickle import shown
from dmd2_jax.weights.weight_files import Weights

__all__ = [
    "arguments_of",
    "from_edm_kwargs",
    "model_differences",
    "recipe_values",
    "refuse_other_arguments",
]

_log = logging.getLogger(__name__)

_EDM_NAMES = {
    "img_resolution": "resolution",
    "img_channels": "image_channels",
    "label_dim": "num_classes",
    "attn_resolutions": "attention_resolutions",
}
"""EDM's constructor arguments that have another name here."""

_EDM_DEFAULTS = {
    "model_type": "DhariwalUNet",
    "decoder_type": "standard",
    "label_dim": 0,
    "sigma_data": 0.5,
    "augment_dim": 0,
    "channel_mult_emb": 4,
    "embedding_type": "positional",
    "encoder_type": "standard",
    "resample_filter": (1, 1),
    "channel_mult_noise": 1,
}

_EDM_NETWORK_DEFAULTS = {
    "adm": {
        "model_channels": 192,
        "channel_mult": (1, 2, 3, 4),
        "num_blocks": 3,
        "attention_resolutions": (32, 16, 8),
        "dropout": 0.1,
    },
    "song": {
        "model_channels": 128,
        "channel_mult": (1, 2, 2, 2),
        "num_blocks": 4,
        "attention_resolutions": (16,),
        "dropout": 0.1,
    },
}

_KNOWN_KEYS = {
    "resolution",
    "image_channels",
    "num_classes",
    "sigma_data",
    "augment_dim",
    "channel_mult_emb",
    "embedding_type",
    "encoder_type",
    "resample_filter",
    "channel_mult_noise",
    *_EDM_NETWORK_DEFAULTS["adm"],
}

_NUMBER = int | float
_CLASS = "EDMPrecond"
_POSITIONAL = (
    "img_resolution",
    "img_channels",
    "label_dim",
    "use_fp16",
    "sigma_min",
    "sigma_max",
    "sigma_data",
    "model_type",
)
"""EDMPrecond's arguments in order."""

_LISTS = frozenset({"channel_mult", "attn_resolutions", "resample_filter"})
_KINDS: dict[str, Any] = {
    **dict.fromkeys(("model_type", "embedding_type", "encoder_type", "decoder_type"), str),
    **dict.fromkeys(("dropout", "label_dropout", "sigma_min", "sigma_max", "sigma_data"), _NUMBER),
}
"""Types of the arguments that are no int."""

_FREE = frozenset({"family", "dropout", "dtype", "remat", "feature_resolutions"})
"""Keys of config.model that weights do not depend on."""

_SONG_ONLY = frozenset({"embedding_type", "encoder_type", "resample_filter", "channel_mult_noise"})
_ORDER = (
    "network",
    "resolution",
    "image_channels",
    "num_classes",
    "sigma_data",
    "model_channels",
    "channel_mult",
    "channel_mult_emb",
    "num_blocks",
    "attention_resolutions",
    "dropout",
    "augment_dim",
    *sorted(_SONG_ONLY),
)
"""Keys of config.model that the arguments decide, as a recipe lists them."""


def from_edm_kwargs(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the constructor arguments of the original `EDMPrecond` to a model config.

    Args:
      kwargs: model_type "DhariwalUNet" or "SongUNet", img_resolution, img_channels, label_dim,
        sigma_data and the network's own arguments, as checkpoints record them.

    Returns:
      A model config for `build`.

    Raises:
      ValueError: if an argument has no counterpart here.
    """
    arguments = {**_EDM_DEFAULTS, **kwargs}
    _check_kinds(arguments)
    networks = {"DhariwalUNet": "adm", "SongUNet": "song"}
    if arguments["model_type"] not in networks:
        raise Refused(f"model_type={arguments['model_type']!r} must be one of {tuple(networks)}.")
    network = networks[arguments.pop("model_type")]
    if arguments.pop("decoder_type") != "standard":
        raise Refused(
            f"decoder_type={kwargs['decoder_type']!r} must be 'standard', the only one that "
            "published checkpoints use."
        )
    for name in ("use_fp16", "sigma_min", "sigma_max", "label_dropout"):
        arguments.pop(name, None)  # of precision, sampling and training; not of the network
    config = {_EDM_NAMES.get(name, name): value for name, value in arguments.items()}
    config |= _EDM_NETWORK_DEFAULTS[network] | config
    unknown = sorted(set(config) - _KNOWN_KEYS)
    if unknown:
        raise Refused(
            f"EDM arguments {unknown} are unknown, expected a subset of "
            f"{sorted(_KNOWN_KEYS)} under EDM's names; remove them."
        )
    config |= {"family": "edm", "network": network, "dtype": "float32", "remat": "none"}
    config, said = recorded(config)
    if said:  # published weights have it so
        _log.warning(said)
    return config


def _check_kinds(arguments: Mapping[str, Any]) -> None:
    """Refuse arguments of another type, as a file from elsewhere may hold."""
    missing = [name for name in ("img_resolution", "img_channels") if name not in arguments]
    if missing:
        raise Refused(f"EDM arguments {missing} are missing, expected them; add them.")
    known = _KNOWN_KEYS | set(_EDM_NAMES) | set(_KINDS)
    for name, value in arguments.items():
        if name not in known:
            continue  # named as unknown later
        kind = _KINDS.get(name, int)
        entries = tuple(value) if isinstance(value, list | tuple) else (value,)
        listed = isinstance(value, list | tuple) == (name in _LISTS)
        if not listed or not all(isinstance(entry, kind) for entry in entries):
            raise Refused(
                f"EDM argument {name}={shown(value)}, expected {'a list of ' * (name in _LISTS)}"
                f"{getattr(kind, '__name__', 'number')}; take another copy of the file."
            )


def arguments_of(weights: Weights) -> dict[str, Any]:
    """Return the arguments of the network in a file by their names.

    Args:
      weights: of a file that records them.

    Raises:
      ValueError: if the network is no EDMPrecond, or has more arguments than that takes.
    """
    if weights.class_name != _CLASS:
        raise Refused(
            f"the network is of class {shown(weights.class_name)!r}, expected {_CLASS!r}; other "
            "preconditionings (VPPrecond, VEPrecond, iDDPMPrecond) are not supported: take one of "
            "EDM's own checkpoints, edm-*.pkl."
        )
    positional = weights.arguments or ()
    if len(positional) > len(_POSITIONAL):
        raise Refused(
            f"{len(positional)} positional arguments are recorded, expected at most "
            f"{len(_POSITIONAL)} ({', '.join(_POSITIONAL)}); take another copy of the file."
        )
    return {**dict(zip(_POSITIONAL, positional, strict=False)), **(weights.keywords or {})}


def model_differences(
    got: Mapping[str, Any], expected: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Compare two model configs in what decides the weights' names, shapes and meaning.

    Args:
      got: a model config, from `from_edm_kwargs`.
      expected: another, `config.model`.

    Returns:
      {key: (got, expected)} of the keys that differ.
    """
    got, expected = {**got}, {**defaults().to_dict(), **expected}
    free = _FREE | (_SONG_ONLY if got["network"] == expected["network"] == "adm" else set())
    pairs = {key: (_plain(got[key]), _plain(expected.get(key))) for key in sorted(set(got) - free)}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def recipe_values(model_config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a model config that a recipe sets for this network, in order.

    Args:
      model_config: from `from_edm_kwargs`.
    """
    keys = [key for key in _ORDER if key not in _SONG_ONLY or model_config["network"] == "song"]
    return {key: _plain(model_config[key]) for key in keys}


def refuse_other_arguments(weights: Weights, model_config: Mapping[str, Any]) -> None:
    """Check the arguments that a file records against the config.

    Raises:
      ValueError: naming every argument that differs, with the keys that set the file's values.
    """
    differing = model_differences(from_edm_kwargs(arguments_of(weights)), model_config)
    if differing:
        lines = [
            f"  model.{key}: got {got!r} in the file, expected {expected!r} as in the config"
            for key, (got, expected) in differing.items()
        ]
        keys = " ".join(f"`config.model.{k}={_text(got)}`" for k, (got, _) in differing.items())
        raise Refused(
            "the file holds another network than config.model describes:\n"
            + "\n".join(lines)
            + f"\nset {keys}, or take other weights."
        )


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
