"""Answers of a TAP service: bodies on local scratch; a chunk's rows, kept there until they are known to be all of its."""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import requests
from astropy.io import votable
from numpy.typing import NDArray
from pyvo.dal import DALResults

from gaiadask.archive.chunks import Chunk
from gaiadask.archive.tap.attempts import Interrupted, JobLost
from gaiadask.archive.tap.login import login_refused
from gaiadask.archive.tap.session import inflated
from gaiadask.checks import check_id_range, check_ids_once
from gaiadask.conform import folded
from gaiadask.errors import ArchiveError, ChunkTooLargeError
from gaiadask.release.column import SOURCE_ID


@contextlib.contextmanager
def temporary() -> Iterator[Path]:
    """A folder on local scratch, as long as the context."""
    with tempfile.TemporaryDirectory(prefix="gaiadask-") as folder:
        yield Path(folder)


# Bodies ----------------------------------------------------------------------------------------------------------------
def save(response: requests.Response, folder: Path, most_bytes: int) -> Path:
    """Stream a body to a file, whose name says what it is: parquet, else a VOTable (or what stands in its place).

    Raises JobLost where there is none any more, Interrupted for a 5xx, ChunkTooLargeError for more than `most_bytes`, and
    the errors of requests for a body that is cut.
    """
    path = folder / "answer.vot"
    with response:
        if response.status_code in (404, 410):
            raise JobLost(f"{response.url} answered HTTP {response.status_code} {response.reason}")
        if response.status_code >= 500 or response.status_code in (408, 429):
            raise Interrupted(f"{response.url} answered HTTP {response.status_code} {response.reason}")
        if response.status_code in (401, 403):
            raise ArchiveError(login_refused(response.url, f"HTTP {response.status_code}"))
        with path.open("w+b") as file:
            # Small pieces: what they inflate to is in memory. A service may compress the file itself, beside what HTTP says.
            for block in inflated(response.iter_content(1 << 16)):
                file.write(block)
                if file.tell() > most_bytes:
                    raise ChunkTooLargeError(f"{response.url} gives more than {most_bytes // 10**6} MB (archive.chunk_mb)")
            file.seek(0)
            is_parquet = file.read(4) == b"PAR1"  # a service that was asked for it may give its error as a VOTable
    return path.rename(path.with_suffix(".parquet")) if is_parquet else path


def small_answer(path: Path) -> dict[str, NDArray]:
    """Columns of a VOTable, nulls left masked. Raises ArchiveError where the service cut it, pyvo's errors else."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = DALResults(votable.parse(path, verify="ignore"))
    if results.status[0].upper() != "OK":
        raise ArchiveError(
            f"the service cut an answer short at {len(results)} rows ({results.status[0]}), which the plan needs whole: "
            "choose another TAP service, or ask its operators for a higher row limit"
        )
    table = results.resultstable
    return {folded(field.name): table.array[field.ID or field.name] for field in table.fields}


# A chunk's rows ----------------------------------------------------------------------------------------------------------
def keep(tables: Iterable[pa.Table], schema: pa.Schema, chunk: Chunk, counted: int, path: Path) -> None:
    """Write a chunk's rows to a file as they come, and check that they are all of its.

    One table is in memory at a time, and the ids.
    Raises JobLost for another number of rows than counted, DataError for ids that are not the chunk's or come more than once,
    ArchiveError where there is no room for the file.
    """
    where = f"chunk {chunk.name}"
    ids, rows = np.empty(counted, np.int64), 0
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for table in tables:
            found = table[SOURCE_ID].to_numpy()
            check_id_range(found, chunk.first, chunk.stop, where, "the chunk")
            ids[rows : rows + len(found)] = found[: max(0, counted - rows)]
            rows += len(found)
            try:
                writer.write_table(table)
            except OSError as error:
                raise ArchiveError(
                    f"{where}: its rows cannot be kept in {path.parent}: {error}: make room, or set TMPDIR"
                ) from error
    if rows != counted:
        raise JobLost(f"the service counted {counted} rows and gave {rows}")
    ids.sort()
    if np.any(ids[1:] == ids[:-1]):
        check_ids_once(ids, where)


def kept(path: Path) -> Iterator[pa.Table]:
    """The rows that were kept, in the tables in which they came."""
    with pa.OSFile(str(path), "rb") as source, pa.ipc.open_stream(source) as reader:
        for batch in reader:
            yield pa.Table.from_batches([batch])
