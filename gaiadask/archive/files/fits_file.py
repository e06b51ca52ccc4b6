"""Star tables out of FITS files."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from astropy.io import fits

from gaiadask.archive.files import content
from gaiadask.archive.files.arrays import array_of
from gaiadask.archive.files.content import FileTable
from gaiadask.archive.files.transfer import SourceFile
from gaiadask.errors import ArchiveError, DataError


@contextlib.contextmanager
def open_fits(file: SourceFile) -> Iterator[list[FileTable]]:
    """The file's binary tables. A plain local file is streamed; another one is held in memory."""
    with contextlib.ExitStack() as closing:
        document = closing.enter_context(_opened(file))
        tables = [hdu for hdu in document if isinstance(hdu, fits.BinTableHDU | fits.TableHDU)]
        if not tables:
            raise ArchiveError(f"{file.label} is not whole: it holds no binary table")
        result = []
        for number, hdu in enumerate(tables, start=1):
            label = file.label if len(tables) == 1 else f"{file.label}, table {number}{f' ({hdu.name})' if hdu.name else ''}"
            units = {column.name: column.unit or "" for column in hdu.columns}
            result.append(FileTable(label, hdu.columns.names, partial(_read, hdu, label), units))
        yield result


def _opened(file: SourceFile) -> fits.HDUList:
    """The file's HDUs, read enough to know that none is cut."""
    with file.open() as raw:
        head = raw.read(512) if file.is_local else b""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message=".*truncated|.*corrupted")
        if head and not content.is_gzipped(head):
            content.check_kind(head, "FITS", file.label)
            document = fits.open(file.path, memmap=True)
        else:
            document = fits.open(content.whole(file, "FITS"))
        len(document)  # headers are read when asked for: all of them, while warnings are errors
    return document


def _read(hdu: Any, label: str, types: Mapping[str, pa.DataType]) -> Iterator[pa.Table]:
    if isinstance(hdu, fits.TableHDU):  # whose blank numbers are read as 0
        raise DataError(f"{label} is an ASCII table, in which a missing number is read as 0: write it as a binary table")
    for first in range(0, hdu.header["NAXIS2"], content.TABLE_ROWS):
        rows = hdu.data[first : first + content.TABLE_ROWS]
        yield pa.table({name: _column(rows, hdu.columns[name], label) for name in types})


def _column(rows: Any, column: fits.Column, label: str) -> pa.Array:
    """One column of some rows, TNULL as null: it is a number as stored, before TSCAL and TZERO make another one of it."""
    stored = rows.view(np.ndarray)[column.name]
    if str(column.format).strip().upper() in ("L", "1L"):
        # 'T' or 'F', else null, which astropy reads as false.
        raw = stored.view(np.uint8)
        return array_of(raw == ord("T"), ~np.isin(raw, (ord("T"), ord("F"))), column.name, label)
    values = np.asarray(rows.field(column.name))
    null = np.zeros(values.shape, dtype=bool)
    if column.null is not None and stored.dtype.kind in "iu":
        null = np.broadcast_to(stored == column.null, values.shape)
    return array_of(values, null, column.name, label)
