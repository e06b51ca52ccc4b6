"""Chunks that are too large: whatever is split, and however often a run is cut off, the leaves cover the ids once."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_run import context_of, merge_parts, small_config

from gaiadask import catalogue, ingest
from gaiadask.archive.chunks import Chunk, ChunkFacts, Note, Plan
from gaiadask.archive.tap.adql import StarQuery, pixel_width
from gaiadask.archive.tap.archive import CountedTile, TapArchive, pack_tiles, spread
from gaiadask.config.sections import SelectionConfig
from gaiadask.errors import ArchiveError, ChunkTooLargeError, DataError
from gaiadask.ingest_plan import IngestPlan, TileCover, adopt_store, load_or_make_plan, make_plan, selection_of
from gaiadask.ledger import ChunkRecord, filed, leaves, pending, read_ledger, read_record
from gaiadask.merge import tile_jobs
from gaiadask.release.column import HEALPIX_29
from gaiadask.sky import SOURCE_ID_STOP, healpix_of_source_id
from gaiadask.store import paths
from gaiadask.store.files import Store

CONFIG = small_config(
    "unused", archive={"kind": "tap"}, selection={"columns": ("parallax",), "not_null": ()}, model={"columns": ("parallax",)}
)

NO_TILES = TileCover.of(())


def stars(n: int, seed: int = 0) -> pa.Table:
    """Crowded: most of them in one pixel of order 12."""
    random = np.random.default_rng(seed)
    ids = np.concatenate([random.integers(0, SOURCE_ID_STOP, n // 3), (123_456 << 35) + random.integers(0, 2**35, n - n // 3)])
    ids = np.unique(ids)
    values = {"source_id": ids, "ra": random.uniform(0, 360, len(ids)), "dec": random.uniform(-90, 90, len(ids))}
    schema = TapArchive(CONFIG.archive, CONFIG.selection).schema
    return pa.table({**values, "parallax": random.normal(size=len(ids))}, schema=schema)


STARS = stars(60)


@contextmanager
def memory_store() -> Iterator[Store]:
    """Without a disk, for hundreds of chunks are written."""
    store = Store(f"memory://{uuid.uuid4().hex}")
    try:
        yield store
    finally:
        store.remove("")


class Killed(BaseException):
    pass


@dataclass(frozen=True)
class Limited(TapArchive):
    """Gives at most `most_rows` at once; tells so before, or after it has given some. Killed at each request of `kills`."""

    most_rows: int = 100
    early: bool = True
    kills: tuple[int, ...] = ()
    asked: tuple[list[int], ...] = ([],)

    def plan(self) -> Plan:
        histogram = np.bincount(healpix_of_source_id(STARS["source_id"].to_numpy(), 2), minlength=12 * 4**2)
        bounds = [0, SOURCE_ID_STOP // 3, SOURCE_ID_STOP]
        return Plan(2, histogram, tuple(Chunk(f"c{a}", a, b, expected_rows=len(rows_of(a, b))) for a, b in pairwise(bounds)))

    def resume(self, chunk: Chunk, note: Note, known: ChunkFacts) -> Iterator[pa.Table]:
        (asked,) = self.asked
        asked.append(chunk.first)
        note(ChunkFacts(job_url=f"job-{len(asked)}"))
        rows = rows_of(chunk.first, chunk.stop)
        if len(rows) > self.most_rows and self.early:
            raise ChunkTooLargeError(f"chunk {chunk.name}: too many")
        yield rows.slice(0, self.most_rows)
        if len(asked) in self.kills:
            raise Killed
        if len(rows) > self.most_rows:
            raise ChunkTooLargeError(f"chunk {chunk.name}: too many")


def rows_of(first: int, stop: int) -> pa.Table:
    ids = STARS["source_id"]
    return STARS.filter(pc.and_(pc.greater_equal(ids, first), pc.less(ids, stop)))


def archive(**options: Any) -> Limited:
    return Limited(CONFIG.archive, CONFIG.selection, **{"asked": ([],), **options})


def fetch_all(store: Store, source: Limited) -> tuple[IngestPlan, int]:
    """As the stage does, started again after each kill; also how often it was started."""
    config = CONFIG.model_copy(update={"store": store.uri})
    adopt_store(store, selection_of(config, source))
    plan = load_or_make_plan(store, config, source)
    starts = 0
    while True:
        starts += 1
        waiting = pending(plan.chunks, read_ledger(store))
        if not waiting:
            return plan, starts
        try:
            for chunk in waiting:  # grows
                waiting.extend(ingest.ingest_chunk(store, source, plan.cover, chunk).children)
        except Killed:
            continue


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(most_rows=st.sampled_from([1, 3, 10, 40, 89, 1_000]), early=st.booleans(), kills=st.lists(st.integers(1, 60), max_size=4))
def test_the_leaves_cover_the_ids_once_and_conserve_rows(most_rows: int, early: bool, kills: list[int]) -> None:
    most_rows = max(most_rows, 10) if not early else most_rows
    with memory_store() as store:
        source = archive(most_rows=most_rows, early=early, kills=tuple(kills))
        plan, starts = fetch_all(store, source)
        ledger = read_ledger(store)
        pieces = leaves(plan.chunks, ledger)
        assert (pieces[0].first, pieces[-1].stop) == (0, SOURCE_ID_STOP)
        assert all(before.stop == after.first for before, after in pairwise(pieces))
        assert all(chunk.first < chunk.stop for chunk in pieces)
        assert len({chunk.name for chunk in pieces}) == len(pieces)
        assert max(ledger[chunk.name].rows for chunk in pieces) <= most_rows
        assert sum(record.rows for record in filed(plan.chunks, ledger).values()) == len(STARS)
        (asked,) = source.asked
        cut_off = sum(kill <= len(asked) for kill in set(kills))
        assert starts <= 2 + cut_off
        # What was done or split before a kill was not asked for again.
        assert len(asked) <= len(ledger) + cut_off


@pytest.mark.slow
def test_split_chunks_become_the_same_catalogue() -> None:
    with memory_store() as store:
        source = archive(most_rows=20, early=False, kills=(3, 4, 9))
        plan, _ = fetch_all(store, source)
        config = CONFIG.model_copy(update={"store": store.uri})
        jobs = tile_jobs(filed(plan.chunks, read_ledger(store)), plan.tiles)
        assert sum(job.rows for job in jobs) == len(STARS)
        record = ingest.publish(
            store, source, selection_of(config, source), merge_parts(config, source), context_of(config).summary_of
        )
        tables = [catalogue.read_partition(store, paths.CATALOGUE, p.tile).drop_columns([HEALPIX_29]) for p in record.partitions]
        assert pa.concat_tables(tables).sort_by("source_id").equals(STARS)


def test_a_chunk_that_cannot_be_cut_is_named() -> None:
    with memory_store() as store:
        source = archive(most_rows=0)
        one = Chunk("one", STARS["source_id"][0].as_py(), STARS["source_id"][0].as_py() + 1)
        with pytest.raises(ArchiveError, match="chunk one: too many; chunk one is one source_id wide already"):
            ingest.ingest_chunk(store, source, NO_TILES, one)


def test_a_chunk_that_workers_die_with_is_cut() -> None:
    """A worker that is killed for its memory tells nothing: the record that it left is all there is."""
    with memory_store() as store:
        source = archive(most_rows=10_000, kills=tuple(range(1, 10)))
        whole = source.plan().chunks[0]
        for begun in (1, 2, 3):
            with pytest.raises(Killed):
                ingest.ingest_chunk(store, source, NO_TILES, whole)
            record = read_record(store, whole.name)
            assert record is not None
            assert (record.state, record.begun) == ("running", begun)
        record = ingest.ingest_chunk(store, source, NO_TILES, whole)
        assert (record.state, record.begun) == ("split", 0)
        assert record.children == source.split(whole)


def test_a_chunk_that_cannot_be_cut_is_tried_however_many_died() -> None:
    with memory_store() as store:
        source = archive(kills=tuple(range(1, 6)))
        one = Chunk("one", STARS["source_id"][0].as_py(), STARS["source_id"][0].as_py() + 1)
        for _ in range(5):
            with pytest.raises(Killed):
                ingest.ingest_chunk(store, source, NO_TILES, one)
        config = CONFIG.model_copy(update={"store": store.uri})
        assert ingest.ingest_chunk(store, source, make_plan(config, source).cover, one).rows == 1


@dataclass(frozen=True)
class Broken(Limited):
    def resume(self, chunk: Chunk, note: Note, known: ChunkFacts) -> Iterator[pa.Table]:
        raise ArchiveError(f"chunk {chunk.name}: cut off")


def test_a_failure_that_was_told_is_no_death() -> None:
    with memory_store() as store:
        source = Broken(CONFIG.archive, CONFIG.selection)
        whole = source.plan().chunks[0]
        for _ in range(5):
            with pytest.raises(ArchiveError, match="cut off"):
                ingest.ingest_chunk(store, source, NO_TILES, whole)
        record = read_record(store, whole.name)
        assert record is not None
        assert (record.state, record.begun) == ("running", 0)


@pytest.mark.slow
def test_a_piece_that_is_missing_or_lost_rows_is_named() -> None:
    with memory_store() as store:
        plan, _ = fetch_all(store, archive(most_rows=30))
        ledger = read_ledger(store)
        leaf = leaves(plan.chunks, ledger)[-1]
        with pytest.raises(DataError, match=rf"1 chunks have not been fetched \({leaf.name}\)"):
            filed(plan.chunks, {name: record for name, record in ledger.items() if name != leaf.name})
        short = ChunkRecord(chunk=leaf.name, state="done", rows=ledger[leaf.name].rows + 1)
        with pytest.raises(
            DataError, match=rf"chunk {plan.chunks[-1].name}: the archive counted \d+ rows when planning and gave \d+"
        ):
            filed(plan.chunks, {**ledger, leaf.name: short})


@given(st.integers(0, SOURCE_ID_STOP - 1), st.integers(2, 2**40), st.integers(0, 20))
def test_quarters_cover_their_chunk(first: int, width: int, random_index_limit: int) -> None:
    chunk = Chunk("c", first, first + width, expected_rows=9, random_index_limit=random_index_limit)
    parts = archive().split(chunk)
    assert 2 <= len(parts) <= 4
    assert (parts[0].first, parts[-1].stop) == (chunk.first, chunk.stop)
    assert all(before.stop == after.first for before, after in pairwise(parts))
    widths = [part.stop - part.first for part in parts]
    assert min(widths) >= 1
    assert max(widths) - min(widths) <= 1
    assert {(part.expected_rows, part.random_index_limit) for part in parts} == {(None, random_index_limit)}


def test_chunks_are_planned_to_fit_into_an_answer() -> None:
    config = CONFIG.archive.model_copy(update={"chunk_mb": 64, "chunk_rows": 10**6})
    narrow, wide = (TapArchive(config, SelectionConfig(columns=names, not_null=())) for names in (("parallax",), "all"))
    assert narrow._ceiling(None) == int(64e6 / (4 / 3 * 32))
    assert 64_000 < wide._ceiling(None) < 160_000
    assert wide._ceiling(4_000) == narrow._ceiling(4_000) == 3_999
    assert narrow._ceiling(1) == 1


# Counting tile by tile ------------------------------------------------------------------------------------------------
@dataclass
class Counts:
    """A service that counts the stars of a range of ids, unless it is wider than it has time for."""

    widest: int

    def count(self, query: str) -> int:
        words = query.split()
        first, stop = (int(words[words.index(sign) + 1]) for sign in (">=", "<"))
        if stop - first > self.widest:
            raise ChunkTooLargeError("the query timed out")
        return len(rows_of(first, stop))


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(order=st.integers(0, 4), chunk_rows=st.sampled_from([1, 7, 30, 1_000]))
def test_counted_tiles_cover_the_ids_and_hold_what_they_say(order: int, chunk_rows: int) -> None:
    tap = TapArchive(CONFIG.archive.model_copy(update={"chunk_rows": chunk_rows}), CONFIG.selection)
    service: Any = Counts(pixel_width(order))
    tiles = [tile for pixel in range(12) for tile in tap._counted(service, StarQuery("t", CONFIG.selection), 0, pixel, 10**9)]
    assert all(tile.order >= order for tile in tiles)
    chunks = pack_tiles(tiles, chunk_rows)
    assert (chunks[0].first, chunks[-1].stop) == (0, SOURCE_ID_STOP)
    assert all(before.stop == after.first for before, after in pairwise(chunks))
    assert all(len(rows_of(chunk.first, chunk.stop)) == chunk.expected_rows for chunk in chunks)
    assert all((chunk.expected_rows or 0) <= chunk_rows or chunk.stop - chunk.first == pixel_width(12) for chunk in chunks)
    assert len({chunk.name for chunk in chunks}) == len(chunks)
    histogram = spread(tiles, 5)
    assert histogram.sum() == len(STARS)
    true = np.bincount(healpix_of_source_id(STARS["source_id"].to_numpy(), 5), minlength=len(histogram))
    fine = [tile for tile in tiles if tile.order >= 5]
    assert all(histogram[tile.pixel >> 2 * (tile.order - 5)] == true[tile.pixel >> 2 * (tile.order - 5)] for tile in fine)


def test_a_coarse_tile_is_spread_evenly() -> None:
    histogram = spread([CountedTile(0, 3, 18), CountedTile(1, 0, 5), CountedTile(3, 16, 2)], 2)
    assert histogram[48:64].tolist() == [2, 2] + [1] * 14
    assert histogram[:4].tolist() == [2, 1, 1, 1]
    assert histogram[4] == 2
    assert histogram.sum() == 25
