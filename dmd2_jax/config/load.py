"""Config files, `--config.key=value` overrides, and the checks that need no device.

A config file is Python with `get_config() -> ml_collections.ConfigDict`; the recipes of this
project lie in configs/, which an installed package has as dmd2_jax/configs. An override must name a
key that exists and parse as the type of the value it replaces, so that a misspelt or ill-typed
value stops the run at once.
"""

import ast
import importlib.util
import itertools
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FieldReference

from dmd2_jax.config.plugins import nearest
from dmd2_jax.config.refused import Refused

__all__ = [
    "allowed_changes",
    "apply_overrides",
    "call_recipe",
    "from_plain",
    "load_config",
    "parse_overrides",
    "plain",
    "validate",
]


def load_config(path: str) -> ConfigDict:
    """Return the locked config of a recipe.

    Args:
      path: a Python file with `get_config()`, or the bare name of one in configs/. A recipe that
        builds on another calls `load_config("imagenet64")`.

    Raises:
      Refused: if there is no such file, or it makes no ConfigDict.
    """
    config = call_recipe(path, "get_config", "return a ConfigDict", "configs/digits.py")
    if not isinstance(config, ConfigDict):
        raise Refused(
            f"--config={path}: get_config() returned {type(config).__name__}, expected a "
            f"ConfigDict; start it from dmd2_jax.config.defaults."
        )
    config.lock()
    return config


def call_recipe(path: str, name: str, expected: str, example: str) -> Any:
    """Return what a function of a config file returns.

    Args:
      path: see `load_config`.
      name: of the function.
      expected: what it is to do, for the error.
      example: a file that does so, for the error.

    Raises:
      Refused: if there is no such file, or the function fails.
    """
    file = Path(path)
    if not file.is_file():
        candidates = _recipes()
        # An installed package has no configs/ in the working folder, which our help speaks of.
        shipped = file.stem if file.parts[:1] == ("configs",) and file.suffix == ".py" else path
        file = candidates.get(shipped, file)
        if not file.is_file():
            raise Refused(
                f"--config={path} is no file, expected a Python file with get_config() or one of "
                f"{sorted(candidates)}{nearest(path, candidates)}."
            )
    # Users' recipes import what lies beside them, wherever dmd2 is started.
    places = [str(file.absolute().parent.parent), str(Path.cwd()), str(_PACKAGE.parent)]
    saved, sys.path[:] = list(sys.path), [*places, *sys.path]
    try:
        spec = importlib.util.spec_from_file_location(f"dmd2_recipe_{file.stem}", file)
        if spec is None or spec.loader is None:
            raise Refused(f"--config={path} is not Python, expected a file named *.py.")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return getattr(module, name)()
    except Refused:
        raise
    except Exception as error:
        raise Refused(
            f"--config={path} failed ({type(error).__name__}: {error}), expected {name}() to "
            f"{expected}; compare it with {example}."
        ) from error
    finally:
        sys.path[:] = saved


def parse_overrides(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Split `--config.a.b=v` and `--config.a.b v` off a command line.

    Args:
      arguments: the command line after the program's name.

    Returns:
      ({"a.b": "v"}, the other arguments in order).

    Raises:
      Refused: if an override has no value.
    """
    overrides: dict[str, str] = {}
    others: list[str] = []
    words = iter(arguments)
    for word in words:
        if not word.startswith("--config."):
            others.append(word)
            continue
        key, equals, text = word.removeprefix("--config.").partition("=")
        if not equals:
            following = next(words, None)
            if following is None or following.startswith("--"):
                raise Refused(
                    f"--config.{key} has no value, expected --config.{key}=VALUE; add one."
                )
            text = following
        overrides[key] = text
    return overrides, others


def apply_overrides(config: ConfigDict, overrides: Mapping[str, str]) -> None:
    """Set values of `config` from text, in place.

    Args:
      config: from `load_config`.
      overrides: {"optim.generator_lr": "1e-4"}; numbers, True/False, None where the recipe
        allows it, and tuples as `80,20` or `(80.0, 20.0)`.

    Raises:
      Refused: if a key does not exist (the nearest is named) or a value is of another type.
    """
    fields = dict(_fields(config))
    for key, text in overrides.items():
        if key not in fields:
            what = "a group of keys" if any(k.startswith(key + ".") for k in fields) else "no key"
            raise Refused(
                f"--config.{key} is {what}, expected one of the config's keys"
                f"{nearest(key, fields)}."
            )
        current, kind, nullable = fields[key]
        *groups, name = key.split(".")
        node = config
        for group in groups:
            node = node[group]
        node[name] = _parse(key, text, current, kind, nullable)


def allowed_changes(config: ConfigDict, words: Sequence[str]) -> tuple[str, ...]:
    """Read the values of --allow_change: keys (or groups) of the config, separated by commas.

    Raises:
      Refused: if a name is none of the config's (the nearest is named).
    """
    names = tuple(name.strip() for word in words for name in word.split(",") if name.strip())
    fields = dict(_fields(config))
    for name in names:
        if name not in fields and not any(key.startswith(f"{name}.") for key in fields):
            raise Refused(
                f"--allow_change={name} is no key, expected one of the config's keys or groups"
                f"{nearest(name, fields)}."
            )
    return names


def plain(config: ConfigDict) -> dict[str, Any]:
    """Return the config as nested plain Python values, for JSON."""
    return config.to_dict()


def from_plain(values: Mapping[str, Any]) -> ConfigDict:
    """Return the config that `plain` (or its JSON) describes; lists become tuples again."""

    def restored(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: restored(entry) for key, entry in value.items()}
        return tuple(value) if isinstance(value, list) else value

    return ConfigDict(restored(values)).lock()


def validate(config: ConfigDict, choices: Mapping[str, Sequence[str]] | None = None) -> None:
    """Check every value that can be checked without data, weights or devices.

    Args:
      config: a whole config.
      choices: {dotted key: allowed names} of what the caller can provide, for example
        {"data.name": ("digits", "fashion_mnist")}.

    Raises:
      Refused: naming every bad value, with got, expected and remedy.
    """
    names = {
        **dict.fromkeys(("model.dtype", "optim.moment_dtype"), ("float32", "bfloat16")),
        **dict.fromkeys(("optim.lr_schedule", "teacher.lr_schedule"), ("constant", "cosine")),
        "model.remat": ("none", "block", "full"),
        "teacher.objective": ("edm", "eps"),
        "distill.denoising_weight": ("edm", "eps", "x0"),
        "distill.fake_labels": ("uniform", "real"),
    } | dict(choices or {})
    faults = [*_choice_faults(config, names), *_number_faults(config), *_time_faults(config)]
    if faults:
        raise Refused("the config is refused:\n  " + "\n  ".join(faults))


_AT_LEAST_ONE = (
    "data.resolution",
    "model.resolution",
    "model.image_channels",
    "model.model_channels",
    "model.num_blocks",
    "teacher.steps",
    "teacher.batch_size",
    "distill.cycles",
    "distill.batch_size",
    "distill.microbatches",
    "distill.gan_head_channels",
    "distill.regression_pairs",
    "log.every",
    "log.grid_every",
    "log.teacher_grid_every",
    "log.checkpoint_every",
    "log.keep",
    "evaluate.batch_size",
    "optim.max_skipped_in_a_row",
)
_MESH = ("mesh.data", "mesh.fsdp", "mesh.tensor")
_NOT_NEGATIVE = (
    "model.num_classes",
    "distill.lora_rank",
    "teacher.warmup",
    "optim.warmup",
    "optim.weight_decay",
    "log.keep_every",
    "log.keep_best",
    "log.evaluate_every",
)
_POSITIVE = (
    "model.sigma_data",
    "teacher.lr",
    "teacher.p_std",
    "distill.lora_alpha",
    "optim.generator_lr",
    "optim.critic_lr",
    "optim.eps",
    "optim.clip_norm",
    "schedule.sigma_min",
    "schedule.rho",
)
_FRACTIONS = (
    "teacher.ema_decay",
    "teacher.label_dropout",
    "model.dropout",
    "optim.b1",
    "optim.b2",
)
_POSITIVE_OR_NONE = (
    "distill.dm_weight",
    "distill.gan_generator_weight",
    "distill.gan_critic_weight",
    "distill.regression_weight",
)


def _number_faults(config: ConfigDict) -> Iterator[str]:
    rules = [
        (_AT_LEAST_ONE, lambda v: v >= 1, "at least 1"),
        (_NOT_NEGATIVE, lambda v: v >= 0, "0 or more"),
        (_POSITIVE, lambda v: v > 0, "a positive number"),
        (_FRACTIONS, lambda v: 0 <= v < 1, "a number in [0, 1)"),
        (_POSITIVE_OR_NONE, lambda v: v is None or v > 0, "a positive number, or None for none"),
        (("teacher.sampler_steps", "schedule.num_levels"), lambda v: v >= 2, "at least 2"),
        (("evaluate.num_samples", "evaluate.training_samples"), lambda v: v >= 2, "at least 2"),
        (_MESH, lambda v: v == -1 or v >= 1, "-1 (all devices) or at least 1"),
    ]
    for keys, good, expected in rules:
        for key in keys:
            value = _get(config, key)
            if not _is_number_or_none(value) or not _holds(good, value):
                yield f"{key}={value!r}, expected {expected}; set --config.{key}."
    if not _holds(lambda v: v >= 1, config.distill.critic_turns):
        yield (
            f"distill.critic_turns={config.distill.critic_turns!r} (K of TTUR), expected at least "
            f"1; use 1 for no TTUR, 5 as in the paper."
        )
    if config.data.resolution != config.model.resolution:
        yield (
            f"model.resolution={config.model.resolution}, expected data.resolution="
            f"{config.data.resolution}; set both alike."
        )
    if config.log.keep_best and not config.log.evaluate_every:
        yield (
            f"log.keep_best={config.log.keep_best} by FID and log.evaluate_every=0 (never), "
            f"expected FID to be measured; set --config.log.evaluate_every, or keep_best=0."
        )
    for decay in config.optim.ema_decays:
        if not _holds(lambda v: 0 < v < 1, decay):
            yield f"optim.ema_decays has {decay!r}, expected numbers in (0, 1); () is none."
    weights = (config.distill.gan_generator_weight, config.distill.gan_critic_weight)
    if (weights[0] is None) != (weights[1] is None):
        yield (
            f"distill.gan_generator_weight={weights[0]} and gan_critic_weight={weights[1]}, "
            f"expected both or neither; set both to None for no GAN."
        )
    if config.distill.dm_weight is weights[0] is config.distill.regression_weight is None:
        yield (
            "distill has no loss for the generator (dm_weight, gan_generator_weight and "
            "regression_weight are None), expected at least one; set dm_weight=1.0."
        )


def _time_faults(config: ConfigDict) -> Iterator[str]:
    low, high = config.schedule.sigma_min, config.schedule.sigma_max
    if not _holds(lambda v: low < v, high):
        yield (
            f"schedule.sigma_min={low!r} and sigma_max={high!r}, expected sigma_min < sigma_max; "
            f"the paper's values are 0.002 and 80."
        )
        return
    times = tuple(config.distill.student_times)
    if not times or any(later >= earlier for earlier, later in itertools.pairwise(times)):
        yield (
            f"distill.student_times={times}, expected one or more strictly decreasing times; "
            f"for example ({high}, {math.sqrt(low * high):.3g})."
        )
    # The times of a pipeline are its scheduler's, which `recipe.build_family` reads.
    outside = [time for time in times if not (config.model.pipeline or low <= time <= high)]
    if outside:
        yield (
            f"distill.student_times has {outside}, expected times within "
            f"[sigma_min, sigma_max] = [{low}, {high}]; the first step is usually {high}."
        )
    for name, paper in (("dm_range", (0.02, 0.98)), ("gan_range", (0.0, 1.0))):
        span = tuple(config.distill[name])
        if len(span) != 2 or not 0 <= span[0] < span[1] <= 1:
            yield (
                f"distill.{name}={span}, expected (low, high) with 0 <= low < high <= 1, fractions "
                f"of the schedule's levels; the paper's is {paper}."
            )


def _choice_faults(config: ConfigDict, choices: Mapping[str, Sequence[str]]) -> Iterator[str]:
    for key, allowed in choices.items():
        value = _get(config, key)
        if value not in allowed:
            yield f"{key}={value!r}, expected one of {sorted(allowed)}{nearest(value, allowed)}."


def _parse(key: str, text: str, current: Any, kind: type, nullable: bool) -> Any:
    """Read `text` as the type of the value it replaces."""
    expected = kind.__name__ + (" or None" if nullable else "")
    try:
        if nullable and text.strip().lower() == "none":
            return None
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.strip().lower()]
        if kind is int:
            return int(text)
        if kind is float:
            return float(text)
        if kind in (tuple, list):
            expected = f"a tuple like {current!r}"
            return _parse_tuple(text, current, words=key.startswith(("mesh.", "distill.lora")))
        if kind is str:
            return text
    except (ValueError, KeyError, SyntaxError):
        pass
    raise Refused(f"--config.{key}={text!r}, expected {expected}; it is {current!r} in the recipe.")


def _parse_tuple(text: str, current: Sequence[Any], words: bool) -> tuple[Any, ...]:
    stripped = text.strip().strip("()[]").strip()
    items = [item.strip() for item in stripped.split(",") if item.strip()]
    values = [i if words and i.isidentifier() else ast.literal_eval(i) for i in items]
    if any(isinstance(value, bool) or not isinstance(value, int | float | str) for value in values):
        raise ValueError
    if any(isinstance(value, float) for value in current):
        return tuple(float(value) for value in values)
    if any(isinstance(value, float) for value in values) and current:
        raise ValueError
    return tuple(values)


def _fields(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, tuple[Any, type, bool]]]:
    """Yield (dotted key, (value, type, may be None)) of every leaf."""
    for name, field in config.items(preserve_field_references=True):
        value = config[name]
        if isinstance(value, ConfigDict):
            yield from _fields(value, f"{prefix}{name}.")
        else:
            yield prefix + name, (value, config.get_type(name), isinstance(field, FieldReference))


def _get(config: ConfigDict, key: str) -> Any:
    node: Any = config
    for part in key.split("."):
        if part not in node:
            raise Refused(
                f"the config has no {key}, expected every key of dmd2_jax/config/defaults.py; start the "
                f"recipe from it."
            )
        node = node[part]
    return node


def _is_number_or_none(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _holds(rule: Any, value: Any) -> bool:
    """Apply `rule`; a value that cannot be compared, or is NaN, fails it."""
    try:
        return bool(rule(value)) and not (isinstance(value, float) and not math.isfinite(value))
    except TypeError:
        return False


_PACKAGE = Path(__file__).absolute().parent.parent


def _recipes() -> dict[str, Path]:
    """Map the names of recipes, "digits" and "configs/digits.py", to their files.

    Ours come first: a user's own configs/ in the working folder adds to them, and hides none.
    """
    installed, checkout = _PACKAGE / "configs", _PACKAGE.parent / "configs"
    found: dict[str, Path] = {}
    for folder in (installed if installed.is_dir() else checkout, Path.cwd() / "configs"):
        for file in sorted([*folder.glob("*.py"), *folder.glob("ablations/*.py")]):
            if not file.name.startswith("_"):
                found.setdefault(file.stem, file)
    return found
