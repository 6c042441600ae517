"""What is decided before JAX's first device use, and two real starts in which it is."""

import json
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from dmd2_jax.config.refused import pip_install
from dmd2_jax.runtime import platform
from dmd2_jax.runtime.platform import flags_for, only_cpu, prepare_backend
from tests.tiny import RECIPE, dmd2

FLAGS = " ".join(f"--{name}={value}" for name, value in platform.CPU_FLAGS.items())


def takes_all(flags: list[str]) -> bool:
    return True


def test_flags_for_an_empty_environment() -> None:
    assert flags_for({}, takes_all) == FLAGS


def test_flags_for_keeps_the_users_flags() -> None:
    name = next(iter(platform.CPU_FLAGS))
    mine = f"--xla_cpu_enable_fast_math=false --{name}=individual_dot"
    assert flags_for({"XLA_FLAGS": mine}, takes_all) == mine


def test_flags_for_appends_to_other_flags() -> None:
    other = "--xla_force_host_platform_device_count=2"
    assert flags_for({"XLA_FLAGS": other}, takes_all) == f"{other} {FLAGS}"


@pytest.mark.parametrize("present", ["", "--xla_cpu_enable_fast_math=false"])
def test_flags_for_adds_nothing_that_is_not_taken(present: str) -> None:
    assert flags_for({"XLA_FLAGS": present}, lambda flags: False) == present


@pytest.mark.parametrize(
    ("platforms", "has_plugin", "has_libtpu", "has_tpu", "expected"),
    [
        ("cpu", True, True, True, True),
        ("tpu,cpu", False, False, False, False),
        ("cuda", False, False, False, False),
        ("", False, False, True, True),  # a TPU that nothing here can use
        (None, True, False, False, False),
        (None, False, True, False, True),  # TPU's compiler alone
        (None, False, True, True, False),
    ],
)
def test_only_cpu(
    platforms: str | None, has_plugin: bool, has_libtpu: bool, has_tpu: bool, expected: bool
) -> None:
    got = only_cpu(
        platforms, has_plugin=has_plugin, has_libtpu=has_libtpu, may_have_tpu=lambda: has_tpu
    )
    assert got is expected


@pytest.mark.parametrize(
    ("chips", "expected"), [(lambda: (0, None), False), (lambda: (4, None), True), (None, True)]
)
def test_a_tpu_may_be_there_where_jax_cannot_tell(
    chips: object, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jax._src import hardware_utils

    monkeypatch.setattr(hardware_utils, "num_available_tpu_chips_and_device_id", chips)
    assert platform._may_have_tpu() is expected


@pytest.fixture
def _unknown_jaxlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "TESTED_JAXLIB", frozenset())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.mark.usefixtures("_unknown_jaxlib")
@pytest.mark.parametrize("answer", [False, True])
def test_flags_of_an_unknown_jaxlib_are_probed_once(
    answer: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(platform, "_probe", lambda flags: asked.append(flags) or answer)
    expected = FLAGS if answer else ""
    assert [flags_for({}), flags_for({})] == [expected] * 2
    assert asked == [FLAGS.split()]
    (kept,) = json.loads((tmp_path / "dmd2_jax" / "accepted_flags.json").read_text()).values()
    assert kept is answer


@pytest.mark.usefixtures("_unknown_jaxlib")
def test_flags_survive_a_damaged_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dmd2_jax").mkdir()
    (tmp_path / "dmd2_jax" / "accepted_flags.json").write_text("[1, 2")
    monkeypatch.setattr(platform, "_probe", takes_all)
    assert flags_for({}) == FLAGS


def test_probe_tells_what_xla_ends_a_process_for() -> None:
    assert not platform._probe(["--xla_no_such_flag=1"])


@pytest.fixture
def _no_cache() -> Iterator[None]:
    """Let no folder of compiled programs be set while nothing is compiled."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.usefixtures("_no_cache")
def test_compiled_programs_are_kept_in_the_users_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    platform._keep_compiled_programs(platform._DEFAULT)
    folder = tmp_path / "dmd2_jax" / "xla"
    assert jax.config.jax_compilation_cache_dir == str(folder)
    assert folder.is_dir()


@pytest.mark.usefixtures("_no_cache")
def test_compiled_programs_are_kept_where_the_environment_says(tmp_path: Path) -> None:
    mine = str(tmp_path / "mine")
    jax.config.update("jax_compilation_cache_dir", mine)  # as JAX_COMPILATION_CACHE_DIR does
    platform._keep_compiled_programs(str(tmp_path / "other"))
    assert jax.config.jax_compilation_cache_dir == mine


@pytest.mark.usefixtures("_no_cache")
def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.warns(UserWarning, match="cannot be written"):
        platform._keep_compiled_programs(str(blocked))
    assert jax.config.jax_compilation_cache_dir is None


def test_prepare_backend_warns_after_first_device_use() -> None:
    jax.devices()
    before = os.environ["XLA_FLAGS"], jax.config.jax_compilation_cache_dir
    with pytest.warns(UserWarning, match="first use of a device"):
        prepare_backend(compilation_cache="/nowhere")
    assert (os.environ["XLA_FLAGS"], jax.config.jax_compilation_cache_dir) == before


@pytest.mark.parametrize(("folder", "kept"), [(None, []), ("here", ["here"])])
def test_prepare_backend_can_do_without_a_cache(
    folder: str | None, kept: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(platform, "_backend_in_use", lambda: False)
    monkeypatch.setattr(platform, "_runs_on_cpu", lambda: False)
    monkeypatch.setattr(platform, "_keep_compiled_programs", calls.append)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepare_backend(compilation_cache=folder)
    assert calls == kept


START = """
import json, os, sys, warnings
import jax
from dmd2_jax.runtime import platform
exec(sys.argv[1])
change = jax.config.update  # however fast this machine compiles the small program, it is kept
jax.config.update = lambda k, v: change(k, 0 if k.endswith("time_secs") else v)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    platform.prepare_backend()
jax.block_until_ready(jax.jit(lambda x: x @ x + x.sum())(jax.numpy.ones((300, 300))))
print(json.dumps([os.environ.get("XLA_FLAGS", ""), jax.config.jax_platforms or None,
                  [str(w.message) for w in caught]]))
"""
WITH_LIBTPU = """
import importlib.metadata, importlib.util
from jax._src import hardware_utils
importlib.metadata.entry_points = lambda **_: ()
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: (
    True if name == "libtpu" else None if name == "jax_plugins" else find(name, *more))
hardware_utils.num_available_tpu_chips_and_device_id = lambda: (0, None)
"""


@pytest.mark.parametrize(
    ("platforms", "setup"), [("cpu", ""), ("", WITH_LIBTPU)], ids=["CPU", "TPU's compiler alone"]
)
def test_prepare_backend_sets_flags_that_this_jaxlib_takes_and_fills_the_cache(
    tmp_path: Path, platforms: str, setup: str
) -> None:
    base = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": platforms}
    for name in ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR"):
        base.pop(name, None)
    command = [sys.executable, "-c", START, setup]
    done = subprocess.run(command, env=base, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [FLAGS, "cpu", []]
    assert any((tmp_path / "dmd2_jax" / "xla").iterdir())


@pytest.mark.parametrize(
    ("present", "expected"),
    [
        ({}, ""),
        ({"jax-cuda12-plugin": f"{platform.jaxlib.version.__version__}.post1"}, ""),
        ({"jax-cuda13-pjrt": "0.1.2"}, "jax-cuda13-pjrt 0.1.2 with jaxlib"),
    ],
)
def test_plugin_fault_names_what_does_not_fit(present: dict[str, str], expected: str) -> None:
    told = platform.plugin_fault(present.get)
    assert told.startswith(expected)
    assert bool(told) == bool(expected)
    assert not told or pip_install("gpu") in told


def test_failing_plugin_is_said_in_one_line() -> None:
    try:
        raise RuntimeError("made for another jaxlib\nand more")
    except RuntimeError:
        record = logging.LogRecord(
            "jax",
            logging.ERROR,
            "",
            0,
            "Jax plugin configuration error: %s",
            ("x",),
            sys.exc_info(),
        )
    assert platform._in_one_line(record)
    assert record.exc_info is None
    assert record.getMessage() == (
        "Jax plugin configuration error: x (RuntimeError: made for another jaxlib); update it with "
        "jax, or uninstall it."
    )


@pytest.mark.parametrize("asked", ["cuda", "tpu"])
def test_accelerator_that_is_not_there_is_refused_with_its_extra(
    asked: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # What JAX raises in a process that has no device yet; a real one is dear to start.
    text = "" if asked == "cuda" else "Unable to initialize backend 'tpu': no libtpu (set JAX_PLAT"
    kind = "RuntimeError" if text else "AssertionError"
    names: dict = {}
    exec(
        compile(f"def devices(): raise {kind}({text!r})", "/jax/_src/xla_bridge.py", "exec"), names
    )
    monkeypatch.setattr(jax, "devices", names["devices"])
    monkeypatch.setattr(platform, "_backend_in_use", lambda: False)
    before = jax.config.jax_platforms
    jax.config.update("jax_platforms", asked)
    try:
        words = ["train-teacher", f"--config={RECIPE}", f"--workdir={tmp_path / 'run'}"]
        assert dmd2(*words, "--dry_run") == 2
    finally:
        jax.config.update("jax_platforms", before)
    (line,) = [it for it in capsys.readouterr().err.splitlines() if it.startswith("dmd2: ")]
    assert f"JAX_PLATFORMS='{asked}', but JAX finds no such device here" in line
    assert pip_install("gpu" if asked == "cuda" else "tpu") in line
