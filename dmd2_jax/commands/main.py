"""The `dmd2` command: finds the commands, reads their flags, gives their exit codes.

A command is a file of this folder, or a folder of it with a command.py; one of the user's own is a
dotted module, `dmd2 my_lab.my_command --flag`. It has
  its docstring   the help: the first line in the list of commands, all of it in its own --help
  Options         a frozen dataclass whose fields are declared by `dmd2_jax.config.flags.flag`;
                  a field `overrides` that is no flag takes what --config.KEY=VALUE say
  run(options)    what it does; if what it returns has an `exit_code`, that is the command's
and may have
  RESUMES         true: the same command again goes on, so that SIGTERM and SIGHUP are no failure
  SEVERAL         true: several processes can do it together
  GROUPS          heading of flags -> what stands under it
"""

import argparse
import dataclasses
import importlib
import inspect
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from dmd2_jax.config import flags, plugins
from dmd2_jax.config.load import parse_overrides
from dmd2_jax.config.printable import PrintableFormatter, printable
from dmd2_jax.config.refused import Refused
from dmd2_jax.version import __version__

__all__ = ["main"]

_PACKAGE = "dmd2_jax.commands"
_HERE = Path(__file__).parent
_NO_COMMANDS = ("main",)

_OVERRIDES = """
every value of the config can be changed on the command line, by its name:
  --config.optim.generator_lr=1e-4   --config.distill.student_times=80,20
  --config.distill.gan_generator_weight=None
dmd2_jax/config/defaults.py lists and explains them all. A dash in a name is an underscore:
--dry-run is --dry_run.
"""

_PROCESSES = (
    "one run of several machines: the same command in each, with the same --workdir on a\n"
    "shared disk; or from the environment, see docs/scaling.md and launch/"
)

_AGAIN = "The same command again, in as many processes as are left, goes on from the last one."


class _Command(NamedTuple):
    """The command that was chosen.

    Attributes:
      name: as it is typed.
      parser: of its flags.
      run: (arguments, changes to the config) -> what the command does.
      flags: the names of all that can be typed.
      overrides: whether --config.KEY=VALUE can be given.
      resumes: see the module.
      several: see the module.
    """

    name: str
    parser: argparse.ArgumentParser
    run: Callable[[argparse.Namespace, Mapping[str, str]], Any]
    flags: frozenset[str]
    overrides: bool
    resumes: bool = False
    several: bool = False


def main(argv: Sequence[str] | None = None) -> int:
    """Run one `dmd2` command.

    Args:
      argv: the arguments after the program's name; those of the process by default.

    Returns:
      The exit code: 0 done (or stopped by SIGTERM or SIGHUP and saved), 2 refused input, 1 failed
      or a verdict that something is wrong, 130 stopped by Ctrl-C.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter("%(levelname)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.captureWarnings(True)
    try:
        return _chosen(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:  # while modules are imported, too
        _say("interrupted before there was anything to save.")
        return 130


def _chosen(argv: Sequence[str]) -> int:
    """Find the command and its flags, run it, return its exit code."""
    try:
        overrides, words = parse_overrides(argv)
        words = flags.spelt(words)
        if words and not plugins.is_dotted(words[0]):
            words[0] = words[0].replace("_", "-")
        parser, command = _parser(words[0] if words else "")
        if command is None:
            parser.parse_args(words)
        assert command is not None  # or else the parser has ended the process
        # Before argparse says what is missing, which is often what was written wrong.
        unknown = flags.unknown_flags(words[1:], command.flags)
        if not unknown:
            arguments, unknown = parser.parse_known_args(words)
        if unknown:
            near = flags.nearest_flag(unknown[0], command.flags)
            command.parser.error(f"unrecognized arguments: {' '.join(unknown)}{near}")
        if overrides and not command.overrides:
            raise Refused(
                f"--config.{next(iter(overrides))} given to `dmd2 {command.name}`, which "
                "takes none, or takes its config from the run folder; leave it away."
            )
        # Before JAX is imported: the process that supervises needs none of it.
        place = _place(command, arguments)
    except Refused as error:
        return _refuse(str(error))
    return _run(command, arguments, overrides, place)


def _run(
    command: _Command, arguments: argparse.Namespace, overrides: Mapping[str, str], place: Any
) -> int:
    """Call the command, turning what the user can mend into a message and an exit code."""
    from jax.errors import JaxRuntimeError

    from dmd2_jax.run.checkpoint import CheckpointError
    from dmd2_jax.run.loop import DivergedError
    from dmd2_jax.runtime.distributed import PeerError, join
    from dmd2_jax.runtime.platform import no_device, prepare_backend
    from dmd2_jax.runtime.preemption import Interrupted, stoppable
    from dmd2_jax.runtime.supervisor import LOST
    from dmd2_jax.runtime.usable import mendable

    together = place is not None
    try:
        if place is not None:
            prepare_backend()
            join(place)
        # What cannot be resumed has not done what it was asked when it is stopped. Processes that
        # have joined hear SIGTERM in the training loop, together.
        resumable = command.resumes and not together
        with stoppable("The same command again goes on.") if resumable else nullcontext():
            if not together:
                prepare_backend()
            done = command.run(arguments, overrides)
    except Interrupted as stop:
        _say(str(stop))
        return stop.exit_code or int(os.environ.get("DMD2_EXIT_WHEN_SAVED") or 0)
    except Refused as error:
        if arguments.debug:
            raise
        return _refuse(flags.as_flags(str(error), command.flags, keys=command.overrides))
    except (CheckpointError, DivergedError, PeerError, OSError) as error:
        if arguments.debug:
            raise
        told = mendable(error) if isinstance(error, OSError) else ""
        _say(told or flags.as_flags(str(error), command.flags, keys=command.overrides))
        return 2 if told else 1
    except JaxRuntimeError as error:  # a peer's end, where it does not abort this process as well
        if arguments.debug or not together:
            raise
        _say(f"{str(error).partition(chr(10))[0]}: {LOST} {_AGAIN}")
        return 1
    except (RuntimeError, AssertionError) as error:
        told = no_device(error)
        if arguments.debug or not told:
            raise
        _say(told)
        return 2
    return getattr(done, "exit_code", 0)


def _place(command: _Command, arguments: argparse.Namespace) -> Any:
    """Return this process's place among several, None if it is alone; several are supervised."""
    from dmd2_jax.runtime.processes import JoinError, Place, find_place
    from dmd2_jax.runtime.supervisor import supervise

    place = find_place(Place(*(getattr(arguments, name, None) for name in Place._fields)))
    if place is not None and not command.several:
        raise JoinError(
            f"`dmd2 {command.name}` is the work of one process, got an environment of "
            f"several (DMD2_COORDINATOR or DMD2_DISTRIBUTED), expected none; unset them."
        )
    if place is not None:
        supervise(_AGAIN)
    return place


def _refuse(message: str) -> int:
    _say(message)
    return 2


def _say(message: str) -> None:
    print(f"dmd2: {printable(message)}", file=sys.stderr)


def _parser(chosen: str) -> tuple[argparse.ArgumentParser, _Command | None]:
    """Return the parser of all commands, and the one that is chosen, which alone is imported."""
    parser = argparse.ArgumentParser(
        prog="dmd2",
        description="Distil a diffusion teacher into a one- or few-step generator (DMD2).",
        epilog="start with:  dmd2 demo      then:  dmd2 COMMAND --help\n"
        "a command of your own:  dmd2 my_lab.my_command  runs a module with Options and run;\n"
        "docs/architecture.md says what it offers",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"dmd2_jax {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command, files = None, _files()
    for name, file in files.items():
        if name == chosen:
            module = importlib.import_module(f"{_PACKAGE}.{_dotted(file)}")
            command = _add_command(commands, name, module)
        else:
            commands.add_parser(name, help=plugins.summary(file).replace("%", "%%"))
    if plugins.is_dotted(chosen) and not chosen.startswith("-"):
        needs = ("Options", "run")
        module = plugins.load_plugin(chosen, _PACKAGE, "the command", known=(), needs=needs)
        if not dataclasses.is_dataclass(module.Options):
            raise Refused(
                f"{chosen}.Options is {module.Options!r}, expected a frozen dataclass of the "
                "command's flags; decorate it with @dataclasses.dataclass(frozen=True)."
            )
        command = _add_command(commands, chosen, module)
    if chosen and not chosen.startswith("-") and command is None:
        near = plugins.nearest(chosen.replace("-", "_"), [it.replace("-", "_") for it in files])
        raise Refused(
            f"invalid choice: {chosen!r}, expected one of the commands {', '.join(files)}"
            f"{near.replace('_', '-') or '; `dmd2 --help` says what they do.'}"
        )
    return parser, command


def _files() -> dict[str, Path]:
    """Return the commands there are: as they are typed -> their files."""
    names = plugins.available(_PACKAGE, but=_NO_COMMANDS)
    found = {name: _HERE / f"{name}.py" for name in names}
    for name in plugins.available(_PACKAGE, packages=True):
        found[name] = _HERE / name / "command.py"
    return {n.replace("_", "-"): found[n] for n in sorted(found) if found[n].is_file()}


def _dotted(file: Path) -> str:
    return ".".join(file.relative_to(_HERE).with_suffix("").parts)


def _add_command(commands: argparse._SubParsersAction, name: str, module: ModuleType) -> _Command:
    """Add the parser of a command that is imported."""
    fields = {field.name for field in dataclasses.fields(module.Options)}
    text = inspect.cleandoc(module.__doc__ or "")
    parser = commands.add_parser(
        name,
        help=text.partition("\n")[0].replace("%", "%%"),
        description=text,
        epilog=_OVERRIDES if "overrides" in fields else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    flags.add_flags(parser, module.Options, getattr(module, "GROUPS", None))
    several = getattr(module, "SEVERAL", False)
    names = flags.flag_names(module.Options) | {"debug", "help"}
    if several:
        names |= {"coordinator", "num_processes", "process_id"}
        group = parser.add_argument_group("several processes", _PROCESSES)
        group.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
        group.add_argument("--num_processes", metavar="N", help="how many there are")
        group.add_argument("--process_id", metavar="I", help="this one's number, 0 to N-1")
    parser.add_argument(
        "--debug", action="store_true", help="show the traceback of refused input too"
    )

    def run(arguments: argparse.Namespace, overrides: Mapping[str, str]) -> Any:
        others = {"overrides": overrides} if "overrides" in fields else {}
        options = flags.options_from(module.Options, arguments, **others)
        if not plugins.is_dotted(name):  # whose paths may be anything
            _check_places(options)
        return module.run(options)

    resumes = getattr(module, "RESUMES", False)
    return _Command(name, parser, run, names, "overrides" in fields, resumes, several)


def _check_places(options: Any) -> None:
    """Refuse places that nothing here reads or writes, or may not write to, before any work."""
    from dmd2_jax.runtime.places import check_place
    from dmd2_jax.runtime.usable import check_output
    from dmd2_jax.weights.hub import is_hub_path

    for path in flags.paths(options):
        if not is_hub_path(path):  # which is for what reads weights to say
            check_place(path)
    for path, is_file in flags.outputs(options).items():
        check_output(path, is_file=is_file)


if __name__ == "__main__":
    sys.exit(main())
