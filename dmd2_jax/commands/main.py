"""The `dmd2` command: flags and a config file in, one call of a lower floor, an exit code out."""

import argparse
import dataclasses
import importlib
import inspect
import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType

from dmd2_jax.commands import calls as run
from dmd2_jax.commands.ablate.flags import add_ablate
from dmd2_jax.commands.report_flags import add_report
from dmd2_jax.commands.text2image_flags import add_cache, add_make_pairs
from dmd2_jax.config import flags, plugins
from dmd2_jax.config.load import parse_overrides
from dmd2_jax.config.refused import Refused
from dmd2_jax.version import __version__

__all__ = ["main"]

_COMMANDS = "dmd2_jax.commands"

_OVERRIDES = """
every value of the config can be changed on the command line, by its name:
  --config.optim.generator_lr=1e-4   --config.distill.student_times=80,20
  --config.distill.gan_generator_weight=None
configs/common.py lists and explains them all.
"""

_AGAIN = "The same command again, in as many processes as are left, goes on from the last one."


def main(argv: Sequence[str] | None = None) -> int:
    """Run one `dmd2` command.

    Args:
      argv: the arguments after the program's name; those of the process by default.

    Returns:
      The exit code: 0 done (or stopped by SIGTERM and saved), 2 refused input, 1 failed,
      130 stopped by Ctrl-C.
    """
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    logging.captureWarnings(True)
    try:
        overrides, others = parse_overrides(sys.argv[1:] if argv is None else argv)
        arguments = _parser(others[0] if others else None).parse_args(others)
        if overrides and not hasattr(arguments, "config"):
            raise Refused(
                f"--config.{next(iter(overrides))} given to `dmd2 {arguments.command}`, which "
                f"takes its config from the run folder; leave it away."
            )
    except Refused as error:
        return _refuse(error)
    arguments.overrides = overrides
    return _run(arguments.function, arguments)


def _run(function: Callable[[argparse.Namespace], None], arguments: argparse.Namespace) -> int:
    """Call the command, turning what the user can mend into a message and an exit code."""
    from jax.errors import JaxRuntimeError

    from dmd2_jax.run.checkpoint import CheckpointError
    from dmd2_jax.run.loop import DivergedError
    from dmd2_jax.runtime.distributed import PeerError
    from dmd2_jax.runtime.platform import prepare_backend
    from dmd2_jax.runtime.preemption import Interrupted, stoppable
    from dmd2_jax.runtime.supervisor import LOST

    together = False
    try:
        together = _joined(arguments)
        # What cannot be resumed has not done what it was asked when it is stopped. Processes that
        # have joined hear SIGTERM in the training loop, together.
        resumable = (
            getattr(arguments, "resumes", False)
            or arguments.command
            in ("train-teacher", "distill", "demo", "ablate", "cache", "make-pairs")
        ) and not together
        with stoppable("The same command again goes on.") if resumable else nullcontext():
            if not together:
                prepare_backend()
            function(arguments)
    except Interrupted as stop:
        print(f"dmd2: {stop}", file=sys.stderr)
        return stop.exit_code or int(os.environ.get("DMD2_EXIT_WHEN_SAVED") or 0)
    except KeyboardInterrupt:
        print("dmd2: interrupted before there was anything to save.", file=sys.stderr)
        return 130
    except Refused as error:
        if arguments.debug:
            raise
        return _refuse(error)
    except (CheckpointError, DivergedError, PeerError, OSError) as error:
        if arguments.debug:
            raise
        print(f"dmd2: {error}", file=sys.stderr)
        return 1
    except JaxRuntimeError as error:  # a peer's end, where it does not abort this process as well
        if arguments.debug or not together:
            raise
        print(f"dmd2: {str(error).partition(chr(10))[0]}: {LOST} {_AGAIN}", file=sys.stderr)
        return 1
    return 0


def _joined(arguments: argparse.Namespace) -> bool:
    """Join the other processes of the run, if there are any; return whether there are."""
    from dmd2_jax.runtime.distributed import JoinError, Place, find_place, join
    from dmd2_jax.runtime.platform import prepare_backend
    from dmd2_jax.runtime.supervisor import supervise

    names = Place._fields
    place = find_place(Place(*(getattr(arguments, name, None) for name in names)))
    if place is None:
        return False
    if not hasattr(arguments, "coordinator"):
        raise JoinError(
            f"`dmd2 {arguments.command}` is the work of one process, got an environment of "
            f"several (DMD2_COORDINATOR or DMD2_DISTRIBUTED), expected none; unset them."
        )
    supervise(_AGAIN)
    prepare_backend()
    join(place)
    return True


def _refuse(error: Exception) -> int:
    print(f"dmd2: {error}", file=sys.stderr)
    return 2


_NO_COMMANDS = ("main", "calls", "demo")  # and flags of commands that are not converted yet


def _files() -> list[str]:
    """List the commands there are: files of this folder, and folders of it with a command.py."""
    files = plugins.available(_COMMANDS, but=_NO_COMMANDS)
    folders = plugins.available(_COMMANDS, packages=True)
    here = Path(__file__).parent
    with_command = [name for name in folders if (here / name / "command.py").is_file()]
    return sorted([n for n in files if not n.endswith("_flags")] + with_command)


def _add_command(commands: argparse._SubParsersAction, name: str, chosen: str | None) -> None:
    """Add a command; only the one that is chosen is imported."""
    here = Path(__file__).parent
    typed = name if plugins.is_dotted(name) else name.replace("_", "-")
    if typed != chosen and not plugins.is_dotted(name):
        file = here / f"{name}.py"
        file = file if file.is_file() else here / name / "command.py"
        commands.add_parser(typed, help=plugins.summary(file))
        return
    module = _import_command(name)
    text = inspect.cleandoc(module.__doc__ or "")
    parser = commands.add_parser(
        typed,
        help=text.partition("\n")[0],
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    flags.add_flags(parser, module.Options, getattr(module, "GROUPS", None))
    fields = {field.name for field in dataclasses.fields(module.Options)}
    if getattr(module, "SEVERAL", False):
        _add_processes(parser)
    parser.add_argument(
        "--debug", action="store_true", help="show the traceback of refused input too"
    )

    def function(arguments: argparse.Namespace) -> None:
        others = {"overrides": arguments.overrides} if "overrides" in fields else {}
        module.run(flags.options_from(module.Options, arguments, **others))

    parser.set_defaults(function=function, resumes=getattr(module, "RESUMES", False))


def _import_command(name: str) -> ModuleType:
    needs = ("Options", "run")
    if plugins.is_dotted(name):
        return plugins.load_plugin(name, _COMMANDS, "the command", known=(), needs=needs)
    folder = (Path(__file__).parent / name).is_dir()
    return importlib.import_module(f"{_COMMANDS}.{name}" + (".command" if folder else ""))


def _add_processes(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "several processes",
        "one run of several machines: the same command in each, with the same --workdir on a\n"
        "shared disk; or from the environment, see docs/scaling.md and launch/",
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
    group.add_argument("--num_processes", metavar="N", help="how many there are")
    group.add_argument("--process_id", metavar="I", help="this one's number, 0 to N-1")


def _parser(chosen: str | None = None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dmd2",
        description="Distil a diffusion teacher into a one- or few-step generator (DMD2).",
        epilog="start with:  dmd2 demo      then:  dmd2 COMMAND --help",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"dmd2_jax {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in _files():
        _add_command(commands, name, chosen)
    _add_training(
        commands,
        "train-teacher",
        run.train_teacher,
        "train a diffusion model with EDM's objective",
        "dmd2 train-teacher --config=configs/digits.py --workdir=runs/teacher",
        "teacher.safetensors (the moving average of the weights)",
    )
    _add_training(
        commands,
        "distill",
        run.distill,
        "distil a teacher into a student of one or a few steps",
        "dmd2 distill --config=configs/digits.py --workdir=runs/student \\\n"
        "    --config.teacher.weights=runs/teacher",
        "student.safetensors and one student_ema_DECAY.safetensors for each average",
    )
    add_report(_add, commands)
    add_ablate(_add, commands)
    _add_data(commands)
    add_cache(_add, commands)
    add_make_pairs(_add, commands)
    _add_demo(commands)
    _add_plan(commands)
    if chosen is not None and plugins.is_dotted(chosen) and not chosen.startswith("-"):
        _add_command(commands, chosen, chosen)
    return parser


def _add(
    commands: argparse._SubParsersAction,
    name: str,
    function: Callable[[argparse.Namespace], None],
    summary: str,
    description: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=summary,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(function=function)
    parser.add_argument(
        "--debug", action="store_true", help="show the traceback of refused input too"
    )
    return parser


def _add_training(
    commands: argparse._SubParsersAction,
    name: str,
    function: Callable[[argparse.Namespace], None],
    summary: str,
    example: str,
    written: str,
) -> None:
    parser = _add(
        commands,
        name,
        function,
        summary,
        f"{summary[0].upper()}{summary[1:]}.\n\nexample:\n  {example}\n\nwrites into --workdir: "
        f"config.json, metrics.jsonl, speed.jsonl, curves.png, grid_*.png,\n  progress.gif, "
        f"checkpoints/, {written}.\n\n"
        "The same command again resumes where the run stopped. Ctrl-C saves first; so does\n"
        "SIGTERM. A folder that holds a run of another config is refused, unless what differs\n"
        "is named by --allow_change. docs/durability.md has the details.\n"
        f"{_OVERRIDES}",
    )
    parser.add_argument(
        "--config", required=True, metavar="FILE", help="a recipe: configs/digits.py, or digits"
    )
    parser.add_argument("--workdir", required=True, metavar="DIR", help="the run folder")
    parser.add_argument(
        "--allow_change",
        action="append",
        default=[],
        metavar="KEYS",
        help="keys of the config that may differ from the resumed run's: optim.critic_lr,data",
    )
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="check config, data, weights, devices and disk, print sizes, and stop",
    )
    group = parser.add_argument_group(
        "several processes",
        "one run of several machines: the same command in each, with the same --workdir on a\n"
        "shared disk; or from the environment, see docs/scaling.md and launch/",
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
    group.add_argument("--num_processes", metavar="N", help="how many there are")
    group.add_argument("--process_id", metavar="I", help="this one's number, 0 to N-1")
    parser.add_argument(
        "--profile",
        nargs="?",
        type=_span,
        const=(1, 3),
        metavar="START:COUNT",
        help="let START steps (cycles) of this process pass, then trace COUNT for a profiler, into "
        "DIR/profile; alone 1:3, the three after the first, which compiles",
    )


def _add_data(commands: argparse._SubParsersAction) -> None:
    parser = _add(
        commands,
        "data",
        run.data,
        "list the data sources, check one from end to end, or write it as array_record",
        "Without --config, list the sources: the values of config.data.name.\n\n"
        "With --config, read every image of the data that it names, and print counts, shapes, a\n"
        "histogram of the classes and the files that cannot be decoded; the first images go to a\n"
        "PNG. With --write, write them as array_record shards, the fastest source there is.\n\n"
        "example:\n  dmd2 data --config=digits\n"
        "  dmd2 data --config=digits --config.data.name=image_folder \\\n"
        "    --config.data.path=images.zip --config.data.resolution=64\n"
        "  dmd2 data --config=digits --write=shards\n\n"
        "writes --out, or the new folder --write: info.json and *.array_record. See docs/data.md.",
    )
    parser.add_argument("--config", metavar="FILE", help="a recipe; its config.data counts")
    parser.add_argument("--out", default="data.png", metavar="PNG", help="default: data.png")
    parser.add_argument("--write", metavar="DIR", help="write array_record there, and no PNG")
    parser.add_argument(
        "--encoding",
        choices=("raw", "png"),
        default="raw",
        help="of the images that --write writes: raw is faster to read, png smaller; default: raw",
    )


def _add_demo(commands: argparse._SubParsersAction) -> None:
    parser = _add(
        commands,
        "demo",
        run.demo,
        "train, distil, sample and measure on handwritten digits, in minutes",
        "Train a teacher on 1,797 real handwritten digits, distil it to ONE step, sample and\n"
        "measure both, and print one table. Needs no network and no accelerator.\n\n"
        "example:\n  dmd2 demo\n\nwrites into --workdir: summary.png, metrics.json, and the run "
        "folders teacher/ and student/.",
    )
    parser.add_argument("--workdir", default="runs/demo", metavar="DIR", help="default: runs/demo")
    parser.add_argument("--config", default="digits", metavar="FILE", help="default: digits")


def _add_plan(commands: argparse._SubParsersAction) -> None:
    parser = _add(
        commands,
        "plan",
        run.plan,
        "what a recipe needs on a TPU slice that need not be there",
        "Compile a recipe's real cycle ahead of time for a TPU slice (none needed) or for this\n"
        "machine, and print whether it fits, the memory by owner, arithmetic, memory traffic,\n"
        "collectives, the time of a cycle by the roofline, and days and chip-hours of the\n"
        "recipe (on this machine too, where its GPUs or TPUs have published peaks).\n"
        "Data and weights are not opened. TPU slices need the extra [plan].\n\nexamples:\n"
        "  dmd2 plan --config=configs/imagenet64.py --topology=v5p:2x2x2\n"
        "  dmd2 plan --config=configs/imagenet64.py --sweep=v5e:2x4,v6e:2x4,v5p:2x2x1\n"
        "  dmd2 plan --config=configs/imagenet64.py --topology=v5e:2x4 --remedy\n"
        "  dmd2 plan --config=configs/sd15.py --topology=v5e:8x8 --config.mesh.fsdp=8\n"
        "  dmd2 plan --config=configs/sdxl_four_step.py --topology=v5p:4x4x4 --until=trace\n"
        f"{_OVERRIDES}",
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="a recipe")
    parser.add_argument("--topology", metavar="CHIP:SHAPE", help="default: local, this machine")
    parser.add_argument(
        "--sweep", type=_slices, metavar="A,B,...", help="several topologies, compared in one table"
    )
    parser.add_argument(
        "--batches",
        type=_batch_sizes,
        metavar="N,M,...",
        help="several global batch sizes, in the same table",
    )
    parser.add_argument(
        "--until",
        choices=("trace", "buffers", "program"),
        help="how far to go: `trace`, without compiling, knows weights, states, arithmetic and the "
        "least time for it; `buffers` compiles until the memory is known and makes no machine code "
        "(on TPUs minutes in place of most of an hour for large networks), `program` to the end; "
        "default: `buffers` for a slice, `program` for this machine",
    )
    parser.add_argument(
        "--remedy",
        action="store_true",
        help="where it does not fit, compile variants until one does (minutes each)",
    )


def _slices(text: str) -> list[str]:
    names = [part.strip() for part in text.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text!r}, expected topologies like v5e:8x8,v6e:4x4")
    return names


def _batch_sizes(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r}, expected whole numbers from 1 like 64,128")
    return [int(part) for part in parts]


def _span(text: str) -> tuple[int, int]:
    start, colon, count = text.partition(":")
    if not (colon and start.isdecimal() and count.isdecimal() and int(count) >= 1):
        raise argparse.ArgumentTypeError(
            f"{text!r}, expected START:COUNT with START >= 0 and COUNT >= 1, for example 1:3"
        )
    return int(start), int(count)


if __name__ == "__main__":
    sys.exit(main())
