"""What is asked of XLA: only what it knows, and a cache of one kind of machine."""

from importlib import metadata

import pytest

from tests.compiling import cache_of_this_machine, flags


@pytest.mark.parametrize(("jaxlib", "asked"), [("0.10.2", True), ("0.12.0.1", False)])
def test_flags_of_one_release_are_given_to_it_alone(
    jaxlib: str, asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: jaxlib)
    given = {flag.partition("=")[0] for flag in flags().split()}
    of_a_release = {"--xla_cpu_use_fusion_emitters", "--xla_cpu_parallel_codegen_split_count"}
    assert given == {"--xla_backend_optimization_level"} | (of_a_release if asked else set())


def test_cache_lies_in_a_folder_that_git_ignores() -> None:
    folder = cache_of_this_machine()
    ignored = (folder.parents[2] / ".gitignore").read_text().splitlines()
    assert f"{folder.relative_to(folder.parents[2]).parts[0]}/" in ignored
