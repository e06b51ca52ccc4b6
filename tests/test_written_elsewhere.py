"""Star files as other programs write them: each gives the right values, or one error that names file, column and remedy."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy import units as u
from astropy.io import fits, votable
from astropy.table import MaskedColumn, Table
from fsspec.implementations.local import LocalFileSystem
from star_files import archive_of, fetched

from gaiadask.archive.files import content, formats
from gaiadask.archive.files.transfer import SourceFile
from gaiadask.archive.files.units import check_unit
from gaiadask.config.sections import SelectionConfig
from gaiadask.errors import ArchiveError, DataError, GaiadaskError
from gaiadask.release.dr2 import COLUMNS

ONE, TWO = 5853498713190525696, 34361129088
HEADER = "source_id,ra,dec,parallax\n"
ROWS = f"{ONE},217.5,-62.7,768.5\n{TWO},45.0,0.25,\n"
STARS = [(ONE, 217.5, -62.7, 768.5), (TWO, 45.0, 0.25, None)]


def read(path: Path, *names: str) -> list[tuple[Any, ...]]:
    """The file's rows: source_id, ra, dec and these columns (parallax, where none is named)."""
    chosen = ("source_id", "ra", "dec", *(names or ("parallax",)))
    schema = pa.schema([COLUMNS[name].field for name in chosen])
    tables = formats.read_tables(SourceFile(LocalFileSystem(), str(path), path.name), schema)
    return [tuple(row.values()) for table in tables for row in table.to_pylist()]


def text_of(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def star_table(**columns: Any) -> Table:
    table = Table({"source_id": [ONE, TWO], "ra": [217.5, 45.0], "dec": [-62.7, 0.25]})
    table["parallax"] = MaskedColumn([768.5, 0.0], mask=[False, True])
    for name, values in columns.items():
        table[name] = values
    return table


# Delimited text -------------------------------------------------------------------------------------------------------
ECSV = "# %ECSV 1.0\n# ---\n# delimiter: ','\n# datatype:\n# - {name: source_id, datatype: int64}\n"


@pytest.mark.parametrize(
    "text",
    [
        HEADER + ROWS,
        (HEADER + ROWS).replace("\n", "\r"),
        (HEADER + ROWS).replace("\n", "\r\n"),
        (HEADER + ROWS).replace(",", ";"),
        (HEADER + ROWS).replace(",", "\t"),
        (HEADER + ROWS).replace(",", "|"),
        (HEADER + ROWS).replace(",\n", ",null\n").replace(",", " "),
        (HEADER + ROWS).replace(",", ", "),
        "\ufeff" + HEADER + ROWS,
        "\ufeff# made by hand\n" + HEADER + ROWS,
        "\n\n" + HEADER + ROWS + "\n\n\r\n",
        "# " + HEADER + ROWS,
        "sep=,\n" + HEADER + ROWS,
        "#" + HEADER.replace(",", ";") + ROWS.replace(",", ";"),
        "# the stars\n# " + HEADER + ROWS,
        ECSV + HEADER + ROWS,
        HEADER.upper() + ROWS.replace(",\n", ",NULL\n"),
        HEADER + ROWS.replace(",\n", ",--\n"),
        HEADER + ROWS.replace(",\n", ", nan\n").replace(",0.25", ",+0.25"),
        '"source_id","ra","dec","parallax"\n'
        + "".join(f'"{line.replace(",", chr(34) + "," + chr(34))}"\n' for line in ROWS.split()),
        'source_id, "ra", "dec", "parallax"\n' + ROWS,
    ],
)
@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.ecsv"])
def test_text_of_any_dialect_gives_the_same_stars(tmp_path: Path, text: str, name: str) -> None:
    assert read(text_of(tmp_path / name, text)) == STARS
    assert read(text_of(tmp_path / name, gzip.compress(text.encode()))) == STARS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            HEADER.replace(",", ";") + ROWS.replace(",", ";").replace(".", ","),
            "column ra holds string, such as '217,5'.*decimal comma",
        ),
        (HEADER.replace(",", "   ") + ROWS.replace(",", "   "), "runs of blanks: write it with commas"),
        ("source_id ra  dec parallax\n" + ROWS.replace(",", " "), "runs of blanks"),
        (HEADER + ROWS + HEADER + ROWS, "column source_id holds string, such as 'source_id'.*header line comes again"),
        (HEADER + ROWS.replace("217.5", '"1,217.5"'), "column ra holds string, such as '1,217.5'.*thousands separators"),
        (HEADER + ROWS.replace("217.5", "14:30:00.1"), "column ra holds string, such as '14:30:00.1'.*sexagesimal"),
        (HEADER + ROWS.replace(str(ONE), "5.85350E+18"), "column source_id holds string, such as '5.85350E.18'.*lost digits"),
        (HEADER + ",deg,deg,mas\n" + ROWS, "column ra holds string, such as 'deg'.*a line of units"),
        (HEADER + "---,---,---,---\n" + ROWS, "column source_id holds string, such as '---'.*a line of units, types or dashes"),
        (HEADER + ROWS.replace("-62.7", "\u221262.7"), "column dec holds string, such as '\u221262.7'.*minus"),
        (HEADER + ROWS.replace(str(ONE), f'="{ONE}"'), "column source_id holds string.*formula of a spreadsheet"),
        (HEADER + ROWS + ",,,\n", "1 of 3 rows have no source_id.*leave such rows out"),
        ('[{"source_id": 1, "ra": 2}]\n', "is JSON, expected CSV"),
        (ROWS + ROWS, "its first line holds values .*write a header line"),
        (HEADER + f"{ONE},1,2\n", "Expected 4 columns, got 3.*set apart by commas"),
        (HEADER + "a\n", "Expected 4 columns, got 1"),
        (HEADER.replace(",dec", ",ra") + ROWS, "more than one column fits ra"),
        ((HEADER + ROWS).encode("utf-16"), "is text in UTF-16, not UTF-8"),
        ("<!DOCTYPE html><html><body>Log in</body></html>\n", "is XML .a VOTable, or a web page., expected CSV"),
        (b"PAR1" + bytes(600), "is parquet, expected CSV"),
        (bz2.compress(b"x" * 99), "packed by bzip2: unpack it first"),
        (lzma.compress(b"x" * 99), "packed by xz: unpack it first"),
        (b"\x28\xb5\x2f\xfd" + bytes(99), "packed by zstd: unpack it first"),
        ("# %ECSV 1.0\n# ---\n# datatype: [{name: ra, unit: deg\n" + HEADER + ROWS, "header, which declares units, cannot be read"),
        ("Source,RA_ICRS,DE_ICRS\n" + ROWS, "no column source_id, ra, dec, parallax. Columns found: Source.*rename the columns"),
    ],
)
def test_text_that_is_no_table_of_stars_says_why(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = text_of(tmp_path / "a.csv", text)
    with pytest.raises(DataError, match=rf"^a\.csv(: | )(.*){message}") as caught:
        read(path)
    assert len(str(caught.value)) < 1_000


def test_an_empty_file_is_not_whole_and_a_header_has_no_stars(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=r"a.csv is not whole.*no header line"):
        read(text_of(tmp_path / "a.csv", ""))
    assert read(text_of(tmp_path / "a.csv", HEADER)) == []
    assert read(text_of(tmp_path / "a.csv", "# " + HEADER)) == []


def test_a_zip_archive_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.csv", "w") as packed:
        packed.writestr("a.csv", HEADER)
    with pytest.raises(DataError, match="is a zip archive"):
        read(tmp_path / "a.csv")


def test_a_late_cell_that_needs_another_reading_changes_no_other_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gaiadask.archive.files.csv_text.BLOCK_BYTES", 4_000)
    flags = [f"{100_000 + i}" for i in range(900)] + ["100900.0", "<NA>", "+7"]
    rows = "".join(f"{i},{i / 10},{i / 100},{flag}\n" for i, flag in enumerate(flags))
    found = read(text_of(tmp_path / "a.csv", "source_id,ra,dec,priam_flags\n" + rows), "priam_flags")
    assert found == [(i, i / 10, i / 100, 100_000 + i if i <= 900 else {901: None, 902: 7}[i]) for i in range(903)]


def test_text_columns_keep_their_words(tmp_path: Path) -> None:
    text = f'source_id, ra, dec, designation\n{TWO}, 1, 2, "Gaia DR2 {TWO}"\n{ONE}, 1, 2, null\n'
    assert [row[3] for row in read(text_of(tmp_path / "a.csv", text), "designation")] == [f"Gaia DR2 {TWO}", None]


@pytest.mark.parametrize("delimiter", [",", " "])
def test_the_units_of_ecsv_are_looked_at(tmp_path: Path, delimiter: str) -> None:
    star_table().write(tmp_path / "a.ecsv", format="ascii.ecsv", delimiter=delimiter)
    assert read(tmp_path / "a.ecsv") == STARS
    table = star_table()
    table["ra"] = [0.1, 0.2] * u.rad
    table.write(tmp_path / "b.ecsv", format="ascii.ecsv", delimiter=delimiter)
    with pytest.raises(DataError, match=r"b.ecsv: column ra is in 'rad': expected 'deg'"):
        read(tmp_path / "b.ecsv")


@pytest.mark.parametrize("format", ["csv", "ascii.tab", "ascii.commented_header", "ascii.basic", "ascii.ecsv"])
def test_text_that_astropy_writes(tmp_path: Path, format: str) -> None:
    star_table().write(tmp_path / "a.csv", format=format)
    assert read(tmp_path / "a.csv") == STARS


@pytest.mark.parametrize(
    "format",
    ["ascii.fixed_width", "ascii.ipac", "ascii.mrt", "ascii.rdb", "ascii.latex", "ascii.rst", "ascii.fixed_width_two_line"],
)
def test_text_that_is_no_csv_is_refused_or_right(tmp_path: Path, format: str) -> None:
    star_table().write(tmp_path / "a.csv", format=format)
    try:
        assert read(tmp_path / "a.csv") == STARS
    except GaiadaskError as error:
        assert "a.csv" in str(error)


# Parquet --------------------------------------------------------------------------------------------------------------
def test_masks_of_astropys_parquet_are_nulls(tmp_path: Path) -> None:
    star_table(teff_val=MaskedColumn([0.0, 5_000.0], mask=[True, False])).write(tmp_path / "a.parquet")
    assert [row[3:] for row in read(tmp_path / "a.parquet", "parallax", "teff_val")] == [(768.5, None), (None, 5_000.0)]


@pytest.mark.parametrize("unit", ["rad", "arcmin", "hourangle"])
def test_the_units_of_astropys_parquet_are_looked_at(tmp_path: Path, unit: str) -> None:
    table = star_table()
    table["ra"].unit = unit
    table.write(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=f"a.parquet: column ra is in '{unit}': expected 'deg'"):
        read(tmp_path / "a.parquet")


def test_units_in_parquets_own_metadata_and_in_a_votable_beside_the_data(tmp_path: Path) -> None:
    table = pa.table({"source_id": [ONE], "ra": [1.0], "dec": [1.0], "parallax": [1.0]})
    marked = table.set_column(3, pa.field("parallax", pa.float64(), metadata={"unit": "arcsec"}), table["parallax"])
    pq.write_table(marked, tmp_path / "a.parquet")
    document = io.BytesIO()
    votable.from_table(Table({"ra": [1.0] * u.rad})).to_xml(document)
    pq.write_table(table.replace_schema_metadata({"IVOA.VOTable-Parquet.content": document.getvalue()}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"a.parquet: column parallax is in 'arcsec'"):
        read(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"b.parquet: column ra is in 'rad'"):
        read(tmp_path / "b.parquet")


def test_a_gzipped_parquet_file_is_named(tmp_path: Path) -> None:
    star_table().write(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"b.parquet is gzipped as a whole.*unpack it"):
        read(text_of(tmp_path / "b.parquet", gzip.compress((tmp_path / "a.parquet").read_bytes())))


def test_frames_that_pandas_writes(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {"source_id": [str(ONE), str(TWO)], "ra": ["217.5", "45"], "dec": [-62.7, 0.25], "parallax": [768.5, None]}
    )
    frame.to_parquet(tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == STARS
    frame.astype({"source_id": "UInt64", "parallax": "category"}).set_index("source_id").to_parquet(tmp_path / "a.parquet.gzip")
    assert read(tmp_path / "a.parquet.gzip") == STARS
    frame.astype({"source_id": "float64"}).to_parquet(tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b.parquet: column source_id holds double.*as integers, or as text"):
        read(tmp_path / "b.parquet")


# VOTable --------------------------------------------------------------------------------------------------------------
def votable_of(fields: str, *rows: str, more: str = "") -> str:
    cells = "".join("<TR>" + "".join(f"<TD>{cell}</TD>" for cell in row.split("|")) + "</TR>" for row in rows)
    table = f"<TABLE>{fields}<DATA><TABLEDATA>{cells}</TABLEDATA></DATA></TABLE>"
    return f'<VOTABLE version="1.4" xmlns="http://www.ivoa.net/xml/VOTable/v1.3"><RESOURCE type="results">{table}{more}</RESOURCE></VOTABLE>'


PLACE = '<FIELD name="source_id" datatype="long"/><FIELD name="ra" datatype="double"/><FIELD name="dec" datatype="double"/>'


@pytest.mark.parametrize(
    ("field", "cells", "name", "expected"),
    [
        ('datatype="short"', ("40000", "7"), "astrometric_n_obs_al", [40_000, 7]),
        ('datatype="int"><VALUES null="-9"/></FIELD', ("-9", ""), "astrometric_n_obs_al", [None, None]),
        (
            'datatype="long"><VALUES null="-9223372036854775808"/></FIELD',
            ("-9223372036854775808", "3"),
            "matched_observations",
            [None, 3],
        ),
        ('datatype="double"><VALUES null="-999"/></FIELD', ("-999.0", "2.5"), "parallax", [None, 2.5]),
        ('datatype="double"', ("null", "NaN"), "parallax", [None, None]),
        ('datatype="float" arraysize="1"', ("0.5", ""), "bp_rp", [0.5, None]),
        ('datatype="char" arraysize="4"', ("VARIABLE", ""), "phot_variable_flag", ["VARIABLE", None]),
        ('datatype="char" arraysize="*"', ("2.5", ""), "parallax", [2.5, None]),
        ('datatype="boolean"', ("T", "?"), "duplicated_source", [True, None]),
        ('datatype="boolean"', ("false", "1"), "duplicated_source", [False, True]),
    ],
)
def test_cells_of_a_votable_keep_their_values(
    tmp_path: Path, field: str, cells: tuple[str, str], name: str, expected: list[Any]
) -> None:
    fields = f'{PLACE}<FIELD name="{name}" {field}{"" if field.endswith("FIELD") else "/"}>'
    path = text_of(tmp_path / "a.vot", votable_of(fields, *(f"{i}|1|2|{cell}" for i, cell in enumerate(cells))))
    assert [row[3] for row in read(path, name)] == expected


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("0,35", "column parallax holds string, such as '0,35'.*decimal comma"),
        ("1.5D2", "column parallax holds string, such as '1.5D2'.*Fortran"),
        ("1.5 2.5", "column parallax holds string, such as '1.5 2.5'"),
        ("1|2", "row 1 has 5 cells, its table 4 columns"),
    ],
)
def test_cells_of_a_votable_that_are_no_numbers_are_refused(tmp_path: Path, cell: str, message: str) -> None:
    path = text_of(tmp_path / "a.vot", votable_of(PLACE + '<FIELD name="parallax" datatype="double"/>', f"1|2|3|{cell}"))
    with pytest.raises(DataError, match=rf"^a.vot: {message}"):
        read(path)


def test_columns_go_by_their_names_not_by_their_ids(tmp_path: Path) -> None:
    fields = (
        PLACE.replace('name="ra"', 'name="ra" ID="dec"')
        .replace('name="dec"', 'name="dec" ID="ra"')
        .replace("source_id", "&quot;source_id&quot;")
    )
    text = votable_of(fields + '<FIELD name="parallax" datatype="double"/>', f"{TWO}|45|0.25|")
    assert read(text_of(tmp_path / "a.vot", text)) == STARS[1:]
    document = votable.parse(io.BytesIO(text.encode()), verify="ignore")
    for format in ("binary", "binary2"):
        binary = io.BytesIO()
        document.to_xml(binary, tabledata_format=format)
        swapped = binary.getvalue()
        assert read(text_of(tmp_path / "a.vot", swapped)) == STARS[1:], format
    twice = votable_of(PLACE + '<FIELD name="parallax" datatype="double"/>' * 2, "1|2|3|4|5")
    with pytest.raises(DataError, match="more than one column fits parallax"):
        read(text_of(tmp_path / "a.vot", twice))


@pytest.mark.parametrize("format", ["tabledata", "binary", "binary2"])
def test_nulls_and_arrays_of_one_in_every_serialisation(tmp_path: Path, format: str) -> None:
    table = votable.from_table(star_table(priam_flags=MaskedColumn([5, 6], mask=[True, False]), bp_rp=np.float32([0.5, 1.5])))
    by_name = {field.name: field for field in table.get_first_table().fields}
    by_name["priam_flags"].values.null = -7
    by_name["parallax"].values.null = -999.0
    table.get_first_table().array["parallax"] = [768.5, -999.0]
    sink = io.BytesIO()
    table.to_xml(sink, tabledata_format=format)
    text = sink.getvalue().replace(b'name="ra"', b'name="ra" arraysize="1"')
    found = read(text_of(tmp_path / "a.vot", text), "parallax", "priam_flags", "bp_rp")
    assert found == [(*STARS[0], None, 0.5), (*STARS[1], 6, 1.5)]


def test_every_table_of_stars_is_read(tmp_path: Path) -> None:
    field = '<FIELD name="parallax" datatype="double"/>'
    other = (
        "<TABLE><FIELD name='note' datatype='char' arraysize='*'/><DATA><TABLEDATA><TR><TD>x</TD></TR></TABLEDATA></DATA></TABLE>"
    )
    second = votable_of(PLACE + field, "3|1|2|4").partition("<RESOURCE")[2].partition(">")[2].partition("</RESOURCE")[0]
    path = text_of(tmp_path / "a.vot", votable_of(PLACE + field, "1|1|2|3", "2|1|2|3", more=other + second))
    assert [row[0] for row in read(path)] == [1, 2, 3]
    tables = [
        fits.table_to_hdu(Table({"note": ["x"]})),
        fits.table_to_hdu(star_table(ra=[1.0, 2.0])),
        fits.table_to_hdu(star_table()),
    ]
    tables[2].data["source_id"] = [8, 9]
    fits.HDUList([fits.PrimaryHDU(), *tables]).writeto(tmp_path / "a.fits")
    assert [row[0] for row in read(tmp_path / "a.fits")] == [ONE, TWO, 8, 9]
    tables[2].columns.change_name("parallax", "plx")
    fits.HDUList([fits.PrimaryHDU(), *tables]).writeto(tmp_path / "a.fits", overwrite=True)
    with pytest.raises(DataError, match=r"a.fits, table 3: no column parallax"):
        read(tmp_path / "a.fits")


def test_other_xml_is_no_votable(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=r"a.vot is not whole.*outermost element is html, expected VOTABLE"):
        read(text_of(tmp_path / "a.vot", "<html><body>Down</body></html>"))
    with pytest.raises(DataError, match="a cell is encoded"):
        read(text_of(tmp_path / "a.vot", votable_of(PLACE, "1|2|3").replace("<TD>1", '<TD encoding="base64">1')))


@pytest.mark.parametrize("format", ["tabledata", "binary", "binary2"])
def test_a_votable_with_fewer_rows_than_it_says_is_not_whole(tmp_path: Path, format: str) -> None:
    sink = io.BytesIO()
    votable.from_table(star_table()).to_xml(sink, tabledata_format=format)
    more = re.sub(rb"<TABLE[^D>]*>", b'<TABLE nrows="3">', sink.getvalue())
    assert more != sink.getvalue()
    with pytest.raises(ArchiveError, match=r"a.vot is not whole: it says that it has 3 rows, and has 2"):
        read(text_of(tmp_path / "a.vot", more))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ('<BINARY2><STREAM href="http://me:secret@127.0.0.1:9/x"/></BINARY2>', "rows are elsewhere, at http://127.0.0.1:9/x"),
        ('<FITS extnum="1"><STREAM encoding="base64">AAAA</STREAM></FITS>', "rows are a FITS file within it"),
    ],
)
def test_rows_outside_of_a_votable_are_not_fetched(tmp_path: Path, data: str, message: str) -> None:
    text = re.sub("<TABLEDATA>.*</TABLEDATA>", data, votable_of(PLACE, "1|2|3"))
    with pytest.raises(DataError, match=f"a.vot: its {message}"):
        read(text_of(tmp_path / "a.vot", text))


# FITS -----------------------------------------------------------------------------------------------------------------
def fits_of(path: Path, *columns: fits.Column) -> Path:
    place = [
        fits.Column("source_id", "K", array=[ONE, TWO]),
        fits.Column("ra", "D", array=[1.0, 2.0]),
        fits.Column("dec", "D", array=[1.0, 2.0]),
    ]
    fits.BinTableHDU.from_columns([*place, *columns]).writeto(path)
    return path


@pytest.mark.parametrize(
    ("column", "name", "expected"),
    [
        (fits.Column("parallax", "J", array=np.int32([-7, 500]), null=-7), "parallax", [None, 500.0]),
        (fits.Column("bp_rp", "1E", array=np.float32([0.5, np.nan])), "bp_rp", [0.5, None]),
        (fits.Column("parallax", "D", array=[[1.5], [2.5]], dim="(1)"), "parallax", [1.5, 2.5]),
        (fits.Column("astrometric_n_obs_al", "J", array=np.uint32([3, 4]), bzero=2**31), "astrometric_n_obs_al", [3, 4]),
        (fits.Column("duplicated_source", "B", array=np.uint8([1, 0])), "duplicated_source", [True, False]),
        (fits.Column("priam_flags", "20A", array=["100001", "--"]), "priam_flags", [100001, None]),
    ],
)
def test_columns_of_fits_keep_their_values(tmp_path: Path, column: fits.Column, name: str, expected: list[Any]) -> None:
    path = fits_of(tmp_path / "a.fits", column)
    assert [row[3] for row in read(path, name)] == expected


@pytest.mark.parametrize(("scale", "zero"), [(0.5, 10.0), (1.0, 2.0), (1.0, 2**15)])
def test_tnull_is_a_number_as_stored(tmp_path: Path, scale: float, zero: float) -> None:
    path = fits_of(tmp_path / "a.fits", fits.Column("parallax", "I", array=np.int16([-99, 4])))
    with fits.open(path, mode="update") as document:
        document[1].header.update({"TSCAL4": scale, "TZERO4": zero, "TNULL4": -99})
    assert [row[3] for row in read(path)] == [None, 4 * scale + zero]
    path.write_bytes(gzip.compress(path.read_bytes()))  # the name stays
    assert [row[3] for row in read(path)] == [None, 4 * scale + zero]


def test_an_ascii_table_of_fits_is_refused(tmp_path: Path) -> None:
    columns = [fits.Column("source_id", "I20", array=[TWO], ascii=True), fits.Column("ra", "F10.3", array=[1.0], ascii=True)]
    fits.TableHDU.from_columns(columns).writeto(tmp_path / "a.fits")
    with pytest.raises(DataError, match="is an ASCII table"):
        list(
            formats.read_tables(
                SourceFile(LocalFileSystem(), str(tmp_path / "a.fits"), "a"),
                pa.schema([COLUMNS[n].field for n in ("source_id", "ra")]),
            )
        )


# Sizes and names ------------------------------------------------------------------------------------------------------
def test_what_inflates_past_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "MOST_IN_MEMORY", 1 << 20)
    path = text_of(tmp_path / "a.fits.gz", gzip.compress(b"SIMPLE  =" + bytes(5 << 20)))
    assert path.stat().st_size < 10_000
    with pytest.raises(DataError, match=r"a.fits.gz holds more than 1 MiB .unpacked.*as parquet"):
        read(path)


@pytest.mark.slow
def test_the_head_of_a_bulk_file_is_inflated_no_further_than_it_needs(tmp_path: Path) -> None:
    path = text_of(tmp_path / "GaiaSource_1_2.csv.gz", gzip.compress((HEADER + ROWS + "\n" * (40 << 20)).encode()))
    file = SourceFile(LocalFileSystem(), str(path), path.name)
    taken, head = formats.csv_head(file, pa.schema([COLUMNS[name].field for name in ("source_id", "ra")]), 40_000)
    assert (len(head), taken) == (2, pytest.approx(2_600, rel=0.2))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a#b", "what?", "50%", "50%20", "a b", "[1]", "a&b=c", "ä", "x;y", "~", "x::y", "{a}"])
def test_paths_may_have_any_letter(tmp_path: Path, name: str) -> None:
    for path in (tmp_path / name / "stars.csv", tmp_path / f"{name}.csv"):
        path.parent.mkdir(exist_ok=True)
        text_of(path, HEADER + ROWS)
        archive = archive_of(path, selection=SelectionConfig(columns=("parallax",), not_null=()))
        assert len(fetched(archive)) == 2
        assert len(fetched(archive_of(path.parent / "*.csv", selection=archive.selection))) == 2
        assert len(fetched(archive_of(path.as_uri(), selection=archive.selection))) == 2


# Units ----------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize(
    ("column", "same", "other"),
    [
        (
            "ra",
            ["deg", "degree", "Degrees", "Angle[deg]", "'deg'", ""],
            ["rad", "radians", "arcsec", "hourangle", "h", "Angle[rad]", "mas"],
        ),
        ("pmra", ["mas/yr", "mas.yr**-1", "mas yr-1", "milliarcseconds/year"], ["arcsec/yr", "mas", "deg/yr", "mas/d"]),
        ("lum_val", ["solLum", "Lsun", "L_sun"], ["dex(solLum)", "log(solLum)", "[Lsun]", "[solLum]", "dex", "erg/s"]),
        ("rv_template_logg", ["log(cm.s**-2)", "dex(cm/s2)", "[cm/s2]", "log cgs", "log(cgs)"], ["cm/s2", "dex(m/s2)", "m/s2"]),
        ("rv_template_fe_h", ["dex", "'dex'", "[-]"], ["%", "mag"]),
        ("phot_g_mean_mag", ["mag", "Magnitude[mag]"], ["dex", "mag(AB)", "mmag"]),
        ("phot_g_mean_flux", ["electron/s", "'electron'.s**-1", "e-/s"], ["electron/h", "dex(electron/s)"]),
        ("parallax_over_error", ["", "-", "---"], ["%", "dex"]),
        ("designation", ["[x]", "deg"], []),
    ],
)
def test_a_declared_unit_is_the_columns_own_or_refused(column: str, same: list[str], other: list[str]) -> None:
    for unit in same:
        check_unit(unit, COLUMNS[column].field, "a file")
    for unit in other:
        with pytest.raises(DataError, match=f"a file: column {column} is in "):
            check_unit(unit, COLUMNS[column].field, "a file")
