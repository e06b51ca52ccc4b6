"""Which files, or ranges of an archive, gave a star that came more than once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from gaiadask.archive.chunks import Chunk
from gaiadask.archive.files.find import bulk_range
from gaiadask.checks import repeated
from gaiadask.errors import DataError
from gaiadask.ingest_plan import read_plan
from gaiadask.ledger import leaves, read_ledger
from gaiadask.release.column import SOURCE_ID
from gaiadask.store.files import Store

_SHOWN = 3
"""Files of a chunk that are named, where it cannot be told which of them has the star."""


def check_each_star_once(store: Store, ids: NDArray[np.int64], parts: Sequence[str], where: str) -> None:
    """Refuse a source_id that comes more than once, naming what gave it.

    ids: of the rows that are merged. parts: the files that they were merged from. where: what they are merged to.
    """
    twice = repeated(ids)
    if not len(twice):
        return
    star = int(twice[0])
    raise DataError(
        f"{where}: {len(twice)} stars came more than once ({SOURCE_ID} {star} first): expected each star once. "
        f"This one is in {' and in '.join(_givers(store, parts, star))}: they overlap. Leave one of them out, or cut the rows that "
        "both have, and start over: `gaiadask ingest CONFIG --replace ingest`"
    )


def _givers(store: Store, parts: Sequence[str], star: int) -> list[str]:
    """What gave the star, once for each row."""
    ledger = read_ledger(store)
    chunk_of_part = {name: r.chunk for r in ledger.values() for name in (*r.files, *(name for _, name in r.parts))}
    chunks = {chunk.name: chunk for chunk in leaves(read_plan(store).chunks, ledger)}
    given: list[str] = []
    for part in parts:
        with store.open_parquet(part) as file:
            rows = pc.sum(pc.equal(file.read([SOURCE_ID])[SOURCE_ID], star)).as_py() or 0
        chunk = chunks.get(chunk_of_part.get(part, ""))
        given += rows * [_described(chunk, star) if chunk else part]
    return given


def _described(chunk: Chunk, star: int) -> str:
    if not chunk.files:
        return f"chunk {chunk.name} (source_id {chunk.first} to {chunk.stop - 1})"
    ranges = {file.uri: bulk_range(file.uri) for file in chunk.files}
    uris = [uri for uri, bounds in ranges.items() if bounds is None or bounds[0] <= star < bounds[1]] or list(ranges)
    more = f" or one of {len(uris) - _SHOWN} more" if len(uris) > _SHOWN else ""
    return " or ".join(uris[:_SHOWN]) + more
