"""A star that came more than once is told with what gave it, and an empty selection with its conditions."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pytest
from small_run import fill_parts, make_catalogue, merge_parts, small_config

from gaiadask.archive.chunks import Chunk, ChunkFile
from gaiadask.config.sections import Config
from gaiadask.errors import DataError
from gaiadask.overlaps import _described


def field(path: Path, ids: range | list[int]) -> None:
    """A file of stars near one another."""
    n = len(ids)
    pacsv.write_csv(
        pa.table({"source_id": list(ids), "ra": np.full(n, 44.9), "dec": np.arange(n) / 1e6, "parallax": np.full(n, 0.3)}), path
    )


def config_of(folder: Path, *uris: str, where: str = "") -> Config:
    selection = {"columns": ("parallax",), "not_null": (), "where": where}
    model = {"columns": ("parallax",), "latents": 1}
    return small_config(folder / "store", archive={"kind": "files", "uris": uris}, selection=selection, model=model)


def test_a_star_in_two_files_is_told_with_both(tmp_path: Path) -> None:
    for name, ids in {"a": range(5), "b": range(5, 10), "c": range(9, 14)}.items():
        field(tmp_path / f"field_{name}.csv", ids)
    settled = config_of(tmp_path, f"{tmp_path}/field_*.csv")
    fill_parts(settled)
    with pytest.raises(DataError, match=r"^tile .*1 stars came more than once .source_id 9 first") as caught:
        merge_parts(settled)
    assert f"This one is in {tmp_path}/field_b.csv and in {tmp_path}/field_c.csv: they overlap" in str(caught.value)
    assert "field_a" not in str(caught.value)


def test_a_star_twice_in_one_file_is_told_twice(tmp_path: Path) -> None:
    field(tmp_path / "a.csv", [1, 2, 2])
    with pytest.raises(DataError, match=re.escape(f"is in {tmp_path}/a.csv and in {tmp_path}/a.csv")):
        make_catalogue(config_of(tmp_path, f"{tmp_path}/a.csv"))


def test_a_chunk_is_told_by_its_range_or_by_the_file_of_the_star() -> None:
    assert _described(Chunk("06-1", 10, 20), 15) == "chunk 06-1 (source_id 10 to 19)"
    files = tuple(ChunkFile(f"/GaiaSource_{10 * i}_{10 * i + 9}.csv.gz") for i in range(9))
    assert _described(Chunk("c", 0, 90, files), 30) == "/GaiaSource_30_39.csv.gz"
    assert (
        _described(Chunk("c", 0, 90, tuple(ChunkFile(f"/{i}.csv") for i in range(9))), 30)
        == "/0.csv or /1.csv or /2.csv or one of 6 more"
    )


@pytest.mark.slow
def test_an_empty_selection_of_many_files_is_told_in_a_screen(tmp_path: Path) -> None:
    for i in range(60):
        field(tmp_path / f"a_very_long_name_of_a_field_of_stars_{i}.csv", [i])
    uris = [str(path) for path in sorted(tmp_path.glob("*.csv"))]
    with pytest.raises(DataError, match=r"no star of .*, … .60 URIs. satisfies selection.where = 'parallax > 10'") as caught:
        make_catalogue(config_of(tmp_path, *uris, where="parallax > 10"))
    assert len(str(caught.value)) < 1_000


@pytest.mark.slow
def test_positions_off_the_sphere_are_told_with_the_file_unless_they_are_not_selected(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("source_id,ra,dec,parallax\n1,-5.5,0,1\n2,360,90,1\n")
    with pytest.raises(DataError, match=rf"^{tmp_path}/a.csv: 1 rows have a ra outside .*such as -5.5"):
        make_catalogue(config_of(tmp_path, f"{tmp_path}/a.csv"))
    assert make_catalogue(config_of(tmp_path, f"{tmp_path}/a.csv", where="ra >= 0")).rows == 1
