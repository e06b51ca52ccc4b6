"""Products: partition files that stages write, each with the key of what it was made from in its footer.

Latents, sampled stars and decoded stars are written by this one piece of code. A file whose footer has the right key is not made
again; another one is replaced, whole or not at all. A folder of stars (sampled, decoded) is bound to one request by `_request.json`,
written by one process at a time, and complete once `_complete.json` says so; what is bound to another request, and a folder with
any file that is not such a product, is refused.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from typing import NamedTuple

import pyarrow as pa

from gaiadask.ahead import ahead
from gaiadask.archive.chunks import regrouped
from gaiadask.catalogue import (
    CATALOGUE_ID,
    KEY,
    ROW_GROUP_ROWS,
    WEIGHTS,
    WEIGHTS_ENTRY,
    Partition,
    each_whole,
    file_checksum,
    is_whole,
    iterate_partition,
    shown,
    write_pieces,
)
from gaiadask.checks import check_same_stars
from gaiadask.errors import DamagedFileError, DataError, KeyMismatchError, StoreError
from gaiadask.keys import differences, digest
from gaiadask.model.source import ModelSource
from gaiadask.records import JsonObject
from gaiadask.release.column import SOURCE_ID
from gaiadask.store.files import Store
from gaiadask.store.lease import Lease
from gaiadask.store.paths import CATALOGUE, Tile
from gaiadask.store.placing import Placing

log = logging.getLogger(__name__)

PRODUCT_KEY = "gaiadask.key"
"""Name of the key in a file's footer."""
REQUEST = "_request.json"
COMPLETE = "_complete.json"
_LEASE = "_lease.json"
# Readers of parquet folders pass over names that begin with an underscore.


class Piece(NamedTuple):
    """One file of a product.

    Attributes:
        name: of the file, relative to the store.
        key: hash of what its rows are made from.
        rows: how many it must have.
        title: what errors call it.
        weights: sha256 of the model's weights that its rows are made with; "" where it is not known.
    """

    name: str
    key: str
    rows: int
    title: str
    weights: str = ""

    @property
    def footer(self) -> dict[str, str]:
        """What the file says that it was made from."""
        return footer_of(self.key, self.weights)


def footer_of(key: str, weights: str) -> dict[str, str]:
    """Entries of a product's footer."""
    return {PRODUCT_KEY: key} | ({WEIGHTS_ENTRY: weights} if weights else {})


def latent_key(model_key: str, source: Partition) -> str:
    """What a latent partition depends on: the model, and the checksum of the partition that it encodes."""
    return digest({"model": model_key, "input": source.checksum})


def latent_footer(model: ModelSource, source: Partition) -> dict[str, str]:
    """What the latents of a partition say that they were made from."""
    return footer_of(latent_key(model.key, source), model.weights)


def latent_origin(catalogue_id: str, key: str, model: ModelSource) -> dict[str, str]:
    """What a latent catalogue says in hats.properties that it was made from; key: of its stage."""
    return {CATALOGUE_ID: catalogue_id, KEY: key, WEIGHTS: model.weights}


def with_latents(
    model: ModelSource, partitions: Sequence[Partition], columns: Sequence[str], latent_columns: Sequence[str] | None = None
) -> Iterator[tuple[pa.Table, pa.Table]]:
    """The stars of some partitions and their latents, row by row, in tables of a row group, of small partitions one.

    Args:
        model: whose latents they are.
        partitions: of the catalogue.
        columns, latent_columns: to read, source_id among them; None: all.

    Raises:
        DataError: the latents are of other stars.
        KeyMismatchError: they are of another model, or of partitions that were made anew since.
    """
    store, folder = model.store, model.run.latent
    stars = (table for p in partitions for table in iterate_partition(store, CATALOGUE, p.tile, columns))
    latents = (
        table for p in partitions for table in iterate_partition(store, folder, p.tile, latent_columns, latent_footer(model, p))
    )
    no_star = pa.table({SOURCE_ID: pa.array([], pa.int64())})
    pairs = zip_longest(*(regrouped(tables, ROW_GROUP_ROWS) for tables in (stars, latents)), fillvalue=no_star)
    for own, encoded in pairs:
        check_same_stars(own[SOURCE_ID].to_numpy(), encoded[SOURCE_ID].to_numpy(), f"partition {shown(partitions)}")
        yield own, encoded


def write_piece(
    store: Store, piece: Piece, make: Callable[[], pa.Table | Iterable[pa.Table]], tile: Tile | None = None
) -> str | None:
    """Write one file of a product as `write_product` does; make: its rows, in a table or in pieces."""

    def tables(_: Sequence[int]) -> Iterable[pa.Table]:
        made = make()
        return [made] if isinstance(made, pa.Table) else made

    return write_product(store, [piece], tables, [tile])[0]


def write_product(
    store: Store,
    pieces: Sequence[Piece],
    make: Callable[[Sequence[int]], Iterable[pa.Table]],
    tiles: Sequence[Tile | None],
) -> list[str | None]:
    """Write files of a product, but those that are there already with their keys; a damaged one is made again.

    Args:
        store: where the files lie.
        pieces: the files.
        make: given the numbers of those that are to be made, their rows one after the other, in tables of which each may go on into
            the next file: what is made of small files costs as little as of a large one. A table is made while the one before it
            is written, so that a file may be larger than memory.
        tiles: of catalogues' partitions, see `write_pieces`.

    Returns:
        Of each file the sha256 with which it was written, hex; None where it was there already.

    Raises:
        DataError: where `make` gives another number of rows than the pieces must have, or rows that do not belong into the tile.
        StoreError: where the store cannot be written.
    """
    checksums: list[str | None] = [None] * len(pieces)
    lacking = [number for number, piece in enumerate(pieces) if not is_whole(store, piece.name, piece.rows, piece.footer)]
    if not lacking:
        return checksums
    with closing(ahead(make(lacking))) as tables, Placing(store) as placing:
        rest: list[pa.Table] = []
        for number in lacking:
            piece = pieces[number]
            rows = piece.rows if number != lacking[-1] else None
            with placing.writing(piece.name) as scratch:
                written = write_pieces(_taken(tables, rest, rows), scratch, piece.footer, tiles[number])
                if written != piece.rows:
                    raise DataError(f"{piece.title}: expected {piece.rows} rows, found {written}")
                checksums[number] = file_checksum(scratch)
    return checksums


def _taken(tables: Iterator[pa.Table], rest: list[pa.Table], rows: int | None) -> Iterator[pa.Table]:
    """The next rows of tables, None: all that are left. rest: what is left of the table that was taken last."""
    while rows is None or rows > 0:
        table = rest.pop() if rest else next(tables, None)
        if table is None:
            return
        if rows is not None:
            if len(table) > rows:
                rest.append(table.slice(rows))
                table = table.slice(0, rows)
            rows -= len(table)
        yield table


class Looked(NamedTuple):
    """Rows of a file, and what is wrong with it; "": nothing."""

    rows: int
    problem: str = ""


Look = Callable[[str], Looked]


def _looked_at(store: Store, quick: bool, name: str) -> Looked:
    try:
        with store.open_parquet(name) as file:
            for group in range(0 if quick else file.num_row_groups):
                file.read_row_group(group)
            return Looked(int(file.metadata.num_rows))
    except StoreError as error:
        return Looked(0, str(error))


@dataclass(frozen=True)
class StarFolder:
    """A folder of parquet files of stars, which are all made for one request.

    Attributes:
        store: the folder, as a store of its own (any fsspec URI).
        title: what errors call the stars, as "new stars".
        pattern: regular expression of the names that files of such stars have, whatever the request.
    """

    store: Store
    title: str
    pattern: str

    def is_complete(self, request: JsonObject, pieces: Sequence[Piece]) -> bool:
        """Whether every file of this request is there, and whole."""
        try:
            marker = self.store.read_json_if_there(COMPLETE)
        except DamagedFileError:
            return False
        if not isinstance(marker, dict) or marker.get("key") != digest(request):
            return False
        return all(each_whole(self.store, ((piece.name, piece.rows, piece.footer) for piece in pieces)))

    def check_own(self) -> None:
        """Raise StoreError where the folder has any other file than such stars."""
        if self.store.list(""):
            self._own_files()

    @contextmanager
    def writing(self, request: JsonObject, files: int) -> Iterator[Store]:
        """The right to write the folder's files; when the block ends well, the folder is complete.

        Args:
            request: what the stars are made from; stars of another request are never mixed in.
            files: how many files there will be.

        Yields:
            The folder, for the files' writers: nothing is written there any more once another process has taken the lease.

        Raises:
            KeyMismatchError: where the folder has stars of another request.
            StoreError: where the folder has any other file, or another process writes it.
        """
        self._check(request)
        with Lease(self.store, _LEASE) as lease:
            store = lease.fenced
            self._check(request)
            store.sweep("")
            store.remove(COMPLETE)
            store.write_json(REQUEST, request)
            yield store
            self._check(request)
            store.write_json(COMPLETE, {"key": digest(request), "files": files})

    def remove(self) -> None:
        """Remove the folder's stars, of whatever request.

        Raises:
            StoreError: where the folder has any other file, or another process writes it. Nothing is removed then.
        """
        if not self.store.list(""):
            return
        self._own_files()
        with Lease(self.store, _LEASE) as lease:
            files = self._own_files()
            lease.fenced.remove(COMPLETE)
            for name in (*files, REQUEST):
                lease.fenced.remove(name)

    def problems(self, rows: int, quick: bool, each: Callable[[Look, Sequence[str]], Sequence[Looked]]) -> list[str]:
        """What is wrong with the folder's stars, as its marker and its files say.

        Args:
            rows: how many stars there must be.
            quick: read footers alone, and not every page with its checksum.
            each: calls a function with each of some names of files.
        """
        try:
            marker, files = self.store.read_json_if_there(COMPLETE), sorted(self._own_files())
        except StoreError as error:
            return [str(error)]
        if not isinstance(marker, dict):
            return [f"{COMPLETE} is missing: the command that wrote them did not end; give it again"]
        looked = each(partial(_looked_at, replace(self.store, checksums=True), quick), files)
        found, counted = [file.problem for file in looked if file.problem], sum(file.rows for file in looked)
        if len(files) != marker.get("files"):
            found.insert(0, f"there are {len(files)} files: {marker.get('files')} were written")
        return found if found or counted == rows else [f"there are {counted} stars: {rows} were written"]

    def _check(self, request: JsonObject) -> None:
        """Refuse a folder that has other files than stars of this request."""
        present = self.store.read_json_if_there(REQUEST)
        if present not in (None, request) and self._files():
            raise KeyMismatchError(
                f"{self.store.uri} has {self.title} of another request ({differences(present, request)}). Nothing was "
                "overwritten: name another folder with --output, or drop its stars with --replace"
            )
        self._own_files()

    def _files(self) -> set[str]:
        # Without the lease's own files: the lease, and the claims of those who take it over.
        return {name for name in self.store.list("") if name not in (REQUEST, COMPLETE) and not name.startswith(_LEASE)}

    def _own_files(self) -> set[str]:
        """Names of the files of stars. Raises StoreError where there is any other: no star is written before the request that it is
        of, so what no request has made is somebody's."""
        files = self._files()
        is_requested = self.store.read_bytes_if_there(REQUEST) is not None
        other = {name for name in files if not re.fullmatch(self.pattern, name)} if is_requested else files
        if other:
            raise StoreError(
                f"{self.store.uri} has other files ({min(other)}, for one). Nothing was changed: name another folder for the "
                f"{self.title}"
            )
        return files
