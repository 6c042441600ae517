"""What each `dmd2` command does with its flags: one call of a lower floor."""

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dmd2_jax.config.load import allowed_changes, apply_overrides, load_config
from dmd2_jax.config.refused import Refused

if TYPE_CHECKING:
    from dmd2_jax.sampling.prompts import PromptOptions


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


def sample(arguments: argparse.Namespace) -> None:
    """Draw images from a run or a pipeline."""
    if not (arguments.workdir or arguments.pipeline):
        raise Refused(
            "got neither --workdir nor --pipeline, expected one of them: a run of dmd2, or a "
            "folder of a diffusers pipeline."
        )
    if not arguments.workdir:
        _sample_pipeline(arguments)
        return
    from dmd2_jax.sampling.text_run import is_text_run

    (_sample_text_run if is_text_run(arguments.workdir) else _sample_run)(arguments)


def _sample_run(arguments: argparse.Namespace) -> None:
    from dmd2_jax.sampling.samplers import sample_run

    if given := _given(arguments, ("pipeline", *PROMPT_FLAGS)):
        raise Refused(
            f"--{given[0]} given with the run in {arguments.workdir}, which draws classes, "
            "expected a text-to-image model; leave it away."
        )
    num = 100 if arguments.num is None else arguments.num
    path = sample_run(
        arguments.workdir,
        arguments.out,
        num=num,
        seed=arguments.seed,
        classes=arguments.classes,
        which=arguments.which,
        ema=arguments.ema,
        weights=arguments.weights or "",
        checkpoint=arguments.checkpoint,
    )
    print(f"{num} images: {path}")


PROMPT_FLAGS = (
    "prompt",
    "prompts",
    "negative",
    "steps",
    "guidance",
    "batch_size",
    "dtype",
    "vae",
    "vae_dtype",
)


def _sample_pipeline(arguments: argparse.Namespace) -> None:
    from dmd2_jax.sampling.prompts import sample_pipeline

    if given := _given(arguments, ("classes", "ema", "weights", "checkpoint")):
        raise Refused(
            f"--{given[0]} given with --pipeline={arguments.pipeline}, expected it with a run's "
            "--workdir; leave it away, or make a pipeline of the run by `dmd2 export`."
        )
    options = _prompt_options(arguments)
    path = sample_pipeline(arguments.pipeline, arguments.out, options)
    print(f"{_images(options.num)} of each prompt: {path}")


def _sample_text_run(arguments: argparse.Namespace) -> None:
    from dmd2_jax.sampling.prompts import sample_text_run

    if arguments.classes is not None:
        raise Refused(
            f"--classes given with the run in {arguments.workdir}, which draws prompts, expected "
            "--prompt or --prompts; leave it away."
        )
    options = _prompt_options(arguments)
    path = sample_text_run(
        arguments.workdir,
        arguments.out,
        options,
        ema=arguments.ema,
        weights=arguments.weights or "",
        checkpoint=arguments.checkpoint,
        pipeline=arguments.pipeline or "",
    )
    print(f"{_images(options.num)} of each prompt: {path}")


def _images(number: int) -> str:
    return f"{number} image{'' if number == 1 else 's'}"


def _prompt_options(arguments: argparse.Namespace) -> "PromptOptions":
    from dmd2_jax.sampling.prompts import PromptOptions

    names = _given(arguments, (*PROMPT_FLAGS, "num", "which"))
    return PromptOptions(seed=arguments.seed, **{name: getattr(arguments, name) for name in names})


def _given(arguments: argparse.Namespace, names: Sequence[str]) -> list[str]:
    """Return those of the flags that were given."""
    return [name for name in names if getattr(arguments, name) is not None]


def convert(arguments: argparse.Namespace) -> None:
    """Convert weights."""
    from dmd2_jax.commands.convert.convert import convert, recipe_lines

    if arguments.config is None and arguments.overrides:
        raise Refused(
            f"--config.{next(iter(arguments.overrides))} changes a recipe, expected one; add "
            "--config=FILE."
        )
    if arguments.target is None:
        print(recipe_lines(arguments.source))
        return
    config = None
    if arguments.config is not None:
        config = load_config(arguments.config)
        apply_overrides(config, arguments.overrides)
    options = {name: getattr(arguments, name) for name in ("which", "ema", "prefix", "force")}
    print(convert(arguments.source, arguments.target, config=config, **options))


def evaluate(arguments: argparse.Namespace) -> None:
    """Measure a run, weights or a folder."""
    from dmd2_jax.evaluate.evaluate import (
        CURVE,
        EvaluateOptions,
        evaluate,
        figures_file,
        metrics_table,
    )

    names = [field.name for field in dataclasses.fields(EvaluateOptions)]
    options = EvaluateOptions(**{name: getattr(arguments, name) for name in names})
    metrics = evaluate(options)
    file = figures_file(options)
    print(metrics_table(metrics))
    print(f"figures: {file}")
    if options.all_checkpoints:
        print(f"curve: {file.with_name(CURVE)}")
    if options.write_reference:
        print(f"statistics of {metrics['reference']}: {options.write_reference}")


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


def export(arguments: argparse.Namespace) -> None:
    """Write a student for diffusers."""
    from dmd2_jax.commands.export.student import ExportOptions, export

    names = [field.name for field in dataclasses.fields(ExportOptions)]
    options = ExportOptions(**{name: getattr(arguments, name) for name in names})
    print(export(options, arguments.out))


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
