"""What each `dmd2` command does with its flags: one call of a lower floor."""

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path

from dmd2_jax.config.load import allowed_changes, apply_overrides, load_config
from dmd2_jax.config.refused import Refused


def train_teacher(arguments: argparse.Namespace) -> None:
    """Train a teacher."""
    from dmd2_jax.training.teacher import train

    _train("teacher", train, arguments)


def distill(arguments: argparse.Namespace) -> None:
    """Distil a teacher."""
    from dmd2_jax.training.student import train

    _train("student", train, arguments)


def _train(what: str, train: Callable[..., Path | None], arguments: argparse.Namespace) -> None:
    config = load_config(arguments.config)
    apply_overrides(config, arguments.overrides)
    path = train(
        config,
        arguments.workdir,
        dry_run=arguments.dry_run,
        profile=arguments.profile,
        allow_change=allowed_changes(config, arguments.allow_change),
    )
    if path is not None:
        print(f"{what}: {path}")


def report(arguments: argparse.Namespace) -> None:
    """Write a page of runs."""
    from dmd2_jax.commands.report import write_report

    print(f"report: {write_report(arguments.workdir, arguments.out)}")


def ablate(arguments: argparse.Namespace) -> None:
    """Run a table of variants."""
    from dmd2_jax.commands.ablate.run import AblateOptions, ablate

    names = [field.name for field in dataclasses.fields(AblateOptions)]
    ablate(AblateOptions(**{name: getattr(arguments, name) for name in names}))


def data(arguments: argparse.Namespace) -> None:
    """List, check or write data."""
    from dmd2_jax.commands.data import inspect as data_command

    if arguments.config is None:
        if arguments.overrides or arguments.write:
            raise Refused(
                "`dmd2 data` has no --config, expected --config=FILE in order to check or write a "
                "source; add it."
            )
        print(data_command.list_sources())
        return
    config = load_config(arguments.config)
    apply_overrides(config, arguments.overrides)
    if arguments.write:
        print(data_command.write_shards(config, arguments.write, encoding=arguments.encoding))
        return
    if data_command.check_source(config, arguments.out):
        print(f"first images: {arguments.out}")


def cache(arguments: argparse.Namespace) -> None:
    """Write latents and embeddings."""
    from dmd2_jax.commands.cache.inputs import CacheOptions
    from dmd2_jax.commands.cache.write import make_cache

    names = [field.name for field in dataclasses.fields(CacheOptions)]
    options = CacheOptions(**{name: getattr(arguments, name) for name in names})
    print(make_cache(options, arguments.out, dry_run=arguments.dry_run))


def make_pairs(arguments: argparse.Namespace) -> None:
    """Make a teacher's ODE pairs."""
    from dmd2_jax.training.pairs import write_pairs

    config = load_config(arguments.config)
    apply_overrides(config, arguments.overrides)
    print(write_pairs(config, arguments.out, dry_run=arguments.dry_run))


def demo(arguments: argparse.Namespace) -> None:
    """Run the demonstration."""
    from dmd2_jax.commands import demo

    demo.run(arguments.workdir, config=arguments.config, overrides=arguments.overrides)


def plan(arguments: argparse.Namespace) -> None:
    """Plan a cycle."""
    from dmd2_jax.plan import plan
    from dmd2_jax.plan.cycle import LOCAL
    from dmd2_jax.plan.tables import Plan, plan_table, sweep_table

    config = load_config(arguments.config)
    apply_overrides(config, arguments.overrides)
    several = arguments.sweep or arguments.batches
    if arguments.sweep and arguments.topology is not None:
        raise Refused(
            f"got --topology={arguments.topology} and --sweep, expected one of them; name all "
            "slices in --sweep."
        )
    if several and arguments.remedy:
        raise Refused(
            "got --remedy with --sweep or --batches, expected it with one plan; leave it away, "
            "or plan one slice with one batch size."
        )
    if arguments.until == "trace" and arguments.remedy:
        raise Refused(
            "got --until=trace with --remedy, which compiles, expected one of them; leave one away."
        )
    topology = LOCAL if arguments.topology is None else arguments.topology
    if several:
        plans = plan.sweep(
            config,
            arguments.sweep or [topology],
            arguments.batches or [],
            until=arguments.until,
        )
        print(sweep_table(plans))
        if any(isinstance(made, Plan) and not made.fits for made in plans):
            print("what would make a slice fit, it alone with --remedy says")
        return
    made = plan.make_plan(config, topology, until=arguments.until)
    print(plan_table(made))
    if not made.fits and arguments.remedy:
        print(plan.find_remedy(config, made, arguments.until))
    elif not made.fits:
        instead = " in place of --until=trace" if arguments.until == "trace" else ""
        print(
            f"add --remedy{instead}: it compiles variants (rematerialisation, microbatches, fsdp, "
            "offload, bfloat16 moments) until one fits"
        )
