"""Archive to catalogue, without a cluster: rows conserved, filed by position, once each; what is done is not done again."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_run import context_of, fetched, fill_parts, make_catalogue, merge_parts, small_config

from gaiadask import catalogue, ingest, publishing
from gaiadask.archive.base import Archive, Identity, open_archive
from gaiadask.archive.chunks import Chunk, ChunkFacts, Note, Plan
from gaiadask.config.sections import Config
from gaiadask.errors import ArchiveError, ChunkTooLargeError, DataError, KeyMismatchError, MissingStageError, StoreHeldError
from gaiadask.ingest import ingest_chunk
from gaiadask.ingest_plan import (
    IngestPlan,
    TileCover,
    adopt_store,
    load_or_make_plan,
    make_plan,
    selection_of,
    tile_cover,
    write_plan,
)
from gaiadask.ledger import ChunkRecord, read_ledger, read_record, write_record
from gaiadask.release.column import HEALPIX_29, SOURCE_ID
from gaiadask.sky import SOURCE_ID_STOP, healpix, healpix_of_source_id
from gaiadask.store import paths
from gaiadask.store.files import Store
from gaiadask.store.paths import Tile

COLUMNS = ("parallax", "phot_g_mean_flux", "teff_val")


@dataclass(frozen=True)
class TableArchive(Archive):
    """The rows of `table` in chunks of given source_id ranges, as they are: what an archive that errs may give."""

    table: pa.Table = field(default_factory=lambda: pa.table({}))
    chunks: tuple[Chunk, ...] = (Chunk("all", 0, SOURCE_ID_STOP),)

    def identity(self) -> Identity:
        return Identity.model_validate({"kind": "table", "where": self.selection.where})

    def plan(self) -> Plan:
        pixels = healpix_of_source_id(self.table[SOURCE_ID].to_numpy(), 3)
        return Plan(3, np.bincount(pixels, minlength=12 * 4**3), self.chunks)

    def fetch(self, chunk: Chunk, note: Note) -> Iterator[pa.Table]:
        ids = self.table[SOURCE_ID]
        yield self.table.filter(pc.and_(pc.greater_equal(ids, chunk.first), pc.less(ids, chunk.stop)))


def config(store: str | Path, **changes: Any) -> Config:
    return small_config(store, **{"selection": {"not_null": (), "columns": COLUMNS}, "model": {"columns": COLUMNS}, **changes})


def mock(store: str | Path, stars: int = 3_000, chunk_rows: int = 1_000, **changes: Any) -> Config:
    return config(store, archive={"mock_stars": stars, "chunk_rows": chunk_rows}, **changes)


def archive_of(settled: Config) -> Archive:
    return open_archive(settled.archive, settled.selection)


STARS = fetched(mock("unused"))


def table_archive(table: pa.Table, *chunks: Chunk) -> TableArchive:
    settled = config("unused")
    return TableArchive(settled.archive, settled.selection, table, chunks or (Chunk("all", 0, SOURCE_ID_STOP),))


def with_value(table: pa.Table, column: str, row: int, value: float | None) -> pa.Table:
    values = table[column].to_pylist()
    values[row] = value
    return table.set_column(table.schema.get_field_index(column), table.schema.field(column), pa.array(values, table[column].type))


def published(store: Store) -> pa.Table:
    """All rows of the catalogue, by source_id, without their HEALPix index; each in the file its position tells."""
    tables = []
    for partition in ingest.read_catalogue_record(store).partitions:
        table = catalogue.read_partition(store, paths.CATALOGUE, partition.tile)
        catalogue.check_rows_in_tile(table, partition.tile)
        assert table.num_rows == partition.rows
        assert np.array_equal(table[HEALPIX_29].to_numpy(), healpix(table["ra"].to_numpy(), table["dec"].to_numpy()))
        tables.append(table.drop_columns([HEALPIX_29]))
    return pa.concat_tables(tables).sort_by(SOURCE_ID)


# Tiles ---------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
@settings(deadline=None)
@given(
    order=st.integers(0, 3),
    counts=st.dictionaries(st.integers(0, 12 * 4**3 - 1), st.integers(1, 1_000), max_size=20),
    max_rows=st.integers(1, 2_000),
)
def test_tiles_cover_the_sphere_once_and_are_no_larger_than_asked(order: int, counts: dict[int, int], max_rows: int) -> None:
    histogram = np.zeros(12 * 4**order, dtype=np.int64)
    for pixel, rows in counts.items():
        histogram[pixel % len(histogram)] += rows
    tiles = tile_cover(Plan(order, histogram, ()), max_rows)
    ranges = [tile.healpix_29 for tile in tiles]
    assert ranges[0][0] == 0
    assert ranges[-1][1] == 12 * 4**29
    assert all(before[1] == after[0] for before, after in pairwise(ranges))
    for tile in tiles:
        width = 4 ** (order - tile.order)
        rows = int(histogram[tile.pixel * width : (tile.pixel + 1) * width].sum())
        assert rows <= max_rows or tile.order == order
        # As few as can be: a tile's parent holds too many.
        parent = tile.pixel // 4 * 4 * width
        assert tile.order == 0 or histogram[parent : parent + 4 * width].sum() > max_rows


def test_partitions_are_sized_in_bytes(tmp_path: Path) -> None:
    settled = mock(tmp_path, stars=300_000)
    plan = make_plan(settled, archive_of(settled))
    # 5 columns of 8 bytes, one of 4 and the index: 52 bytes a star.
    assert max(rows_of(plan, settled)) <= 1_000_000 // 52 < 300_000 / 12


def rows_of(plan: IngestPlan, settled: Config) -> list[int]:
    histogram = archive_of(settled).plan().histogram
    order = int(np.log2(len(histogram) // 12) / 2)
    widths = [4 ** (order - t.order) for t in plan.tiles]
    return [int(histogram[t.pixel * w : (t.pixel + 1) * w].sum()) for t, w in zip(plan.tiles, widths, strict=True)]


# Conservation --------------------------------------------------------------------------------------------------------
@pytest.mark.slow
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chunk_rows=st.integers(150, 4_000), buffer_rows=st.sampled_from([1, 700, 500_000]), partition_rows=st.integers(400, 5_000))
def test_rows_are_conserved_however_they_are_cut(
    chunk_rows: int, buffer_rows: int, partition_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "_BUFFER_ROWS", buffer_rows)
    with tempfile.TemporaryDirectory() as folder:
        settled, store = mock(folder, chunk_rows=chunk_rows), Store(folder)
        archive = archive_of(settled)
        plan = archive.plan()
        tiles = tile_cover(plan, partition_rows)
        adopt_store(store, selection_of(settled, archive))
        write_plan(store, IngestPlan(chunks=plan.chunks, tiles=tiles))
        fill_parts(settled)
        ledger = read_ledger(store)
        assert sum(r.rows for r in ledger.values()) == sum(sum(r.tiles.values()) for r in ledger.values()) == len(STARS)
        assert {r.rows for r in ledger.values() if r.expected_rows is not None} == {r.expected_rows for r in ledger.values()}
        record = make_catalogue(settled)
        assert record.rows == len(STARS)
        assert published(store).equals(STARS)


@pytest.mark.slow
def test_stars_are_filed_by_their_position_not_by_their_source_id(tmp_path: Path) -> None:
    # Every star with the next one's source_id: most lie in another tile than it tells.
    ids = pa.array(np.roll(STARS[SOURCE_ID].to_numpy(), 1))
    stars = STARS.set_column(0, STARS.schema.field(SOURCE_ID), ids).sort_by(SOURCE_ID)
    half = SOURCE_ID_STOP // 2
    archive = table_archive(stars, Chunk("a", 0, half), Chunk("b", half, SOURCE_ID_STOP))
    settled, store = config(tmp_path), Store(str(tmp_path))
    finest = tuple(Tile(2, pixel) for pixel in range(12 * 4**2))
    adopt_store(store, selection_of(settled, archive))
    write_plan(store, IngestPlan(chunks=archive.chunks, tiles=finest))
    record = make_catalogue(settled, archive)
    claimed = healpix_of_source_id(stars[SOURCE_ID].to_numpy(), 2)
    true = healpix(stars["ra"].to_numpy(), stars["dec"].to_numpy(), 2)
    assert np.count_nonzero(claimed != true) > len(stars) / 20
    assert {p.tile.pixel: p.rows for p in record.partitions} == dict(zip(*np.unique(true, return_counts=True), strict=True))
    assert published(store).equals(stars)


@pytest.mark.slow
def test_nulls_and_units_come_through(tmp_path: Path) -> None:
    make_catalogue(mock(tmp_path))
    found = published(Store(str(tmp_path)))
    assert found["teff_val"].null_count == STARS["teff_val"].null_count > 0
    assert found.schema.field("parallax").metadata == STARS.schema.field("parallax").metadata
    assert found.schema.field("parallax").metadata[b"unit"] == b"mas"


# Rows that must not be there -----------------------------------------------------------------------------------------
def failing(tmp_path: Path, table: pa.Table, *chunks: Chunk) -> None:
    """Ingest the table's chunks; the ledger must not call a failed one done."""
    settled = config(tmp_path)
    with pytest.raises(DataError) as caught:
        fill_parts(settled, table_archive(table, *chunks))
    assert not any(record.done for record in read_ledger(Store(settled.store)).values())
    raise caught.value


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_infinities_are_refused_by_column(tmp_path: Path, value: float) -> None:
    with pytest.raises(DataError, match=r"chunk all: column parallax: NaN or infinite in 1 of \d+ rows"):
        failing(tmp_path, with_value(STARS, "parallax", 7, value))


@pytest.mark.parametrize(
    ("column", "value"), [("ra", 360.1), ("ra", -0.1), ("ra", np.nan), ("ra", np.inf), ("dec", 90.5), ("dec", np.nan)]
)
def test_positions_off_the_sphere_are_refused(tmp_path: Path, column: str, value: float) -> None:
    with pytest.raises(DataError, match=rf"chunk all: 1 rows have a {column} outside \["):
        failing(tmp_path, with_value(STARS, column, 7, value))


@pytest.mark.parametrize("column", ["ra", "dec", SOURCE_ID])
def test_stars_without_position_or_name_are_refused(tmp_path: Path, column: str) -> None:
    rows = with_value(STARS, column, 7, None)
    if column == SOURCE_ID:  # a filter on source_id loses such a row before it is seen
        archive = table_archive(STARS)
        writer = ingest._PartWriter(Store(str(tmp_path)), archive.chunks[0], TileCover.of([Tile(0, i) for i in range(12)]))
        with pytest.raises(DataError, match="1 of 3000 rows have no source_id"):
            writer.add(rows)
        return
    with pytest.raises(DataError, match=rf"chunk all: 1 of 3000 rows have no {column}"):
        failing(tmp_path, rows)


def test_another_number_of_rows_than_planned_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=rf"chunk all: the archive counted {len(STARS) + 1} rows when planning and gave {len(STARS)}"
    ):
        failing(tmp_path, STARS, Chunk("all", 0, SOURCE_ID_STOP, expected_rows=len(STARS) + 1))


@dataclass(frozen=True)
class AlwaysAll(TableArchive):
    """Gives all its rows whatever is asked for."""

    def fetch(self, chunk: Chunk, note: Note) -> Iterator[pa.Table]:
        yield self.table


def test_rows_outside_the_chunk_are_refused(tmp_path: Path) -> None:
    settled, half = config(tmp_path), SOURCE_ID_STOP // 2
    archive = AlwaysAll(settled.archive, settled.selection, STARS, (Chunk("half", 0, half),))
    outside = int(np.count_nonzero(STARS[SOURCE_ID].to_numpy() >= half))
    with pytest.raises(
        DataError, match=rf"chunk half: source_id \d+ is out of range \({outside} of 3000 rows\): expected 0 <= source_id < {half}"
    ):
        fill_parts(settled, archive)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["parallax > 1e300", "parallax > 1e300 AND parallax < 0"])
def test_an_empty_selection_is_refused_and_leaves_the_store_free(tmp_path: Path, where: str) -> None:
    empty = mock(tmp_path, selection={"not_null": (), "columns": COLUMNS, "where": where})
    with pytest.raises(DataError, match=r"the selection is empty.*satisfies selection.where = .*1e300") as caught:
        make_catalogue(empty)
    assert len(str(caught.value)) < 400
    store = Store(str(tmp_path))
    assert not catalogue.is_published(store, paths.CATALOGUE)
    with pytest.raises(MissingStageError, match="gaiadask ingest"):
        ingest.read_catalogue_record(store)
    assert make_catalogue(mock(tmp_path)).rows == len(STARS)
    assert published(store).equals(STARS)


def test_an_empty_selection_of_files_is_refused(tmp_path: Path) -> None:
    pq.write_table(STARS, tmp_path / "a.parquet")
    selection = {"not_null": (), "columns": COLUMNS, "where": "dec > 89.99999"}
    with pytest.raises(DataError, match="the selection is empty"):
        make_catalogue(
            config(tmp_path / "store", archive={"kind": "files", "uris": (str(tmp_path / "a.parquet"),)}, selection=selection)
        )


# Going on ------------------------------------------------------------------------------------------------------------
def test_another_selection_is_refused_naming_what_differs(tmp_path: Path) -> None:
    make_catalogue(mock(tmp_path))
    with pytest.raises(KeyMismatchError, match=r"archive\.mock_stars: 3000 there, 4000 asked for.*another store.*--replace ingest"):
        make_catalogue(mock(tmp_path, stars=4_000))
    other = mock(tmp_path, selection={"not_null": (), "columns": (*COLUMNS, "pmra")})
    with pytest.raises(KeyMismatchError, match=r"columns: .*'pmra'.* asked for"):
        make_catalogue(other)


@pytest.mark.parametrize("listing", ["true", "old"])
def test_a_selection_begun_is_kept_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listing: str) -> None:
    settled, store = mock(tmp_path), Store(str(tmp_path))
    archive = archive_of(settled)
    adopt_store(store, selection_of(settled, archive))
    plan = load_or_make_plan(store, settled, archive)
    ingest.ingest_chunk(store, archive, plan.cover, plan.chunks[0])
    if listing == "old":
        monkeypatch.setattr("gaiadask.ingest_plan.read_ledger", lambda store: {})
    with pytest.raises(KeyMismatchError, match="mock_seed: 0 there, 1 asked for"):
        fill_parts(config(tmp_path, archive={"mock_stars": 3_000, "mock_seed": 1}))


def test_the_plan_is_fixed_before_the_first_row(tmp_path: Path) -> None:
    settled, store = mock(tmp_path), Store(str(tmp_path))
    archive = archive_of(settled)
    first = load_or_make_plan(store, settled, archive)
    # chunk_rows is a matter of transport, in no key: the plan that was begun is gone on with.
    again = load_or_make_plan(store, mock(tmp_path, chunk_rows=17), archive)
    assert again == first


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    settled, store = mock(tmp_path), Store(str(tmp_path))
    fill_parts(settled)
    before = {name: os.stat(tmp_path / name).st_mtime_ns for name in store.list(paths.CATALOGUE)}
    assert any(name.startswith(paths.PARTS) for name in before)
    fill_parts(settled)
    merge_parts(settled)
    merged = {name: os.stat(tmp_path / name).st_mtime_ns for name in store.list(paths.CATALOGUE)}
    assert {name: merged[name] for name in before} == before
    merge_parts(settled)
    assert {name: os.stat(tmp_path / name).st_mtime_ns for name in store.list(paths.CATALOGUE)} == merged


@pytest.mark.slow
def test_a_chunk_that_was_cut_off_is_fetched_anew(tmp_path: Path) -> None:
    settled, store = mock(tmp_path), Store(str(tmp_path))
    plan = fill_parts(settled)
    ledger = read_ledger(store)
    half_done = {"state": "running", "rows": 0, "tiles": {}, "files": ()}
    write_record(store, ledger[plan.chunks[1].name].model_copy(update=half_done))
    stray = paths.part(plan.chunks[1].name, "another-99")
    store.write_bytes(stray, b"half a part")
    assert make_catalogue(settled).rows == len(STARS)
    assert published(store).equals(STARS)


@pytest.mark.slow
def test_an_ingest_that_version_0_1_0_began_is_gone_on_with(tmp_path: Path) -> None:
    """Its parts have the rows of one tile each, and each tile that it has merged a record of its own."""
    settled, store = mock(tmp_path / "begun"), Store(str(tmp_path / "begun"))
    plan, (undisturbed, other) = fill_parts(settled), (make_catalogue(mock(tmp_path / "other")), Store(str(tmp_path / "other")))
    for record in read_ledger(store).values():
        parts = []
        for number, name in enumerate(record.files):
            with store.open_parquet(name) as file:
                rows = file.read()
            own = plan.cover.numbers(rows[HEALPIX_29].to_numpy())
            for tile in sorted(set(own)):
                parts.append((plan.tiles[tile].flat_name, paths.part(f"{record.chunk}/{number}", plan.tiles[tile].flat_name)))
                with store.writing(parts[-1][1]) as scratch:
                    pq.write_table(rows.filter(pa.array(own == tile)), scratch, write_statistics=False)
            store.remove(name)
        write_record(store, record.model_copy(update={"files": (), "parts": tuple(parts)}))
    for partition in undisturbed.partitions[:3]:
        file = f"{paths.CATALOGUE}/{partition.tile.file}"
        store.write_bytes(file, other.read_bytes(file))
        store.write_json(paths.tile_record(partition.tile), partition.to_json())
    kept = [tmp_path / "begun" / paths.CATALOGUE / partition.tile.file for partition in undisturbed.partitions[:3]]
    before = [file.stat().st_mtime_ns for file in kept]
    assert make_catalogue(settled) == undisturbed
    assert [file.stat().st_mtime_ns for file in kept] == before
    assert published(store).equals(STARS)


def lose_rows(path: Path) -> None:
    pq.write_table(pq.read_table(path).slice(1), path)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def overwrite_middle(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:100] + bytes(len(content) // 2) + content[100 + len(content) // 2 :])


@pytest.mark.slow
@pytest.mark.parametrize("harm", [lose_rows, cut, Path.unlink, overwrite_middle])
def test_the_chunk_of_a_lost_part_is_fetched_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, harm: Callable[[Path], object]
) -> None:
    settled, store = mock(tmp_path), Store(str(tmp_path))
    fill_parts(settled)
    harm(tmp_path / store.list(paths.PARTS, ".parquet")[0])
    assert make_catalogue(settled).rows == len(STARS)
    assert "are missing or damaged" in caplog.text
    assert published(store).equals(STARS)


@pytest.mark.slow
@pytest.mark.parametrize("harm", [lose_rows, cut, Path.unlink])
@pytest.mark.parametrize("when", ["merged", "published"])
def test_a_lost_partition_is_made_again(tmp_path: Path, when: str, harm: Callable[[Path], object]) -> None:
    settled, store = mock(tmp_path), Store(str(tmp_path))
    before = make_catalogue(mock(tmp_path / "undisturbed"))
    fill_parts(settled)
    partitions = merge_parts(settled)
    if when == "published":
        make_catalogue(settled)
    harm(tmp_path / paths.CATALOGUE / partitions[3].tile.file)
    fetched_before = read_ledger(store)
    assert make_catalogue(settled) == before
    assert published(store).equals(STARS)
    # Of a published catalogue the chunks with stars there are fetched again, and no others.
    again = {name for name, record in read_ledger(store).items() if record != fetched_before[name]}
    there = {name for name, record in fetched_before.items() if record.tiles.get(partitions[3].tile.flat_name)}
    assert again <= (there if when == "published" else set())
    assert not store.exists(paths.PARTS)


def test_a_catalogue_that_cannot_be_mended_is_left_as_it_is(tmp_path: Path) -> None:
    pq.write_table(STARS, tmp_path / "a.parquet")
    settled = config(tmp_path / "store", archive={"kind": "files", "uris": (str(tmp_path / "a.parquet"),)})
    store, record = Store(settled.store), make_catalogue(settled)
    (tmp_path / "a.parquet").unlink()
    Path(store.path(f"{paths.CATALOGUE}/{record.tiles[0].file}")).unlink()
    before = store.list("")
    with pytest.raises(ArchiveError, match=r"a\.parquet matches no file"):
        make_catalogue(settled)
    assert store.list("") == before


def test_the_ledger_tells_what_became_of_each_chunk(tmp_path: Path) -> None:
    pq.write_table(STARS, tmp_path / "a.parquet")
    settled = config(tmp_path / "store", archive={"kind": "files", "uris": (str(tmp_path / "a.parquet"),)})
    fill_parts(settled)
    (record,) = read_ledger(Store(settled.store)).values()
    assert (record.state, record.rows, record.expected_rows) == ("done", len(STARS), len(STARS))
    assert str(tmp_path / "a.parquet") in str(record.facts)
    assert record.host
    assert sum(record.tiles.values()) == len(STARS)


def test_rows_are_written_out_when_so_many_are_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many, not the whole chunk: it bounds what a worker holds. Parts are many, and each row is in one."""

    @dataclass(frozen=True)
    class InHundreds(TableArchive):
        def fetch(self, chunk: Chunk, note: Note) -> Iterator[pa.Table]:
            yield from (self.table.slice(first, 100) for first in range(0, len(self.table), 100))

    monkeypatch.setattr(ingest, "_BUFFER_ROWS", 300)
    settled, store = config(tmp_path), Store(str(tmp_path))
    fill_parts(settled, InHundreds(settled.archive, settled.selection, STARS))
    (record,) = read_ledger(store).values()
    written = []
    for name in record.files:
        with store.open_parquet(name) as file:
            written.append(file.metadata.num_rows)
    assert sorted(written) == sorted([300] * (len(STARS) // 300) + ([rest] if (rest := len(STARS) % 300) else []))
    assert record.bytes == sum(store.size(name) for name in record.files)
    assert 0 <= record.seconds < 120 and record.begun == 0


def test_an_archive_that_breaks_off_leaves_the_chunk_undone(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Breaks(TableArchive):
        def fetch(self, chunk: Chunk, note: Note) -> Iterator[pa.Table]:
            note(ChunkFacts(job_url="http://archive/1"))
            yield self.table.slice(0, 10)
            raise ArchiveError("the connection was lost")

    settled = config(tmp_path)
    archive = Breaks(settled.archive, settled.selection, STARS)
    with pytest.raises(ArchiveError, match="connection was lost"):
        fill_parts(settled, archive)
    (record,) = read_ledger(Store(settled.store)).values()
    assert (record.state, record.rows, record.facts.to_json()) == ("running", 0, {"job_url": "http://archive/1"})
    assert make_catalogue(settled, table_archive(STARS)).rows == len(STARS)


@pytest.mark.slow
@pytest.mark.parametrize("end", ["goes on", "notes", "fails", "is too large"])
@pytest.mark.parametrize("successor", ["done", "running"])
def test_an_attempt_that_only_seemed_dead_changes_nothing_of_its_successors(end: str, successor: str, tmp_path: Path) -> None:
    """Its worker could not be reached for a while, and another one was given the chunk."""

    @dataclass(frozen=True)
    class Overtaken(TableArchive):
        def fetch(self, chunk: Chunk, note: Note) -> Iterator[pa.Table]:
            note(ChunkFacts(job_url="http://archive/first"))
            yield self.table.slice(0, 10)
            if successor == "done":
                ingest_chunk(store, whole, plan.cover, chunk)
            else:
                with contextlib.suppress(ArchiveError):
                    ingest_chunk(store, Breaks(settled.archive, settled.selection, STARS), plan.cover, chunk)
            found.append(read_record(store, chunk.name))
            if end == "notes":
                note(ChunkFacts(job_url="http://archive/second"))
            if end == "fails":
                raise ArchiveError("the connection was lost")
            if end == "is too large":
                raise ChunkTooLargeError("too many rows")
            yield self.table.slice(10)

        def split(self, chunk: Chunk) -> tuple[Chunk, ...]:
            return (Chunk("first", chunk.first, chunk.stop),)

    @dataclass(frozen=True)
    class Breaks(TableArchive):
        def fetch(self, chunk: Chunk, note: Note) -> Iterator[pa.Table]:
            yield self.table.slice(0, 20)
            raise ArchiveError("the successor ended too")

    settled, store, whole = config(tmp_path), Store(str(tmp_path)), table_archive(STARS)
    found: list[ChunkRecord | None] = []
    adopt_store(store, selection_of(settled, whole))
    plan = load_or_make_plan(store, settled, whole)
    (chunk,) = plan.chunks
    expected = "the connection was lost" if end == "fails" else "another attempt .* has begun while this one seemed dead"
    with pytest.raises((ArchiveError, StoreHeldError), match=expected):
        ingest_chunk(store, Overtaken(settled.archive, settled.selection, STARS), plan.cover, chunk)
    assert found == [read_record(store, chunk.name)]
    assert make_catalogue(settled, whole).rows == len(STARS)
    assert published(store).equals(STARS)


def test_the_range_of_a_chunk_is_half_open(tmp_path: Path) -> None:
    """An archive that closes it gives a star twice, or one that another chunk is not asked for."""

    @dataclass(frozen=True)
    class Closed(TableArchive):
        def fetch(self, chunk: Chunk, note: Note) -> Iterator[pa.Table]:
            yield self.table

    ids = STARS[SOURCE_ID].to_pylist()
    settled = config(tmp_path)
    for bounds in ((ids[0], ids[-1]), (ids[0] + 1, ids[-1] + 1)):
        archive = Closed(settled.archive, settled.selection, STARS, (Chunk("all", *bounds),))
        outside = ids[-1] if bounds[1] == ids[-1] else ids[0]
        with pytest.raises(DataError, match=rf"chunk all: source_id {outside} is out of range \(1 of {len(ids)} rows\)"):
            fill_parts(settled, archive)
        Store(settled.store).remove(paths.CATALOGUE)
    exactly = Closed(settled.archive, settled.selection, STARS, (Chunk("all", ids[0], ids[-1] + 1),))
    fill_parts(settled, exactly)
    assert [record.rows for record in read_ledger(Store(settled.store)).values()] == [len(ids)]


# Publishing ----------------------------------------------------------------------------------------------------------
def test_lost_partitions_are_not_published(tmp_path: Path) -> None:
    settled, store = mock(tmp_path), Store(str(tmp_path))
    archive = archive_of(settled)
    fill_parts(settled)
    partitions = merge_parts(settled)
    with pytest.raises(DataError, match=rf"the chunks have {len(STARS)} rows, the partitions {len(STARS) - partitions[0].rows}"):
        ingest.publish(store, archive, selection_of(settled, archive), partitions[1:], context_of(settled).summary_of)
    assert not catalogue.is_published(store, paths.CATALOGUE)


@pytest.mark.slow
def test_the_id_is_of_the_rows_not_of_how_they_came(tmp_path: Path) -> None:
    one, other = (make_catalogue(mock(tmp_path / str(rows), chunk_rows=rows)) for rows in (500, 3_000))
    assert one.id == other.id
    assert make_catalogue(mock(tmp_path / "seed", stars=2_900)).id != one.id


@pytest.mark.slow
def test_a_kill_between_record_and_marker_can_be_gone_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settled, store = mock(tmp_path), Store(str(tmp_path))

    class KilledError(BaseException):
        pass

    def killed(*_: object) -> None:
        raise KilledError

    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(publishing, "publish", killed)
        make_catalogue(settled)
    with pytest.raises(MissingStageError):
        ingest.read_catalogue_record(store)
    assert make_catalogue(settled) == ingest.read_catalogue_record(store)
    assert published(store).equals(STARS)
