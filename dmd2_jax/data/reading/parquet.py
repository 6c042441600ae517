"""Columns of texts of a parquet file."""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dmd2_jax.config.refused import Refused, lacks
from dmd2_jax.data.reading.contract import MissingPackageError

__all__ = ["read_columns"]

_MOST_BYTES = 2**31
_ROWS = 1024


def read_columns(
    source: Path | bytes, place: str, choose: Callable[[list[str]], Sequence[str]]
) -> list[list[str]]:
    """Read columns of texts.

    Args:
      source: the file, or its bytes.
      place: the file, for messages.
      choose: names of all columns -> names of those to read.

    Returns:
      The texts of each; "" where there is none.

    Raises:
      MissingPackageError: if pyarrow is not installed.
      ValueError: if the file is damaged, or a column is not of texts.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise MissingPackageError(
            f"{lacks('reading parquet', 'pyarrow', 'text2image')}, or convert {place} to .jsonl"
        ) from error
    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        with pyarrow.parquet.ParquetFile(file) as table:
            names = list(choose(table.schema_arrow.names))
            kinds = {name: table.schema_arrow.field(name).type for name in names}
            _check_kinds(kinds, place)
            return _texts(table, names, place)
    except (pyarrow.ArrowException, OSError) as error:
        raise Refused(
            f"{place} cannot be read ({type(error).__name__}: {error!s:.200}), expected a parquet "
            "file; copy it again."
        ) from error


def _check_kinds(kinds: Mapping[str, Any], place: str) -> None:
    from pyarrow import types

    known = (types.is_string, types.is_large_string, types.is_string_view, types.is_null)
    for name, kind in kinds.items():
        if not any(is_kind(kind) for is_kind in known):
            raise Refused(f"{place} has a column {name!r} of {kind}, expected texts; convert it.")


def _texts(table: Any, names: Sequence[str], place: str) -> list[list[str]]:
    """Read some rows after the other: a small file may repeat a long text without end."""
    texts: list[list[str]] = [[] for _ in names]
    size = 0
    for batch in table.iter_batches(batch_size=_ROWS, columns=list(names)):
        size += batch.nbytes
        if size > _MOST_BYTES:
            raise Refused(
                f"{place} unfolds to more than {_MOST_BYTES >> 30} GiB of texts, expected less; "
                "split it, or do not trust it."
            )
        for column, name in zip(texts, names, strict=True):
            column += [text or "" for text in batch.column(name).to_pylist()]
    return texts
