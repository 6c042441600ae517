"""prepare_backend in fresh processes: it only means something before JAX's first device use."""

import json
import os
import subprocess
import sys

import pytest

from dmd2_jax.runtime import platform

SCRIPT = """
import json, os, sys, warnings
import jax
from dmd2_jax.runtime import platform
setup, arguments = sys.argv[1], json.loads(sys.argv[2])
exec(setup)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    platform.prepare_backend(**arguments)
flags = os.environ.get("XLA_FLAGS", "")
if os.environ.get("COMPUTE"):
    jax.block_until_ready(jax.jit(lambda x: x @ x + x.sum())(jax.numpy.ones((300, 300))))
print(json.dumps({"flags": flags, "cache": jax.config.jax_compilation_cache_dir,
                  "platforms": jax.config.jax_platforms or None,
                  "warnings": [str(w.message) for w in caught]}))
"""
FLAGS = " ".join(f"--{name}={value}" for name, value in platform.CPU_FLAGS.items())


def prepare(tmp_path, *, setup="", arguments=None, **environment):
    """Call prepare_backend in a process of its own; None removes an environment variable."""
    base = dict(os.environ, XDG_CACHE_HOME=str(tmp_path), JAX_PLATFORMS="cpu")
    base = {k: v for k, v in base.items() if k not in ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")}
    base |= environment
    command = [sys.executable, "-c", SCRIPT, setup, json.dumps(arguments or {})]
    done = subprocess.run(command, env=base, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_prepare_backend_sets_flags_that_this_jaxlib_takes(tmp_path):
    result = prepare(tmp_path, COMPUTE="1")
    assert result["flags"] == FLAGS and not result["warnings"]


def test_prepare_backend_fills_the_compilation_cache(tmp_path):
    folder = tmp_path / "dmd2_jax" / "xla"
    # However fast this machine compiles the small program, it is to be kept.
    setup = (
        "change = jax.config.update\n"
        "jax.config.update = lambda k, v: change(k, 0 if k.endswith('time_secs') else v)"
    )
    assert prepare(tmp_path, COMPUTE="1", setup=setup)["cache"] == str(folder)
    assert any(folder.iterdir())


def test_prepare_backend_keeps_the_users_flags(tmp_path):
    name = next(iter(platform.CPU_FLAGS))
    mine = f"--xla_cpu_enable_fast_math=false --{name}=individual_dot"
    assert prepare(tmp_path, XLA_FLAGS=mine)["flags"] == mine


def test_prepare_backend_appends_to_other_flags(tmp_path):
    other = "--xla_force_host_platform_device_count=2"
    assert prepare(tmp_path, XLA_FLAGS=other)["flags"] == f"{other} {FLAGS}"


def test_prepare_backend_sets_no_flag_for_an_accelerator(tmp_path):
    assert prepare(tmp_path, JAX_PLATFORMS="tpu,cpu")["flags"] == ""


@pytest.mark.parametrize(
    ("chips", "platforms", "flags"),
    [("lambda: (0, None)", "cpu", FLAGS), ("lambda: (4, None)", None, ""), ("None", None, "")],
    ids=["no TPU", "a TPU", "JAX cannot tell"],
)
def test_prepare_backend_with_the_compiler_of_a_tpu(tmp_path, chips, platforms, flags):
    setup = (
        "import importlib.metadata, importlib.util\n"
        "from jax._src import hardware_utils\n"
        "importlib.metadata.entry_points = lambda **_: ()\n"
        "importlib.util.find_spec = lambda name: True if name == 'libtpu' else None\n"
        f"hardware_utils.num_available_tpu_chips_and_device_id = {chips}"
    )
    result = prepare(tmp_path, setup=setup, JAX_PLATFORMS="")
    assert (result["platforms"], result["flags"]) == (platforms, flags)


@pytest.mark.parametrize(("flag", "accepted"), [("xla_no_such_flag", False), (None, True)])
def test_prepare_backend_probes_an_unknown_jaxlib_once(tmp_path, flag, accepted):
    setup = "platform.TESTED_JAXLIB = frozenset()\n"
    if flag is not None:
        setup += f"platform.CPU_FLAGS = {{{flag!r}: '1'}}"
    result = prepare(tmp_path, setup=setup, COMPUTE="1")
    assert bool(result["flags"]) is accepted
    (answer,) = json.loads((tmp_path / "dmd2_jax" / "accepted_flags.json").read_text()).values()
    assert answer is accepted
    again = setup + "\nplatform._probe = None"  # asking a second time would raise
    assert bool(prepare(tmp_path, setup=again)["flags"]) is accepted


def test_prepare_backend_survives_a_damaged_memory(tmp_path):
    (tmp_path / "dmd2_jax").mkdir()
    (tmp_path / "dmd2_jax" / "accepted_flags.json").write_text("[1, 2")
    setup = "platform.TESTED_JAXLIB = frozenset(); platform._probe = lambda flags: True"
    assert prepare(tmp_path, setup=setup)["flags"] == FLAGS


def test_prepare_backend_warns_after_first_device_use(tmp_path):
    result = prepare(tmp_path, setup="jax.devices()")
    assert "first use of a device" in result["warnings"][0]
    assert result["flags"] == "" and result["cache"] is None


def test_prepare_backend_respects_the_cache_of_the_environment(tmp_path):
    mine = str(tmp_path / "mine")
    assert prepare(tmp_path, JAX_COMPILATION_CACHE_DIR=mine)["cache"] == mine


def test_prepare_backend_goes_on_without_a_writable_cache(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    result = prepare(tmp_path, arguments={"compilation_cache": str(blocked)}, COMPUTE="1")
    assert result["cache"] is None
    assert "cannot be written" in result["warnings"][0]


def test_prepare_backend_can_do_without_a_cache(tmp_path):
    result = prepare(tmp_path, arguments={"compilation_cache": None})
    assert result["cache"] is None and not result["warnings"]
