"""What a stranger meets first: citation, changelog, forms for issues, how to contribute."""

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
VERSION = runpy.run_path(str(ROOT / "dmd2_jax" / "version.py"))["__version__"]
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
PAGES = ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", ".github/pull_request_template.md")


def load(path: Path) -> Any:
    return pytest.importorskip("yaml").safe_load(path.read_text())


def test_citation_has_what_its_schema_asks_for() -> None:
    """Of Citation File Format 1.2.0: the required keys, of the software and of each reference."""
    cited = load(ROOT / "CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= set(cited)
    assert cited["cff-version"] == "1.2.0" and cited["type"] == "software"
    works = [cited, *cited["references"]]
    for work in works:
        assert work["title"] and work["type"] and work["authors"]
        assert all(set(it) in ({"name"}, {"given-names", "family-names"}) for it in work["authors"])
    dois = [work["doi"] for work in cited["references"]]
    assert dois == ["10.48550/arXiv.2405.14867", "10.48550/arXiv.2311.18828"]


def test_version_and_licence_are_the_same_everywhere() -> None:
    cited = load(ROOT / "CITATION.cff")
    headings = re.findall(r"^## \[(.+)\] - (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    version, date = headings[0]
    assert cited["version"] == version == VERSION
    assert re.fullmatch(r"unreleased|\d{4}-\d\d-\d\d", date)
    assert str(cited.get("date-released", "unreleased")) == date
    assert cited["license"] == "Apache-2.0"
    assert f'license="{cited["license"]}"' in (ROOT / "setup.py").read_text()


def test_changelog_has_the_headings_of_keep_a_changelog() -> None:
    kinds = re.findall(r"^### (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert kinds
    assert set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_changelog_names_every_command() -> None:
    from dmd2_jax.commands import main

    text = (ROOT / "CHANGELOG.md").read_text()
    assert [name for name in main._files() if f"`{name}`" not in text] == []


def test_forms_for_issues_are_there() -> None:
    assert [path.stem for path in FORMS] == ["bug", "config", "question"]


@pytest.mark.parametrize("name", ["bug", "question"])
def test_form_is_one_that_github_takes(name: str) -> None:
    form = load(ROOT / ".github" / "ISSUE_TEMPLATE" / f"{name}.yml")
    assert form["name"] and form["description"]
    asked = [it for it in form["body"] if it["type"] != "markdown"]
    assert {it["type"] for it in asked} <= {"textarea", "input", "dropdown", "checkboxes"}
    assert all(it["attributes"]["label"] for it in asked)
    ids = [it["id"] for it in asked]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[a-z_-]+", it) for it in ids)
    assert any(it.get("validations", {}).get("required") for it in asked)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    file = ROOT / page
    for target in re.findall(r"\]\(((?!http)[^)]+)\)", file.read_text()):
        path, _, anchor = target.partition("#")
        assert (file.parent / path).exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", (file.parent / path).read_text(), re.M)
            slugs = [re.sub(r"[^\w -]", "", it.lower()).replace(" ", "-") for it in headings]
            assert anchor in slugs, target


def test_contributing_names_targets_of_make_that_there_are() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    named = re.findall(r"^make ([a-z-]+)", (ROOT / "CONTRIBUTING.md").read_text(), re.M)
    assert named and set(named) <= set(targets)


def test_deprecated_door_is_still_there() -> None:
    """The changelog says until when; with that version file, line and test go."""
    said = "python -m dmd2_jax.main" in (ROOT / "CHANGELOG.md").read_text()
    assert said == (ROOT / "dmd2_jax" / "main.py").exists()
