"""CLIP's or T5's tokenizer out of a pipeline's folder: prompts to token numbers.

Needs transformers (the extra `[text2image]`); nothing is ever downloaded.
"""

import functools
import logging
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dmd2_jax.config.refused import Refused, lacks
from dmd2_jax.data import MissingPackageError
from dmd2_jax.families.published.digests import check_digest
from dmd2_jax.networks.clip import ClipText
from dmd2_jax.networks.t5 import T5Encoder
from dmd2_jax.runtime.fetched import fetched
from dmd2_jax.runtime.links import check_inside
from dmd2_jax.typing import Int

__all__ = [
    "Tokenizer",
    "Tokens",
    "check_vocabulary",
    "open_t5_tokenizer",
    "open_tokenizer",
    "warn_of_cut",
]

_log = logging.getLogger(__name__)
_LEGACY_END = 2  # of the first published encoder configs; see networks/clip.py
_CHUNK = 2**14  # prompts at a time
_READ = (".json", ".txt", ".model")
_CLIP_FORMS = (("tokenizer.json",), ("vocab.json", "merges.txt"))
_T5_FORMS = (("tokenizer.json",), ("spiece.model",))


class Tokens(NamedTuple):
    """Prompts as numbers.

    Attributes:
      ids: [n, length] int32: start, text, end, padding; padding is below 0 where the encoder has to
        know it (text2image/llm.py).
      counts: [n] tokens of each prompt with start and end, before it was cut to `length`.
    """

    ids: Int[np.ndarray, "n length"]
    counts: Int[np.ndarray, " n"]


class Tokenizer(NamedTuple):
    """A tokenizer that fits a text encoder.

    Attributes:
      backend: of transformers.
      length: tokens of every prompt.
    """

    backend: Any
    length: int

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """Return the tokens of prompts: a function of the texts alone.

        Longer ones keep their first tokens and the end token, shorter ones are padded.
        """
        backend, length = self.backend, self.length
        rows = []
        if len(texts):
            # verbose: transformers would warn once a process, of one of them
            rows = backend(list(texts), padding=False, truncation=False, verbose=False)["input_ids"]
        ids = np.full((len(rows), length), backend.pad_token_id, np.int32)
        for row, tokens in zip(ids, rows, strict=True):
            kept = tokens if len(tokens) <= length else [*tokens[: length - 1], tokens[-1]]
            row[: len(kept)] = kept
        return Tokens(ids, np.array([len(tokens) for tokens in rows], np.int64))

    def counts(self, texts: Sequence[str]) -> Int[np.ndarray, " n"]:
        """Return `Tokens.counts` of any number of prompts, in little memory."""
        starts = range(0, len(texts), _CHUNK)
        parts = [self(texts[begin : begin + _CHUNK]).counts for begin in starts]
        return np.concatenate([np.empty(0, np.int64), *parts])

    def fitted(self, texts: Sequence[str]) -> "Tokenizer":
        """Return the tokenizer: it makes as many tokens of all prompts."""
        return self


def open_tokenizer(folder: str | os.PathLike, encoder: ClipText) -> Tokenizer:
    """Open a pipeline's tokenizer for its text encoder; the files are read once a process.

    Args:
      folder: with vocab.json and merges.txt, or tokenizer.json.
      encoder: the network that reads the tokens.

    Raises:
      MissingPackageError: if transformers is not installed.
      ValueError: if a file is missing or damaged, or the vocabulary is not the encoder's.
    """
    folder = fetched(folder)
    backend = _read(str(folder.resolve()), "CLIP")
    check_vocabulary(backend.get_vocab().values(), encoder.vocabulary, folder)
    if encoder.end_token not in (_LEGACY_END, backend.eos_token_id):
        raise Refused(
            f"{folder} ends a prompt by token {backend.eos_token_id}, expected "
            f"{encoder.end_token} as its text encoder's config says; take both from one pipeline."
        )
    # A config without the setting gets a huge number.
    return Tokenizer(backend, int(min(backend.model_max_length, encoder.context)))


def open_t5_tokenizer(folder: str | os.PathLike, encoder: T5Encoder, length: int) -> Tokenizer:
    """Open a pipeline's tokenizer for its T5; the files are read once a process.

    Args:
      folder: with tokenizer.json, or spiece.model, which needs the package sentencepiece.
      encoder: the network that reads the tokens.
      length: tokens of every prompt, see `T5_TOKENS`.

    Raises:
      MissingPackageError: if transformers is not installed.
      ValueError: if a file is missing or damaged, or the vocabulary is not the encoder's.
    """
    folder = fetched(folder)
    backend = _read(str(folder.resolve()), "T5")
    check_vocabulary(backend.get_vocab().values(), encoder.vocabulary, folder)
    return Tokenizer(backend, length)


def check_vocabulary(numbers: Collection[int], vocabulary: int, folder: Path) -> None:
    """Refuse a tokenizer that is not its text encoder's.

    Args:
      numbers: of its tokens.
      vocabulary: how many the text encoder knows.
      folder: of the tokenizer.
    """
    largest = max(numbers)
    if largest >= vocabulary:
        raise Refused(
            f"{folder} has tokens up to number {largest}, expected less than the "
            f"{vocabulary} that its text encoder knows; take both from one pipeline."
        )


def warn_of_cut(counts: Int[np.ndarray, " n"], length: int, texts: Sequence[str]) -> None:
    """Warn, once for all of them, of prompts that were too long.

    Args:
      counts: tokens of each prompt before it was cut.
      length: that it was cut to.
      texts: the prompts.
    """
    cut = np.flatnonzero(counts > length)
    if len(cut):
        _log.warning(
            "%d of %d prompts have more than %d tokens and lose their ends; the first, with %d: "
            "%.60r",
            len(cut),
            len(texts),
            length,
            counts[cut[0]],
            texts[cut[0]],
        )


@functools.lru_cache(maxsize=8)
def _read(folder: str, family: str) -> Any:
    forms, ends = (_CLIP_FORMS, 2) if family == "CLIP" else (_T5_FORMS, 1)
    # transformers makes an empty vocabulary where files are missing, without a word.
    there = [all((Path(folder) / name).is_file() for name in form) for form in forms]
    if not any(there):
        found = sorted(os.listdir(folder)) if os.path.isdir(folder) else "no folder"
        raise Refused(
            f"{folder} has no tokenizer: got {found}, expected {' and '.join(forms[1])}, or "
            "tokenizer.json; download the missing files."
        )
    for file in Path(folder).iterdir():  # transformers opens more than it needs
        check_inside(file, folder)
        if file.suffix in _READ:
            check_digest(file.parent.parent, f"{file.parent.name}/{file.name}")
    try:
        import transformers
    except ImportError as error:
        raise MissingPackageError(
            lacks("tokenizing prompts", "transformers", "text2image")
        ) from error
    # Of release 5 on one class with two names; before, only the fast one reads tokenizer.json.
    kind = getattr(transformers, f"{family}Tokenizer{'Fast' if there[0] else ''}")
    try:
        backend = kind.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # of any class, those of a Rust extension among them
        raise Refused(
            f"{folder} cannot be read as a tokenizer ({type(error).__name__}: {error!s:.200}), "
            f"expected {family}'s; download it again."
        ) from error
    longest = backend.model_max_length
    if isinstance(longest, bool) or not isinstance(longest, int | float) or not longest >= 1:
        raise Refused(
            f"{folder} has model_max_length={str(longest)[:40]!r}, expected a number of tokens; "
            "download it again."
        )
    if len(backend("")["input_ids"]) != ends or backend.pad_token_id is None:
        expected = "a start and an end token" if ends == 2 else "an end token"
        raise Refused(
            f"{folder} makes {backend('')['input_ids']} of the empty prompt, expected {expected}, "
            f"and a token for padding; use {family}'s tokenizer."
        )
    return backend
