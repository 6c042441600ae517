"""Prompts: a .txt with one a line, a .jsonl of objects, or a .parquet with a column of texts.

    .txt       a handwritten seven
    .jsonl     {"prompt": "a handwritten seven"}, or "text", or "caption"
    .parquet   a column called so; needs pyarrow (the extra `[text2image]`)

Texts are UTF-8, or UTF-16 with its byte-order mark; space around one is removed. Empty ones are
left out and counted, duplicates are kept: a prompt that stands there twice is drawn twice as often.
"""

import logging
from collections.abc import Iterable
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
    ending = file.suffix.lower()
    if ending == ".txt":
        found = [text for _, text in text_lines(file.read_bytes(), str(file))]
    elif ending == ".jsonl":
        found = [text_of(entry, where) for where, entry in json_lines(file.read_bytes(), str(file))]
    elif ending == ".parquet":
        found = _read_parquet(file)
    else:
        raise Refused(
            f"{path} ends in {ending!r}, expected one of {', '.join(ENDINGS)}; rename or convert "
            "it."
        )
    texts = _without_empty(found, file)
    if not texts:
        raise Refused(f"{path} has no prompts, expected at least one; check the file.")
    return Prompts(str(file), texts)


def _without_empty(found: Iterable[str], file: Path) -> tuple[str, ...]:
    found = list(found)
    texts = tuple(text for text in found if text)
    if len(texts) < len(found):
        _log.warning(
            "%s: %d of %d prompts are empty and left out.",
            file,
            len(found) - len(texts),
            len(found),
        )
    return texts


def _read_parquet(file: Path) -> list[str]:
    (texts,) = read_columns(file, str(file), lambda names: [text_key(names, str(file))])
    return [check_text(text, f"{file} row {i}").strip() for i, text in enumerate(texts, 1)]
