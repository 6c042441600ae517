"""Prompts: a .txt with one a line, a .jsonl of objects, or a .parquet with a column of texts.

    .txt       a handwritten seven
    .jsonl     {"prompt": "a handwritten seven"}, or "text", or "caption"
    .parquet   a column called so; needs pyarrow (the extra `[text2image]`)

Texts are UTF-8, or UTF-16 with its byte-order mark; space around one is removed. Empty ones are
left out and counted, duplicates are kept: a prompt that stands there twice is drawn twice as often.
"""

import itertools
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dmd2_jax.config.refused import Missing, Refused
from dmd2_jax.config.text import check_text
from dmd2_jax.data.reading.parquet import read_columns
from dmd2_jax.data.reading.text_lines import json_lines, text_key, text_lines, text_of
from dmd2_jax.runtime.fetched import fetched
from dmd2_jax.typing import Int

__all__ = ["ENDINGS", "Prompts", "read_prompts"]

_log = logging.getLogger(__name__)

ENDINGS = (".txt", ".jsonl", ".parquet")


@dataclass(frozen=True)
class Prompts:
    """Prompts by number, for `data.batches_from` as any source is.

    Attributes:
      name: the file, for messages.
      texts: the prompts, in the file's order.
    """

    name: str
    texts: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)

    def examples(self, indices: Int[np.ndarray, " n"]) -> dict[str, np.ndarray]:
        """Return {"prompt": [n] strings} of these numbers, in this order."""
        chosen = np.empty(len(indices), object)  # NumPy's own strings all take the longest's room
        chosen[:] = [self.texts[i] for i in indices]
        return {"prompt": chosen}

    def describe(self, index: int) -> str:
        """Return the file and line of a prompt, for messages; the file is read again."""
        places = (where for where, text in _entries(Path(self.name)) if text)
        return next(itertools.islice(places, index, None))


def read_prompts(path: str | Path) -> Prompts:
    """Read a file of prompts.

    Args:
      path: the file; its ending says what it is.

    Returns:
      The prompts, at least one.

    Raises:
      FileNotFoundError: if there is no such file.
      MissingPackageError: if a .parquet is given and pyarrow is not installed.
      ValueError: if the file is of another kind or damaged, naming the line; or without a prompt.
    """
    file = fetched(path).expanduser()
    if not file.is_file():
        raise Missing(
            f"{path} does not exist, expected a file of prompts ({', '.join(ENDINGS)}); mind the "
            "working directory."
        )
    if file.suffix.lower() not in ENDINGS:
        raise Refused(
            f"{path} ends in {file.suffix.lower()!r}, expected one of {', '.join(ENDINGS)}; rename "
            "or convert it."
        )
    found = [text for _, text in _entries(file)]
    texts = tuple(text for text in found if text)
    if len(texts) < len(found):
        _log.warning(
            "%s: %d of %d prompts are empty and left out.",
            file,
            len(found) - len(texts),
            len(found),
        )
    if not texts:
        raise Refused(f"{path} has no prompts, expected at least one; check the file.")
    return Prompts(str(file), texts)


def _entries(file: Path) -> Iterator[tuple[str, str]]:
    """Yield (the place, the prompt) of every line or row, which may be empty."""
    name, ending = str(file), file.suffix.lower()
    if ending == ".txt":
        yield from text_lines(file.read_bytes(), name)
    elif ending == ".jsonl":
        for where, entry in json_lines(file.read_bytes(), name):
            yield where, text_of(entry, where)
    else:
        (texts,) = read_columns(file, name, lambda names: [text_key(names, name)])
        for number, text in enumerate(texts, 1):
            yield f"{name} row {number}", check_text(text, f"{name} row {number}").strip()
