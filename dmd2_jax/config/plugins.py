"""Things that are found by name: a file of a folder of ours, or a dotted module of the user's own.

config.data.name=digits            dmd2_jax/data/digits.py
config.data.name=my_lab.shapes     the module my_lab.shapes, also of the current folder
"""

import ast
import difflib
import importlib
import importlib.util
import itertools
import pkgutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType

from dmd2_jax.config.refused import Refused

__all__ = [
    "available",
    "is_dotted",
    "load_plugin",
    "nearest",
    "nearest_or_stop",
    "require",
    "summary",
]


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
                f"such as my_lab.mine{nearest_or_stop(name, known)}"
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
    return (ast.get_docstring(ast.parse(module_file.read_bytes())) or "").partition("\n")[0]


def nearest_or_stop(word: object, candidates: Iterable[str]) -> str:
    """Return what ends a sentence: `nearest`, or a full stop."""
    return nearest(word, candidates) or "."


def nearest(word: object, candidates: Iterable[str]) -> str:
    """Return "; did you mean 'x' or 'y'?" of what a word may have meant, or nothing.

    Meaning comes before spelling: what has all parts of the word, first in the same group
    (`optim.lr`: 'optim.critic_lr' or 'optim.generator_lr'), then in any; then what is spelt like
    it in its group; then what is spelt like it at all.

    Args:
      word: what was written.
      candidates: what there is; dots make groups, underscores parts.
    """
    names, (group, name) = list(candidates), _split(str(word))
    groups = sorted({_split(other)[0] for other in names})
    group = (difflib.get_close_matches(group, groups, n=1, cutoff=0.6) or [group])[0]
    own = [other for other in names if _split(other)[0] == group]
    meant = _same_parts(name, own) or _same_parts(name, names)
    if not meant:
        close = difflib.get_close_matches(name, [_split(other)[1] for other in own], n=1)
        meant = [other for other in own if _split(other)[1] in close]
    # A group that is right makes every key of it look near.
    alike = difflib.get_close_matches(str(word), names, n=1, cutoff=0.75 if group else 0.5)
    meant = meant or alike
    said = meant[: 3 if groups != [""] else 1]
    return f"; did you mean {' or '.join(map(repr, said))}?" if said else ""


_SAME = {
    "learning": "lr",
    "rate": "lr",
    **dict.fromkeys(("cycles", "iterations", "iters", "epochs"), "steps"),
}
"""Parts of names that mean the same here and elsewhere."""


def _split(key: str) -> tuple[str, str]:
    group, _, name = key.rpartition(".")
    return group, name


def _parts(name: str) -> list[str]:
    return [_SAME.get(part, part) for part in name.lower().split("_") if part]


def _same_parts(name: str, keys: Sequence[str]) -> list[str]:
    """Return the keys that have all parts of a name, best first: those that end like it alone."""
    wanted, found = _parts(name), []
    for key in keys:
        own = _split(key)[1]
        parts = _parts(own)
        if all(any(_same_stem(one, other) for other in parts) for one in wanted or [""]):
            ends = _same_stem(wanted[-1], parts[-1])
            found.append((not ends, own != name, len(parts), key))
    return [key for differs, *_, key in sorted(found) if differs == min(found)[0]]


def _same_stem(one: str, other: str) -> bool:
    """Return whether two words are one, or begin alike for most of their length."""
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    alike = len(list(pairs))
    return one == other or (alike >= 4 and alike >= 0.7 * max(len(one), len(other)))
