"""What a run records of its data, so that no class number comes to mean another class unnoticed.

The record is in the run folder (data.json), in every checkpoint and, where classes have names, in
exported .safetensors files. Folders that were renamed or added shift the numbers of all classes
behind them: a run that goes on, and a student of a teacher, are compared with what was recorded.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dmd2_jax.config.refused import Refused
from dmd2_jax.config.text import read_json
from dmd2_jax.data import Source
from dmd2_jax.data.reading.classes import Listing, listing_of_parts, shown
from dmd2_jax.data.reading.files import Files
from dmd2_jax.recipe.data_files import FILES, read_files, write_files
from dmd2_jax.run.folder import write_json
from dmd2_jax.runtime.distributed import from_all, say
from dmd2_jax.runtime.places import path_of
from dmd2_jax.runtime.seal import SEAL, check_reached, is_sealed, seal
from dmd2_jax.weights.state_dict import read_metadata

__all__ = [
    "RECORD",
    "DataRecord",
    "check_resumed",
    "check_same_everywhere",
    "check_same_names",
    "check_teacher_data",
    "data_record",
    "read_record",
    "record_notes",
    "weights_record",
    "write_record",
]

RECORD = "data.json"
"""The file of a run folder that says what its data are."""

_NOTE = "dmd2_data"
_ACCEPTING = ("data", "data.name", "data.path")
_ACCEPT = "or accept the change by `allow_change=data`"
_LISTED = 3


class DataRecord(NamedTuple):
    """What a run's training data are.

    Attributes:
      source: their name.
      images: how many examples.
      num_classes: how many classes there are.
      class_names: in the order of their numbers; None: they have none.
      listing: what is listed; None: unknown.
    """

    source: str
    images: int
    num_classes: int
    class_names: tuple[str, ...] | None
    listing: Listing | None

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        return json.loads(
            json.dumps(self._asdict() | {"listing": self.listing and self.listing._asdict()})
        )


def data_record(source: Source) -> DataRecord:
    """Return what is recorded of a source."""
    listing = source.listing
    if listing is None and source.identity is not None:
        listing = Listing(source.identity)
    names = source.class_names
    return DataRecord(source.name, len(source), source.num_classes, names, listing)


def check_same_everywhere(record: DataRecord) -> None:
    """Refuse a run whose processes list other data; every process must call it.

    Raises:
      Refused: if two differ.
    """
    found = from_all([record.images, listing_of_parts([record.class_names, record.listing]).digest])
    other = next((i for i, value in enumerate(found) if value != found[0]), None)
    if other is not None:
        raise Refused(
            f"process {other} lists {found[other][0]} examples of {record.source}, expected the "
            f"{found[0][0]} of process 0, with the same names and classes; give every machine the "
            "same data."
        )


def write_record(workdir: Path, record: DataRecord, files: Files | None = None) -> None:
    """Write the record into a run folder; what was recorded before stays under "changes".

    Args:
      workdir: the run folder.
      record: of the data.
      files: that the examples come from; None: not known.
    """
    value, before = record.to_json(), _read_file(workdir / RECORD)
    history = before.pop("changes", []) if before else []
    history = history if isinstance(history, list) else []
    if before and not _says_as_much(before, value):
        history = [*history, before]
    if before != value or not (workdir / FILES).exists():
        write_files(workdir, files)
    write_json(workdir / RECORD, seal(value | ({"changes": history} if history else {})))


def read_record(workdir: str | Path) -> DataRecord | None:
    """Return the record of a run folder; None: there is none, as in those of earlier releases.

    Raises:
      Refused: if it is damaged.
    """
    file = path_of(workdir) / RECORD
    value = _read_file(file)
    record = None if value is None else _from_json(value)
    if value is not None and record is None:
        raise Refused(
            f"{file} is no record of data, expected what a training wrote; restore it from a copy, "
            "or remove it: the checkpoints have it too."
        )
    return record


def record_notes(record: DataRecord | None) -> dict[str, str]:
    """Return what a file of weights says of its data; {}: their classes have no names."""
    named = record is not None and record.class_names is not None
    return {_NOTE: json.dumps(record.to_json())} if named and record is not None else {}


def weights_record(file: Path) -> DataRecord | None:
    """Return the record that a file of weights has; None: there is none."""
    from safetensors import SafetensorError

    if file.suffix != ".safetensors" or not file.is_file():
        return None
    try:
        return _from_json(json.loads(read_metadata(file)[_NOTE]))
    except (SafetensorError, OSError, KeyError, ValueError, RecursionError):
        return None  # what is damaged is refused when it is read


def check_resumed(
    recorded: Mapping[str, Any] | DataRecord | None,
    source: Source,
    where: str,
    allow: Sequence[str] = (),
    folder: Path | None = None,
) -> None:
    """Refuse to go on with data whose classes or examples are others than were recorded.

    Args:
      recorded: of the run, from a checkpoint or its folder; None: earlier releases had none.
      source: the data at hand.
      where: the run, for messages.
      allow: keys of the config that may differ; "data" accepts other data, which is said.
      folder: the run's, which lists its files; None: nothing does.

    Raises:
      Refused: naming what differs.
    """
    record = _from_json(recorded) if isinstance(recorded, Mapping) else recorded
    if record is None:
        fault = _formerly_fault(source, where)
    else:
        fault = _names_fault(source, record, where)
        so_that = "the run would not go on where it stopped"
        fault = fault or _listing_fault(source, record, where, folder, so_that)
    _refuse(fault, f"choose another workdir, {_ACCEPT}", allow)


def check_teacher_data(
    file: Path, source: Source, num_classes: int, allow: Sequence[str] = ()
) -> None:
    """Refuse weights that were trained on other data, by what is recorded of those.

    Args:
      file: of the weights. Where they lie in the folder of their run, other files are refused too;
        of weights from elsewhere that is said, since nobody here need have theirs.
      source: the data.
      num_classes: that the network is conditioned on; 0: none, whose numbers could be others.
      allow: see `check_resumed`.

    Raises:
      Refused: naming the first classes or files that differ.
    """
    folder, fault = file.parent, ""
    of_run = (folder / "config.json").is_file()
    recorded = read_record(folder) if of_run else None
    record = weights_record(file) or recorded
    if num_classes and record is not None:
        fault = _names_fault(source, record, str(file))
    elif num_classes and of_run:
        fault = _formerly_fault(source, str(folder))
    if record is not None and not fault:
        so_that = "the student would see other data than its teacher did"
        fault = _listing_fault(source, record, str(file), folder, so_that)
        if fault and recorded is None:
            say(f"{fault}.")
            return
    _refuse(fault, f"give weights that were trained on these, {_ACCEPT}", allow)


def check_same_names(
    recorded: Mapping[str, Any] | DataRecord | None, source: Source, where: str, remedy: str
) -> None:
    """Refuse data whose classes have other numbers than a run recorded; other images will do.

    Args:
      recorded: of the run; None: earlier releases had none.
      source: the data.
      where: the run, for messages.
      remedy: what can be done beside giving the data as they were.

    Raises:
      Refused: naming the first classes that differ.
    """
    record = _from_json(recorded) if isinstance(recorded, Mapping) else recorded
    if record is None:
        _refuse(_formerly_fault(source, where), remedy)
    else:
        _refuse(_names_fault(source, record, where), remedy)


def _refuse(fault: str, remedy: str, allow: Sequence[str] = ()) -> None:
    if not fault:
        return
    if set(allow) & set(_ACCEPTING):
        say(f"accepted by allow_change: {fault}.")
        return
    raise Refused(f"{fault}; give the data as they were then, {remedy}.")


def _names_fault(source: Source, expected: DataRecord, where: str) -> str:
    """Say which classes have another number than was recorded; "": none, or they have no names."""
    ours, theirs = source.class_names, expected.class_names
    if ours is None or theirs is None or tuple(ours) == theirs:
        return ""
    shared = range(min(len(ours), len(theirs)))
    moved = [i for i in shared if ours[i] != theirs[i]]
    said = [
        f"class {i} is {_quoted(ours[i])}, expected {_quoted(theirs[i])}" for i in moved[:_LISTED]
    ]
    said += [f"{len(moved) - _LISTED} more differ"] * (len(moved) > _LISTED)
    for what, names in (
        ("new", [name for name in ours if name not in set(theirs)]),
        ("missing", [name for name in theirs if name not in set(ours)]),
    ):
        if names:
            more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
            said.append(f"{what}: {', '.join(map(_quoted, names[:_LISTED]))}{more}")
    return (
        f"the classes of {source.name} have other numbers than in {where}, so that labels would "
        f"mean other classes: {'; '.join(said)}"
    )


def _listing_fault(
    source: Source, expected: DataRecord, where: str, folder: Path | None, so_that: str
) -> str:
    """Say that other examples are listed than were recorded; "": the same, or it is not known.

    Args:
      source: the data at hand.
      expected: what was recorded.
      where: it was recorded, for the message.
      folder: the run folder that may have the list of files; None: there is none.
      so_that: what would happen.
    """
    got = data_record(source)
    ours, theirs = got.listing, expected.listing
    if ours is None or theirs is None:
        return ""
    others = ours.digest != theirs.digest
    if not others and _agree(ours.sizes, theirs.sizes) and _agree(ours.contents, theirs.contents):
        if theirs.contents and not ours.contents:
            say(
                f"{where} recorded the bytes of its data, which are not compared: that takes "
                "config.data.digest=contents."
            )
        return ""
    files = source.files
    before = None if folder is None or files is None else read_files(folder, theirs)
    said = [_counted(got, expected)] if others else []
    said += [] if files is None or before is None else files.since(before)
    lists = "lists other examples" if others else "has other contents under the same names"
    why = "; ".join(said) or "sizes or bytes differ"
    return f"{got.source} {lists} than in {where}, so that {so_that}: {why}"


def _agree(ours: str, theirs: str) -> bool:
    """Return whether two digests are the same, as far as both are known."""
    return not ours or not theirs or ours == theirs


def _counted(got: DataRecord, expected: DataRecord) -> str:
    """Say how many examples there are, and of which classes."""
    ours, theirs = got.listing or Listing(""), expected.listing or Listing("")
    said = f"got {got.images:,} examples, expected {expected.images:,}"
    if len(ours.counts) == len(theirs.counts):
        pairs = enumerate(zip(ours.counts, theirs.counts, strict=True))
        other = [(i, here, there) for i, (here, there) in pairs if here != there]
        named = [f" {_quoted(name)}" for name in got.class_names or ()] or [""] * len(ours.counts)
        said += "".join(
            f"; of class {i}{named[i]} {here:,}, expected {there:,}"
            for i, here, there in other[:_LISTED]
        )
        if not other:
            said += ", some with other names or classes"
    return said


def _says_as_much(before: Mapping[str, Any], value: Mapping[str, Any]) -> bool:
    """Return whether a record says the same as one before it, or what that one left open."""
    listing, now = before.get("listing"), value.get("listing")
    if isinstance(listing, Mapping) and isinstance(now, Mapping):
        known = {key: entry for key, entry in listing.items() if entry}
        before = {**before, "listing": {**now, **known}}
    return before == value


def _formerly_fault(source: Source, where: str) -> str:
    """Say that a run without a record numbered the classes otherwise; "": it did not."""
    if not source.formerly:
        return ""
    return (
        f"{where} is of a release that numbered the classes of {source.name} {source.formerly}, "
        f"expected the order of now: {', '.join(map(_quoted, (source.class_names or ())[:4]))}, ..."
    )


def _quoted(name: str) -> str:
    return f"'{shown(name)}'"


def _read_file(file: Path) -> dict[str, Any] | None:
    """Return what data.json says, without its seal, which older releases had not."""
    fault = ""
    try:
        value = read_json(file)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        check_reached(error, file)
        value, fault = {}, str(error)
    value = value if isinstance(value, dict) else {}
    if SEAL in value and not is_sealed(value):
        fault = "it does not match its own seal"
    if fault:
        raise Refused(
            f"{file} cannot be read ({fault}), expected the record of a run's data; restore it "
            "from a copy, or remove it: the checkpoints have it too."
        )
    return {key: it for key, it in value.items() if key != SEAL}


def _from_json(value: Any) -> DataRecord | None:
    """Return what JSON holds as a record; None: it is none. Files of others are not trusted."""
    if not isinstance(value, Mapping):
        return None
    names, listing = value.get("class_names"), value.get("listing")
    numbers = [value.get("images"), value.get("num_classes")]
    if not isinstance(value.get("source"), str) or any(type(n) is not int for n in numbers):
        return None
    if names is not None and not _is_texts(names):
        return None
    found = None
    if listing is not None:
        if not isinstance(listing, Mapping) or not isinstance(listing.get("counts"), list):
            return None
        texts = [listing.get("digest"), listing.get("sizes", ""), listing.get("contents", "")]
        if not _is_texts(texts):
            return None
        counts = tuple(n for n in listing["counts"] if type(n) is int)
        found = Listing(texts[0], counts, *texts[1:])
    return DataRecord(
        value["source"],
        value["images"],
        value["num_classes"],
        None if names is None else tuple(names),
        found,
    )


def _is_texts(names: Any) -> bool:
    return isinstance(names, list) and all(isinstance(name, str) for name in names)
