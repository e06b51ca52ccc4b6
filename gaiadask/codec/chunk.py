"""A chunk of stars, rows of one partition that follow each other, as bytes and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from gaiadask.catalogue import check_rows_in_tile
from gaiadask.codec import columns
from gaiadask.codec.card import CodecCard, ColumnCode
from gaiadask.codec.columns import Chosen, Coded, Judge, Native, Originals
from gaiadask.codec.dependencies import MASK, depends_on
from gaiadask.codec.stars import Stars
from gaiadask.errors import DataError
from gaiadask.release.column import DEC, HEALPIX_29, RA
from gaiadask.release.release import Release
from gaiadask.sky import healpix
from gaiadask.store.paths import Tile

CHUNK_ROWS = 131_072
"""Of a chunk, at most: what a decoder holds at once."""


class CodedChunk(NamedTuple):
    """A chunk as bytes.

    Attributes:
        rows: number of stars.
        columns: each column of the card, null masks among them.
    """

    rows: int
    columns: dict[str, Coded]


@np.errstate(invalid="ignore", divide="ignore", over="ignore")
def encode_chunk(table: pa.Table, card: CodecCard, tile: Tile, release: Release, before: int = -1) -> CodedChunk:
    """Code a chunk.

    Args:
        table: its stars, with every column of the card; a catalogue's, with `_healpix_29`, are sorted by it and come back sorted.
        card: how.
        tile: of the partition.
        release: the columns' data release.
        before: `_healpix_29` of the star before the first one.

    Raises:
        DataError: a column is missing or of another type, or the stars are not in order.
    """
    if HEALPIX_29 in table.column_names:
        check_rows_in_tile(table, tile, before)
    natives = _natives(table, card, release)
    judge = Judge(Originals(natives), {code.name: code.tolerance for code in card.columns}, release)
    stars = _stars(card, tile, table.num_rows)
    coded: dict[str, Coded] = {}
    positions: dict[str, Chosen] = {}
    in_order = HEALPIX_29 in table.column_names
    for code in card.columns:
        chosen = columns.choose(code, stars, column_of(code, natives, stars), judge)
        if code.name in (RA, DEC) and in_order:
            positions[code.name] = chosen
            if len(positions) == 2:
                _mend_order(before, positions, natives, stars, judge, card)
                coded |= {name: chosen.packed() for name, chosen in positions.items()}
        else:
            coded[code.name] = chosen.packed()
    stars.leave()
    return CodedChunk(table.num_rows, {code.name: coded[code.name] for code in card.columns})


@np.errstate(invalid="ignore", divide="ignore", over="ignore")
def decode_chunk(
    rows: int, blobs: Mapping[str, Sequence[bytes]], card: CodecCard, tile: Tile, release: Release, names: Sequence[str]
) -> pa.Table:
    """The stars of a chunk.

    Args:
        rows: number of stars.
        blobs: of the columns that `needed` names, at least.
        card, tile, release: as they were coded with.
        names: of the columns to make.

    Raises:
        DamagedFileError: the bytes are not of such a chunk.
    """
    stars, made = _stars(card, tile, rows), {}
    for code in needed(card, names, release):
        column = columns.decode(code, stars, blobs[code.name], release)
        if code.name.startswith(MASK):
            stars.nulls[code.leader] = column.values
        else:
            made[code.name] = column
    stars.leave()
    schema = release.catalogue_schema(card.schema_columns)
    fields = [schema.field(name) for name in names]
    arrays = [
        pa.array(healpix(stars.values[RA], stars.values[DEC]))
        if field.name == HEALPIX_29
        else made[field.name].to_arrow(field.type)
        for field in fields
    ]
    return pa.table(arrays, schema=pa.schema(fields))


def needed(card: CodecCard, names: Sequence[str], release: Release) -> list[ColumnCode]:
    """The codes of the columns that must be decoded to have these, in the order of decoding."""
    wanted = {RA, DEC} if HEALPIX_29 in names else set()
    wanted |= {name for name in names if name != HEALPIX_29}
    codes: list[ColumnCode] = []
    for code in reversed(card.columns):
        if code.name in wanted:
            codes.append(code)
            wanted |= depends_on(code, card.features, release)
    return codes[::-1]


def column_of(code: ColumnCode, natives: Mapping[str, Native], stars: Stars) -> Native:
    """The values that a code is of: a column's, or a mask, which the stars have from then on."""
    if not code.name.startswith(MASK):
        return natives[code.name]
    null = natives[code.leader].null
    stars.nulls[code.leader] = np.zeros(stars.rows, np.bool_) if null is None else null
    return Native(stars.nulls[code.leader], None)


def _natives(table: pa.Table, card: CodecCard, release: Release) -> dict[str, Native]:
    natives = {}
    for code in card.columns:
        if code.name.startswith(MASK):
            continue
        if code.name not in table.column_names:
            raise DataError(f"no column {code.name}: the catalogue that was fitted had it")
        if (dtype := table.schema.field(code.name).type) != release.columns[code.name].dtype:
            raise DataError(f"column {code.name} is of type {dtype}: expected {release.columns[code.name].dtype}")
        natives[code.name] = columns.native(table[code.name])
    return natives


def _stars(card: CodecCard, tile: Tile, rows: int) -> Stars:
    return Stars(card.features, card.anchor, tile, rows, card.with_residual)


def _mend_order(
    before: int, positions: dict[str, Chosen], natives: Mapping[str, Native], stars: Stars, judge: Judge, card: CodecCard
) -> None:
    """Choose again, as they are, the positions that would bring a star into another tile or before its neighbour.

    A partition's rows are sorted by the `_healpix_29` of their position, which is computed anew from the decoded one. The last star
    of a chunk keeps its position, so that the next chunk knows where to begin.
    """
    if all(card.by_name[name].tolerance.kind == "exact" for name in (RA, DEC)):
        return
    first, stop = stars.tile.healpix_29
    exact = np.zeros(stars.rows, np.bool_)
    wrong = exact.copy()
    wrong[-1:] = True
    while (wrong & ~exact).any():
        exact |= wrong
        for name in (DEC, RA):
            positions[name] = columns.choose(card.by_name[name], stars, natives[name], judge, exact)
        made = healpix(stars.values[RA], stars.values[DEC])
        wrong = (made < max(first, before)) | (made >= stop)
        falls = np.flatnonzero(made[1:] < made[:-1])
        wrong[falls] = wrong[falls + 1] = True
