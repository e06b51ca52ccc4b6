"""Mock stars written as the Gaia archive's bulk download: `GaiaSource_<first>_<last>.csv.gz` and MD5SUM.txt."""

from __future__ import annotations

import hashlib
import io
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
from isal import igzip

from gaiadask.archive.base import Archive, open_archive
from gaiadask.archive.chunks import Chunk
from gaiadask.config.sections import ArchiveConfig, SelectionConfig
from gaiadask.release.column import SOURCE_ID
from gaiadask.release.dr2 import COLUMNS, MOCK_COLUMNS

COMPRESSION = 2  # isal's best; files are a little larger than zlib's


def write_bulk_files(folder: Path, stars: int, rows_a_file: int, *, processes: int = 1) -> int:
    """Write the mock archive's sky of `stars` stars, all columns of gaia_source; returns the number of files."""
    folder.mkdir(parents=True, exist_ok=True)
    config = ArchiveConfig(kind="mock", mock_stars=stars, chunk_rows=rows_a_file)
    archive = open_archive(config, SelectionConfig(columns=MOCK_COLUMNS, not_null=()))
    chunks = archive.plan().chunks
    write = partial(_write, archive, folder)
    if processes == 1:
        lines = [write(chunk) for chunk in chunks]
    else:
        with ProcessPoolExecutor(processes) as pool:
            lines = list(pool.map(write, chunks))
    (folder / "MD5SUM.txt").write_text("".join(lines))
    return sum(1 for line in lines if line)


def _write(archive: Archive, folder: Path, chunk: Chunk) -> str:
    """The file's line in MD5SUM.txt; none for a chunk without stars."""
    tables = list(archive.fetch(chunk, lambda facts: None))
    if not tables:
        return ""
    table = filled(pa.concat_tables(tables), seed=chunk.first >> 35)
    ids = table[SOURCE_ID].to_numpy()
    name = f"GaiaSource_{ids.min()}_{ids.max()}.csv.gz"
    sink = io.BytesIO()
    pacsv.write_csv(table, sink, pacsv.WriteOptions(quoting_style="needed"))
    content = igzip.compress(sink.getvalue(), COMPRESSION)
    (folder / name).write_bytes(content)
    return f"{hashlib.md5(content).hexdigest()}  {name}\n"


def filled(stars: pa.Table, seed: int) -> pa.Table:
    """The stars in all columns of the column table; those that the mock does not make hold numbers of no meaning."""
    rng = np.random.default_rng(seed)

    def values(name: str, dtype: pa.DataType) -> pa.Array:
        n = len(stars)
        if name == "designation":
            return pa.array([f"Gaia DR2 {source_id}" for source_id in stars[SOURCE_ID].to_pylist()])
        if pa.types.is_string(dtype):
            return pa.array(["NOT_AVAILABLE"] * n)
        if pa.types.is_boolean(dtype):
            return pa.array(rng.random(n) < 0.1)
        if pa.types.is_integer(dtype):
            return pa.array(rng.integers(0, 400, n), dtype)
        return pa.array(rng.normal(0, 1, n), dtype)

    columns = {name: stars[name] if name in stars.column_names else values(name, column.dtype) for name, column in COLUMNS.items()}
    return pa.table(columns, schema=pa.schema([column.field for column in COLUMNS.values()]))
