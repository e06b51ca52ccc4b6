"""What a selection will take, and what to cite for what a run used."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from small_run import fetched, small_config
from typer.testing import CliRunner

from gaiadask.capacity import read_rates
from gaiadask.citations import REFERENCES, citations
from gaiadask.cli import app
from gaiadask.config.sections import Config
from gaiadask.config.toml import dump_toml
from gaiadask.errors import DataError
from gaiadask.stages.forecast import forecast
from gaiadask.stages.table import STAGES


def written(config: Config, folder: Path) -> str:
    path = folder / "gaia.toml"
    path.write_text(dump_toml(config, comments=False))
    return str(path)


def test_mock_stars(tmp_path: Path) -> None:
    config = small_config(tmp_path / "store")
    found = forecast(config, 2)
    assert (found.stars, found.chunks, found.fetched_bytes) == (12_000, 3, 0)
    assert [stage.stage for stage in found.stages] == [stage.name for stage in STAGES if not stage.on_request]
    assert not (tmp_path / "store").exists()


def test_a_margin_is_counted(tmp_path: Path) -> None:
    found = forecast(small_config(tmp_path / "store", catalogue={"margin_arcsec": 60}), 2)
    assert 0 < found.margin_bytes < found.catalogue_bytes
    assert forecast(small_config(tmp_path / "store"), 2).margin_bytes == 0
    path = written(small_config(tmp_path / "store", catalogue={"margin_arcsec": 60}), tmp_path)
    assert "on disk, its margin" in CliRunner().invoke(app, ["plan", path]).output


def test_twice_the_workers_take_half_the_time_and_training_is_of_what_is_shown(tmp_path: Path) -> None:
    config = small_config(tmp_path / "store", training={"rows_seen": 10**9}, archive={"kind": "mock", "mock_stars": 10**6})
    two, four = ({stage.stage: stage.seconds for stage in forecast(config, workers).stages} for workers in (2, 4))
    for name in ("statistics", "train", "encode"):
        assert two[name] == pytest.approx(2 * four[name], abs=0.11)
    assert two["train"] > 100 * two["statistics"]


def test_files_are_counted_by_their_bytes(tmp_path: Path) -> None:
    stars = fetched(small_config(tmp_path / "none"))
    pq.write_table(stars, tmp_path / "stars.parquet")
    config = small_config(
        tmp_path / "store", archive={"kind": "files", "uris": [str(tmp_path / "stars.parquet")], "chunk_rows": 4_000}
    )
    found = forecast(config, 1)
    assert found.stars == pytest.approx(len(stars), rel=0.2)
    assert found.fetched_bytes in (0, (tmp_path / "stars.parquet").stat().st_size)
    (ingest, *_), (of_mock, *_) = found.stages, forecast(small_config(tmp_path / "store"), 1).stages
    assert (ingest.stage, ingest.bottleneck) == ("ingest", "inflating and parsing csv.gz")
    rate = next(stage.worker[0].rate for stage in read_rates().stages if stage.name == "ingest")
    assert ingest.seconds == pytest.approx(found.stars / rate, abs=0.06)
    assert of_mock.seconds is None, "mock stars are made, not parsed"


def test_a_selection_of_nothing_is_refused(tmp_path: Path) -> None:
    stars = fetched(small_config(tmp_path / "none"))
    pq.write_table(stars.slice(0, 0), tmp_path / "stars.parquet")
    config = small_config(tmp_path / "store", archive={"kind": "files", "uris": [str(tmp_path / "stars.parquet")]})
    with pytest.raises(DataError):
        forecast(config, 1)


def test_the_command(tmp_path: Path) -> None:
    path = written(small_config(tmp_path / "store"), tmp_path)
    shown = CliRunner().invoke(app, ["plan", path])
    assert shown.exit_code == 0, shown.output
    assert "12,000 stars" in shown.output
    as_json = CliRunner().invoke(app, ["plan", path, "--json"])
    assert json.loads(as_json.output) == forecast(small_config(tmp_path / "store"), 2).to_json()


# What to cite --------------------------------------------------------------------------------------------------------
def keys(config: Config, *stages: str) -> set[str]:
    return {reference.key for reference in citations(config, stages)}


def test_what_a_run_used_is_cited_and_no_more(tmp_path: Path) -> None:
    mock, archive = small_config(tmp_path), small_config(tmp_path, archive={"kind": "tap"})
    assert not {"GaiaMission", "GaiaDR2", "Astroquery"} & keys(mock, "ingest")
    assert {"GaiaMission", "GaiaDR2", "Astroquery"} <= keys(archive, "ingest")
    assert not {"PyTorch", "VAE", "NeuralSplineFlows", "Pcodec"} & keys(mock, "ingest")
    assert {"PyTorch", "VAE", "NeuralSplineFlows"} <= keys(mock, "ingest", "train", "prior")
    assert "VAE" not in keys(small_config(tmp_path, model={"preset": "autoencoder"}), "train")
    assert "Pcodec" in keys(mock, "compress")


def test_bibtex_has_each_reference_once_and_braces_that_match(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        app, ["cite", written(small_config(tmp_path / "store", archive={"kind": "tap"}), tmp_path), "--bibtex"]
    )
    assert done.exit_code == 0, done.output
    found = re.findall(r"^@misc\{(\w+),$", done.output, re.MULTILINE)
    assert len(found) == len(set(found)) >= 5
    assert done.output.count("{") == done.output.count("}")
    assert len({reference.key for reference in REFERENCES}) == len(REFERENCES)


def test_the_acknowledgement_is_there_for_measured_stars_alone(tmp_path: Path) -> None:
    for kind, is_there in (("tap", True), ("mock", False)):
        done = CliRunner().invoke(app, ["cite", written(small_config(tmp_path / "store", archive={"kind": kind}), tmp_path)])
        assert ("European Space Agency" in done.output) == is_there
