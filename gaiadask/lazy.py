"""Lazy dask frames of tables that are made or read piece by piece, and functions of tables on frames of every kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import dask.dataframe as dd
import pandas as pd
import pyarrow as pa
from dask.base import compute
from dask.delayed import delayed

from gaiadask import catalogue
from gaiadask.catalogue import Partition
from gaiadask.codec.compressed import Compressed, CompressedReader
from gaiadask.encode import latents_of_stored
from gaiadask.frames import entry_of
from gaiadask.model.source import ModelSource
from gaiadask.store.files import Store

T = TypeVar("T")
R = TypeVar("R")

_FAN_IN = 8
"""Results that are merged at once."""


class FileToRead(NamedTuple):
    """A file of a lazy frame, and what it must have been made from, for it may be made anew before it is read."""

    name: str
    footer: dict[str, str]


def frame_of(make: Callable[[T], pa.Table], pieces: Sequence[T], schema: pa.Schema) -> dd.DataFrame:
    """A lazy frame of a table for each of the pieces, all with this schema."""
    return dd.from_map(partial(_made, make), list(pieces), meta=to_pandas(_plain(schema).empty_table()))


def frame(store: Store, schema: pa.Schema, files: Sequence[FileToRead]) -> dd.DataFrame:
    """A lazy frame with one partition a file; of its columns those of the schema."""
    # Not read_parquet: it fuses small files, and one file is one partition here.
    return frame_of(partial(_read, store, schema.names), files, schema)


def latent_frame(source: ModelSource, schema: pa.Schema, files: Sequence[FileToRead]) -> dd.DataFrame:
    """A lazy frame of a model's latents, as floating-point numbers; one partition a file. schema: `encode.latent_schema`."""
    return frame_of(partial(_read_latents, source, schema.names), files, schema)


def decompressed(compressed: Compressed, columns: Sequence[str] | None) -> dd.DataFrame:
    """A lazy frame of the stars of a compressed catalogue, one partition a file. columns: names; None: all."""
    reader = compressed.reader
    names = list(reader.columns if columns is None else columns)
    return frame_of(partial(_decompress, reader, names), compressed.record.partitions, reader.schema(names))


def applied(function: Callable[[Any], pa.Table], frame: Any, schema: pa.Schema) -> Any:
    """A function of tables on a frame: dask of dask, pandas of pandas (with its index), else an arrow table."""
    on_pandas = partial(_with_index, function)
    if isinstance(frame, dd.DataFrame):
        return frame.map_partitions(on_pandas, meta=to_pandas(_plain(schema).empty_table()))
    return on_pandas(frame) if isinstance(frame, pd.DataFrame) else function(frame)


def each(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """A function of each item, wherever dask computes."""
    (results,) = compute([delayed(function)(item) for item in items])
    return list(results)


def merged(function: Callable[[T], R], merge: Callable[[list[R]], R], items: Sequence[T]) -> R:
    """A function of each item, wherever dask computes, and its results merged a few at a time: no more travel than are left."""
    level = [delayed(function)(item) for item in items]
    while len(level) > 1:
        level = [delayed(merge)(level[first : first + _FAN_IN]) for first in range(0, len(level), _FAN_IN)]
    (result,) = compute(*level)
    return result


def to_pandas(table: pa.Table) -> pd.DataFrame:
    """A table in pandas, arrow-backed: integers and booleans keep their nulls, 64-bit ids their last digits."""
    frame = table.replace_schema_metadata(None).to_pandas(types_mapper=pd.ArrowDtype)
    if weights := entry_of(table, catalogue.WEIGHTS_ENTRY):
        frame.attrs[catalogue.WEIGHTS_ENTRY] = weights  # by which `decode` knows whose latents these are
    return frame


def _plain(schema: pa.Schema) -> pa.Schema:
    return pa.schema([field.remove_metadata() for field in schema])


def _made(make: Callable[[T], pa.Table], piece: T) -> pd.DataFrame:
    return to_pandas(make(piece))


def _read(store: Store, columns: Sequence[str], file: FileToRead) -> pa.Table:
    return pa.concat_tables(catalogue.iterate_file(store, file.name, columns, file.footer))


def _read_latents(source: ModelSource, columns: Sequence[str], file: FileToRead) -> pa.Table:
    return latents_of_stored(_read(source.store, columns, file), source.load())


def _decompress(reader: CompressedReader, names: Sequence[str], partition: Partition) -> pa.Table:
    return pa.concat_tables(reader.iterate(partition, names))


def _with_index(function: Callable[[Any], pa.Table], frame: pd.DataFrame) -> pd.DataFrame:
    return to_pandas(function(frame)).set_index(frame.index)
