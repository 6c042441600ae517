"""Say what a recipe needs on a TPU slice that need not be there.

Compile a recipe's real cycle ahead of time for a TPU slice (none needed) or for this
machine, and print whether it fits, the memory by owner, arithmetic, memory traffic,
collectives, the time of a cycle by the roofline, and days and chip-hours of the
recipe (on this machine too, where its GPUs or TPUs have published peaks).
Data and weights are not opened. TPU slices need the extra [plan].

examples:
  dmd2 plan --config=configs/imagenet64.py --topology=v5p:2x2x2
  dmd2 plan --config=configs/imagenet64.py --sweep=v5e:2x4,v6e:2x4,v5p:2x2x1
  dmd2 plan --config=configs/imagenet64.py --topology=v5e:2x4 --remedy
  dmd2 plan --config=configs/sd15.py --topology=v5e:8x8 --config.mesh.fsdp=8
  dmd2 plan --config=configs/sdxl_four_step.py --topology=v5p:4x4x4 --until=trace

Of a recipe of several shapes each is planned, and by --sweep the largest.
"""

import dataclasses
from collections.abc import Mapping

from ml_collections import ConfigDict

from dmd2_jax.config.flags import as_flags, comma_separated, count, flag
from dmd2_jax.config.load import apply_overrides, load_config
from dmd2_jax.config.refused import Refused

__all__ = ["Options", "run"]


@dataclasses.dataclass(frozen=True)
class Options:
    """What `dmd2 plan` is asked for."""

    config: str = flag("a recipe", metavar="FILE")
    topology: str | None = flag("default: local, this machine", default=None, metavar="CHIP:SHAPE")
    sweep: tuple[str, ...] = flag(
        "several topologies, compared in one table",
        default=(),
        metavar="A,B,...",
        parse=comma_separated(str, "topologies like v5e:8x8,v6e:4x4"),
    )
    batches: tuple[int, ...] = flag(
        "several global batch sizes, in the same table",
        default=(),
        metavar="N,M,...",
        parse=comma_separated(count, "whole numbers from 1 like 64,128"),
    )
    until: str | None = flag(
        "how far to go: `trace`, without compiling, knows weights, states, arithmetic and the "
        "least time for it; `buffers` compiles until the memory is known and makes no machine code "
        "(on TPUs minutes in place of most of an hour for large networks), `program` to the end; "
        "default: `buffers` for a slice, `program` for this machine",
        default=None,
        choices=("trace", "buffers", "program"),
    )
    remedy: bool = flag(
        "where it does not fit, compile variants until one does (minutes each)", default=False
    )
    overrides: Mapping[str, str] = dataclasses.field(default_factory=dict)


def run(options: Options) -> None:
    """Plan a cycle, or several for comparison."""
    from dmd2_jax.plan import plan
    from dmd2_jax.plan.cycle import LOCAL
    from dmd2_jax.plan.tables import Plan, sweep_table

    config = load_config(options.config)
    apply_overrides(config, options.overrides)
    _check(options)
    topology = LOCAL if options.topology is None else options.topology
    shapes = plan.by_shape(config)
    if options.sweep or options.batches:
        plans = plan.sweep(
            shapes[0], options.sweep or [topology], options.batches, until=options.until
        )
        print(sweep_table(plans))
        if any(isinstance(made, Plan) and not made.fits for made in plans):
            print("what would make a slice fit, it alone with --remedy says")
        return
    for shape in shapes:
        _one(options, shape, topology)


def _one(options: Options, config: ConfigDict, topology: str) -> None:
    """Plan a cycle of one shape, and say what would make it fit."""
    from dmd2_jax.plan import plan
    from dmd2_jax.plan.tables import plan_table

    made = plan.make_plan(config, topology, until=options.until)
    print(plan_table(made))
    if not made.fits and options.remedy:
        print(as_flags(plan.find_remedy(config, made, options.until), (), keys=True))
    elif not made.fits:
        instead = " in place of --until=trace" if options.until == "trace" else ""
        print(
            f"add --remedy{instead}: it compiles variants (rematerialisation, microbatches, fsdp, "
            "offload, bfloat16 moments) until one fits"
        )


def _check(options: Options) -> None:
    if options.sweep and options.topology is not None:
        raise Refused(
            f"got --topology={options.topology} and --sweep, expected one of them; name all "
            "slices in --sweep."
        )
    if (options.sweep or options.batches) and options.remedy:
        raise Refused(
            "got --remedy with --sweep or --batches, expected it with one plan; leave it away, "
            "or plan one slice with one batch size."
        )
    if options.until == "trace" and options.remedy:
        raise Refused(
            "got --until=trace with --remedy, which compiles, expected one of them; leave one away."
        )
