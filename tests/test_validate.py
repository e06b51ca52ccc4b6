"""Validation: a good catalogue is clean, and every kind of damage is found and named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_run import make_catalogue, small_config
from typer.testing import CliRunner

from gaiadask import catalogue, ingest
from gaiadask.catalogue import Partition
from gaiadask.cli import app
from gaiadask.cluster.dask_workers import DaskWorkers
from gaiadask.config.toml import dump_toml
from gaiadask.errors import DataError, MissingStageError
from gaiadask.ingest import CatalogueRecord
from gaiadask.release.column import HEALPIX_29, SOURCE_ID
from gaiadask.release.dr2 import DR2
from gaiadask.sky import healpix_of_source_id
from gaiadask.stages.engine import run_stages
from gaiadask.store import paths
from gaiadask.store.files import Store
from gaiadask.store.paths import Tile
from gaiadask.validate import Checked, Finding, check_partition, compare_away, validate

# A LocalCluster and a catalogue to damage, for each.
pytestmark = pytest.mark.slow

SELECTION = {"columns": ("parallax", "phot_g_mean_flux", "teff_val"), "not_null": ()}
MODEL = {"columns": SELECTION["columns"]}


def config_at(store: str | Path, **changes: object):
    return small_config(store, **{"selection": SELECTION, "model": MODEL, **changes})


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a store with a published catalogue of several partitions; tests copy it."""
    folder = tmp_path_factory.mktemp("good") / "store"
    make_catalogue(config_at(folder))
    return folder


@pytest.fixture
def store(good: Path, tmp_path: Path) -> Store:
    shutil.copytree(good, tmp_path / "store")
    return Store(str(tmp_path / "store"))


def record_of(store: Store) -> CatalogueRecord:
    return ingest.recorded_catalogue(store)


def file_of(store: Store, tile: Tile) -> Path:
    return Path(store.path(f"{paths.CATALOGUE}/{tile.file}"))


def fullest(store: Store, n: int = 2) -> list[Partition]:
    return sorted(record_of(store).partitions, key=lambda p: -p.rows)[:n]


def rewritten(store: Store, tile: Tile, change: Callable[[pa.Table], pa.Table]) -> None:
    """Change a partition behind the catalogue's back, with a footer of its own and its record as if it had been so."""
    table = change(pq.read_table(file_of(store, tile)))
    pq.write_table(table, file_of(store, tile), row_group_size=catalogue.ROW_GROUP_ROWS)
    record = record_of(store)
    partition = Partition(tile=tile, rows=table.num_rows, checksum=catalogue.file_checksum(file_of(store, tile)))
    partitions = tuple(partition if p.tile == tile else p for p in record.partitions)
    rows = sum(p.rows for p in partitions)
    changed = record.model_copy(update={"id": ingest.catalogue_id(partitions), "rows": rows, "partitions": partitions})
    store.write_json(paths.PUBLISHED, changed.to_json())


def found(findings: list[Finding], where: object, what: str) -> bool:
    return any(str(where) in finding.where and what in finding.problem for finding in findings)


# Whole and right -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("quick", [False, True])
def test_a_good_catalogue_is_clean(store: Store, workers: DaskWorkers, quick: bool) -> None:
    assert len(record_of(store).partitions) > 2
    assert validate(workers, store, DR2, quick=quick) == []


def test_what_is_not_published_cannot_be_validated(store: Store, workers: DaskWorkers) -> None:
    catalogue.unpublish(store, paths.CATALOGUE)
    with pytest.raises(MissingStageError, match="gaiadask ingest"):
        validate(workers, store, DR2)


# One partition -------------------------------------------------------------------------------------------------------
def test_a_flipped_byte_is_found_by_its_checksum(store: Store, workers: DaskWorkers) -> None:
    tile = fullest(store)[0].tile
    path = file_of(store, tile)
    content = bytearray(path.read_bytes())
    with pq.ParquetFile(path) as file:
        column = file.metadata.row_group(0).column(file.schema_arrow.names.index("teff_val"))
    content[(column.dictionary_page_offset or column.data_page_offset) + column.total_compressed_size - 9] ^= 1
    path.write_bytes(content)
    assert found(validate(workers, store, DR2), tile, "its file was changed: sha256")
    # The quick look does not read that column, as its documentation says.
    assert validate(workers, store, DR2, quick=True) == []


@pytest.mark.parametrize("quick", [False, True])
def test_a_truncated_file(store: Store, workers: DaskWorkers, quick: bool) -> None:
    tile = fullest(store)[0].tile
    content = file_of(store, tile).read_bytes()
    file_of(store, tile).write_bytes(content[: len(content) // 2])
    assert found(validate(workers, store, DR2, quick=quick), tile, "not a whole parquet file")


def test_a_row_in_another_tile(store: Store, workers: DaskWorkers) -> None:
    one, other = (p.tile for p in fullest(store))
    moved = pq.read_table(file_of(store, one)).slice(0, 1)
    rewritten(store, one, lambda table: table.slice(1))
    rewritten(store, other, lambda table: catalogue.sort_rows(pa.concat_tables([table, moved])))
    findings = validate(workers, store, DR2, quick=True)
    star = moved[SOURCE_ID][0].as_py()
    assert found(
        findings,
        other,
        f"1 of {pq.read_metadata(file_of(store, other)).num_rows} rows lie in another tile (source_id {star} first)",
    )
    assert found(findings, f"tile {one.flat_name}", "the chunks filed")
    assert found(findings, f"tile {other.flat_name}", "the chunks filed")


def test_a_row_whose_position_says_another_index(store: Store, workers: DaskWorkers) -> None:
    tile = fullest(store)[0].tile

    def change(table: pa.Table) -> pa.Table:
        index = table[HEALPIX_29].to_numpy().copy()
        index[5] = index[6]  # still sorted and in the tile
        return table.set_column(0, table.schema.field(0), pa.array(index))

    star = pq.read_table(file_of(store, tile))[SOURCE_ID][5].as_py()
    rewritten(store, tile, change)
    assert found(
        validate(workers, store, DR2, quick=True), tile, f"have another {HEALPIX_29} than their position (source_id {star} first)"
    )


def test_swapped_rows(store: Store, workers: DaskWorkers) -> None:
    tile = fullest(store)[0].tile
    order = np.arange(fullest(store)[0].rows)
    order[[10, 11]] = order[[11, 10]]
    rewritten(store, tile, lambda table: table.take(order))
    findings = validate(workers, store, DR2, quick=True)
    assert found(findings, tile, f"rows come after a row of larger {HEALPIX_29}")
    assert not found(findings, "tile", "")


def test_a_star_twice_in_a_partition(store: Store, workers: DaskWorkers) -> None:
    tile = fullest(store)[0].tile
    rewritten(store, tile, lambda table: catalogue.sort_rows(pa.concat_tables([table, table.slice(7, 1)])))
    findings = validate(workers, store, DR2, quick=True)
    star = pq.read_table(file_of(store, tile))[SOURCE_ID][7].as_py()
    assert found(findings, tile, f"1 stars are in it more than once (source_id {star} first)")
    assert found(findings, "HATS metadata", "hats_nrows")


@pytest.mark.parametrize("homes", [1, 0])
def test_a_star_in_two_partitions(store: Store, workers: DaskWorkers, homes: int) -> None:
    """One copy at home (or none): the other took the place of a star elsewhere, so every row is where its position says."""
    tiles = [p.tile for p in fullest(store, 3)]

    def with_id(table: pa.Table) -> pa.Table:
        ids = table[SOURCE_ID].to_numpy().copy()
        ids[3] = star
        return table.set_column(1, table.schema.field(1), pa.array(ids))

    home = pq.read_table(file_of(store, tiles[0]))[SOURCE_ID].to_numpy()
    at_home = home[(home >= tiles[0].source_ids[0]) & (home < tiles[0].source_ids[1])]
    star = int(at_home[4]) if homes else int(tiles[0].source_ids[1]) - 1
    for tile in tiles[1 : 3 - homes]:
        rewritten(store, tile, with_id)
    findings = validate(workers, store, DR2, quick=True)
    where = tiles[0] if homes else ", ".join(str(tile) for tile in sorted(tiles[1:]))
    assert found(findings, where, f"star {star} is in {'another partition too' if homes else '2 partitions'}")
    assert found(findings, "HATS metadata", "gaiadask_catalogue_id") and len(findings) == 2


def test_nulls_of_keys(store: Store, workers: DaskWorkers) -> None:
    tile = fullest(store)[0].tile

    def change(table: pa.Table) -> pa.Table:
        values = table["ra"].to_pylist()
        values[2] = None
        return table.set_column(table.column_names.index("ra"), table.schema.field("ra"), pa.array(values, pa.float64()))

    rewritten(store, tile, change)
    assert found(validate(workers, store, DR2, quick=True), tile, "rows have no ra")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (
            lambda f: f.with_metadata({k: v for k, v in f.metadata.items() if k != b"unit"}),
            "unit of parallax is missing: expected 'mas'",
        ),
        (lambda f: f.with_type(pa.float32()), "column parallax is float: expected double"),
        (lambda f: f.with_name("parallel"), "missing ['parallax'], too many ['parallel']"),
    ],
)
def test_another_schema(store: Store, workers: DaskWorkers, change: Callable[[pa.Field], pa.Field], what: str) -> None:
    tile = fullest(store)[0].tile

    def changed(table: pa.Table) -> pa.Table:
        at = table.column_names.index("parallax")
        field = change(table.schema.field(at))
        return table.set_column(at, field, table["parallax"].cast(field.type))

    rewritten(store, tile, changed)
    assert found(validate(workers, store, DR2, quick=True), tile, what)


def test_a_partition_of_another_selection(store: Store, workers: DaskWorkers) -> None:
    tile = fullest(store)[0].tile
    rewritten(store, tile, lambda t: t.replace_schema_metadata({**t.schema.metadata, b"gaiadask.selection": b"other"}))
    assert found(validate(workers, store, DR2, quick=True), tile, "made from another selection: key other")


# Files and records ---------------------------------------------------------------------------------------------------
def test_a_deleted_partition(store: Store, workers: DaskWorkers) -> None:
    tile = fullest(store)[0].tile
    file_of(store, tile).unlink()
    findings = validate(workers, store, DR2, quick=True)
    assert found(findings, tile, f"its file {tile.file} is missing")
    assert found(findings, "HATS", "Partition pixels differ")


def test_extra_files(store: Store, workers: DaskWorkers) -> None:
    tile = fullest(store)[0].tile
    shutil.copy(file_of(store, tile), file_of(store, tile).with_name("Npix=99.parquet"))
    store.write_bytes(f"{paths.CATALOGUE}/notes.txt", b"mine")
    findings = validate(workers, store, DR2, quick=True)
    assert found(findings, "notes.txt", "no file of this catalogue")
    assert found(findings, "Npix=99.parquet", "no file of this catalogue")
    assert found(findings, "HATS", "Partition pixels differ")


def test_a_changed_ledger(store: Store, workers: DaskWorkers) -> None:
    name = store.list(paths.LEDGER, ".json")[0]
    entry = store.read_json(name)
    tile = next(iter(entry["tiles"]))
    entry["tiles"][tile] += 1
    store.write_json(name, {**entry, "rows": entry["rows"] + 1, "expected_rows": None})
    findings = validate(workers, store, DR2, quick=True)
    assert found(findings, "ledger", f"the catalogue has {record_of(store).rows}") or found(
        findings, "ledger", "it has changed since"
    )
    store.remove(name)
    assert found(validate(workers, store, DR2, quick=True), "ledger", f"have not been fetched ({entry['chunk']})")


def test_a_changed_plan_leaves_a_gap(store: Store, workers: DaskWorkers) -> None:
    plan = store.read_json(paths.PLAN)
    plan["chunks"][0]["stop"] -= 5
    store.write_json(paths.PLAN, plan)
    first = plan["chunks"][0]["stop"]
    assert found(validate(workers, store, DR2, quick=True), "ledger", f"no chunk asks for source_id {first} to {first + 4}")


def test_a_changed_record(store: Store, workers: DaskWorkers) -> None:
    record = record_of(store)
    store.write_json(paths.PUBLISHED, record.model_copy(update={"rows": record.rows + 1}).to_json())
    findings = validate(workers, store, DR2, quick=True)
    assert found(findings, paths.PUBLISHED, f"records {record.rows + 1} rows, its partitions {record.rows}")
    store.write_json(paths.PUBLISHED, record.model_copy(update={"id": "0" * 16}).to_json())
    assert found(validate(workers, store, DR2, quick=True), "HATS metadata", "gaiadask_catalogue_id")


def test_a_changed_selection(store: Store, workers: DaskWorkers) -> None:
    store.write_json(paths.SELECTION, {**store.read_json(paths.SELECTION), "partition_mb": 3})
    assert found(validate(workers, store, DR2, quick=True), paths.SELECTION, "not the selection")


# Stars in two partitions ---------------------------------------------------------------------------------------------
def test_compare_away_are_of_stars_away_from_home() -> None:
    tiles = [Tile(0, pixel) for pixel in range(3)]
    inside = [tile.source_ids[0] + 128 for tile in tiles]
    away = [[], [inside[0]], [inside[0], inside[1]]]
    checked = [Checked(tile, (), np.array(ids, np.int64)) for tile, ids in zip(tiles, away, strict=True)]
    twice, visits = compare_away(checked)
    assert [(f.where, f.problem) for f in twice] == [
        (f"{tiles[1]}, {tiles[2]}", f"star {inside[0]} is in 2 partitions: expected each star once")
    ]
    assert [(tile, ids.tolist()) for tile, ids in visits] == [(tiles[0], [inside[0]]), (tiles[1], [inside[1]])]
    assert compare_away([]) == ([], [])


def test_of_many_stars_in_two_partitions_some_are_named_and_all_counted() -> None:
    away = np.arange(128, 128 * 5_001, 128)
    findings, _ = compare_away([Checked(Tile(0, pixel), (), away) for pixel in (1, 2)])
    assert len(findings) == 11
    assert findings[-1] == Finding("catalogue", "4,990 more stars are in two partitions or more: expected each star once")


def test_few_stars_are_away_from_home(store: Store) -> None:
    """What is kept of a partition for the comparison is what lies in another pixel than its source_id says."""
    from gaiadask.release.dr2 import DR2
    from gaiadask.validate import Expected

    record = record_of(store)
    expected = Expected(DR2.catalogue_schema([n for n in record.columns if n != HEALPIX_29]), record.selection.key, True)
    for partition in record.partitions:
        checked = check_partition(store, expected, partition)
        ids = pq.read_table(file_of(store, partition.tile))[SOURCE_ID].to_numpy()
        elsewhere = healpix_of_source_id(ids, partition.tile.order) != partition.tile.pixel
        assert checked.away.tolist() == sorted(ids[elsewhere])
        assert checked.findings == ()
        assert elsewhere.mean() < 0.05


# Ingest's last step and the command ----------------------------------------------------------------------------------
def test_ingest_takes_back_what_is_wrong(tmp_path: Path, workers: DaskWorkers, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_at(tmp_path / "store", cluster={"address": str(workers.client.scheduler.address)})  # type: ignore[union-attr]
    store, publish = Store(config.store), ingest.publish

    def published_then_damaged(*arguments: object) -> CatalogueRecord:
        record = publish(*arguments)  # type: ignore[arg-type]
        file_of(store, record.tiles[0]).unlink()
        return record

    monkeypatch.setattr(ingest, "publish", published_then_damaged)
    with pytest.raises(DataError, match=r"was unpublished.*--replace ingest[\s\S]*is missing"):
        run_stages(config, ["ingest"])
    assert not catalogue.is_published(store, paths.CATALOGUE)


def test_the_command(store: Store, tmp_path: Path, workers: DaskWorkers) -> None:
    config = config_at(store.uri, cluster={"address": str(workers.client.scheduler.address)})  # type: ignore[union-attr]
    (tmp_path / "gaia.toml").write_text(dump_toml(config))
    record = record_of(store)
    done = CliRunner().invoke(app, ["validate", str(tmp_path / "gaia.toml")])
    assert done.exit_code == 0, done.output
    assert f"complete and correct: {record.rows:,} stars in {len(record.partitions)} partitions" in done.output
    file_of(store, record.tiles[0]).unlink()
    done = CliRunner().invoke(app, ["validate", str(tmp_path / "gaia.toml"), "--quick"])
    assert done.exit_code == 1
    assert str(record.tiles[0]) in done.output and "is missing" in done.output
