"""What is asked of XLA: only what it knows, and a cache of one kind of machine."""

from tests.compiling import cache_of_this_machine, fast_to_compile, supported


def test_supported_leaves_out_what_xla_does_not_know() -> None:
    known = {"xla_cpu_enable_fast_math": False}
    assert supported(known | {"xla_no_such_option": True}) == known


def test_fast_to_compile_is_asked_for_where_it_is_known_alone() -> None:
    assert fast_to_compile() == supported({"xla_cpu_use_fusion_emitters": False})


def test_cache_lies_in_a_folder_that_git_ignores() -> None:
    folder = cache_of_this_machine()
    ignored = (folder.parents[2] / ".gitignore").read_text().splitlines()
    assert f"{folder.relative_to(folder.parents[2]).parts[0]}/" in ignored
