"""A kind of archive is one file and one line of a table."""

from __future__ import annotations

from pathlib import Path

import pytest
from dummies.dummy_archive import STARS
from small_run import make_catalogue, small_config

from gaiadask import catalogue, publishing
from gaiadask.archive.base import Archive, open_archive
from gaiadask.archive.kinds import ARCHIVES
from gaiadask.config.sections import ArchiveConfig
from gaiadask.config.toml import dump_toml
from gaiadask.errors import ConfigurationError
from gaiadask.ledger import read_ledger
from gaiadask.store import paths
from gaiadask.store.files import Store


def test_a_dummy_kind_is_ingested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHIVES, "dummy", "dummies.dummy_archive:DummyArchive")
    columns = ("parallax",)
    config = small_config(
        tmp_path, archive={"kind": "dummy"}, selection={"columns": columns, "not_null": ()}, model={"columns": columns}
    )
    record = make_catalogue(config)
    store = Store(config.store)
    assert catalogue.is_published(store, paths.CATALOGUE)
    assert (record.rows, record.columns) == (STARS, ("_healpix_29", "source_id", "ra", "dec", "parallax"))
    assert record.selection.archive.to_json() == {"kind": "dummy"}
    tables = [catalogue.read_partition(store, paths.CATALOGUE, tile) for tile in record.tiles]
    assert sum(table["parallax"].null_count for table in tables) == STARS // 2
    assert {each.facts.counted for each in read_ledger(store).values()} == {STARS // 2}
    assert publishing.read_properties(store, paths.CATALOGUE).catalog_name == "gaiadask dummy"


@pytest.mark.parametrize("kind", ARCHIVES)
def test_every_kind_opens(kind: str) -> None:
    config = small_config("unused", archive={"kind": kind, "uris": ("a.parquet",)})
    archive = open_archive(config.archive, config.selection)
    assert isinstance(archive, Archive)
    assert type(archive).__module__.startswith(f"gaiadask.archive.{kind}.")


def test_the_kinds_are_the_options_choices() -> None:
    assert ArchiveConfig.model_json_schema()["properties"]["kind"]["enum"] == list(ARCHIVES)
    assert f"[{' | '.join(ARCHIVES)}]\nkind = " in dump_toml(small_config("unused"))
    with pytest.raises(ConfigurationError, match=r"archive\.kind: Input should be 'tap', 'files' or 'mock' \(found 'ftp'\)"):
        small_config("unused", archive={"kind": "ftp"})
