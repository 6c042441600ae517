"""What the site shows beside the files of docs/; mkdocs.yml names this file.

- The README is the first page.
- Reference pages are made of what the program itself reads: the comments of the config's defaults,
  the options of the commands, the docstrings.
- A link to a file outside docs/ leads to a page that shows the file. So it works in a clone, at any
  address and offline.
- Equations become MathML, which browsers draw without a script.
"""

import ast
import dataclasses
import html
import importlib
import inspect
import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import latex2mathml.converter
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

from dmd2_jax.config import defaults, family, flow_group, plugins

ROOT = Path(__file__).absolute().parents[1]
COMMANDS = "dmd2_jax.commands"
LIBRARY = {
    "Distil": ["dmd2_jax.distill"],
    "What can be distilled": ["dmd2_jax.denoiser", "dmd2_jax.adapters"],
    "Objectives": ["dmd2_jax.distill.objectives.contract"],
    "Losses": ["dmd2_jax.losses"],
    "Schedules, samplers, guidance": ["dmd2_jax.diffusion"],
}
_LINK = re.compile(r"(\]\()([^)\s#:]+)(#[^)\s]*)?\)")
_MATH = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put pages that the navigation does not name at the end of their part of it."""
    named = re.findall(r"[\w/]+\.md", str(config.nav))
    parts = {next(iter(it)): next(iter(it.values())) for it in config.nav or ()}
    for part, folder in (("Tutorials", "tutorials/"), ("How to", "")):
        for file in sorted((ROOT / "docs" / folder).glob("*.md")):
            if f"{folder}{file.name}" not in named:
                parts[part].append(f"{folder}{file.name}")
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that no file of docs/ holds."""
    made = {
        "index.md": (ROOT / "README.md").read_text(),
        "reference/commands.md": commands_page(),
        "reference/config.md": config_page(),
        "reference/library.md": library_page(),
    }
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    # Pages show files that link to others.
    waiting = [(it.src_uri, it.content_string) for it in files.documentation_pages()]
    while waiting:
        page, text = waiting.pop()
        for target in _targets(page, text):
            place = _place(target)
            if place.startswith("source/") and files.get_file_from_path(place) is None:
                shown = _shown(target)
                level = InclusionLevel.NOT_IN_NAV
                files.append(File.generated(config, place, content=shown, inclusion=level))
                waiting.append((place, shown))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links to files of the repository lead to their pages."""
    if page.file.src_uri == "recipes.md":
        markdown += recipes_text()
    here = posixpath.dirname(page.file.src_uri)

    def rewritten(found: re.Match[str]) -> str:
        target = _target(page.file.src_uri, found[2])
        if target is None:
            return found[0]
        return f"{found[1]}{posixpath.relpath(_place(target), here or '.')}{found[3] or ''})"

    return _LINK.sub(rewritten, markdown)


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Draw the equations."""

    def drawn(found: re.Match[str]) -> str:
        display = "block" if found[1] == "div" else "inline"
        return latex2mathml.converter.convert(html.unescape(found[2]), display=display)

    return _MATH.sub(drawn, content)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Refuse a page that loads something from elsewhere."""
    loaded = re.findall(
        r'<(?:script|img|iframe|link)\b[^>]*(?:src|href)="(?:https?:)?//[^"]*', output
    )
    if loaded:
        raise PluginError(f"{page.file.src_uri} loads {loaded}, expected nothing from elsewhere.")
    return output


def _targets(page: str, text: str) -> Iterator[Path]:
    for found in _LINK.finditer(text):
        target = _target(page, found[2])
        if target is not None:
            yield target


def _target(page: str, link: str) -> Path | None:
    """Return the file or folder of the repository that a link means; None: it is none."""
    if page == "index.md":
        folder = ROOT
    elif page.startswith("source/"):
        folder = (ROOT / page.removeprefix("source/")).parent
    else:
        folder = (ROOT / "docs" / page).parent
    target = Path(posixpath.normpath((folder / link).as_posix()))
    return target if target.exists() and target.is_relative_to(ROOT) else None


def _place(target: Path) -> str:
    """Return the page or file of the site that shows a file of the repository."""
    path = target.relative_to(ROOT).as_posix()
    if path == "README.md":
        return "index.md"
    if target.is_relative_to(ROOT / "docs") and target.suffix not in ("", ".py"):
        return path.removeprefix("docs/")
    if target.is_dir():
        return (
            _place(target / "README.md")
            if (target / "README.md").exists()
            else (f"source/{path}/index.md")
        )
    return f"source/{path}" if target.suffix == ".md" else f"source/{path}.md"


def _shown(target: Path) -> str:
    """Return the page that shows a file or folder."""
    unsearched = "---\nsearch:\n  exclude: true\n---\n\n"
    path = target.relative_to(ROOT).as_posix()
    if target.is_dir():
        entries = sorted(it for it in target.iterdir() if not it.name.startswith(("_", ".")))
        lines = [f"- [{it.name}]({it.name})" if it.is_file() else f"- {it.name}/" for it in entries]
        return f"{unsearched}# {path}\n\n" + "\n".join(lines)
    text = target.read_text(encoding="utf-8")
    if target.suffix == ".md":
        return unsearched + text
    if target.suffix == ".ipynb":
        text = re.sub(r"!\[([^\]]*)\]\(https?:[^)]*\)", r"\1", text)  # a badge is of elsewhere
        cells = [(it["cell_type"], "".join(it["source"])) for it in json.loads(text)["cells"]]
        return unsearched + "\n\n".join(
            code if kind == "markdown" else f"~~~~python\n{code}\n~~~~" for kind, code in cells
        )
    kind = {".py": "python", ".sh": "bash", ".json": "json"}.get(target.suffix, "text")
    return f"{unsearched}# {path}\n\n~~~~{kind}\n{text}\n~~~~\n"


def recipes_text() -> str:
    """Return what every recipe says of itself."""
    text = "\n\n## What each file says\n"
    files = sorted((ROOT / "configs").glob("*.py")) + sorted((ROOT / "configs").glob("*/*.py"))
    for file in files:
        path = file.relative_to(ROOT).as_posix()
        said = ast.get_docstring(ast.parse(file.read_text())) or ""
        text += f"\n### {path}\n\n{said}\n\n[The file](../{path})\n"
    return text


def library_page() -> str:
    """Return the page of docstrings; mkdocstrings fills it in."""
    text = "# Library\n\nMade of the docstrings. `import dmd2_jax` has the names of the README.\n"
    for heading, modules in LIBRARY.items():
        text += f"\n## {heading}\n" + "".join(f"\n::: {module}\n" for module in modules)
    return text


def commands_page() -> str:
    """Return the page of the commands: their help and their flags."""
    text = (
        "# Commands\n\nMade of the commands' own options, which `dmd2 COMMAND --help` shows too. "
        "Their examples are **not run here** as they stand: the tests read each by the command's "
        "own parser, and run the commands in other words.\n"
    )
    names = {name: name for name in plugins.available(COMMANDS, but=("main",))}
    for name in plugins.available(COMMANDS, packages=True):
        if (ROOT / "dmd2_jax" / "commands" / name / "command.py").is_file():
            names[name] = f"{name}.command"
    for name in sorted(names):
        module = importlib.import_module(f"{COMMANDS}.{names[name]}")
        said = inspect.cleandoc(module.__doc__ or "")
        text += f"\n## dmd2 {name.replace('_', '-')}\n\n~~~~text\n{said}\n~~~~\n"
        text += "".join(_flags(module))
    return text


def _flags(module: ModuleType) -> Iterator[str]:
    """Yield the tables of a command's flags, one a heading."""
    fields = [it for it in dataclasses.fields(module.Options) if "flag" in it.metadata]
    for group in dict.fromkeys(it.metadata["flag"].group for it in fields):
        yield f"\n**{group}**\n" if group else ""
        yield "\n| flag | default | |\n|---|---|---|\n"
        for field in fields:
            declared = field.metadata["flag"]
            if declared.group != group:
                continue
            is_switch = isinstance(field.default, bool)
            choices = "{" + ",".join(map(str, declared.choices)) + "}" if declared.choices else ""
            value = choices or declared.metavar or field.name.upper()
            name = field.name if declared.positional else f"--{field.name}"
            if not is_switch and not declared.positional:
                name += f"={value}"
            yield f"| `{name}` | {_default(field.default)} | {_cell(declared.help)} |\n"
    if any(it.name == "overrides" for it in dataclasses.fields(module.Options)):
        yield "\nEvery key of the [config](config.md) can be set: `--config.KEY=VALUE`.\n"


def _default(value: Any) -> str:
    if value is dataclasses.MISSING:
        return "required"
    return "" if value is None or value is False or value in ("", ()) else f"`{value}`"


def config_page() -> str:
    """Return the page of all keys of the config, with what the comments beside them say."""
    text = (
        "# Config\n\nMade of `dmd2_jax/config/defaults.py` and the families' `settings.py`: every "
        "key, its default, its meaning. A recipe states its difference from these; on the command "
        "line it is `--config.KEY=VALUE`, and None is written None.\n"
    )
    told = _comments(inspect.getsource(defaults.get_config), "config")
    base = defaults.get_config()
    for group in dict.fromkeys(key.rpartition(".")[0] for key in told):
        keys = [key for key in told if key.rpartition(".")[0] == group]
        values = base[group] if group else base
        text += _keys(f"config.{group}".rstrip("."), keys, values, told)
    for name in family.family_names():
        source = (ROOT / "dmd2_jax" / "families" / name / "settings.py").read_text()
        told = _comments(source, "model")
        if flow_group.__name__ in source:  # what they share, and what a family says of its own
            told = _comments(inspect.getsource(flow_group), "model") | told
        told = {f"model.{key}": said for key, said in told.items()}
        heading = f"config.model of the family {name}"
        text += _keys(heading, list(told), family.model_defaults(name), told)
    return text


def _keys(heading: str, keys: list[str], values: Any, told: dict[str, str]) -> str:
    text = f"\n## {heading}\n\n| key | default | |\n|---|---|---|\n"
    for key in keys:
        text += f"| `{key}` | `{values[key.rpartition('.')[2]]!r}` | {_cell(told[key])} |\n"
    return text


def _comments(source: str, name: str) -> dict[str, str]:
    """Return the keys that lines `NAME.KEY = VALUE` set, with the comments beside and above them.

    What sets a key to a group or to a placeholder is followed by its values.
    """
    told: dict[str, str] = {}
    above: list[str] = []
    line_of = re.compile(name + r"\.([\w.]+) = ((?:\"[^\"]*\"|[^#\"])*)(?:# (.*))?$")
    for line in map(str.strip, source.splitlines()):
        if line.startswith("#"):
            above.append(line.removeprefix("#").strip())
            continue
        found = line_of.match(line)
        if found and not found[2].startswith(("ConfigDict", "model_defaults")):
            said = " ".join([*above, found[3] or ""]).strip()
            told[found[1]] = said or told.get(found[1], "")
        above = []
    return told


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
