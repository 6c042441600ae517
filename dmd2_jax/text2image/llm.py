"""A language model as a text encoder: its template, tokenizer and which of its states are taken.

What tells one pipeline's from another's is a `LanguageModel` (families/published/pipeline.py): a
prompt is put into a fixed text, the chat of one user turn; some layers' states, side by side, are
the prompt's tokens. Prompts have several lengths: they are filled up to one, a multiple of 32 or
so, and a mask says where there is a token, unless the network reads the filling.
Needs the package tokenizers (transformers where there is no tokenizer.json); nothing is downloaded.
"""

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from dmd2_jax.config.refused import Refused, lacks
from dmd2_jax.config.text import read_json
from dmd2_jax.data import MissingPackageError
from dmd2_jax.families.published.digests import check_digest
from dmd2_jax.families.published.pipeline import LanguageModel
from dmd2_jax.networks.qwen import LlmFeatures, Qwen
from dmd2_jax.runtime.fetched import fetched
from dmd2_jax.runtime.links import check_inside
from dmd2_jax.text2image.tokenizer import Tokens, check_vocabulary
from dmd2_jax.typing import Array, Int

__all__ = ["LlmJoin", "LlmTokenizer", "open_llm_tokenizer"]

_SETTINGS = "tokenizer_config.json"
_FORMS = (("tokenizer.json",), ("vocab.json", "merges.txt"))
_PAD = "<|endoftext|>"  # Qwen's, where the settings name none
_READ = (".json", ".txt", ".jinja")
_CHUNK = 2**14  # prompts at a time


class LlmTokenizer(NamedTuple):
    """A tokenizer that fits a language model.

    Attributes:
      backend: of the package tokenizers.
      model: how prompts are read.
      pad: the token that fills up.
      length: tokens of every prompt; at first the most that are read.
    """

    backend: Any
    model: LanguageModel
    pad: int
    length: int

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """Return the tokens of prompts: a function of the texts and of `length` alone.

        Longer ones keep their first tokens; what fills up shorter ones is ~pad, below 0.
        """
        rows = self._encode(texts)
        ids = np.full((len(rows), self.length), ~self.pad, np.int32)
        for row, tokens in zip(ids, rows, strict=True):
            row[: len(tokens)] = tokens[: self.length]
        return Tokens(ids, np.array([len(tokens) for tokens in rows], np.int64))

    def counts(self, texts: Sequence[str]) -> Int[np.ndarray, " n"]:
        """Return `Tokens.counts` of any number of prompts, in little memory."""
        starts = range(0, len(texts), _CHUNK)
        rows = (self._encode(texts[begin : begin + _CHUNK]) for begin in starts)
        return np.array([len(tokens) for chunk in rows for tokens in chunk], np.int64)

    def fitted(self, texts: Sequence[str]) -> "LlmTokenizer":
        """Return the tokenizer that fills prompts up no further than these need."""
        drop, multiple = self.model.drop, self.model.multiple
        most = int(max(self.counts(texts), default=0))
        length = drop + max(1, -(-(most - drop) // multiple)) * multiple
        return self._replace(length=min(length, self.length))

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        whole = [f"{self.model.before}{text}{self.model.after}" for text in texts]
        return [one.ids for one in self.backend.encode_batch_fast(whole)]


class LlmJoin(NamedTuple):
    """The states of one language model as a condition.

    Attributes:
      states: the numbers of those that are taken, beside each other.
      drop: how many of the first tokens, the template's, are left out.
      filled: whether the states of what fills a prompt up are taken too, without a mask.
    """

    states: tuple[int, ...]
    drop: int
    filled: bool = False

    def __call__(self, features: Sequence[LlmFeatures]) -> dict[str, Array]:
        """Return prompt_embeds [n, t, d], 0 where there is filling, and prompt_mask [n, t].

        Where filling is read, prompt_embeds alone, with its states.
        """
        (one,) = features
        taken = jnp.concatenate([one.hidden_states[i] for i in self.states], axis=-1)
        if self.filled:
            return {"prompt_embeds": taken[:, self.drop :]}
        mask = jnp.asarray(one.mask, jnp.float32)[:, self.drop :]
        return {"prompt_embeds": taken[:, self.drop :] * mask[..., None], "prompt_mask": mask}


def open_llm_tokenizer(
    folder: str | os.PathLike, encoder: Qwen, model: LanguageModel
) -> LlmTokenizer:
    """Open a pipeline's tokenizer for its language model; the files are read once a process.

    Args:
      folder: with tokenizer.json, or vocab.json and merges.txt, which transformers reads.
      encoder: the network that reads the tokens.
      model: how the pipeline reads prompts.

    Raises:
      MissingPackageError: if the package tokenizers, or transformers, is not installed.
      ValueError: if a file is missing or damaged, or the vocabulary is not the encoder's.
    """
    folder = fetched(folder)
    backend, pad = _read(str(folder.resolve()))
    check_vocabulary(backend.get_vocab().values(), encoder.vocabulary, folder)
    return LlmTokenizer(backend, model, pad, model.length)


@functools.lru_cache(maxsize=4)
def _read(folder: str) -> tuple[Any, int]:
    place, settings = Path(folder), Path(folder) / _SETTINGS
    files = next((form for form in _FORMS if all((place / name).is_file() for name in form)), None)
    if files is None:
        found = sorted(os.listdir(folder)) if os.path.isdir(folder) else "no folder"
        raise Refused(
            f"{folder} has no tokenizer: got {found}, expected tokenizer.json, or vocab.json and "
            "merges.txt; download the missing file."
        )
    for one in place.iterdir():  # transformers opens more than it needs
        if one.name in files or (len(files) > 1 and one.suffix in _READ) or one == settings:
            check_inside(one, place)
            check_digest(place.parent, f"{place.name}/{one.name}")
    try:
        backend = _from_file(place / files[0]) if len(files) == 1 else _from_vocabulary(place)
        said = read_json(settings).get("pad_token") if settings.is_file() else None
        name = said.get("content") if isinstance(said, dict) else said
        pad = backend.token_to_id(name or _PAD)
    except MissingPackageError:
        raise
    except Exception as error:  # of any class, those of a Rust extension among them
        raise Refused(
            f"{folder} cannot be read as a tokenizer ({type(error).__name__}: {error!s:.200}), "
            f"expected {' and '.join(files)} of a language model; download it again."
        ) from error
    if pad is None:
        raise Refused(
            f"{folder} has no token {name or _PAD!r:.60}, expected the one that fills prompts up; "
            "take all files of the tokenizer from one release."
        )
    # What the file says of cutting and filling up is somebody's last call.
    backend.no_truncation()
    backend.no_padding()
    return backend, pad


def _from_file(file: Path) -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise MissingPackageError(
            lacks("tokenizing prompts", "tokenizers", "text2image")
        ) from error
    return tokenizers.Tokenizer.from_file(str(file))


def _from_vocabulary(folder: Path) -> Any:
    """Make a tokenizer of vocab.json and merges.txt, as Qwen-Image is released."""
    try:
        import transformers
    except ImportError as error:
        raise MissingPackageError(
            lacks("tokenizing prompts", "transformers", "text2image")
        ) from error
    # Of release 5 on one class with two names.
    kind = getattr(transformers, "Qwen2TokenizerFast", None) or transformers.Qwen2Tokenizer
    return kind.from_pretrained(str(folder), local_files_only=True).backend_tokenizer
