"""A published catalogue and the files that it came from: they may be touched or gone, not changed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from small_run import make_run, small_config

from gaiadask.config.sections import Config
from gaiadask.errors import GaiadaskError

HEAD = "source_id,ra,dec,parallax,phot_g_mean_flux\n"
STAR = "4295806720,44.9,0.005,0.3,1734.5\n"


@pytest.fixture
def ingested(tmp_path: Path) -> Config:
    """A catalogue of one CSV file."""
    (tmp_path / "a.csv").write_text(HEAD + STAR)
    columns = ("parallax", "phot_g_mean_flux")
    config = small_config(
        tmp_path / "store", archive={"kind": "files", "uris": (str(tmp_path / "*.csv"),)},
        selection={"columns": columns, "not_null": ()}, model={"columns": columns},
    )  # fmt: skip
    make_run(config, "ingest")
    return config


def test_a_touched_file_is_the_same_file(ingested: Config, tmp_path: Path) -> None:
    os.utime(tmp_path / "a.csv", (1, 1))
    make_run(ingested, "ingest", "statistics")


def test_a_catalogue_does_not_need_its_files(ingested: Config, tmp_path: Path) -> None:
    (tmp_path / "a.csv").unlink()
    make_run(ingested, "ingest", "statistics")


def test_a_file_that_was_changed_in_its_size_or_not_is_told(ingested: Config, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(HEAD + STAR.replace("0.3", "0.4"))
    os.utime(tmp_path / "a.csv", (1, 1))
    with pytest.raises(GaiadaskError, match=r"a\.csv\]\.mtime: .* there, '1.0' asked for"):
        make_run(ingested, "ingest")
    (tmp_path / "a.csv").write_text(HEAD + STAR.replace("0.3", "0.31"))
    with pytest.raises(GaiadaskError, match=r"a\.csv\]\.size: "):
        make_run(ingested, "ingest")


def test_another_file_is_told(ingested: Config, tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_text(HEAD + STAR.replace("4295806720", "4295806848"))
    with pytest.raises(GaiadaskError, match=r"b\.csv"):
        make_run(ingested, "ingest")
