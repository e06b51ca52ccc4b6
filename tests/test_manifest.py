"""The manifest: what was made, from what; forgotten before it changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaiadask.errors import MissingStageError, StoreError
from gaiadask.keys import digest
from gaiadask.records import StageResult
from gaiadask.store.files import Store
from gaiadask.store.manifest import Manifest
from gaiadask.store.paths import RunPaths

STAGES = ("ingest", "statistics", "train", "encode", "prior", "evaluate", "report")


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return Manifest(Store(str(tmp_path)), RunPaths("dr2"))


class Counted(StageResult):
    """What a stage reports here."""

    rows: int

    def summary(self) -> str:
        return f"{self.rows:,} stars"


def fill(manifest: Manifest) -> None:
    for stage in STAGES:
        manifest.write(stage, {"of": stage}, Counted(rows=3_000), 1.23456)


def test_a_new_run_has_nothing(manifest: Manifest) -> None:
    assert manifest.entry("train") is None
    assert manifest.read().stages == {}
    manifest.remove("train")
    assert not manifest.store.exists(manifest.run.manifest)


def test_what_is_written_is_found(manifest: Manifest) -> None:
    fill(manifest)
    entry = manifest.entry("train")
    assert entry is not None
    assert (dict(entry.inputs), dict(entry.result), entry.seconds) == ({"of": "train"}, {"rows": 3_000}, 1.235)
    assert entry.summary == "3,000 stars"
    assert entry.key == digest({"of": "train"}) == manifest.read().stages["train"].key
    assert entry.finished.endswith("+00:00")
    assert {"gaiadask", "torch", "dask", "hats"} <= set(manifest.read().versions)


def test_tuples_and_lists_are_the_same_inputs(manifest: Manifest) -> None:
    manifest.write("train", {"hidden": (3, 4)}, Counted(rows=0), 0)
    entry = manifest.entry("train")
    assert entry is not None
    assert entry.inputs == {"hidden": [3, 4]}
    assert entry.key == digest({"hidden": (3, 4)})


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(st.sets(st.sampled_from(STAGES)))
def test_what_is_removed_is_gone_and_the_rest_stays(tmp_path_factory: pytest.TempPathFactory, gone: set[str]) -> None:
    manifest = Manifest(Store(str(tmp_path_factory.mktemp("store"))), RunPaths("dr2"))
    fill(manifest)
    manifest.remove(*gone)
    assert set(manifest.read().stages) == set(STAGES) - gone


def test_runs_do_not_see_each_other(manifest: Manifest) -> None:
    fill(manifest)
    other = Manifest(manifest.store, RunPaths("dr3"))
    assert other.entry("train") is None
    other.write("train", {}, Counted(rows=0), 0)
    manifest.remove(*STAGES)
    assert other.entry("train") is not None


def test_a_damaged_manifest_is_named(manifest: Manifest) -> None:
    fill(manifest)
    text = manifest.store.read_bytes(manifest.run.manifest)
    manifest.store.write_bytes(manifest.run.manifest, text[:-20])
    with pytest.raises(StoreError, match=r"runs/dr2/manifest\.json is not JSON"):
        manifest.entry("train")
    assert json.loads(text)


def test_what_is_missing_and_what_another_version_wrote_is_told(manifest: Manifest) -> None:
    fill(manifest)
    with pytest.raises(
        MissingStageError, match="run 'dr2' has not got through the stage tune yet: make it with `gaiadask tune CONFIG`"
    ):
        manifest.require("tune")
    record = manifest.store.read_json(manifest.run.manifest)
    manifest.store.write_json(manifest.run.manifest, record | {"format": 99})
    with pytest.raises(StoreError, match=r"manifest\.json: format 99, expected 1: read it with the gaiadask that wrote it"):
        manifest.read()
