"""Formats of star files: each gives the same rows, and what is damaged or no star is refused."""

from __future__ import annotations

import gzip
import io
import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from astropy.io import fits, votable
from astropy.table import Table as AstropyTable
from star_files import (
    FORMATS,
    VOTABLE_FORMATS,
    archive_of,
    csv_bytes,
    fetched,
    random_stars,
    with_all_flags,
    write_parquet,
    write_votable,
)

from gaiadask.archive.chunks import Chunk, ChunkFile
from gaiadask.archive.files import content, csv_text, formats
from gaiadask.config.sections import SelectionConfig
from gaiadask.errors import ArchiveError, DataError
from gaiadask.release.column import Column
from gaiadask.release.dr2 import COLUMNS
from gaiadask.sky import SOURCE_ID_STOP, healpix_of_source_id
from gaiadask.split import sample_hash


# Formats --------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("case", FORMATS)
def test_every_format_gives_the_same_rows(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "TABLE_ROWS", 70)
    monkeypatch.setattr(csv_text, "BLOCK_BYTES", 8_000)
    name, write = FORMATS[case]
    table = random_stars(200)
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


@pytest.mark.slow
def test_the_selection_is_made(tmp_path: Path) -> None:
    for seed in range(3):
        write_parquet(random_stars(400, seed), tmp_path / f"{seed}.parquet")
    selection = SelectionConfig(columns=("bp_rp",), not_null=("parallax",), where="radial_velocity > 0")
    archive = archive_of(tmp_path / "*.parquet", selection=selection)
    plan, rows = archive.plan(), fetched(archive)
    everything = pa.concat_tables(random_stars(400, seed) for seed in range(3))
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
    text = csv_bytes(random_stars(2_000))
    header, body = text.split(b"\n", 1)
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(header + b"\n")
        for _ in range(16):
            file.write(body)
    monkeypatch.setattr(csv_text, "BLOCK_BYTES", 1 << 20)
    pool, arrow = pa.default_memory_pool(), pa.total_allocated_bytes()
    peak = rows = 0
    for table in formats.read_tables(archive_of(path).find()[0].file, pa.schema([COLUMNS["source_id"].field])):
        peak, rows = max(peak, pool.bytes_allocated() - arrow), rows + len(table)
    assert rows == 32_000
    assert peak < 16 * len(body) / 3


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


# Refused files --------------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize(
    "case", ["parquet", "csv", "csv.gz", *(f"votable {f}" for f in VOTABLE_FORMATS), "votable.gz", "fits", "fits.gz"]
)
def test_a_cut_file_is_not_whole(tmp_path: Path, case: str) -> None:
    name, write = FORMATS[case]
    write(random_stars(50), tmp_path / name)
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
    data = bytearray(gzip.compress(csv_bytes(random_stars(300)), compresslevel=0))
    at = data.index(b"\n", 2_000) - 3
    data[at] = ord("7") if data[at] != ord("7") else ord("8")
    (tmp_path / "a.csv.gz").write_bytes(data)
    with pytest.raises(ArchiveError, match=r"a.csv.gz is not whole"):
        fetched(archive_of(tmp_path / "a.csv.gz"))


@pytest.mark.parametrize("status", ["OVERFLOW", "ERROR"])
def test_a_votable_that_its_service_cut_is_not_whole(tmp_path: Path, status: str) -> None:
    write_votable(random_stars(10), tmp_path / "a.vot", status=status)
    with pytest.raises(ArchiveError, match=f"a.vot is not whole: its service ended it with {status}"):
        archive_of(tmp_path / "a.vot").plan()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("source_id,ra,dec\n1,2,3\n", "no column parallax.*Columns found: source_id, ra, dec"),
        ("source_id,ra,dec,parallax\n1,2,3,far\n", "column parallax holds string, such as 'far': expected double"),
        (
            "source_id,ra,dec,parallax\n1.5,2,3,4\n",
            "column source_id holds string, such as '1.5': expected int64.*: it is not whole",
        ),
        ("dec,parallax,source_id,ra\n1,2,3,\n", "1 of 1 rows have no ra"),
        ("source_id,ra,dec,parallax\n,2,3,4\n", "have no source_id"),
        ("source_id,ra,dec,parallax\n-1,2,3,4\n", "source_id -1 is out of range"),
        ("source_id,ra,dec,parallax\n1,2,3,inf\n", r"column parallax: NaN or infinite in 1 of 1 rows"),
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
