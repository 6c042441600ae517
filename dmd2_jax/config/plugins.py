"""Things that are found by name: a file of a folder of ours, or a dotted module of the user's own.

config.data.name=digits            dmd2_jax/data/digits.py
config.data.name=my_lab.shapes     the module my_lab.shapes, also of the current folder
"""

import ast
import difflib
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType

from dmd2_jax.config.refused import Refused

__all__ = ["available", "is_dotted", "load_plugin", "nearest", "require", "summary"]


def available(package: str, *, but: Sequence[str] = (), packages: bool = False) -> list[str]:
    """List the names that a folder of ours offers, in alphabetical order.

    Args:
      package: the folder as a module, "dmd2_jax.data".
      but: names that are none.
      packages: whether its sub-folders are what it offers, and not its files.
    """
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.submodule_search_locations
    modules = pkgutil.iter_modules(spec.submodule_search_locations)
    return sorted(m.name for m in modules if m.ispkg == packages and m.name not in but)


def is_dotted(name: str) -> bool:
    """Return whether a name is a dotted module of the user's own."""
    return "." in name and all(part.isidentifier() for part in name.split("."))


def load_plugin(
    name: str, package: str, what: str, *, known: Sequence[str], needs: Iterable[str] = ()
) -> ModuleType:
    """Import what a name stands for.

    Args:
      name: one of `known`, or a dotted module.
      package: the folder of the known ones, as a module.
      what: what asks for it, for errors: "config.data.name".
      known: from `available`.
      needs: names that the module has to define.

    Returns:
      The module.

    Raises:
      Refused: if there is no such module, it cannot be imported, or it lacks what is needed.
    """
    if not is_dotted(name):
        if name not in known:
            raise Refused(
                f"{what}={name!r}, expected one of {list(known)}, or a dotted module of your own, "
                f"such as my_lab.mine{nearest(name, known)}."
            )
        return importlib.import_module(f"{package}.{name}")
    module = _import_own(name, what)
    require(module, needs, what)
    return module


def require(module: ModuleType, needs: Iterable[str], what: str) -> None:
    """Refuse a module that does not define what is asked of its kind.

    Raises:
      Refused: naming what is missing.
    """
    missing = [need for need in needs if not hasattr(module, need)]
    if missing:
        raise Refused(
            f"{what}={module.__name__!r} ({module.__file__}) does not define "
            f"{' and '.join(missing)}, expected of such a module; docs/architecture.md says what "
            "each kind of module offers."
        )


def _import_own(name: str, what: str) -> ModuleType:
    here = str(Path.cwd())
    # An installed `dmd2` does not look in the folder that it is started in.
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
        importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise Refused(
                f"{what}={name!r} is no module that Python finds, expected one in {here} or "
                "installed; start dmd2 in the folder that holds it, or set PYTHONPATH."
            ) from error
        raise


def summary(module_file: Path) -> str:
    """Return the first line of a Python file's docstring, without running the file."""
    return (ast.get_docstring(ast.parse(module_file.read_text(encoding="utf-8"))) or "").split(
        "\n", 1
    )[0]


def nearest(word: object, candidates: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" of the candidate nearest to a word, or nothing."""
    names = list(candidates)
    close = difflib.get_close_matches(str(word), names, n=1, cutoff=0.5)
    if not close:  # the same last part elsewhere: `lr` for `optim.generator_lr`
        last = str(word).rsplit(".", 1)[-1]
        close = difflib.get_close_matches(last, [n.rsplit(".", 1)[-1] for n in names], n=1)
        close = [n for n in names if close and n.rsplit(".", 1)[-1] == close[0]][:1]
    return f"; did you mean {close[0]!r}?" if close else ""
