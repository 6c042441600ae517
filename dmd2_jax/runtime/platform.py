"""What has to be set before JAX touches a device: XLA's CPU flags and the compilation cache."""

import contextlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Mapping

import jax
import jaxlib.version

from dmd2_jax.config.refused import pip_install
from dmd2_jax.runtime.whole_file import whole_file

CPU_FLAGS = {"xla_cpu_experimental_ynn_fusion_type": "-individual_convolution"}
"""XLA's options for this package's programs on CPU: name -> value."""

TESTED_JAXLIB = frozenset({"0.10.2"})
"""Versions of jaxlib known to take every one of `CPU_FLAGS`; others are asked first."""

_log = logging.getLogger(__name__)

_DEFAULT = "<user cache>"
_PROBE_SECONDS = 120


def prepare_backend(*, compilation_cache: str | None = _DEFAULT) -> None:
    """Set the fastest safe XLA options and keep compiled programs on disk.

    Call it once, before the first array or device is used. On CPU it adds `CPU_FLAGS` to the
    environment's XLA_FLAGS; a flag that is there already stays as the user set it. XLA ends the
    process when it meets a flag that it does not know, so for a jaxlib that is not in
    `TESTED_JAXLIB` the flags are first tried in a process of their own, and the answer is kept
    in the user's cache folder. Where JAX will use, or might find, an accelerator (no
    JAX_PLATFORMS=cpu and a GPU plugin installed, or a TPU in the machine), no flag is set. TPU's
    compiler alone, which `dmd2 plan` needs, is no TPU: JAX then stays on the CPU.

    Args:
      compilation_cache: folder of compiled programs; None: do not keep any. By default
        `dmd2_jax/xla` in the user's cache folder (XDG_CACHE_HOME or ~/.cache). The environment
        variable JAX_COMPILATION_CACHE_DIR, where set, wins.

    Warns:
      UserWarning: if a backend is already in use (nothing is changed then), or the folder of the
        compilation cache cannot be written (compiled programs are not kept then).
    """
    if _backend_in_use():
        warnings.warn(
            "prepare_backend() was called after JAX's first use of a device, expected before; "
            "CPU flags and compilation cache stay as they are. Call it earlier.",
            stacklevel=2,
        )
        return
    logging.getLogger("jax._src.xla_bridge").addFilter(_in_one_line)
    if _first_platform() != "cpu" and (fault := plugin_fault(_version)):
        _log.warning(fault)
    if _runs_on_cpu():
        flags = flags_for(os.environ)
        if flags:
            os.environ["XLA_FLAGS"] = flags
    if compilation_cache is not None:
        _keep_compiled_programs(compilation_cache)


def no_device(error: BaseException) -> str:
    """Return in one line why JAX has no device at all; "" if that is not what an error says.

    Args:
      error: what JAX's first use of a device raised.
    """
    frames = traceback.extract_tb(error.__traceback__)
    if _backend_in_use() or not frames or not frames[-1].filename.endswith("xla_bridge.py"):
        return ""
    asked = jax.config.jax_platforms or ""  # type: ignore[attr-defined]
    why = re.split(r"\n| \((?:set JAX_PLATFORMS|you may need)", str(error))[0]
    if not asked:
        return (
            f"JAX finds no device ({why}), expected that its plug-ins work or are not there; "
            "update the failing one with jax, uninstall it, or set JAX_PLATFORMS=cpu."
        )
    extra = next((_EXTRAS[one] for one in asked.split(",") if one in _EXTRAS), "")
    remedy = f"`{pip_install(extra)}`, look whether the driver sees the device, or "
    return (
        f"JAX_PLATFORMS={asked!r}, but JAX finds no such device here"
        f"{f' ({why})' if why else ''}, expected one with its driver and JAX's plug-in for it; "
        f"{remedy if extra else ''}unset JAX_PLATFORMS to run on what there is."
    )


def plugin_fault(version: Callable[[str], str | None]) -> str:
    """Return in one line which of JAX's plug-ins for GPUs do not fit jaxlib; "" if all do.

    Args:
      version: name of a distribution -> its version; None: it is not installed.
    """
    present = {name: version(name) for name in _PLUGINS}
    wrong = [f"{name} {it}" for name, it in present.items() if it and not _fits(it)]
    if not wrong:
        return ""
    return (
        f"{' and '.join(wrong)} with jaxlib {jaxlib.version.__version__}, expected one version of "
        f"all: JAX leaves the GPU out, wholly or in part; `{pip_install('gpu')}`."
    )


_EXTRAS = {"cuda": "gpu", "gpu": "gpu", "tpu": "tpu"}
"""Platforms as JAX_PLATFORMS names them, and the extras of this package that bring them."""

_PLUGINS = tuple(f"jax-cuda{n}-{part}" for n in (12, 13) for part in ("plugin", "pjrt"))


def _fits(version: str) -> bool:
    numbers = [re.match(r"[0-9.]*", it) for it in (version, jaxlib.version.__version__)]
    own, other = (it.group().rstrip(".") for it in numbers if it)
    return own == other


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _in_one_line(record: logging.LogRecord) -> bool:
    """Take the traceback off what JAX says of a plug-in that fails, and say what to do."""
    if "plugin configuration error" in str(record.msg):
        error = record.exc_info[1] if record.exc_info else None
        try:
            text = record.getMessage()
        except TypeError:  # JAX 0.10 gives one of its messages no argument
            text = str(record.msg)
        reason = f" ({type(error).__name__}: {str(error).partition(chr(10))[0]})" if error else ""
        record.msg, record.args = f"{text}{reason}; update it with jax, or uninstall it.", ()
        record.exc_info = None
    return True


def user_cache() -> pathlib.Path:
    """Return the folder of this package in the user's cache: XDG_CACHE_HOME or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return pathlib.Path(base) / "dmd2_jax"


def _backend_in_use() -> bool:
    # JAX has no public question for this; a version that moves it is treated as "not yet".
    from jax._src import xla_bridge

    return getattr(xla_bridge, "backends_are_initialized", lambda: False)()


def only_cpu(
    platforms: str | None, *, has_plugin: bool, has_libtpu: bool, may_have_tpu: Callable[[], bool]
) -> bool:
    """Return whether JAX will use the CPU, and surely no accelerator.

    Args:
      platforms: JAX_PLATFORMS; empty or None: JAX looks for an accelerator.
      has_plugin: a plugin for an accelerator is installed.
      has_libtpu: TPU's compiler is installed.
      may_have_tpu: asked only where that is what counts.
    """
    if platforms:
        return platforms.split(",")[0] == "cpu"
    return not has_plugin and not (has_libtpu and may_have_tpu())


def flags_for(
    environment: Mapping[str, str], accepts: Callable[[list[str]], bool] | None = None
) -> str:
    """Return what XLA_FLAGS should be on a CPU: what is there, and `CPU_FLAGS` that are not.

    Args:
      environment: its XLA_FLAGS counts.
      accepts: says whether this jaxlib takes such flags; by default it is asked.
    """
    present = environment.get("XLA_FLAGS", "")
    wanted = [f"--{name}={value}" for name, value in CPU_FLAGS.items() if name not in present]
    if not wanted or not (accepts or _accepts)(wanted):
        return present
    return " ".join([present, *wanted]).strip()


def _first_platform() -> str:
    return (jax.config.jax_platforms or "").split(",")[0]  # type: ignore[attr-defined]


def _runs_on_cpu() -> bool:
    platforms = jax.config.jax_platforms  # type: ignore[attr-defined]
    has_libtpu = importlib.util.find_spec("libtpu") is not None
    is_alone = only_cpu(
        platforms,
        has_plugin=bool(importlib.metadata.entry_points(group="jax_plugins"))
        or importlib.util.find_spec("jax_plugins") is not None,
        has_libtpu=has_libtpu,
        may_have_tpu=_may_have_tpu,
    )
    if is_alone and has_libtpu and not platforms:
        # Else JAX would look for one with warnings, and the profiler would crash in libtpu.
        jax.config.update("jax_platforms", "cpu")
    return is_alone


def _may_have_tpu() -> bool:
    """Return whether a TPU is in this machine; where JAX cannot tell, there may be one."""
    with contextlib.suppress(Exception):  # a question that JAX does not make public
        from jax._src import hardware_utils

        return hardware_utils.num_available_tpu_chips_and_device_id()[0] > 0
    return True


def _accepts(flags: list[str]) -> bool:
    """Return whether this jaxlib takes the flags; asked once for each version, then remembered."""
    version = jaxlib.version.__version__
    if version in TESTED_JAXLIB:
        return True
    memory = user_cache() / "accepted_flags.json"
    question = f"{version} {' '.join(flags)}"
    try:
        answers = json.loads(memory.read_text())
    except (OSError, ValueError, RecursionError):
        answers = {}
    if isinstance(answers, dict) and isinstance(answers.get(question), bool):
        return answers[question]
    answer = _probe(flags)
    with contextlib.suppress(OSError):  # Asked again next time.
        memory.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(memory) as partial:
            partial.write_text(json.dumps({question: answer}))
    return answer


def _probe(flags: list[str]) -> bool:
    environment = dict(os.environ, XLA_FLAGS=" ".join(flags), JAX_PLATFORMS="cpu")
    command = [sys.executable, "-c", "import jax; jax.devices()"]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, timeout=_PROBE_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _keep_compiled_programs(folder: str) -> None:
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        path = user_cache() / "xla" if folder == _DEFAULT else pathlib.Path(folder)
        try:
            path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path):
                pass
        except OSError as error:
            warnings.warn(
                f"compilation_cache={str(path)!r} cannot be written ({error}), expected a "
                "writable folder; programs are compiled anew in every run. Set "
                "JAX_COMPILATION_CACHE_DIR to another folder.",
                stacklevel=3,
            )
            return
        jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
