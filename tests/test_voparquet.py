"""VO tools find units, UCDs and descriptions in every file of stars."""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io.votable import parse
from astropy.table import Table
from small_run import copied

from gaiadask.cluster.here import Here
from gaiadask.config.sections import Config
from gaiadask.release.dr2 import COLUMNS
from gaiadask.stages.decode import DecodeOptions
from gaiadask.stages.engine import run_stages
from gaiadask.stages.sample import SampleOptions
from gaiadask.voparquet import vo_metadata


def header(file: Path) -> bytes:
    return bytes(pq.read_metadata(file).metadata[b"IVOA.VOTable-Parquet.content"])


def test_astropy_reads_a_partition_with_its_units(small_run: Config) -> None:
    file = next(Path(small_run.store, "catalogue", "dataset").rglob("Npix=*.parquet"))
    table = Table.read(file, format="parquet.votable")
    assert len(table) == pq.read_metadata(file).num_rows
    assert str(table["parallax"].unit) == COLUMNS["parallax"].unit == "mas"
    assert table["parallax"].meta["ucd"] == COLUMNS["parallax"].ucd
    assert table["parallax"].description == COLUMNS["parallax"].description


@pytest.mark.slow
def test_stilts_reads_the_header_of_a_partition_with_its_units(small_run: Config, tmp_path: Path) -> None:
    """Debian's has no reader of parquet, so it is given the VOTable of the partition's header, with an empty table in it: what STILTS and
    TOPCAT take names, units and UCDs from where they have one."""
    if not shutil.which("stilts"):
        pytest.skip("needs STILTS to test against: stilts is not installed (.ci/run installs it)")
    file = next(Path(small_run.store, "catalogue", "dataset").rglob("Npix=*.parquet"))
    (tmp_path / "header.vot").write_bytes(header(file).replace(b"</TABLE>", b"<DATA><TABLEDATA/></DATA></TABLE>"))

    def stilts(task: str, *words: str) -> str:
        done = subprocess.run(["stilts", task, *words], cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert stilts("votlint", "votable=header.vot", "ucd=true", "unit=true") == ""
    found = list(
        csv.DictReader(io.StringIO(stilts("tpipe", "in=header.vot", "ifmt=votable", "cmd=meta Name Units UCD", "ofmt=csv")))
    )
    assert [column["Name"] for column in found] == pq.read_schema(file).names
    for column in found[1:]:
        assert (column["Units"], column["UCD"]) == (COLUMNS[column["Name"]].unit, COLUMNS[column["Name"]].ucd)


@pytest.mark.slow
def test_every_column_of_every_kind_of_file_is_described(small_run: Config, tmp_path: Path) -> None:
    config = copied(small_run, tmp_path / "store")
    run_stages(config, ["sample"], request=SampleOptions(stars=100), workers=Here())
    run_stages(config, ["decode"], request=DecodeOptions(output=str(tmp_path / "rebuilt")), workers=Here())
    run = Path(config.store, "runs", "small")
    for folder, said in ((run / "latent", ""), (run / "samples", "Simulated stars"), (tmp_path / "rebuilt", "rebuilt from")):
        file = min(path for path in folder.rglob("*.parquet") if not path.name.startswith("_") and path.name != "dataset")
        (found,) = parse(io.BytesIO(header(file))).iter_tables()
        assert [field.name for field in found.fields] == pq.read_schema(file).names
        assert said in (found.description or "")


def test_texts_are_escaped() -> None:
    schema = pa.schema([pa.field("a", pa.string(), metadata={"unit": '"m"', "description": "1 < 2 & so on"})])
    (found,) = parse(io.BytesIO(vo_metadata(schema)["IVOA.VOTable-Parquet.content"].encode())).iter_tables()
    assert found.fields[0].description == "1 < 2 & so on"


@pytest.mark.parametrize(
    "dtype", [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.float32(), pa.float64(), pa.bool_(), pa.string()]
)
def test_every_type_of_a_column_has_its_datatype(dtype: pa.DataType) -> None:
    content = vo_metadata(pa.schema([pa.field("a", dtype)]))["IVOA.VOTable-Parquet.content"]
    (found,) = parse(io.BytesIO(content.encode())).iter_tables()
    assert (found.fields[0].datatype == "char") == pa.types.is_string(dtype)
