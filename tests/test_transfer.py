"""Bulk files over http: streams that break go on where they were, and what changed or was damaged is named."""

from __future__ import annotations

import gzip
import hashlib
import io
import itertools
import json
import re
import socket
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pytest
from breaking_server import Site, serving
from hypothesis import given, settings
from hypothesis import strategies as st

from gaiadask.archive.base import open_archive
from gaiadask.archive.chunks import ChunkFile, Plan
from gaiadask.archive.files import find as files
from gaiadask.archive.files import transfer
from gaiadask.archive.files.archive import FileArchive, ManyFiles
from gaiadask.archive.files.find import bulk_range
from gaiadask.archive.files.transfer import ResumingStream, SourceFile
from gaiadask.config.sections import ArchiveConfig, SelectionConfig
from gaiadask.errors import ArchiveError
from gaiadask.ingest_plan import IngestPlan
from gaiadask.sky import SOURCE_ID_STOP

COLUMNS = ("source_id", "ra", "dec", "parallax", "teff_val")
SELECTION = SelectionConfig(columns=COLUMNS, not_null=())


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A loopback server that cuts, resets and changes what the test tells it to."""
    monkeypatch.setattr(transfer, "FIRST_WAIT_S", 0.001)
    with serving() as site:
        yield site


def stars(first: int, stop: int, rows: int, seed: int = 0) -> pa.Table:
    """Random stars of a source_id range, first and last included; a third of the temperatures null."""
    rng = np.random.default_rng(seed)
    ids = np.sort(rng.choice(np.arange(first + 1, stop - 1), rows - 2, replace=False))
    return pa.table(
        {
            "source_id": np.concatenate([[first], ids, [stop - 1]]),
            "ra": rng.uniform(0, 360, rows),
            "dec": rng.uniform(-90, 90, rows),
            "parallax": rng.normal(1, 1, rows),
            "teff_val": pa.array(rng.uniform(3000, 9000, rows).astype(np.float32), mask=rng.random(rows) < 0.3),
        }
    )


def packed(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pacsv.write_csv(table.append_column("extra", pa.array(["x"] * len(table))), sink)
    return gzip.compress(sink.getvalue(), 1)


def put_bulk(site: Site, count: int = 3, rows: int = 1_000, width: int = 10_000) -> tuple[list[str], pa.Table]:
    """Bulk files /dr2/GaiaSource_<first>_<last>.csv.gz of consecutive ranges; their names and rows."""
    tables = [stars(i * width, (i + 1) * width, rows, seed=i) for i in range(count)]
    names = [f"/dr2/GaiaSource_{i * width}_{(i + 1) * width - 1}.csv.gz" for i in range(count)]
    site.contents |= {name: packed(table) for name, table in zip(names, tables, strict=True)}
    return names, pa.concat_tables(tables)


def put_checksums(site: Site, **changed: str) -> None:
    lines = []
    for name, content in site.contents.items():
        lines.append(f"{changed.get(name, hashlib.md5(content).hexdigest())}  {name.rpartition('/')[2]}\n")
    site.contents["/dr2/MD5SUM.txt"] = "".join(lines).encode()


def archive_of(*uris: str, chunk_rows: int = 500_000, selection: SelectionConfig = SELECTION) -> FileArchive:
    archive = open_archive(ArchiveConfig(kind="files", uris=uris, chunk_rows=chunk_rows, timeout_s=5), selection)
    assert isinstance(archive, FileArchive)
    return archive


def fetched(archive: FileArchive, plan: Plan | None = None) -> pa.Table:
    chunks = (plan or archive.plan()).chunks
    return pa.concat_tables([t for chunk in chunks for t in archive.fetch(chunk, lambda facts: None)])


def same(found: pa.Table, expected: pa.Table) -> bool:
    return bool(found.select(expected.column_names).cast(expected.schema).equals(expected))


def read_all(stream: ResumingStream, size: int = 5_000) -> bytes:
    with stream:
        return b"".join(iter(lambda: stream.read(size), b""))


# Breaks ---------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 7_000), max_size=4),
    reset=st.booleans(),
    knows_ranges=st.booleans(),
    etag=st.sampled_from(["", '"v1"', 'W/"v1"']),
    size=st.sampled_from([7, 999, 1 << 16]),
)
def test_a_stream_gives_every_byte_once_wherever_it_breaks(
    cuts: list[int], reset: bool, knows_ranges: bool, etag: str, size: int
) -> None:
    content = np.random.default_rng(0).bytes(5_000)
    with pytest.MonkeyPatch.context() as patch, serving() as site:
        patch.setattr(transfer, "FIRST_WAIT_S", 0.001)
        site.contents["/a.gz"], site.etags["/a.gz"] = content, etag
        site.cuts, site.reset, site.knows_ranges = list(cuts), reset, knows_ranges
        assert read_all(ResumingStream(f"{site.url}/a.gz", "a.gz", 5), size) == content


def test_a_broken_connection_goes_on_from_the_byte_reached(site: Site) -> None:
    (name,), table = put_bulk(site, 1, 3_000, 30_000)
    size = len(site.contents[name])
    site.etags[name] = '"v1"'
    plan = archive_of(site.url + name).plan()
    site.cuts, site.sent, site.asked = [10_000, 20_000], 0, []
    assert same(fetched(archive_of(site.url + name), plan), table)
    assert [line for line in site.asked if line.startswith("GET")] == [
        f"GET {name}",
        f"GET {name} bytes=10000-",
        f"GET {name} bytes=30000-",
    ]
    assert site.sent == size


def test_temporary_errors_are_waited_out_as_long_as_the_server_says(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(transfer.time, "sleep", waits.append)
    site.contents["/a.gz"] = b"x" * 1_000
    site.errors = [(503, {"Retry-After": "7"}), (502, {}), (429, {"Retry-After": "1e9"})]
    assert read_all(ResumingStream(f"{site.url}/a.gz", "a.gz", 5)) == b"x" * 1_000
    assert waits[0] == 7
    assert 0 < waits[1] < 1
    assert waits[2] == transfer.LONGEST_WAIT_S


@pytest.mark.slow
def test_a_stalled_connection_is_given_up_and_asked_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "FIRST_WAIT_S", 0.001)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        asked: list[bytes] = []

        def serve() -> None:
            silent, _ = listening.accept()
            asked.append(silent.recv(10_000))
            silent.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabcd")  # and no more
            spoken, _ = listening.accept()
            asked.append(spoken.recv(10_000))
            spoken.sendall(b"HTTP/1.1 206 OK\r\nContent-Length: 6\r\nContent-Range: bytes 4-9/10\r\n\r\nefghij")
            silent.close()
            spoken.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/a"
        assert read_all(ResumingStream(url, "a", 0.3), 4) == b"abcdefghij"
        thread.join()
    assert b"Range: bytes=4-" in asked[1]


def test_attempts_are_bounded_and_the_byte_is_named(site: Site) -> None:
    site.contents["/a.gz"] = b"x" * 1_000
    site.cuts = [100] * 50
    with pytest.raises(ArchiveError, match=rf"a.gz is not whole: given up at byte 500 of 1000 after {transfer.ATTEMPTS} attempts"):
        read_all(ResumingStream(f"{site.url}/a.gz", "a.gz", 5))
    assert len(site.asked) == transfer.ATTEMPTS


def test_progress_earns_new_attempts(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "PROGRESS_BYTES", 100)
    site.contents["/a.gz"] = b"x" * 1_000
    site.cuts = [100] * 9
    assert len(read_all(ResumingStream(f"{site.url}/a.gz", "a.gz", 5))) == 1_000


@pytest.mark.parametrize(("status", "message"), [(404, "matches no file .HTTP 404"), (403, "cannot be read: HTTP 403")])
def test_what_no_attempt_mends_is_not_tried_again(site: Site, status: int, message: str) -> None:
    site.contents["/a.gz"] = b"x"
    site.errors = [(status, {})] * 2
    with pytest.raises(ArchiveError, match=f"a.gz {message}"):
        read_all(ResumingStream(f"{site.url}/a.gz", "a.gz", 5))
    assert len(site.asked) == 1


@pytest.mark.parametrize("change", ["etag", "time", "size", "shorter"])
@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_file_that_changes_between_two_connections_is_noticed(site: Site, change: str, knows_ranges: bool) -> None:
    site.contents["/a.gz"], site.knows_ranges, site.cuts = b"x" * 1_000, knows_ranges, [500]
    if change == "etag":
        site.etags["/a.gz"] = '"v1"'
    stream = ResumingStream(f"{site.url}/a.gz", "a.gz", 5)
    assert len(stream.read(500)) == 500
    if change == "etag":
        site.etags["/a.gz"] = '"v2"'
    elif change == "time":
        site.modified_s += 60
    else:
        site.contents["/a.gz"] = b"x" * (1_200 if change == "size" else 300)
    with pytest.raises(ArchiveError, match=r"a.gz has changed while it was read"):
        read_all(stream)


def test_a_body_without_a_length_is_read_to_its_end(site: Site) -> None:
    (name,), table = put_bulk(site, 1)
    site.chunked = True
    assert same(fetched(archive_of(site.url + name)), table)


def test_memory_does_not_hold_the_file(site: Site) -> None:
    content = site.contents["/big.gz"] = bytes(30 << 20)
    tracemalloc.start()
    with ResumingStream(f"{site.url}/big.gz", "big.gz", 5) as stream:
        read = sum(len(piece) for piece in iter(lambda: stream.read(1 << 16), b""))
        peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert read == len(content)
    assert peak < 4 << 20


# Checksums ------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_checksums_are_the_identity_and_need_no_request_a_file(site: Site) -> None:
    names, table = put_bulk(site, 5)
    put_checksums(site)
    archive = archive_of(f"{site.url}/dr2/GaiaSource_*.csv.gz")
    assert archive.identity().to_json()["files"] == [
        {"uri": site.url + name, "md5": hashlib.md5(site.contents[name]).hexdigest()} for name in names
    ]
    assert [line for line in site.asked if "GaiaSource" in line] == []
    assert same(fetched(archive), table)


@pytest.mark.parametrize("where", ["http", "local"])
def test_a_wrong_checksum_names_file_expected_and_found(site: Site, tmp_path: Path, where: str) -> None:
    names, _ = put_bulk(site, 2)
    put_checksums(site, **{names[1]: "0" * 32})
    for name, content in site.contents.items():
        (tmp_path / name.rpartition("/")[2]).write_bytes(content)
    archive = archive_of((f"{site.url}/dr2" if where == "http" else str(tmp_path)) + "/GaiaSource_*.csv.gz")
    found = hashlib.md5(site.contents[names[1]]).hexdigest()
    with pytest.raises(ArchiveError, match=rf"{names[1].rpartition('/')[2]}: MD5 {found}, expected {'0' * 32} as MD5SUM.txt"):
        fetched(archive)


def test_a_file_is_read_once_whatever_is_checked(site: Site) -> None:
    names, table = put_bulk(site, 1, 3_000, 30_000)
    put_checksums(site)
    archive = archive_of(f"{site.url}/dr2/*.csv.gz")
    plan = archive.plan()
    site.sent = 0
    assert same(fetched(archive, plan), table)
    assert site.sent == len(site.contents[names[0]])


@pytest.mark.slow
def test_files_without_a_checksum_among_those_with_one(site: Site) -> None:
    _, table = put_bulk(site, 2)
    put_checksums(site)
    listed = site.contents["/dr2/MD5SUM.txt"].splitlines(keepends=True)
    site.contents["/dr2/MD5SUM.txt"] = b"# sums\n" + listed[0].replace(b"  ", b" *./")
    archive = archive_of(f"{site.url}/dr2/*.csv.gz")
    with_sum, without = archive.identity().files
    assert set(with_sum) == {"uri", "md5"}
    assert {"uri", "size", "Last-Modified"} <= set(without)
    assert same(fetched(archive), table)


# Chunks of bulk files -------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_consecutive_files_make_chunks_of_about_the_rows_asked_for(site: Site) -> None:
    _, table = put_bulk(site, 12, 500)
    put_checksums(site)
    plan = archive_of(f"{site.url}/dr2/*.csv.gz", chunk_rows=2_000).plan()
    assert 3 <= len(plan.chunks) <= 4
    named = [file.uri for chunk in plan.chunks for file in chunk.files]
    ranges = [bulk_range(uri) for uri in named]
    assert ranges == sorted(ranges)  # by number: as text, 100000 comes before 20000
    assert all(a.stop == b.first for a, b in itertools.pairwise(plan.chunks))
    assert (plan.chunks[0].first, plan.chunks[-1].stop) == (0, 120_000)
    assert len({chunk.name for chunk in plan.chunks}) == len(plan.chunks)
    assert same(fetched(archive_of(f"{site.url}/dr2/*.csv.gz", chunk_rows=2_000), plan), table)
    assert all(len(chunk.files) == 1 for chunk in archive_of(f"{site.url}/dr2/*.csv.gz", chunk_rows=1).plan().chunks)
    limited = archive_of(f"{site.url}/dr2/*.csv.gz", chunk_rows=2_000, selection=SELECTION.model_copy(update={"limit": 700}))
    assert len(fetched(limited)) == 700


@pytest.mark.slow
def test_a_whole_download_is_planned_from_names_and_a_few_heads(site: Site) -> None:
    """Two listings' requests and some samples, whatever the number of files: more than an identity lists one by one."""
    count, width = 1_500, SOURCE_ID_STOP // 1_500
    content = packed(stars(0, 100, 50))
    md5 = hashlib.md5(content).hexdigest()
    names = [f"GaiaSource_{i * width}_{(i + 1) * width - 1}.csv.gz" for i in range(count)]
    site.contents = {f"/dr2/{name}": content for name in names}
    site.contents["/dr2/MD5SUM.txt"] = "".join(f"{md5}  {name}\n" for name in names).encode()
    archive = archive_of(f"{site.url}/dr2/GaiaSource_*.csv.gz", chunk_rows=1_000)
    plan = archive.plan()
    assert len(site.asked) < 30
    assert sum(len(chunk.files) for chunk in plan.chunks) == count
    assert len(plan.chunks) == pytest.approx(count * 50 / 1_000, rel=0.1)
    assert 50 * count <= plan.histogram.sum() <= 1.3 * 50 * count + len(plan.histogram)
    files = archive.identity().files
    assert isinstance(files, ManyFiles)
    assert files.count == count
    site.contents["/dr2/MD5SUM.txt"] = site.contents["/dr2/MD5SUM.txt"].replace(md5.encode(), b"0" * 32, 1)
    assert archive.identity().to_json()["files"]["digest"] != files.digest


def test_chunks_come_back_from_json(site: Site) -> None:
    put_bulk(site, 3)
    chunks = archive_of(f"{site.url}/dr2/*.csv.gz").plan().chunks
    plan = IngestPlan(chunks=chunks, tiles=())
    assert IngestPlan.model_validate(json.loads(json.dumps(plan.to_json()))) == plan
    assert isinstance(chunks[0].files[0], ChunkFile)


def test_a_file_gone_after_the_plan_is_named(site: Site) -> None:
    names, _ = put_bulk(site, 2)
    put_checksums(site)
    archive = archive_of(f"{site.url}/dr2/*.csv.gz")
    plan = archive.plan()
    del site.contents[names[1]]
    with pytest.raises(ArchiveError, match=re.escape(f"{site.url}{names[1]} matches no file")):
        fetched(archive, plan)


def test_local_streams_are_plain_files(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"ab")
    source = SourceFile(fsspec.filesystem("file"), str(tmp_path / "a.csv"), "a.csv")
    with source.stream() as stream:
        assert (stream.read(1), stream.read(9), stream.read(9)) == (b"a", b"b", b"")
    assert files.CHECKSUMS == "MD5SUM.txt"
