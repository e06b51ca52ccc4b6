"""Parts to partitions: the same file however the rows were cut, no partition without a bound, memory that does not grow with it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_run import make_catalogue, small_config

from gaiadask import catalogue, merge
from gaiadask.cluster.here import Here
from gaiadask.config.sections import Config
from gaiadask.errors import DataError
from gaiadask.ingest_plan import IngestPlan, write_plan
from gaiadask.merge import LostParts, MergeTiles, Part, TileJob, cut_tile
from gaiadask.release.column import HEALPIX_29, SOURCE_ID
from gaiadask.store import paths
from gaiadask.store.files import Store
from gaiadask.store.paths import Tile
from gaiadask.validate import validate

TILE = Tile(6, 1234)
SCHEMA = pa.schema([(HEALPIX_29, pa.int64()), (SOURCE_ID, pa.int64()), ("parallax", pa.float64())])


def stars(index: np.ndarray, seed: int = 0) -> pa.Table:
    """Stars at these HEALPix indices, in no order."""
    random = np.random.default_rng(seed)
    ids = random.permutation(len(index)) + 7
    return pa.table([index, ids, random.normal(size=len(index))], schema=SCHEMA)


def spread(rows: int, seed: int = 0) -> pa.Table:
    """Stars all over the tile."""
    return stars(np.random.default_rng(seed).integers(*TILE.healpix_29, rows), seed)


def write_parts(store: Store, table: pa.Table, parts: int, group_rows: int = merge.GROUP_ROWS) -> TileJob:
    """The table's rows in sorted parts, each of a chunk of its own."""
    which = np.random.default_rng(1).integers(0, parts, len(table))
    written, rows = [], {}
    for number in range(parts):
        own = catalogue.sort_rows(table.filter(pa.array(which == number)))
        part = Part(f"parts/{number:03d}.parquet", f"chunk-{number:03d}")
        with store.writing(part.name) as scratch:
            catalogue.write_parquet(own, scratch, row_group_size=group_rows)
        written.append(part)
        rows[part.chunk] = len(own)
    return TileJob(TILE, tuple(written), rows)


def merger(store: Store, aim: int = 1_000_000) -> MergeTiles:
    return MergeTiles(store, SCHEMA, "key", aim)


@pytest.mark.slow
@pytest.mark.parametrize("parts", [1, 3, 70])
def test_a_partition_is_to_the_bit_what_sorting_all_of_it_gives(
    tmp_path: Path, parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "ROW_GROUP_ROWS", 3_000)
    store, table = Store(str(tmp_path)), spread(10_000)
    (partition,) = merger(store)([write_parts(store, table, parts, group_rows=150)])
    whole = catalogue.sort_rows(table).replace_schema_metadata({catalogue.SELECTION_KEY: "key"})
    with store.writing("whole.parquet") as scratch:
        catalogue.write_parquet(whole, scratch, row_group_size=3_000, write_page_index=True)
    assert store.read_bytes(f"{paths.CATALOGUE}/{partition.tile.file}") == store.read_bytes("whole.parquet")
    assert partition.checksum == store.sha256("whole.parquet")


@pytest.mark.slow
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(1, 300),
    parts=st.integers(1, 12),
    group_rows=st.integers(1, 40),
    places=st.integers(1, 50),
    fan_in=st.integers(2, 5),
    aim=st.integers(1, 200),
    seed=st.integers(0, 99),
)
def test_rows_are_conserved_sorted_and_bounded_however_they_lie(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, rows: int, parts: int, group_rows: int, places: int,
    fan_in: int, aim: int, seed: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(merge, "_FAN_IN", fan_in)
    random = np.random.default_rng(seed)
    table = stars(random.choice(random.integers(*TILE.healpix_29, places), rows), seed)
    store = Store(str(tmp_path_factory.mktemp("store")))
    partitions = merger(store, aim)([write_parts(store, table, parts, group_rows)])
    assert not isinstance(partitions, LostParts)
    found = pa.concat_tables([catalogue.read_partition(store, paths.CATALOGUE, p.tile) for p in partitions])
    assert found.replace_schema_metadata(None).equals(catalogue.sort_rows(table))
    assert [p.tile.healpix_29 for p in partitions] == sorted(p.tile.healpix_29 for p in partitions)
    for partition in partitions:
        assert partition.rows <= 2 * aim or partition.tile.order == 12, "only what lies at one place is larger"
    job = write_parts(store, table, parts, group_rows)._replace(before=partitions)
    for partition in partitions:
        os.utime(store.path(f"{paths.CATALOGUE}/{partition.tile.file}"), (1, 1))
    assert merger(store, aim)([job]) == partitions
    files = [Path(store.path(f"{paths.CATALOGUE}/{partition.tile.file}")) for partition in partitions]
    assert {file.stat().st_mtime for file in files} == {1.0}, "what was merged is kept"


def test_a_tile_that_is_not_crowded_stays_one(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    job = write_parts(store, spread(400), 3)
    names = [part.name for part in job.parts]
    assert cut_tile(store, names, TILE, 400, 200) == [(TILE, 400)], "the plan's counts are estimates"
    pieces = cut_tile(store, names, TILE, 400, 199)
    assert sum(rows for _, rows in pieces) == 400
    assert all(tile.order == 7 and tile.pixel // 4 == TILE.pixel for tile, _ in pieces)


def test_a_star_in_two_parts_is_refused_by_name(tmp_path: Path) -> None:
    store, table = Store(str(tmp_path)), spread(500)
    twice = table.slice(17, 1)
    write_plan(store, IngestPlan(chunks=(), tiles=(TILE,)))
    with pytest.raises(DataError, match=rf"1 stars came more than once \(source_id {twice[SOURCE_ID][0].as_py()} first\)"):
        merger(store)([write_parts(store, pa.concat_tables([table, twice]), 4)])
    assert not store.list(paths.CATALOGUE, ".parquet")


def crowded(store: Path) -> Config:
    """A small catalogue whose every tile is crowded."""
    columns = ("parallax", "phot_g_mean_flux", "teff_val")
    return small_config(
        store, archive={"mock_stars": 3_000, "chunk_rows": 1_000}, selection={"not_null": (), "columns": columns},
        model={"columns": columns},
    )  # fmt: skip


@pytest.mark.slow
def test_a_catalogue_of_crowded_tiles_is_whole_valid_and_can_be_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = make_catalogue(crowded(tmp_path / "undisturbed"))
    monkeypatch.setattr("gaiadask.stages.ingest.partition_rows", lambda *_: 40)
    config = crowded(tmp_path / "store")
    store, record = Store(config.store), make_catalogue(config)
    assert record.rows == undisturbed.rows == 3_000
    assert len(record.partitions) > 4 * len(undisturbed.partitions)
    assert max(p.rows for p in record.partitions) <= 80
    assert validate(Here(), store, config.release) == []
    lost = record.partitions[7].tile
    Path(store.path(f"{paths.CATALOGUE}/{lost.file}")).unlink()
    footer = {catalogue.SELECTION_KEY: record.selection.key}
    assert [p.tile for p in catalogue.not_whole(store, paths.CATALOGUE, record.partitions, lambda _: footer)] == [lost]
    assert make_catalogue(config) == record
    assert validate(Here(), store, config.release) == []


_MEASURE = """
import resource, sys
from gaiadask.merge import MergeTiles, Part, TileJob
from gaiadask.store.files import Store
from gaiadask.store.paths import Tile
store, tile, names = Store(sys.argv[1]), Tile(6, 1234), Store(sys.argv[1]).list("parts")
schema = store.open_parquet(names[0]).schema_arrow
job = TileJob(tile, tuple(Part(name, name) for name in names), dict.fromkeys(names, 100_000))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
(partition,) = MergeTiles(store, schema, "key", 10**9)([job])
print(partition.rows, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
def test_merging_holds_a_part_of_a_crowded_tile_not_all_of_it(tmp_path: Path) -> None:
    store, values = Store(str(tmp_path)), np.random.default_rng(0).normal(size=100_000)
    for number in range(8):  # 147 MB; sorting all of them at once held 380 MB, merging them 180 MB
        table = spread(100_000, number).set_column(1, SOURCE_ID, pa.array(np.arange(100_000) + number * 100_000))
        for column in range(20):
            table = table.append_column(f"c{column}", pa.array(values + column))
        with store.writing(f"parts/{number}.parquet") as scratch:
            catalogue.write_parquet(catalogue.sort_rows(table), scratch, row_group_size=merge.GROUP_ROWS)
    ran = subprocess.run([sys.executable, "-c", _MEASURE, str(tmp_path)], capture_output=True, text=True, check=True, timeout=110)
    rows, megabytes = ran.stdout.split()
    assert int(rows) == 800_000 == pq.read_metadata(store.path(f"{paths.CATALOGUE}/{TILE.file}")).num_rows
    assert float(megabytes) < 260, megabytes
