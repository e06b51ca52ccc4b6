"""Random stars written in each format that is read, and read back: what the tests of files share."""

from __future__ import annotations

import functools
import gzip
import io
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from astropy.io import fits, votable
from astropy.table import MaskedColumn
from astropy.table import Table as AstropyTable

from gaiadask.archive.base import Archive, open_archive
from gaiadask.archive.chunks import Plan
from gaiadask.archive.files.archive import FileArchive
from gaiadask.config.sections import ArchiveConfig, SelectionConfig
from gaiadask.release.dr2 import COLUMNS
from gaiadask.sky import SOURCE_ID_STOP

EVERYTHING = SelectionConfig(columns="all", not_null=())
VOTABLE_FORMATS = ("binary2", "binary", "tabledata")


def random_stars(rows: int, seed: int = 0) -> pa.Table:
    """Stars with every column of the column table, a fifth of the values null."""
    rng = np.random.default_rng(seed)
    columns: dict[str, pa.Array] = {}
    for name, column in COLUMNS.items():
        null = rng.random(rows) < 0.2
        if name == "source_id":
            columns[name] = pa.array(rng.choice(SOURCE_ID_STOP >> 7, rows, replace=False) << 7)
        elif pa.types.is_integer(column.dtype):
            columns[name] = pa.array(rng.integers(0, 1_700_000_000, rows).astype(column.dtype.to_pandas_dtype()), mask=null)
        elif name == "ra":
            columns[name] = pa.array(rng.uniform(0, 360, rows))
        elif name == "dec":
            columns[name] = pa.array(rng.uniform(-90, 90, rows))
        elif pa.types.is_boolean(column.dtype):
            columns[name] = pa.array(rng.random(rows) < 0.5, mask=null)
        elif pa.types.is_string(column.dtype):
            columns[name] = pa.array([f"Gaia DR2 {i}" for i in rng.integers(0, 2**62, rows)], mask=null)
        elif pa.types.is_floating(column.dtype):
            values = rng.normal(0, 1, rows) * 10.0 ** rng.integers(-9, 9, rows)
            columns[name] = pa.array(values.astype(column.dtype.to_pandas_dtype()), mask=null)
        else:
            raise AssertionError(f"{name}: no random values of {column.dtype} yet")
    return pa.table(columns, schema=pa.schema([column.field for column in COLUMNS.values()]))


def with_all_flags(table: pa.Table) -> pa.Table:
    """The stars with false in place of a missing flag."""
    for index, field in enumerate(table.schema):
        if pa.types.is_boolean(field.type):
            table = table.set_column(index, field, table[field.name].fill_null(False))
    return table


# Writers of each format -----------------------------------------------------------------------------------------------
def write_parquet(table: pa.Table, path: Path) -> None:
    pq.write_table(table.append_column("extra", pa.array(["x"] * len(table))), path, row_group_size=100)


def csv_bytes(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pacsv.write_csv(table.append_column("extra", pa.array(['a,"b"'] * len(table))), sink)
    return sink.getvalue()


def write_csv(table: pa.Table, path: Path) -> None:
    data = csv_bytes(table)
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)


def write_spelled_nulls(table: pa.Table, path: Path) -> None:
    """As pyarrow does not write it: nulls spelled out, a comment above the header, Windows line breaks."""
    lines = [",".join(name.upper() for name in table.column_names)]
    for number, star in enumerate(table.to_pylist()):
        spelled = ("null", "NaN", "")[number % 3]
        lines.append(
            ",".join(spelled if value is None else value if isinstance(value, str) else repr(value) for value in star.values())
        )
    path.write_bytes("\r\n".join(["# %ECSV 1.0", "# ---", *lines, ""]).encode())


def astropy_table(table: pa.Table, upper: bool = False) -> AstropyTable:
    columns = {}
    for name in table.column_names:
        values = table.column(name)
        is_text = pa.types.is_string(values.type)
        filled = values.fill_null("" if is_text else pa.scalar(0).cast(values.type)).to_numpy()
        unit = COLUMNS[name].unit.replace("'electron'.s**-1", "electron/s").replace("log(cm.s**-2)", "").replace("'dex'", "")
        array = filled.astype(str) if is_text else np.asarray(filled)
        columns[name.upper() if upper else name] = MaskedColumn(array, mask=np.asarray(values.is_null()), unit=unit or None)
    return AstropyTable(columns)


def write_votable(table: pa.Table, path: Path, tabledata_format: str = "binary2", status: str = "OK") -> None:
    document = votable.from_table(astropy_table(table))
    for field in document.get_first_table().fields:
        if field.datatype in ("int", "long") and tabledata_format != "binary2":
            field.values.null = -(2**31) if field.datatype == "int" else -(2**63)
    document.resources[0].infos.append(votable.tree.Info(name="QUERY_STATUS", value=status))
    sink = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        document.to_xml(sink, tabledata_format=tabledata_format)
    path.write_bytes(gzip.compress(sink.getvalue()) if path.name.endswith(".gz") else sink.getvalue())


def write_fits(table: pa.Table, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        astropy_table(table, upper=True).write(path, format="fits")
    with fits.open(path, memmap=False) as document:
        # astropy writes no null flags, which are neither T nor F.
        raw = document[1].data.view(np.ndarray)
        for name in (field.name for field in table.schema if pa.types.is_boolean(field.type)):
            raw[name.upper()].view(np.uint8)[np.asarray(table[name].is_null())] = 0
        document.writeto(path, overwrite=True)


Writer = Callable[[pa.Table, Path], None]
FORMATS: dict[str, tuple[str, Writer]] = {
    "parquet": ("stars.parquet", write_parquet),
    "csv": ("stars.csv", write_csv),
    "csv.gz": ("stars.csv.gz", write_csv),
    "csv, nulls spelled": ("stars.csv", write_spelled_nulls),
    **{f"votable {f}": ("stars.vot", functools.partial(write_votable, tabledata_format=f)) for f in VOTABLE_FORMATS},
    "votable.gz": ("stars.vot.gz", write_votable),
    "xml": ("stars.xml", write_votable),
    "fits": ("stars.fits", write_fits),
    "fits.gz": ("stars.fits.gz", write_fits),
}


def archive_of(*uris: str | Path, selection: SelectionConfig = EVERYTHING) -> FileArchive:
    archive = open_archive(ArchiveConfig(kind="files", uris=tuple(map(str, uris))), selection)
    assert isinstance(archive, FileArchive)
    return archive


def fetched(archive: Archive, plan: Plan | None = None) -> pa.Table:
    """Every row of every chunk, in order."""
    chunks = (plan or archive.plan()).chunks
    tables = [table for chunk in chunks for table in archive.fetch(chunk, lambda facts: None)]
    return pa.concat_tables([archive.schema.empty_table(), *tables])
