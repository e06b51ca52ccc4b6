"""Stars from files: every format against the same table, on disk, over http and on S3, and what must be refused."""

from __future__ import annotations

import functools
import gzip
import http.server
import io
import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from astropy.io import fits, votable
from astropy.table import MaskedColumn
from astropy.table import Table as AstropyTable

from gaiadask.archive.base import Archive, open_archive
from gaiadask.archive.chunks import Chunk, ChunkFile, Plan
from gaiadask.archive.files import formats
from gaiadask.archive.files.archive import FileArchive
from gaiadask.archive.files.find import public_uri
from gaiadask.config.sections import ArchiveConfig, SelectionConfig
from gaiadask.errors import ArchiveError, ConfigurationError, DataError
from gaiadask.release.column import Column
from gaiadask.release.dr2 import COLUMNS
from gaiadask.sky import SOURCE_ID_STOP, healpix_of_source_id
from gaiadask.split import sample_hash

EVERYTHING = SelectionConfig(columns="all", not_null=())
VOTABLE_FORMATS = ("binary2", "binary", "tabledata")


def made_up(rows: int, seed: int = 0) -> pa.Table:
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
            raise AssertionError(f"{name}: no made-up values of {column.dtype} yet")
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


# Formats --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("case", FORMATS)
def test_every_format_gives_the_same_rows(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "TABLE_ROWS", 70)
    monkeypatch.setattr(formats, "CSV_BLOCK_BYTES", 8_000)
    name, write = FORMATS[case]
    table = made_up(200)
    if case == "votable binary":  # astropy writes flags as bits there, which have no null
        table = with_all_flags(table)
    write(table, tmp_path / name)
    archive = archive_of(tmp_path / name)
    plan = archive.plan()
    tables = list(archive.fetch(plan.chunks[0], lambda facts: None))
    assert [len(part) for part in tables] == [70, 70, 60]
    rows = pa.concat_tables(tables)
    assert rows.schema.equals(archive.schema, check_metadata=True)
    assert rows.equals(table.select(rows.column_names))
    assert plan.chunks[0].expected_rows == 200
    pixels = healpix_of_source_id(table.column("source_id").to_numpy(), plan.order)
    assert (plan.histogram == np.bincount(pixels, minlength=12 * 4**plan.order)).all()


@pytest.mark.parametrize(
    "case",
    ["parquet", "csv.gz", pytest.param("votable binary2", marks=pytest.mark.slow), pytest.param("fits", marks=pytest.mark.slow)],
)
def test_real_rows_are_the_same_through_every_format(tmp_path: Path, real_rows: pa.Table, case: str) -> None:
    schema = pa.schema([column.field for column in COLUMNS.values() if column.name in real_rows.column_names])
    table = real_rows.select(schema.names).cast(schema)
    table = table.filter(pc.and_(table["ra"].is_valid(), table["source_id"].is_valid()))
    assert len(table) > 1_000
    name, write = FORMATS[case]
    write(table, tmp_path / name)
    rows = fetched(archive_of(tmp_path / name, selection=SelectionConfig(columns=tuple(schema.names), not_null=())))
    assert rows.equals(table.select(rows.column_names))


def test_the_selection_is_made(tmp_path: Path) -> None:
    for seed in range(3):
        write_parquet(made_up(400, seed), tmp_path / f"{seed}.parquet")
    selection = SelectionConfig(columns=("bp_rp",), not_null=("parallax",), where="radial_velocity > 0")
    archive = archive_of(tmp_path / "*.parquet", selection=selection)
    plan, rows = archive.plan(), fetched(archive)
    everything = pa.concat_tables(made_up(400, seed) for seed in range(3))
    expected = everything.filter((pc.field("radial_velocity") > 0) & pc.field("parallax").is_valid())
    assert rows.equals(expected.select(["source_id", "ra", "dec", "bp_rp"]))
    assert sum(chunk.expected_rows or 0 for chunk in plan.chunks) == plan.histogram.sum() == len(expected)

    limited = archive_of(tmp_path / "*.parquet", selection=selection.model_copy(update={"limit": 50}))
    plan = limited.plan()
    smallest = np.sort(sample_hash(expected.column("source_id").to_numpy()))[:50]
    assert sorted(sample_hash(fetched(limited, plan).column("source_id").to_numpy())) == smallest.tolist()
    assert plan.histogram.sum() >= 50
    assert {chunk.hash_limit for chunk in plan.chunks} == {smallest[-1]}
    assert len(fetched(archive_of(tmp_path / "*.parquet", selection=selection.model_copy(update={"limit": 10_000})))) == len(
        expected
    )


@pytest.mark.parametrize("suffix", ["parquet", "csv", "vot", "fits"])
def test_flags_and_texts_keep_their_nulls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    for column in (Column("flag", "", "meta.code", pa.bool_(), "A flag"), Column("text", "", "meta.note", pa.string(), "A text")):
        monkeypatch.setitem(COLUMNS, column.name, column)
    schema = pa.schema([COLUMNS[name].field for name in ("source_id", "flag", "text")])
    stars = {"source_id": [1, 2, 3], "flag": [True, None, False], "text": ["a", "variable", None]}
    path = tmp_path / f"a.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.table(stars).set_column(2, "text", pa.array(stars["text"]).dictionary_encode()), path)
    elif suffix == "csv":
        path.write_text("source_id,flag,text\n1,true,a\n2,,variable\n3,false,\n")
    elif suffix == "vot":
        cells = "".join(
            f"<TR><TD>{i}</TD><TD>{f}</TD><TD>{t}</TD></TR>" for i, f, t in ((1, "T", "a"), (2, "?", "variable"), (3, "F", ""))
        )
        fields = '<FIELD name="source_id" datatype="long"/><FIELD name="flag" datatype="boolean"/><FIELD name="text" datatype="char" arraysize="*"/>'
        path.write_text(
            f'<VOTABLE version="1.3"><RESOURCE><TABLE>{fields}<DATA><TABLEDATA>{cells}</TABLEDATA></DATA></TABLE></RESOURCE></VOTABLE>'
        )
    else:
        columns = [
            fits.Column("source_id", "K", array=stars["source_id"]),
            fits.Column("flag", "L", array=[True, True, False]),
            fits.Column("text", "8A", array=["a", "variable", ""]),
        ]
        fits.BinTableHDU.from_columns(columns).writeto(path)
        with fits.open(path) as document:
            start = document[1].fileinfo()["datLoc"]
        data = bytearray(path.read_bytes())
        data[start + 17 + 8] = 0  # the second row's flag: neither T nor F
        path.write_bytes(data)
    (table,) = formats.read_tables(archive_of(path).find()[0].file, schema)
    assert table.to_pydict() == stars


@pytest.mark.slow
def test_memory_is_bounded_by_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gzipped CSV is never inflated whole: what arrow holds at its peak is far below the file."""
    path = tmp_path / "stars.csv.gz"
    text = csv_bytes(made_up(2_000))
    header, body = text.split(b"\n", 1)
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(header + b"\n")
        for _ in range(40):
            file.write(body)
    monkeypatch.setattr(formats, "CSV_BLOCK_BYTES", 1 << 20)
    pool, arrow = pa.default_memory_pool(), pa.total_allocated_bytes()
    peak = rows = 0
    for table in formats.read_tables(archive_of(path).find()[0].file, pa.schema([COLUMNS["source_id"].field])):
        peak, rows = max(peak, pool.bytes_allocated() - arrow), rows + len(table)
    assert rows == 80_000
    assert peak < 40 * len(body) / 3


def test_float32_text_is_rounded_once(tmp_path: Path) -> None:
    # Just above the middle of 1 and the next float32; its nearest float64 is that middle, which rounds to 1.
    text = "1.00000005960464477539062500000000000001"
    (tmp_path / "a.csv").write_text(f"source_id,ra,dec,bp_rp\n1,2,3,{text}\n")
    rows = fetched(archive_of(tmp_path / "a.csv", selection=SelectionConfig(columns=("bp_rp",), not_null=())))
    assert rows.column("bp_rp").to_pylist() == [float(np.nextafter(np.float32(1), np.float32(2)))]


def test_float32_fits_columns_are_taken_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    columns = {"SOURCE_ID": [5], "RA": np.float32([1.5]), "DEC": [2.0], "PARALLAX": np.float32([0.1])}
    AstropyTable(columns).write(tmp_path / "a.fits")
    with caplog.at_level(logging.WARNING):
        rows = fetched(archive_of(tmp_path / "a.fits", selection=SelectionConfig(columns=("parallax",), not_null=())))
    assert rows.column("parallax").to_pylist() == [float(np.float32(0.1))]
    assert "parallax is float" in caplog.text


# Plans ----------------------------------------------------------------------------------------------------------------
def bulk_file(folder: Path, pixel: int, rows: int, seed: int) -> tuple[Path, pa.Table]:
    """A file as the archive's bulk download names it: the stars of one order-6 pixel."""
    width = SOURCE_ID_STOP // (12 * 4**6)
    source_id = pixel * width + np.sort(np.random.default_rng(seed).choice(width, rows, replace=False))
    table = made_up(rows, seed)
    table = table.set_column(table.schema.get_field_index("source_id"), "source_id", pa.array(source_id))
    path = folder / f"GaiaSource_{source_id[0]}_{source_id[-1]}.csv.gz"
    write_csv(table, path)
    return path, table


def test_bulk_files_tell_their_range_and_are_not_read_to_plan(tmp_path: Path) -> None:
    path, table = bulk_file(tmp_path, 77, 3_000, 0)
    other, other_table = bulk_file(tmp_path, 4_000, 1_000, 1)
    archive = archive_of(tmp_path / "GaiaSource_*.csv.gz")
    plan = archive.plan()
    ids = table.column("source_id").to_pylist()
    (chunk,) = plan.chunks  # consecutive files together, up to chunk_rows
    assert [file.uri for file in chunk.files] == [str(path), str(other)]
    assert (chunk.first, chunk.stop, chunk.expected_rows) == (ids[0], other_table.column("source_id")[-1].as_py() + 1, None)
    assert 3_000 <= plan.histogram[77] <= 3_600
    assert 1_000 <= plan.histogram[4_000] <= 1_200
    assert np.flatnonzero(plan.histogram).tolist() == [77, 4_000]
    assert len(fetched(archive, plan)) == 4_000

    cut = archive_of(path, selection=SelectionConfig(columns="all", not_null=("parallax",))).plan()
    kept = len(table) - table.column("parallax").null_count
    assert kept <= cut.histogram.sum() <= 1.2 * kept

    wrong = tmp_path / f"GaiaSource_{ids[0]}_{ids[-1] - 1}.csv.gz"
    other.unlink()
    path.rename(wrong)
    with pytest.raises(DataError, match=f"source_id {ids[-1]} is out of range .*as the file's name says"):
        fetched(archive_of(wrong))


def test_a_bulk_file_over_several_pixels_is_spread_over_them(tmp_path: Path) -> None:
    width = SOURCE_ID_STOP // (12 * 4**6)
    path = tmp_path / f"GaiaSource_{width // 2}_{2 * width + width // 2 - 1}.csv.gz"
    write_csv(made_up(1_000), path)
    histogram = archive_of(path).plan().histogram
    assert np.flatnonzero(histogram).tolist() == [0, 1, 2]
    assert histogram[1] == pytest.approx(2 * histogram[0], abs=2)
    assert histogram[2] == histogram[0]


def test_chunks_are_one_a_file_with_names_that_stay(tmp_path: Path) -> None:
    for folder in ("a", "b c"):
        (tmp_path / folder).mkdir()
        write_parquet(made_up(10), tmp_path / folder / "stars 1.parquet")
    archive = archive_of(tmp_path / "*" / "*.parquet", tmp_path / "a" / "stars 1.parquet")
    first, again = archive.plan().chunks, archive.plan().chunks
    assert first == again
    assert [file.uri for chunk in first for file in chunk.files] == [
        str(tmp_path / folder / "stars 1.parquet") for folder in ("a", "b c")
    ]
    assert len({chunk.name for chunk in first}) == 2
    assert all(chunk.name.startswith("stars-1-parquet-") and chunk.name.replace("-", "").isalnum() for chunk in first)


def test_identity_notices_changed_files_and_selections(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_parquet(made_up(10), path)
    before = archive_of(path).identity()
    assert before == archive_of(path).identity()
    assert archive_of(path, selection=EVERYTHING.model_copy(update={"where": "ra > 1"})).identity() != before
    os.utime(path, (1, 1))
    assert archive_of(path).identity() != before


def test_a_file_that_changes_after_the_plan_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_parquet(made_up(10), path)
    archive = archive_of(path)
    plan = archive.plan()
    write_parquet(made_up(9), path)
    with pytest.raises(ArchiveError, match=r"a.parquet: \d+ bytes, it had \d+ when it was planned: the file has changed"):
        fetched(archive, plan)
    forgotten = replace(plan.chunks[0], files=(ChunkFile(str(path)),))
    with pytest.raises(ArchiveError, match="9 stars pass the selection, 10 did when it was planned"):
        list(archive.fetch(forgotten, lambda facts: None))
    path.unlink()
    with pytest.raises(ArchiveError, match="matches no file"):
        fetched(archive, plan)


@pytest.mark.parametrize(
    ("uri", "public"),
    [
        ("https://me:secret@host:81/a/b.csv", "https://host:81/a/b.csv"),
        ("s3://bucket/a*.parquet", "s3://bucket/a*.parquet"),
        ("https://host/a.csv?version=3", "https://host/a.csv?version=3"),
        ("https://host/a.csv?v=3&X-Amz-Signature=secret&X-Amz-Credential=secret", "https://host/a.csv?v=3"),
        ("/a/b?c@d.csv", "/a/b?c@d.csv"),
    ],
)
def test_no_secrets_are_told(uri: str, public: str) -> None:
    assert public_uri(uri) == public
    assert archive_of(uri)._with_credentials(public) == uri


# What is refused ------------------------------------------------------------------------------------------------------
def test_uris_without_files_are_named(tmp_path: Path) -> None:
    for uri in ("nothing-*.parquet", "nothing.parquet"):
        with pytest.raises(ArchiveError, match=rf"archive.uris: .*{uri.replace('*', '.')} matches no file"):
            archive_of(tmp_path / uri).plan()
    with pytest.raises(ArchiveError, match=r"it is a folder: name its files, as in .*/\*.parquet"):
        archive_of(tmp_path).plan()
    with pytest.raises(ArchiveError, match="nosuch://"):
        archive_of("nosuch://a/b.parquet").plan()
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ConfigurationError, match=r"a.txt has no known format: expected a name that ends in .parquet"):
        archive_of(tmp_path / "a.txt").identity()


@pytest.mark.parametrize(
    "case", ["parquet", "csv", "csv.gz", *(f"votable {f}" for f in VOTABLE_FORMATS), "votable.gz", "fits", "fits.gz"]
)
def test_a_cut_file_is_not_whole(tmp_path: Path, case: str) -> None:
    name, write = FORMATS[case]
    write(made_up(50), tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    archive = archive_of(tmp_path / name)
    chunk = Chunk("a", 0, SOURCE_ID_STOP, (ChunkFile(str(tmp_path / name)),))
    for share in (0.0, 0.3, 0.97):
        (tmp_path / name).write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ArchiveError, match=rf"{name} is not whole"):
            list(archive.fetch(chunk, lambda facts: None))
        with pytest.raises(ArchiveError, match=rf"{name} is not whole"):
            archive.plan()


def test_a_csv_cut_within_its_last_number_is_not_whole(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("source_id,ra,dec\n1,2,3.25\n2,3,4.2")
    with pytest.raises(ArchiveError, match=r"a.csv is not whole.*last line has no end"):
        fetched(archive_of(tmp_path / "a.csv", selection=SelectionConfig(columns=(), not_null=())))


def test_a_damaged_gzip_is_noticed(tmp_path: Path) -> None:
    data = bytearray(gzip.compress(csv_bytes(made_up(300)), compresslevel=0))
    at = data.index(b"\n", 2_000) - 3
    data[at] = ord("7") if data[at] != ord("7") else ord("8")
    (tmp_path / "a.csv.gz").write_bytes(data)
    with pytest.raises(ArchiveError, match=r"a.csv.gz is not whole"):
        fetched(archive_of(tmp_path / "a.csv.gz"))


@pytest.mark.parametrize("status", ["OVERFLOW", "ERROR"])
def test_a_votable_that_its_service_cut_is_not_whole(tmp_path: Path, status: str) -> None:
    write_votable(made_up(10), tmp_path / "a.vot", status=status)
    with pytest.raises(ArchiveError, match=f"a.vot is not whole: its service ended it with {status}"):
        archive_of(tmp_path / "a.vot").plan()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("source_id,ra,dec\n1,2,3\n", "no column parallax.*Columns found: source_id, ra, dec"),
        ("source_id,ra,dec,parallax\n1,2,3,far\n", "column parallax: .*invalid value 'far'. Expected double"),
        ("source_id,ra,dec,parallax\n1.5,2,3,4\n", "column source_id: .*invalid value '1.5'. Expected int64"),
        ("dec,parallax,source_id,ra\n1,2,3,\n", "1 of 1 rows have no ra"),
        ("source_id,ra,dec,parallax\n,2,3,4\n", "have no source_id"),
        ("source_id,ra,dec,parallax\n-1,2,3,4\n", "source_id -1 is out of range"),
        ("source_id,ra,dec,parallax\n1,2,3,inf\n", r"1 value\(s\) of parallax are NaN or infinite"),
        ("source_id,ra,dec,parallax,Parallax,PARALLAX\n1,2,3,4,4,4\n", None),
    ],
)
def test_csv_rows_that_are_not_stars_are_refused(tmp_path: Path, text: str, message: str | None) -> None:
    (tmp_path / "a.csv").write_text(text)
    archive = archive_of(tmp_path / "a.csv", selection=SelectionConfig(columns=("parallax",), not_null=()))
    chunk = Chunk("a", 0, SOURCE_ID_STOP, (ChunkFile(str(tmp_path / "a.csv")),))
    if message is None:
        assert next(archive.fetch(chunk, lambda facts: None)).column("parallax").to_pylist() == [4.0]
        return
    with pytest.raises(DataError, match=rf"a.csv: .*{message}"):
        list(archive.fetch(chunk, lambda facts: None))


@pytest.mark.parametrize("suffix", ["fits", "vot"])
@pytest.mark.parametrize(
    ("unit", "refused"),
    [("arcsec", True), ("km", True), ("mas", False), ("", False), ("Milliarcseconds", False), ("1e-3 arcsec", False)],
)
def test_other_units_are_refused(tmp_path: Path, suffix: str, unit: str, refused: bool) -> None:
    table = AstropyTable({"source_id": [1], "ra": [2.0], "dec": [3.0], "parallax": [4.0]})
    document = votable.from_table(table)
    path = tmp_path / f"a.{suffix}"
    if suffix == "vot":
        text = io.BytesIO()
        document.to_xml(text)
        path.write_bytes(text.getvalue().replace(b'name="parallax"', f'name="parallax" unit="{unit}"'.encode()))
    else:
        columns = [fits.Column(n, "K" if n == "source_id" else "D", array=table[n]) for n in table.colnames]
        columns[3].unit = unit or None
        fits.BinTableHDU.from_columns(columns).writeto(path)
    archive = archive_of(path, selection=SelectionConfig(columns=("parallax",), not_null=()))
    if not refused:
        assert fetched(archive).column("parallax").to_pylist() == [4.0]
        return
    with pytest.raises(DataError, match=f"a.{suffix}: column parallax is in '{unit}': expected 'mas'.*Convert the column"):
        fetched(archive)


def test_cells_of_several_numbers_are_refused(tmp_path: Path) -> None:
    AstropyTable({"source_id": [1], "ra": [2.0], "dec": [3.0], "parallax": [[4.0, 5.0]]}).write(tmp_path / "a.fits")
    with pytest.raises(DataError, match=r"a.fits: column parallax holds .* expected one value a row"):
        fetched(archive_of(tmp_path / "a.fits", selection=SelectionConfig(columns=("parallax",), not_null=())))


# Servers --------------------------------------------------------------------------------------------------------------
class RangedHandler(http.server.SimpleHTTPRequestHandler):
    """A static server that answers range requests, as ESA's does."""

    sent = 1.0  # share of the promised bytes

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        wanted = self.headers.get("Range")
        if not wanted or not path.is_file():
            super().do_GET()
            return
        data = path.read_bytes()
        first, last = wanted.removeprefix("bytes=").split("-")
        start, stop = int(first), min(int(last or len(data)) + 1, len(data))
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        self.wfile.write(data[start : start + int((stop - start) * self.sent)])

    def log_message(self, format: str, *args: Any) -> None:
        logging.getLogger(__name__).debug(format, *args)


class CuttingHandler(RangedHandler):
    """Breaks off each answer in its middle."""

    sent = 0.5


class PlainHandler(http.server.SimpleHTTPRequestHandler):
    """A static server that knows no ranges."""

    def log_message(self, format: str, *args: Any) -> None:
        logging.getLogger(__name__).debug(format, *args)


@pytest.fixture
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of a loopback server of tmp_path; its handler is the test's parameter."""
    handler = functools.partial(request.param, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("served", [RangedHandler], indirect=True)
def test_files_over_http(tmp_path: Path, served: str) -> None:
    table = made_up(100)
    for name, write in (FORMATS[case] for case in ("parquet", "csv", "csv.gz", "votable.gz", "fits", "fits.gz")):
        write(table, tmp_path / name)
        archive = archive_of(f"{served}/{name}")
        assert fetched(archive).equals(table.select(archive.schema.names)), name
        assert {"size", "Last-Modified"} <= set(archive.identity().files[0])
    write_parquet(made_up(100, 1), tmp_path / "more.parquet")
    plan = archive_of(f"{served}/*.parquet").plan()
    assert [(chunk.files[0].uri, chunk.expected_rows) for chunk in plan.chunks] == [
        (f"{served}/more.parquet", 100),
        (f"{served}/stars.parquet", 100),
    ]
    with pytest.raises(ArchiveError, match=r"none.parquet matches no file.*404"):
        archive_of(f"{served}/none.parquet").plan()
    secret = archive_of(served.replace("http://", "http://me:secret@") + "/*.parquet")
    assert "secret" not in str(secret.identity()) + str(secret.plan())
    assert len(fetched(secret)) == 200


@pytest.mark.parametrize("served", [PlainHandler], indirect=True)
def test_csv_streams_from_a_server_without_ranges(tmp_path: Path, served: str) -> None:
    table = made_up(300)
    for name in ("stars.csv", "stars.csv.gz"):
        write_csv(table, tmp_path / name)
        archive = archive_of(f"{served}/{name}")
        assert fetched(archive).equals(table.select(archive.schema.names))


@pytest.mark.parametrize("served", [CuttingHandler], indirect=True)
@pytest.mark.parametrize("case", ["parquet", "votable tabledata", "fits"])
def test_answers_that_break_off_are_noticed(tmp_path: Path, served: str, case: str) -> None:
    name, write = FORMATS[case]
    write(made_up(50), tmp_path / name)
    with pytest.raises(ArchiveError, match=rf"{served}/{name} is not whole"):
        archive_of(f"{served}/{name}").plan()


def test_a_server_that_is_not_there_is_named() -> None:
    with pytest.raises(ArchiveError, match=r"http://127.0.0.1:9/a.parquet matches no file"):
        archive_of("http://127.0.0.1:9/a.parquet").plan()


@pytest.mark.slow
def test_files_on_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server_module = pytest.importorskip("moto.server", reason="needs the test extra: moto[server]")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        options = {
            "endpoint_url": f"http://{host}:{port}",
            "key": "k",
            "secret": "s",
            "client_kwargs": {"region_name": "us-east-1"},
        }
        monkeypatch.setitem(fsspec.config.conf, "s3", options)
        filesystem = fsspec.filesystem("s3")
        filesystem.call_s3("create_bucket", Bucket="stars")
        table = made_up(300)
        for name, write in (FORMATS[case] for case in ("parquet", "csv.gz", "votable binary2", "fits")):
            write(table, tmp_path / name)
            filesystem.put_file(str(tmp_path / name), f"stars/dr2/{name}")
            archive = archive_of(f"s3://stars/dr2/{name}")
            assert fetched(archive).equals(table.select(archive.schema.names)), name
        archive = archive_of("s3://stars/dr2/*.parquet")
        before = archive.identity()
        assert before["files"][0]["uri"] == "s3://stars/dr2/stars.parquet"
        assert "ETag" in before["files"][0]
        write_parquet(made_up(299), tmp_path / "stars.parquet")
        filesystem.put_file(str(tmp_path / "stars.parquet"), "stars/dr2/stars.parquet")
        assert archive.identity() != before
        with pytest.raises(ArchiveError, match="matches no file"):
            archive_of("s3://stars/none/*.parquet").plan()
    finally:
        server.stop()
