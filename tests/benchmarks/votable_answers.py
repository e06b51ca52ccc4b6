"""Reading a TAP service's answer: stars a second and memory, by rows and serialisation, beside astropy's parser.

python tests/benchmarks/votable_answers.py
"""

from __future__ import annotations

import argparse
import base64
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from astropy.io import votable
from fsspec.implementations.local import LocalFileSystem

sys.path.insert(0, str(Path(__file__).parents[1]))

from contest import interleaved, table

from gaiadask.archive.base import open_archive
from gaiadask.archive.files.formats import read_tables
from gaiadask.archive.files.transfer import SourceFile
from gaiadask.config.sections import ArchiveConfig, SelectionConfig

SELECTION = SelectionConfig(columns="seed25", not_null=())
_TYPES = {"int64": "long", "int32": "int", "int16": "short", "double": "double", "float": "float", "bool": "boolean"}
_ROWS = 30_000
"""Written at once; a multiple of 3 bytes each, so that pieces of base64 follow one another."""


def mock_stars(rows: int) -> Iterator[pa.Table]:
    """Mock stars of 25 columns in tables of a few, their nulls left as they are."""
    archive = open_archive(ArchiveConfig(kind="mock", mock_stars=100_000, chunk_rows=100_000), SELECTION)
    stars = pa.concat_tables(t for chunk in archive.plan().chunks for t in archive.fetch(chunk, lambda facts: None))
    for first in range(0, rows, _ROWS):
        begin = first % (len(stars) - _ROWS)
        yield stars.slice(begin, min(_ROWS, rows - first))


def write_answer(path: Path, serialisation: str, rows: int) -> None:
    """A VOTable of mock stars, in BINARY2 or TABLEDATA, as a service sends it."""
    schema = open_archive(ArchiveConfig(kind="mock"), SELECTION).schema
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


# Contestants ----------------------------------------------------------------------------------------------------------
def by_gaiadask(path: Path) -> int:
    schema = open_archive(ArchiveConfig(kind="mock"), SELECTION).schema
    return sum(len(t) for t in read_tables(SourceFile(LocalFileSystem(), str(path), path.name), schema))


def by_astropy(path: Path) -> int:
    return len(votable.parse(path, verify="ignore").get_first_table().array)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stars", type=int, nargs="+", default=[200_000, 2_000_000])
    parser.add_argument("--serialisations", nargs="+", default=["BINARY2", "TABLEDATA"])
    parser.add_argument("--astropy-up-to", type=int, default=200_000, help="stars that astropy's parser is given at most")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder by default")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="votable-answers-", dir=options.folder) as folder:
        contestants: dict[str, Callable[[], Any]] = {}
        for serialisation in options.serialisations:
            for stars in options.stars:
                path = Path(folder) / f"{serialisation}-{stars}.vot"
                write_answer(path, serialisation, stars)
                named = f"{serialisation}, {stars:,} stars"
                contestants[named] = partial(by_gaiadask, path)
                if stars <= options.astropy_up_to:
                    contestants[f"{named}, astropy"] = partial(by_astropy, path)
        print(table(interleaved(contestants, options.repeats), against=next(iter(contestants))))


if __name__ == "__main__":
    main()
