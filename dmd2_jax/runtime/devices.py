"""Which devices a command computes on: said in one line, and recorded beside what it writes."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from dmd2_jax.runtime.distributed import say

__all__ = ["device_record", "device_words", "say_devices"]


def device_record(devices: Mesh | Iterable[jax.Device]) -> dict[str, Any]:
    """Return what is recorded of devices, for JSON: platform, kind, number, processes.

    Args:
      devices: a mesh or a list of them, of one kind.
    """
    found = _listed(devices)
    return {
        "platform": found[0].platform,
        "kind": found[0].device_kind,
        "number": len(found),
        "processes": jax.process_count(),
    }


def device_words(record: Mapping[str, Any]) -> str:
    """Return a record in words: 8 tpu (TPU v5e), 4 gpu (...) of 2 processes.

    Args:
      record: from `device_record`, or read back; what it lacks is left out.
    """
    platform, kind = str(record.get("platform", "")), str(record.get("kind", ""))
    processes = record.get("processes", 1)
    words = f"{record.get('number', '')} {platform}".strip()
    words += f" ({kind})" if kind not in ("", platform) else ""
    return f"{words} of {processes} processes" if processes != 1 else words


def say_devices(devices: Mesh | Iterable[jax.Device]) -> None:
    """Say on standard error which devices are used, and where some are left out, that they are.

    Args:
      devices: a mesh, as config.mesh asks for, or a list of them.
    """
    it, count = device_record(devices), jax.device_count()
    say(f"devices: {device_words(it)}.")
    if isinstance(devices, Mesh) and it["number"] < count:
        say(
            f"config.mesh takes {it['number']} of the {count} {it['platform']} devices here, the "
            f"others idle; config.mesh.data=-1 takes all."
        )


def _listed(devices: Mesh | Iterable[jax.Device]) -> list[jax.Device]:
    return list(devices.devices.flat) if isinstance(devices, Mesh) else list(devices)
