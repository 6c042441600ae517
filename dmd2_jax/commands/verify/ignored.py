"""What of a folder is not read: files, and keys of config.json that change nothing here."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dmd2_jax.commands.verify.subject import Subject
from dmd2_jax.config.text import read_json
from dmd2_jax.families.published.digests import DIGESTS
from dmd2_jax.families.published.folder import read_component_config, weights_file
from dmd2_jax.families.published.model import CLASSES, PublishedClass, class_of
from dmd2_jax.families.published.pipeline import INDEX

__all__ = ["ignored_files", "ignored_keys"]

_TOKENIZER = (
    *("tokenizer.json", "vocab.json", "merges.txt", "spiece.model", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json"),
)
_SENTINEL = "\u0000"


def ignored_files(subject: Subject) -> list[str]:
    """Return the files below the folder that nothing here reads, those of a folder in one line."""
    named = (INDEX, DIGESTS, "scheduler/scheduler_config.json")
    read = {subject.folder / name for name in named}
    for folder, kind in _components(subject):
        read.add(folder / "config.json")
        if not (subject.replaced and folder == subject.network):
            read |= _weights(subject, folder, kind.file_stem)
    if subject.pipeline is not None:
        for tokenizer, _ in subject.pipeline_index.text_parts:
            read |= {subject.folder / tokenizer / name for name in _TOKENIZER}
    left = [
        path for path in sorted(subject.folder.rglob("*")) if path.is_file() and path not in read
    ]
    tops = Counter(path.relative_to(subject.folder).parts[0] for path in left)
    whole = {top for top, n in tops.items() if not any(top in p.parts for p in read if p.exists())}
    lines = [
        f"{top}/ ({tops[top]} files)" for top in sorted(whole) if (subject.folder / top).is_dir()
    ]
    for path in left:
        short = path.relative_to(subject.folder)
        if short.parts[0] not in whole or len(short.parts) == 1:
            lines.append(str(short))
    return lines


def _weights(subject: Subject, folder: Path, stem: str) -> set[Path]:
    named = subject.pipeline_index.variant_of(folder.name) if subject.pipeline is not None else None
    try:
        file = weights_file(folder, stem, named)
        places = read_json(file)["weight_map"] if file.suffix == ".json" else {}
    except (ValueError, KeyError, OSError):
        return set()  # which the part's own row says
    return {file, *(folder / str(name) for name in places.values())}


def ignored_keys(subject: Subject) -> dict[str, list[str]]:
    """Return, by part, the keys of config.json with which any value gives the same network."""
    found = {}
    for folder, kind in _components(subject):
        config = read_component_config(folder)
        if keys := list(_without_effect(config, kind)):
            found[folder.name] = keys
    return found


def _components(subject: Subject) -> Iterator[tuple[Path, PublishedClass]]:
    """Yield the folder of each network and what is known of its class."""
    yield subject.network, subject.family.model.kind
    if subject.pipeline is not None:
        for part in (*(encoder for _, encoder in subject.pipeline_index.text_parts), "vae"):
            folder = subject.pipeline_index.part(part)
            yield folder, CLASSES[class_of(read_component_config(folder))]


def _without_effect(config: Mapping[str, Any], kind: PublishedClass) -> Iterator[str]:
    def built(values: Mapping[str, Any]) -> Any:
        return kind.build(values, dtype="float32", remat="none")

    plain = built(config)
    for key in config:
        if key.startswith("_") or key == "architectures":
            continue
        try:
            if built({**config, key: _SENTINEL}) == plain:
                yield key
        except Exception:  # of any class: the key is read, and wants another value
            continue
