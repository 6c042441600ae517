"""The one rule of docs/architecture.md, measured: rooms and floors follow from the imports."""

import ast
import functools
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

import dmd2_jax

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "dmd2_jax"
MOST_FLOORS = 8
MOST_LOOSE_FILES = 6

DOORS = {"__init__", "main"}
"""The library's door and the old place of the command: they only hand on, and stand outside."""

Graph = dict[str, set[str]]


@functools.cache
def modules(package: Path = PACKAGE) -> dict[str, Path]:
    """Every module of the package, `a.b` for package/a/b.py and for package/a/b/__init__.py."""
    found = {}
    for file in sorted(package.rglob("*.py")):
        parts = file.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" and parts[1:] else parts)] = file
    return found


def imports(file: Path, known: Mapping[str, Path]) -> set[str]:
    """Every module of the package that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno} imports relatively"
            names = []
            for alias in node.names:  # `from dmd2_jax import data` imports dmd2_jax.data
                longer = f"{node.module}.{alias.name}"
                is_module = longer.removeprefix("dmd2_jax.") in known
                names.append(longer if is_module else str(node.module))
        else:
            continue
        found |= {n.removeprefix("dmd2_jax.") for n in names if n.startswith("dmd2_jax.")}
    return found


@functools.cache
def import_graph() -> Graph:
    known = modules()
    return {name: imports(file, known) for name, file in known.items()}


def folder_graph(graph: Graph, folder_of: Mapping[str, str]) -> Graph:
    """The arrows between folders that the arrows between modules make; none from one to itself."""
    found: Graph = {folder: set() for folder in folder_of.values()}
    for name, others in graph.items():
        for other in others:
            if name in folder_of and other in folder_of and folder_of[name] != folder_of[other]:
                found[folder_of[name]].add(folder_of[other])
    return found


def rooms(graph: Graph) -> Graph:
    """The rooms, folders and loose files of the package, and which they import from."""
    return folder_graph(graph, {n: n.partition(".")[0] for n in graph if n not in DOORS})


def folders_inside(graph: Graph, room: str) -> Graph:
    """The folders of a room and the arrows between them; its own files count as the folder "."."""
    place = PACKAGE.joinpath(*room.split("."))

    def folder(name: str) -> str:
        first = name.removeprefix(room).lstrip(".").partition(".")[0]
        return first if first and (place / first).is_dir() else "."

    inside = (name for name in graph if name == room or name.startswith(f"{room}."))
    return folder_graph(graph, {name: folder(name) for name in inside})


def folders() -> list[str]:
    """Every folder of the package as a module, rooms and folders inside them."""
    return [n for n, file in modules().items() if file.name == "__init__.py" and n not in DOORS]


def circle(graph: Graph) -> list[str]:
    """A way that ends where it begins; empty if there is none."""
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return []
        for other in sorted(graph[name]):
            if found := visit(other, (*way, name)):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(graph) if (found := visit(name, ()))), [])


def floors(graph: Graph) -> dict[str, int]:
    """Of each node of a graph without circles: 1 + the highest floor that it imports from."""
    found: dict[str, int] = {}

    def floor(name: str) -> int:
        if name not in found:
            found[name] = 1 + max((floor(other) for other in graph[name]), default=0)
        return found[name]

    for name in graph:
        floor(name)
    return found


NO_NAMES = {"", "__all__", "__file__", "tar"}
"""What follows a room without being a name in it: nothing, Python's own, dmd2_jax.tar.gz."""


def gone_modules(text: str) -> set[str]:
    """The dotted names in a text that are no module of the package and nothing that a room has."""
    known = {f"dmd2_jax.{name}": file for name, file in modules().items()}
    gone = set()
    for dotted in re.findall(r"\bdmd2_jax(?:\.[a-z_0-9]+)+", text):
        parts = dotted.split(".")
        places = [".".join(parts[:n]) for n in range(2, len(parts) + 1)]
        last = next((place for place in reversed(places) if place in known), "dmd2_jax")
        file = known.get(last, PACKAGE / "__init__.py")
        # What follows a room must stand in its __init__; what follows a file is its business.
        follows = dotted.removeprefix(last).lstrip(".").partition(".")[0]
        if file.name == "__init__.py" and follows not in names_in(file) | NO_NAMES:
            gone.add(dotted)
    return gone


def names_in(file: Path) -> set[str]:
    """Every name, and every text that is one word, in a file: imports and __all__."""
    nodes = list(ast.walk(ast.parse(file.read_text())))
    found = {alias.asname or alias.name for n in nodes for alias in getattr(n, "names", ())}
    return found | {n.value for n in nodes if isinstance(n, ast.Constant)}


def test_texts_name_modules_that_there_are() -> None:
    """Programs that tests start, and docs, are strings, which no import and no linter checks."""
    kinds = ("tests/**/*.py", "docs/**/*.md", "notebooks/*.ipynb", "benchmarks/*.py", "README.md")
    found = {
        f"{file.relative_to(ROOT)}: {name}"
        for kind in kinds
        for file in ROOT.glob(kind)
        for name in gone_modules(file.read_text())
    }
    assert found == set()


def test_texts_import_from_tests_that_there_are() -> None:
    found = {
        f"{file.relative_to(ROOT)}: {name}"
        for file in ROOT.glob("tests/**/*.py")
        for name in re.findall(r"from (tests(?:\.\w+)+) import", file.read_text())
        if not (ROOT / name.replace(".", "/")).with_suffix(".py").is_file()
        and not (ROOT / name.replace(".", "/")).is_dir()
    }
    assert found == set()


def test_gone_modules_finds_them() -> None:
    gone = "dmd2_jax." + "runtime.checkpoint"
    there = "dmd2_jax.run.checkpoint.save, dmd2_jax.data.load"
    assert gone_modules(f"import {gone}, {there}") == {gone}


def test_rooms_form_no_circle() -> None:
    assert circle(rooms(import_graph())) == []


@pytest.mark.parametrize("room", folders())
def test_folders_inside_a_room_form_no_circle(room: str) -> None:
    assert circle(folders_inside(import_graph(), room)) == []


@pytest.mark.parametrize("room", folders())
def test_init_of_a_room_is_one_sentence_and_hands_on(room: str) -> None:
    assert faults_of_init(modules()[room].read_text()) == []


def faults_of_init(source: str) -> list[str]:
    """What stands in an `__init__` beside one sentence, imports and __all__."""
    tree = ast.parse(source)
    sentence = ast.get_docstring(tree) or ""
    found = [] if re.fullmatch(r"(?:(?![.!?] ).)+\.", sentence) else [f"docstring: {sentence!r}"]
    for node in tree.body[1:]:
        is_list = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        if not is_list and not isinstance(node, ast.Import | ast.ImportFrom):
            found.append(f"line {node.lineno}: {ast.unparse(node)[:40]}")
    return found


@pytest.mark.parametrize(
    "source",
    [
        "",
        '"""No stop"""',
        '"""One. Two."""',
        '"""One\n\nMore."""',
        '"""One."""\nx = 1',
        '"""One."""\n\ndef f(): ...',
    ],
)
def test_faults_of_init_finds_them(source: str) -> None:
    assert faults_of_init(source)
    assert not faults_of_init('"""One, of data.x."""\nfrom a import b\n__all__ = ["b"]')


def test_folders_inside_sees_a_circle() -> None:
    graph = {"data": set(), "data.idx": {"data.reading.open"}, "data.reading.open": {"data.idx"}}
    assert circle(folders_inside(graph, "data")) == [".", "reading", "."]
    assert not circle(folders_inside(graph | {"data.reading.open": {"data.reading.x"}}, "data"))


def test_errors_made_on_purpose_are_refused() -> None:
    """A plain ValueError is shown as a fault of the program, with its traceback."""
    plain = {"ValueError", "TypeError", "FileNotFoundError", "ImportError", "KeyError"}
    found = [
        f"{name}:{node.lineno}"
        for name, file in modules().items()
        if name != "typing"  # arrays that do not fit are a fault of the program
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in plain
    ]
    assert found == []


READS_THE_COMMAND_LINE = {"config.flags", "config.load"}
"""--config.KEY=VALUE is split off and checked there, and help is made."""

PROGRAMS = ("dmd2", "tfds", "tensorboard")
"""A message may say what to run: a whole command, of ours or of another's."""


def flags_named(tree: ast.Module) -> list[str]:
    """The flags that the texts of a file speak of, help of flags and docstrings left aside."""
    aside = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    texts = []
    for node in ast.walk(tree):  # from the outside in
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "flag":
            aside |= {id(part) for part in ast.walk(node)}
        elif isinstance(node, ast.JoinedStr) and id(node) not in aside:
            parts = {id(part): getattr(part, "value", "") for part in node.values}
            texts.append("".join(it if isinstance(it, str) else "X" for it in parts.values()))
            aside |= parts.keys()
        elif isinstance(node, ast.Constant) and id(node) not in aside:
            texts.append(str(node.value))
    whole = rf"\b(?:{'|'.join(PROGRAMS)}) [^`;.]*"
    return [
        flag
        for text in texts
        for flag in re.findall(r"--(?!xla_)[a-z]\w*", re.sub(whole, "", text))
    ]


def test_messages_below_the_commands_name_no_flags() -> None:
    """Python calls these rooms too: `argument=` and `config.key=` become flags in the command."""
    found = {
        name: flags
        for name, file in modules().items()
        if name.partition(".")[0] != "commands" and name not in READS_THE_COMMAND_LINE
        if (flags := flags_named(ast.parse(file.read_text())))
    }
    assert found == {}


def test_flags_named_finds_them() -> None:
    source = '''"""Of --docstrings."""
num: int = flag("as --many", default=0)
raise Refused(f"--num={num}, expected `dmd2 data --path=DIR`; leave --num away.")
'''
    assert flags_named(ast.parse(source)) == ["--num", "--num"]


def test_rooms_stand_on_few_floors() -> None:
    found = floors(rooms(import_graph()))
    assert max(found.values()) <= MOST_FLOORS, sorted(found.items(), key=lambda it: it[1])


def test_commands_stand_on_top() -> None:
    assert all("commands" not in others for others in rooms(import_graph()).values())


def test_package_has_few_loose_files() -> None:
    loose = [file.name for file in PACKAGE.glob("*.py")]
    assert len(loose) <= MOST_LOOSE_FILES, loose


def test_circle_finds_one() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_floors_counts_the_longest_way() -> None:
    assert floors({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == {"a": 3, "b": 2, "c": 1}


def test_import_graph_sees_imports_of_every_form() -> None:
    graph = import_graph()
    assert "typing" in graph["denoiser"]  # from dmd2_jax.typing import ...
    assert "data" in graph["recipe.open"]  # from dmd2_jax import data
    assert "commands.demo.story" in graph["commands.demo.command"]  # inside a function


LIGHT = "dmd2_jax, dmd2_jax.distill, dmd2_jax.diffusion, dmd2_jax.losses, dmd2_jax.networks"
HEAVY = (
    "tensorflow",
    "tensorflow_datasets",
    "torch",
    "diffusers",
    "transformers",
    "orbax",
    "sklearn",
    "matplotlib",
    "PIL",
    "tqdm",
    "safetensors",
    "huggingface_hub",
    "ml_collections",
    "array_record",
    "grain",
)


def imported_modules(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules)"],
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        cwd=ROOT,
        check=True,
    )
    return set(done.stdout.split())


def test_library_import_is_light() -> None:
    assert sorted(imported_modules(f"import {LIGHT}") & set(HEAVY)) == []


def test_config_import_knows_no_jax() -> None:
    assert not {"jax", "flax"} & imported_modules("import dmd2_jax, dmd2_jax.config.load")


def test_door_gives_every_name_it_lists() -> None:
    for name in dmd2_jax.__all__:
        assert getattr(dmd2_jax, name) is not None
    assert set(dmd2_jax.__all__) <= set(dir(dmd2_jax))
