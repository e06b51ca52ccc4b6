"""Fetching a chunk of 25 columns from a TAP service on this machine: stars a second and memory, by rows and serialisation, beside
astropy's parser of the same answer.

python tests/benchmarks/votable_answers.py
"""

from __future__ import annotations

import argparse
import base64
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from astropy.io import votable

sys.path.insert(0, str(Path(__file__).parents[1]))

from contest import interleaved, table
from tap_service import FakeService, counted, served

from gaiadask.archive.base import open_archive
from gaiadask.archive.chunks import Chunk
from gaiadask.archive.tap.archive import TapArchive
from gaiadask.config.sections import ArchiveConfig, SelectionConfig

SELECTION = SelectionConfig(columns="seed25", not_null=())
_TYPES = {"int64": "long", "int32": "int", "int16": "short", "double": "double", "float": "float", "bool": "boolean"}
PARQUET = "parquet"
_ROWS = 30_000
"""Written at once; a multiple of 3 bytes each, so that pieces of base64 follow one another."""


def mock_stars(rows: int) -> Iterator[pa.Table]:
    """Mock stars of 25 columns in tables of a few, their nulls left as they are, each with a source_id of its own."""
    archive = open_archive(ArchiveConfig(kind="mock", mock_stars=100_000, chunk_rows=100_000), SELECTION)
    stars = pa.concat_tables(t for chunk in archive.plan().chunks for t in archive.fetch(chunk, lambda facts: None))
    for first in range(0, rows, _ROWS):
        count = min(_ROWS, rows - first)
        piece = stars.slice(first % (len(stars) - _ROWS), count)
        yield piece.set_column(0, stars.schema.field(0), pa.array(np.arange(first, first + count)))


def write_answer(path: Path, serialisation: str, rows: int) -> None:
    """Mock stars as a service sends them: a VOTable, in BINARY2 or TABLEDATA, or parquet."""
    schema = open_archive(ArchiveConfig(kind="mock"), SELECTION).schema
    if serialisation == PARQUET:
        with pq.ParquetWriter(path, schema) as writer:
            for stars in mock_stars(rows):
                writer.write_table(stars)
        return
    fields = "".join(f'<FIELD name="{each.name}" datatype="{_TYPES[str(each.type)]}"/>' for each in schema)
    stream = ' encoding="base64"' if serialisation == "BINARY2" else ""
    outer = f"<{serialisation}><STREAM{stream}>" if stream else f"<{serialisation}>"
    inner = f"</STREAM></{serialisation}>" if stream else f"</{serialisation}>"
    with path.open("w") as file:
        file.write('<VOTABLE version="1.4"><RESOURCE type="results"><INFO name="QUERY_STATUS" value="OK"/>')
        file.write(f"<TABLE>{fields}<DATA>{outer}")
        for stars in mock_stars(rows):
            file.write(base64.b64encode(_binary2(stars)).decode() if stream else _cells(stars))
        file.write(f"{inner}</DATA></TABLE></RESOURCE></VOTABLE>")


def _binary2(stars: pa.Table) -> bytes:
    kinds = [
        (name, np.dtype(field.type.to_pandas_dtype()).newbyteorder(">"))
        for name, field in zip(stars.column_names, stars.schema, strict=True)
    ]
    rows = np.zeros(len(stars), [("flags", "u1", (-(-len(kinds) // 8),)), *kinds])
    null = np.array([np.asarray(column.is_null()) for column in stars.columns])
    rows["flags"] = np.packbits(null, axis=0).T
    for name, column in zip(stars.column_names, stars.columns, strict=True):
        rows[name] = column.fill_null(0).to_numpy()
    return rows.tobytes()


def _cells(stars: pa.Table) -> str:
    columns = [[f"<TD>{value}</TD>" for value in column.cast(pa.string()).fill_null("").to_pylist()] for column in stars.columns]
    return "\n".join(f"<TR>{''.join(row)}</TR>" for row in zip(*columns, strict=True))


@dataclass
class OneAnswer(FakeService):
    """A service that has the rows of a file."""

    path: Path = Path()
    rows: int = 0

    def __post_init__(self) -> None:
        if self.path.name.startswith(PARQUET):
            self.parquet = "<outputFormat><mime>application/vnd.apache.parquet</mime></outputFormat>"

    def answer(self, query: str, most: int) -> bytes:
        return counted(self.rows) if "COUNT" in query else self.path.read_bytes()

    def answer_in_parquet(self, query: str, most: int) -> bytes:
        return self.path.read_bytes()


# Contestants ----------------------------------------------------------------------------------------------------------
def by_gaiadask(url: str, rows: int) -> int:
    archive = TapArchive(ArchiveConfig(url=url, chunk_mb=100_000, attempts=1), SELECTION)
    return sum(len(stars) for stars in archive.fetch(Chunk("c", 0, rows), lambda facts: None))


def by_astropy(path: Path) -> int:
    return len(votable.parse(path, verify="ignore").get_first_table().array)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stars", type=int, nargs="+", default=[200_000, 2_000_000])
    parser.add_argument("--serialisations", nargs="+", default=["BINARY2", "TABLEDATA", PARQUET])
    parser.add_argument("--astropy-up-to", type=int, default=200_000, help="stars that astropy's parser is given at most")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder by default")
    options = parser.parse_args()
    with ExitStack() as closing:
        folder = Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="votable-answers-", dir=options.folder)))
        contestants: dict[str, Callable[[], Any]] = {}
        for serialisation in options.serialisations:
            for stars in options.stars:
                path = folder / f"{serialisation}-{stars}"
                write_answer(path, serialisation, stars)
                url = closing.enter_context(served(OneAnswer(pa.table({}), path=path, rows=stars))).url
                named = f"{serialisation}, {stars:,} stars"
                contestants[named] = partial(by_gaiadask, url, stars)
                if stars <= options.astropy_up_to and serialisation != PARQUET:
                    contestants[f"{named}, astropy's parser"] = partial(by_astropy, path)
        print(table(interleaved(contestants, options.repeats), against=next(iter(contestants))))


if __name__ == "__main__":
    main()
