"""What an export's base says of itself: its name on the Hub, and its licence.

Both are in the export's README.md. What is not known is not made up: a folder is named as it is on
this disk, and without a licence of its own the header says "other".
"""

import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from dmd2_jax.config.refused import Refused
from dmd2_jax.config.text import read_text
from dmd2_jax.families.published.pipeline import PipelineIndex

__all__ = ["Licence", "Origin", "hub_file", "read_origin"]

OTHER = "other"
"""The Hub's word for a licence that is none of its list."""

_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")
_NAME = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)
_PLAIN = re.compile(r"[\w .,:/()+-]{1,200}", re.ASCII)
"""What of a stranger's README.md may stand in ours: neither markup nor line ends."""

_CACHED = "models--"


class Licence(NamedTuple):
    """A licence as the header of a README.md on the Hub names it.

    Attributes:
      id: of the Hub's list, such as apache-2.0, or "other".
      name, link: of another one; "": not said.
      said_by: "you", "base", or "" where nobody has said one.
    """

    id: str = OTHER
    name: str = ""
    link: str = ""
    said_by: str = ""


class Origin(NamedTuple):
    """Where an export comes from.

    Attributes:
      name: of the base: on the Hub, or of its folder.
      hub: its name on the Hub, owner/name; "": not known.
      licence: of the export.
    """

    name: str
    hub: str = ""
    licence: Licence = Licence()


def read_origin(base: PipelineIndex, *, base_model: str = "", licence: str = "") -> Origin:
    """Return what is known of a base.

    Args:
      base: the teacher's pipeline.
      base_model: its name on the Hub, owner/name; "": as the Hub's cache has it, if it lies there.
      licence: of the export, an identifier of the Hub's list; "": the base's.

    Raises:
      Refused: if one of the two is malformed.
    """
    if base_model and not _NAME.fullmatch(base_model):
        raise Refused(
            f"`base_model={base_model}`, expected owner/name as on the Hub, such as "
            "stabilityai/stable-diffusion-xl-base-1.0; correct it, or leave it away."
        )
    if licence and not _LICENCE.fullmatch(licence):
        raise Refused(
            f"`license={licence}`, expected an identifier that the Hub knows, such as apache-2.0, "
            "openrail++ or other; see huggingface.co/docs/hub/repositories-licenses."
        )
    hub = base_model or _cached_name(base.folder)
    said = Licence(licence, said_by="you") if licence else _of_base(base.folder, hub)
    return Origin(hub or base.folder.absolute().name, hub, said)


def hub_file(name: str, file: str) -> str:
    """Return the address of a file of a repository on the Hub."""
    return f"https://huggingface.co/{name}/blob/main/{file}"


def _cached_name(folder: Path) -> str:
    """Return the name on the Hub of a folder of its cache; "": it lies elsewhere."""
    parts = folder.absolute().parts
    for part, below in itertools.pairwise(parts):
        name = part.removeprefix(_CACHED).replace("--", "/")
        if part.startswith(_CACHED) and below == "snapshots" and _NAME.fullmatch(name):
            return name
    return ""


def _of_base(folder: Path, hub: str) -> Licence:
    """Return the licence that the README.md of a base names, as an export's."""
    header = _header(folder / "README.md")
    said = {key: _plain(header.get(key)) for key in ("license", "license_name", "license_link")}
    said["license"] = said["license"].lower()
    if not _LICENCE.fullmatch(said["license"]):
        return Licence()
    link = said["license_link"]
    if link and "://" not in link:  # a file beside that README.md, which is not copied
        link = hub_file(hub, link) if hub else ""
    return Licence(said["license"], said["license_name"], link, "base")


def _plain(value: Any) -> str:
    return value if isinstance(value, str) and _PLAIN.fullmatch(value) else ""


def _header(file: Path) -> Mapping[str, Any]:
    """Read the header of a README.md; {} if there is none that can be read."""
    try:
        lines = read_text(file).splitlines()
        found = yaml.safe_load("\n".join(lines[1 : lines.index("---", 1)]))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return found if lines[0] == "---" and isinstance(found, dict) else {}
