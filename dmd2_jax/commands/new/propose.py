"""What to train on data, on a machine: sizes that fit, and values that worked in like recipes."""

import os
from typing import Any, NamedTuple

import jax
import numpy as np

from dmd2_jax.commands.new.look import SMALLEST, Facts
from dmd2_jax.config.refused import Refused
from dmd2_jax.families.edm import settings

__all__ = ["Group", "Machine", "propose", "sizes_in_words", "this_machine"]

_SIDES = (8, 16, 32, 64, 128, 256)
"""To which images of sizes that differ are resized."""

_LARGEST = 1024  # beyond that, pixels are for no network of this family: latents are
_MOST_AT_THE_BOTTOM = 16  # side of the coarsest level, where the network attends
_SMALL_SHARE = 5  # per cent of the images may be made larger


class Machine(NamedTuple):
    """Where the training is to run.

    Attributes:
      name: for people.
      devices: their number.
      chips: whether they are GPUs or TPUs.
    """

    name: str
    devices: int
    chips: bool


class Group(NamedTuple):
    """Some values of a config, and why they are so.

    Attributes:
      why: in sentences.
      values: dotted key -> value.
    """

    why: str
    values: dict[str, Any]


def this_machine() -> Machine:
    """Return the devices that jax finds."""
    devices = jax.devices()
    kind, count = devices[0].device_kind, len(devices)
    if devices[0].platform != "cpu":
        return Machine(f"{count} x {kind}" if count > 1 else kind, count, chips=True)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Machine(f"{cores} CPU cores", count, chips=False)


def propose(facts: Facts, machine: Machine, resolution: int | None = None) -> list[Group]:
    """Propose the values of a recipe.

    Args:
      facts: what the data are.
      machine: where it is to run.
      resolution: that was asked for; None: what suits both.

    Raises:
      Refused: if the images are too small, or no network fits the resolution.
    """
    side = _resolution(facts, 64 if machine.chips else 32, resolution)
    size = "their own size" if _resize(facts, side) == "none" else "resized and cropped as read"
    return [
        Group(
            f"The data: {facts.images:,} images, {sizes_in_words(facts)}; {size}. Where there is "
            "no test split, a tenth of each class is held out for `dmd2 evaluate`.",
            {
                "data.name": facts.source,
                "data.path": facts.path,
                "data.resize": _resize(facts, side),
                "model.resolution": side,
            },
        ),
        Group(
            "None: as many as the data have, counted when a training begins. 0 classes would make "
            "an unconditional model.",
            {"model.image_channels": None, "model.num_classes": None},
        ),
        _network(side, machine),
        *(_on_chips(machine, side) if machine.chips else _on_cpu(machine, side)),
        Group(
            "One step makes an image of pure noise. Of more steps, with config.distill.cycles to "
            "match: (80.0, 17.5, 2.52, 0.17) are four.",
            {"distill.student_times": (80.0,)},
        ),
    ]


def _resolution(facts: Facts, most: int, asked: int | None) -> int:
    shorter = facts.sizes.min(axis=1)
    if asked is not None:
        if not SMALLEST <= asked <= _LARGEST or not _fits(asked):
            raise Refused(
                f"`resolution={asked}`, expected {SMALLEST} to {_LARGEST} and a number that can be "
                f"halved down to {_MOST_AT_THE_BOTTOM} or less, such as one of {_SIDES}; choose "
                "one."
            )
        return asked
    typical = int(np.percentile(shorter, _SMALL_SHARE))
    if typical < SMALLEST:
        raise Refused(
            f"{facts.name}: images of {typical} pixels, expected at least {SMALLEST} each way; "
            f"take larger ones, or have them made larger by `resolution={SMALLEST}`."
        )
    own = int(facts.sizes[0, 0])
    if (facts.sizes == own).all() and own <= most and _fits(own):
        return own
    return max(side for side in _SIDES if side <= min(most, typical))


def _resize(facts: Facts, side: int) -> str:
    if (facts.sizes == side).all():
        return "none"
    return "crop" if facts.sizes.min() >= side else "enlarge"


def _levels(side: int) -> list[int]:
    """Return the sides of a network's levels: halved down to 8 or less, three levels at least.

    Of images of 8 pixels two: a third would be 2 wide.
    """
    sides, fewest = [side], 2 if side <= 8 else 3
    while (sides[-1] > 8 or len(sides) < fewest) and sides[-1] % 2 == 0:
        sides.append(sides[-1] // 2)
    return sides


def _fits(side: int) -> bool:
    levels = _levels(side)
    return len(levels) > 1 and levels[-1] <= _MOST_AT_THE_BOTTOM


def sizes_in_words(facts: Facts) -> str:
    """Return how large the images are, and of what colour."""
    low, high = facts.sizes.min(axis=0), facts.sizes.max(axis=0)
    one = f"{high[1]} x {high[0]} pixels"
    colour = "grey" if facts.channels == 1 else "colour"
    return f"{one}, {colour}" if (low == high).all() else f"up to {one}, {colour}"


def _network(side: int, machine: Machine) -> Group:
    """Choose a U-Net whose levels the image has, attending where a level has a head's channels."""
    levels = _levels(side)
    mult: tuple[int, ...]
    if machine.chips:
        width, mult = (64, (1, 2, 2)) if side <= 32 else (96, (1, 2, 3, 4))
    else:
        width, mult = (32, (1, 2)) if len(levels) == 2 else (16, (1, 2, 4))
    multipliers = (mult + (mult[-1],) * len(levels))[: len(levels)]
    model = {
        "network": "adm",
        "resolution": side,
        "model_channels": width,
        "channel_mult": multipliers,
        "attention_resolutions": tuple(levels[-1:] if not machine.chips else levels[-2:]),
    }
    attending = tuple(at for at in settings.attending(model) if at <= _MOST_AT_THE_BOTTOM)
    return Group(
        f"The network: EDM's ADM U-Net with {len(levels)} levels, {' -> '.join(map(str, levels))} "
        f"pixels wide. It attends where a level has {settings.CHANNELS_PER_HEAD} channels or more "
        "and is small. Wider (model_channels) is better and slower.",
        {
            "model.model_channels": width,
            "model.channel_mult": multipliers,
            "model.attention_resolutions": attending,
            "model.num_blocks": 2 if machine.chips else 1,
            "model.dtype": "bfloat16" if machine.chips else "float32",
        },
    )


def _divided(batch: int, machine: Machine) -> int:
    """Return a batch of about this size that splits over the devices."""
    return -(-batch // machine.devices) * machine.devices


def _on_cpu(machine: Machine, side: int) -> list[Group]:
    """Return lengths and rates that worked in configs/digits.py and fashion_mnist_small.py."""
    small = len(_levels(side)) == 2
    like = "digits.py" if small else "fashion_mnist_small.py"
    return [
        Group(
            f"The teacher, with the values of configs/{like}, measured on two cores; more steps "
            "make it better.",
            {
                "teacher.steps": 420 if small else 1500,
                "teacher.batch_size": _divided(128, machine),
                "teacher.lr": 2e-3,
                "teacher.lr_schedule": "cosine",
                "teacher.warmup": 50 if small else 100,
                "teacher.ema_decay": 0.995 if small else 0.998,
            },
        ),
        Group(
            "The student, likewise: one turn of the generator, then five of the critic, a cycle.",
            {
                "distill.cycles": 360 if small else 400,
                "distill.batch_size": _divided(64, machine),
                "distill.shared_pass": True,
                "distill.gan_generator_weight": 3e-2,
                "distill.gan_critic_weight": 1e-1,
                "distill.gan_head_channels": 64,
                "optim.generator_lr": 1e-3,
                "optim.critic_lr": 1e-3,
                "optim.lr_schedule": "cosine",
                "optim.warmup": 20,
                "optim.b1": 0.5,
                "optim.ema_decays": (0.97,),
            },
        ),
        Group(
            "Pictures, exports and checkpoints.",
            {
                "log.grid_every": 100,
                "log.export_every": 100,
                "log.teacher_grid_every": 500,
                "log.checkpoint_every": 100,
                "evaluate.num_samples": 2000,
            },
        ),
    ]


def _on_chips(machine: Machine, side: int) -> list[Group]:
    """Return lengths and rates as configs/fashion_mnist.py has them."""
    batch = _divided(256 if side <= 32 else 128, machine)
    return [
        Group(
            "The teacher, as in configs/fashion_mnist.py; more steps make it better.",
            {
                "teacher.steps": 50_000,
                "teacher.batch_size": batch,
                "teacher.lr": 5e-4,
                "teacher.warmup": 1000,
                "teacher.ema_decay": 0.9995,
            },
        ),
        Group(
            "The student, likewise: one turn of the generator, then five of the critic, a cycle.",
            {
                "distill.cycles": 10_000,
                "distill.batch_size": batch,
                "optim.generator_lr": 1e-5,
                "optim.critic_lr": 1e-5,
            },
        ),
        Group(
            "Pictures, exports and checkpoints.",
            {
                "log.every": 50,
                "log.grid_every": 1000,
                "log.export_every": 1000,
                "log.teacher_grid_every": 2000,
                "log.teacher_export_every": 2000,
                "log.checkpoint_every": 1000,
                "evaluate.num_samples": 10_000,
            },
        ),
    ]
