"""The TAP archive against a real service: GAVO DaCHS on PostgreSQL, directly and through a proxy that breaks things."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import requests

from gaiadask.archive.chunks import Chunk, ChunkFacts
from gaiadask.archive.tap import attempts
from gaiadask.archive.tap.adql import StarQuery
from gaiadask.archive.tap.archive import TapArchive
from gaiadask.archive.tap.service import Service
from gaiadask.config.sections import ArchiveConfig, SelectionConfig
from gaiadask.errors import ArchiveError, ChunkTooLargeError, DataError
from gaiadask.release.dr2 import MOCK_COLUMNS
from gaiadask.sky import SOURCE_ID_STOP

from .conftest import Dachs
from .fault_rows import COUNT, CREATE, DELETE, POLL, RESULT, START, same_bits
from .faults import Fault, broken_service, standing_before

MOCK = "gaiadr2.mock_source"
FEW = ("parallax", "teff_val")
# Of the mock sky, about 500 stars: what the tests of faults fetch.
PIECE = Chunk("piece", 0, SOURCE_ID_STOP // 10)


def tap(
    url: str, table: str = MOCK, columns: Any = FEW, where: str = "", not_null: Any = (), limit: int = 0, **archive: Any
) -> TapArchive:
    selection = SelectionConfig(columns=columns, where=where, not_null=not_null, limit=limit)
    return TapArchive(ArchiveConfig(url=url, table=table, **archive), selection)


def fetch(archive: TapArchive, *chunks: Chunk, notes: list[ChunkFacts] | None = None) -> pa.Table:
    note = (lambda news: None) if notes is None else notes.append
    # Two at once, as DaCHS runs two jobs at once.
    with ThreadPoolExecutor(2) as pool:
        fetched = list(pool.map(lambda chunk: list(archive.fetch(chunk, note)), chunks))
    return pa.concat_tables([archive.schema.empty_table(), *(table for tables in fetched for table in tables)]).sort_by("source_id")


def expected(archive: TapArchive, rows: pa.Table, keep: Any = None) -> pa.Table:
    rows = rows if keep is None else rows.filter(keep)
    return rows.select(archive.schema.names).cast(archive.schema).sort_by("source_id")


def in_chunk(rows: pa.Table, chunk: Chunk) -> pa.ChunkedArray:
    return pc.and_(pc.greater_equal(rows["source_id"], chunk.first), pc.less(rows["source_id"], chunk.stop))


def assert_same_bits(found: pa.Table, wanted: pa.Table) -> None:
    assert found.schema.equals(wanted.schema, check_metadata=True)
    assert same_bits(found, wanted)


def jobs(dachs: Dachs) -> int:
    """Jobs that the service still keeps, of whoever asked."""
    return requests.get(f"{dachs.url}/async", timeout=30).text.count("jobref ")


@pytest.fixture
def jobs_before(dachs: Dachs) -> int:
    """Clients that other tests killed have left some behind."""
    return jobs(dachs)


def test_every_row_and_bit_of_all_columns(dachs: Dachs) -> None:
    archive = tap(dachs.url, columns=MOCK_COLUMNS)
    plan = archive.plan()
    assert plan.histogram.sum() == len(dachs.mock_rows) > dachs.row_limit
    assert len(plan.chunks) >= 2
    assert max(chunk.expected_rows or 0 for chunk in plan.chunks) < dachs.row_limit
    assert [chunk.first for chunk in plan.chunks[1:]] == [chunk.stop for chunk in plan.chunks[:-1]]
    assert (plan.chunks[0].first, plan.chunks[-1].stop) == (0, SOURCE_ID_STOP)
    notes: list[ChunkFacts] = []
    found = fetch(archive, *plan.chunks, notes=notes)
    assert found.column_names == list(MOCK_COLUMNS)
    assert sum(found.column(name).null_count for name in found.column_names) > 0
    assert_same_bits(found, expected(archive, dachs.mock_rows))
    assert sorted(note.counted for note in notes) == sorted(chunk.expected_rows or 0 for chunk in plan.chunks)
    assert all(requests.get(note.job_url or "", timeout=30).status_code == 404 for note in notes)


def test_every_real_row_and_bit(dachs: Dachs, real_rows: pa.Table) -> None:
    archive = tap(dachs.url, table="gaiadr2.gaia_source", columns="all")
    found = fetch(archive, *archive.plan().chunks)
    assert found.num_columns == 94
    assert_same_bits(found, expected(archive, real_rows))


def test_small_chunks_of_a_condition_and_a_limit(dachs: Dachs) -> None:
    archive = tap(dachs.url, chunk_rows=80, where="(parallax > 0.5 OR bp_rp < 1) AND dec < 0", not_null=["teff_val"], limit=300)
    plan = archive.plan()
    assert plan.histogram.sum() == 300
    assert 4 <= len(plan.chunks) <= 8
    rows = dachs.mock_rows
    keep = pc.and_(pc.or_kleene(pc.greater(rows["parallax"], 0.5), pc.less(rows["bp_rp"], 1)), pc.less(rows["dec"], 0))
    keep = pc.and_kleene(keep, rows["teff_val"].is_valid())
    chosen = rows.filter(keep).sort_by("random_index").slice(0, 300)
    assert_same_bits(fetch(archive, *plan.chunks), expected(archive, chosen))


def test_an_overflow_is_refused(dachs: Dachs, jobs_before: int) -> None:
    whole_sky = Chunk("whole-sky", 0, SOURCE_ID_STOP)
    with pytest.raises(ChunkTooLargeError, match=r"chunk whole-sky: 5000 rows, more than the service gives"):
        fetch(tap(dachs.url, columns=["parallax"]), whole_sky)
    # A service that does not state its limit tells by the answer.
    unlimited = Fault("unlimited", "capabilities", times=99)
    with (
        broken_service("127.0.0.1", dachs.port, unlimited) as address,
        pytest.raises(ChunkTooLargeError, match=r"chunk whole-sky .*OVERFLOW"),
    ):
        fetch(tap(f"{address}/tap", columns=["parallax"]), whole_sky)
    assert jobs(dachs) == jobs_before


def test_an_answer_that_is_too_large_to_hold_is_refused(dachs: Dachs, jobs_before: int) -> None:
    query = f"SELECT source_id, ra, dec FROM {MOCK}"
    small = Service(dachs.url, 60.0, most_bytes=50_000)
    with pytest.raises(ChunkTooLargeError, match=r"gives more than 0 MB \(archive\.chunk_mb\)"), small.answer(query, 3_000):
        pass
    assert jobs(dachs) == jobs_before


def test_a_service_that_refuses_a_histogram_is_counted(dachs: Dachs) -> None:
    refuses = Fault("busy", r"GROUP BY", times=99, status=400)
    with broken_service("127.0.0.1", dachs.port, refuses) as address:
        archive = tap(f"{address}/tap", chunk_rows=300)
        plan = archive.plan()
    assert refuses.fired
    assert plan.histogram.sum() == len(dachs.mock_rows)
    assert max(chunk.expected_rows or 0 for chunk in plan.chunks) <= 300
    assert (plan.chunks[0].first, plan.chunks[-1].stop) == (0, SOURCE_ID_STOP)
    assert all(before.stop == after.first for before, after in pairwise(plan.chunks))
    counted = {chunk.name: len(dachs.mock_rows.filter(in_chunk(dachs.mock_rows, chunk))) for chunk in plan.chunks}
    assert counted == {chunk.name: chunk.expected_rows for chunk in plan.chunks}


def test_a_job_that_was_left_is_gone_on_with(dachs: Dachs) -> None:
    with standing_before("127.0.0.1", dachs.port) as proxy:
        archive = tap(f"{proxy.address}/tap")
        notes: list[ChunkFacts] = []
        with pytest.raises(DataError):
            list(archive.fetch(PIECE, _refusing(notes)))
        # Not deleted: noted before the client was killed.
        query = StarQuery(MOCK, archive.selection, PIECE.first, PIECE.stop).rows(archive.schema.names)
        job = Service(f"{proxy.address}/tap", 60)._tap.submit_job(query, maxrec=(notes[0].counted or 0) + 1)
        made = proxy.created
        found = pa.concat_tables(
            archive.resume(PIECE, notes.append, ChunkFacts(job_url=job.url, counted=notes[0].counted))
        ).sort_by("source_id")
        assert_same_bits(found, expected(archive, dachs.mock_rows, in_chunk(dachs.mock_rows, PIECE)))
        assert (proxy.created, proxy.jobs) == (made, set())
        # Gone by now, and another's: asked for anew.
        other = Service(f"{proxy.address}/tap", 60)._tap.submit_job(query + " AND ra > 1", maxrec=5)
        for url in (job.url, other.url):
            again = pa.concat_tables(archive.resume(PIECE, notes.append, ChunkFacts(job_url=url, counted=notes[0].counted)))
            assert again.sort_by("source_id").equals(found)
        assert proxy.created == made + 3
        other.delete()


def _refusing(notes: list[ChunkFacts]) -> Any:
    def note(facts: ChunkFacts) -> None:
        notes.append(facts)
        raise DataError("the ledger is full")

    return note


def test_a_stale_plan_yields_to_what_is_counted_now(dachs: Dachs) -> None:
    archive = tap(dachs.url)
    stale = Chunk("stale", PIECE.first, PIECE.stop, expected_rows=3)
    assert_same_bits(fetch(archive, stale), expected(archive, dachs.mock_rows, in_chunk(dachs.mock_rows, stale)))


def test_an_empty_chunk_gives_nothing(dachs: Dachs) -> None:
    assert len(fetch(tap(dachs.url, where="parallax > 1e300"), PIECE)) == 0


def test_an_adql_error_comes_in_the_servers_words_and_once(dachs: Dachs, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ArchiveError, match=r"refused the query.*No such field known: column 'nope'"):
        fetch(tap(dachs.url, where="nope > 3"), PIECE)
    assert not [record for record in caplog.records if "attempt" in record.message]


def test_an_unknown_table_comes_in_the_servers_words(dachs: Dachs) -> None:
    with pytest.raises(ArchiveError, match=r"Could not locate table 'gaiadr2\.gaia_sauce'"):
        tap(dachs.url, table="gaiadr2.gaia_sauce").plan()


def test_columns_that_the_table_lacks_are_named(dachs: Dachs) -> None:
    with pytest.raises(ArchiveError, match=r"wrong_units .*has no column teff_val: leave it out of selection\.columns"):
        tap(dachs.url, table="gaiadr2.wrong_units").plan()


def test_a_wrong_unit_is_refused_by_name(dachs: Dachs) -> None:
    with pytest.raises(DataError, match=r"column parallax is in 'arcsec': expected 'mas'"):
        tap(dachs.url, table="gaiadr2.wrong_units", columns=["parallax"]).plan()


def test_an_empty_selection_is_refused(dachs: Dachs) -> None:
    with pytest.raises(DataError, match="no star that passes the selection"):
        tap(dachs.url, where="parallax > 1e300").plan()


def test_another_page_of_the_server_is_no_tap_service(dachs: Dachs) -> None:
    with pytest.raises(ArchiveError, match=r"is not a TAP service.*found HTTP 404"):
        tap(dachs.url.removesuffix("tap")).plan()


def test_what_one_request_survives_costs_no_job(dachs: Dachs) -> None:
    resets = [Fault("reset", where) for where in (COUNT, CREATE, START, POLL, RESULT, DELETE)]
    busy = [Fault("busy", CREATE), Fault("busy", RESULT, times=2)]
    notes: list[ChunkFacts] = []
    with broken_service("127.0.0.1", dachs.port, *resets, *busy) as address:
        archive = tap(f"{address}/tap")
        found = fetch(archive, PIECE, notes=notes)
    assert all(fault.fired == fault.times for fault in (*resets, *busy))
    assert len(notes) == 1
    assert_same_bits(found, expected(archive, dachs.mock_rows, in_chunk(dachs.mock_rows, PIECE)))


FAULTS = [
    Fault("cut", COUNT),
    Fault("cut", POLL),
    Fault("cut", RESULT),
    Fault("cut", RESULT, share=0.99, mute=True),
    Fault("stall", RESULT),
    Fault("abort", POLL),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.mode}-{fault.where}")
def test_after_a_fault_the_chunk_is_asked_for_again(dachs: Dachs, fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "FIRST_WAIT_S", 0.1)
    with broken_service("127.0.0.1", dachs.port, fault) as address:
        archive = tap(f"{address}/tap", timeout_s=3 if fault.mode == "stall" else 60)
        found = fetch(archive, PIECE)
    assert fault.fired == fault.times
    assert_same_bits(found, expected(archive, dachs.mock_rows, in_chunk(dachs.mock_rows, PIECE)))


def test_what_stays_broken_is_named(dachs: Dachs, jobs_before: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "FIRST_WAIT_S", 0.1)
    fault = Fault("cut", RESULT, times=1_000)
    with (
        broken_service("127.0.0.1", dachs.port, fault) as address,
        pytest.raises(ArchiveError, match="chunk piece: given up after 2 attempts; the last: "),
    ):
        fetch(tap(f"{address}/tap", attempts=2), PIECE)
    assert fault.fired == 2
    assert jobs(dachs) == jobs_before


def test_a_job_is_deleted_when_its_url_cannot_be_noted(dachs: Dachs) -> None:
    noted: list[str] = []

    def note(news: ChunkFacts) -> None:
        noted.append(news.job_url or "")
        raise DataError("the ledger is full")

    with pytest.raises(DataError, match="the ledger is full"):
        list(tap(dachs.url).fetch(PIECE, note))
    assert requests.get(noted[0], timeout=30).status_code == 404


def test_a_service_that_is_down_is_told_soon() -> None:
    began = time.monotonic()
    with pytest.raises(ArchiveError, match=r"cannot reach http://127\.0\.0\.1:9/tap: Connection refused"):
        tap("http://127.0.0.1:9/tap").plan()
    assert time.monotonic() - began < 15
