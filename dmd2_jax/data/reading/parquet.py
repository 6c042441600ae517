"""Columns of texts of a parquet file."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path

from dmd2_jax.config.refused import Refused, lacks
from dmd2_jax.data.reading.contract import MissingPackageError

__all__ = ["read_columns"]


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
            columns = table.read(columns=names)
    except (pyarrow.ArrowException, OSError) as error:
        raise Refused(
            f"{place} cannot be read ({type(error).__name__}: {error!s:.200}), expected a parquet "
            "file; copy it again."
        ) from error
    kinds = (
        pyarrow.types.is_string,
        pyarrow.types.is_large_string,
        pyarrow.types.is_string_view,
        pyarrow.types.is_null,
    )
    for name in names:
        kind = columns.column(name).type
        if not any(is_kind(kind) for is_kind in kinds):
            raise Refused(f"{place} has a column {name!r} of {kind}, expected texts; convert it.")
    return [[text or "" for text in columns.column(name).to_pylist()] for name in names]
