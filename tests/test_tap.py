"""TAP without a service: queries as text, packing, retries, credentials, damaged answers. tests/integration has the rest."""

from __future__ import annotations

import gzip
import http.server
import io
import itertools
import json
import logging
import pickle
import re
import threading
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest
import requests
from astropy.io import votable
from astropy.table import MaskedColumn, Table
from hypothesis import given, settings
from hypothesis import strategies as st
from tap_service import FakeService, served

from gaiadask.archive.base import open_archive
from gaiadask.archive.chunks import Chunk
from gaiadask.archive.files import votable_binary
from gaiadask.archive.tap import attempts
from gaiadask.archive.tap.adql import StarQuery, check_condition, pixel_width
from gaiadask.archive.tap.answers import save
from gaiadask.archive.tap.archive import TapArchive, order_within, pack
from gaiadask.archive.tap.attempts import Interrupted, attempted
from gaiadask.archive.tap.login import (
    CREDENTIALS_VARIABLE,
    PASSWORD_VARIABLE,
    USER_VARIABLE,
    credentials,
    log_in,
    log_in_by_astroquery,
    origin,
)
from gaiadask.archive.tap.service import ColumnMetadata, Service, columns_by_astroquery
from gaiadask.archive.tap.session import Session, inflated
from gaiadask.config.sections import ArchiveConfig, SelectionConfig
from gaiadask.config.toml import parse_config
from gaiadask.errors import ArchiveError, ChunkTooLargeError, ConfigurationError, DataError
from gaiadask.sky import SOURCE_ID_STOP

T = "gaiadr2.gaia_source"


def selected(**options: Any) -> SelectionConfig:
    return SelectionConfig(**{"columns": ["parallax"], "not_null": (), **options})


def archive(url: str = "https://archive.example/tap", **selection: Any) -> TapArchive:
    return TapArchive(ArchiveConfig(url=url), selected(**selection))


# Queries ----------------------------------------------------------------------------------------------------------------
def test_queries_name_every_column_and_condition() -> None:
    stars = StarQuery(T, selected(not_null=["parallax", "bp_rp"], where=" dec > 0 OR ra < 9 ", limit=7), 10, 20, 99)
    where = "source_id >= 10 AND source_id < 20 AND parallax IS NOT NULL AND bp_rp IS NOT NULL AND (dec > 0 OR ra < 9) AND random_index <= 99"
    assert stars.count() == f"SELECT COUNT(*) AS n_stars FROM {T} WHERE {where}"
    assert stars.rows(["source_id", "ra"]) == f"SELECT source_id, ra FROM {T} WHERE {where}"
    assert stars.histogram(6) == (
        f"SELECT pixel, COUNT(*) AS n_stars FROM (SELECT source_id/140737488355328 AS pixel FROM {T} WHERE {where}) AS pixels GROUP BY pixel"
    )


def test_a_limit_is_found_by_the_smallest_random_indices_of_the_selection() -> None:
    assert StarQuery(T, selected(where="dec > 0", limit=7)).threshold() == (
        "SELECT MAX(random_index) AS random_index_limit FROM (SELECT TOP 7 random_index FROM gaiadr2.gaia_source "
        "WHERE (dec > 0) AND random_index IS NOT NULL ORDER BY random_index) AS smallest"
    )


def test_without_a_condition_there_is_none() -> None:
    assert StarQuery(T, selected()).count() == f"SELECT COUNT(*) AS n_stars FROM {T}"


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("ra > 1; DROP TABLE x", "contains ;"),
        ("ra > 1 -- all", "contains --"),
        ("ra > 1 /* all */", "contains /\\* and \\*/"),
        ("ra > 1) OR (1 = 1", "unbalanced"),
        ("(ra > 1", "unbalanced"),
        ("designation = 'Gaia", "quote"),
    ],
)
def test_a_condition_that_would_escape_its_parentheses_is_refused(where: str, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=f"selection.where .*{reason}"):
        archive(where=where)


def test_marks_within_quotes_are_text() -> None:
    check_condition("designation = 'a;b--c(' AND \"we)ird\" = 'it''s' AND (ra > 1)")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"url": "https://me@archive.example/tap"}, "GAIADASK_TAP_USER"),
        ({"url": "archive.example/tap"}, "expected the http or https address"),
        ({"table": "gaia_source; DROP"}, "not the name of a table"),
    ],
)
def test_bad_addresses_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        open_archive(ArchiveConfig(**options), selected())


def test_a_password_in_the_address_is_refused_and_not_told() -> None:
    with pytest.raises(ConfigurationError, match=r"archive\.url: https://archive.example/tap was given with a password") as caught:
        parse_config({"archive": {"url": "https://me:secret@archive.example/tap"}})
    assert "secret" not in str(caught.value)


# Packing ----------------------------------------------------------------------------------------------------------------
histograms = st.integers(0, 2).flatmap(
    lambda order: st.lists(st.sampled_from([0, 0, 1, 7, 40, 1_000]), min_size=12 * 4**order, max_size=12 * 4**order)
)


@pytest.mark.slow
@given(histograms, st.integers(1, 2_000))
def test_chunks_cover_the_id_space_once_in_order_and_conserve_counts(counts: list[int], chunk_rows: int) -> None:
    order = {12: 0, 48: 1, 192: 2}[len(counts)]
    chunks = pack(np.array(counts), order, chunk_rows)
    assert (chunks[0].first, chunks[-1].stop) == (0, SOURCE_ID_STOP)
    assert [chunk.first for chunk in chunks[1:]] == [chunk.stop for chunk in chunks[:-1]]
    width = pixel_width(order)
    for chunk in chunks:
        inside = counts[chunk.first // width : chunk.stop // width]
        assert chunk.first % width == chunk.stop % width == 0
        assert inside
        assert chunk.expected_rows == sum(inside)
        assert sum(inside) <= chunk_rows or len(inside) == 1
    # No chunk could have taken its neighbour's first pixel too.
    for chunk, after in itertools.pairwise(chunks):
        assert (chunk.expected_rows or 0) + counts[after.first // width] > chunk_rows
    assert len({chunk.name for chunk in chunks}) == len(chunks)


def test_a_part_of_the_sky_packs_into_its_own_ids() -> None:
    chunks = pack(np.array([3, 3, 9, 1]), 9, 6, first_pixel=100, random_index_limit=5)
    assert [chunk.expected_rows for chunk in chunks] == [6, 9, 1]
    assert (chunks[0].first, chunks[-1].stop) == (100 * pixel_width(9), 104 * pixel_width(9))
    assert {chunk.random_index_limit for chunk in chunks} == {5}


@pytest.mark.parametrize(("most_rows", "order"), [(3_000_000, 6), (49_153, 6), (49_152, 5), (2_000, 3), (13, 0), (1, 0)])
def test_the_histogram_fits_the_services_answer(most_rows: int, order: int) -> None:
    assert order_within(most_rows) == order


# Attempts ---------------------------------------------------------------------------------------------------------------
def test_what_is_interrupted_is_tried_again_and_then_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(attempts, "FIRST_WAIT_S", 0.001)
    failures = iter([Interrupted("cut"), Interrupted("reset")])

    def works_the_third_time() -> int:
        if failure := next(failures, None):
            raise failure
        return 42

    with caplog.at_level(logging.WARNING):
        assert attempted("chunk 7", works_the_third_time, 4) == 42
    assert [record.getMessage()[:12] for record in caplog.records] == ["chunk 7: cut", "chunk 7: res"]

    def never_works() -> None:
        raise Interrupted("cut")

    with pytest.raises(ArchiveError, match="chunk 7: given up after 4 attempts; the last: cut"):
        attempted("chunk 7", never_works, 4)


# Credentials ------------------------------------------------------------------------------------------------------------
@pytest.fixture(autouse=True)
def _no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (USER_VARIABLE, PASSWORD_VARIABLE, CREDENTIALS_VARIABLE):
        monkeypatch.delenv(name, raising=False)


def test_credentials_come_from_the_environment_or_its_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert credentials() is None
    monkeypatch.setenv(USER_VARIABLE, "cecilia")
    with pytest.raises(ConfigurationError, match="set both"):
        credentials()
    monkeypatch.setenv(PASSWORD_VARIABLE, "sigma")
    assert credentials() == ("cecilia", "sigma")
    monkeypatch.setenv(CREDENTIALS_VARIABLE, str(tmp_path / "login"))
    with pytest.raises(ConfigurationError, match="cannot be read"):
        credentials()
    (tmp_path / "login").write_text("henrietta\npulsates\n")
    assert credentials() == ("henrietta", "pulsates")


@pytest.mark.slow
def test_a_password_is_told_nowhere(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv(USER_VARIABLE, "cecilia")
    monkeypatch.setenv(PASSWORD_VARIABLE, "sigma-secret")
    taps = archive(url="http://127.0.0.1:9/tap")
    with caplog.at_level(logging.DEBUG), pytest.raises(ArchiveError) as caught:
        taps.plan()
    told = [json.dumps(taps.identity().to_json()), repr(taps), repr(taps._service()), str(caught.value), caplog.text]
    assert not [text for text in told if "secret" in text]
    assert b"secret" not in pickle.dumps(taps)


def test_a_password_is_not_sent_in_the_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(USER_VARIABLE, "cecilia")
    monkeypatch.setenv(PASSWORD_VARIABLE, "sigma")
    with pytest.raises(ConfigurationError, match="unencrypted"):
        archive(url="http://archive.example/tap").plan()


def test_identity_has_no_transport_options() -> None:
    options = {"url": "https://archive.example/tap/", "chunk_rows": 5, "max_jobs": 1, "timeout_s": 3.0}
    ours = TapArchive(ArchiveConfig(**options), selected()).identity()
    assert ours == archive().identity()
    assert ours != archive(where="dec > 0").identity()


# ESA's dialect, which astroquery speaks: a login page with a cookie, and flags on each column -------------------------------
ESA_TABLES = """<vod:tableset xmlns:vod="http://www.ivoa.net/xml/VODataService/v1.1" xmlns:esatapplus="http://esa.int/xml/EsaTapPlus">
<schema><name>gaiadr2</name><table esatapplus:size_bytes="7"><name>gaiadr2.gaia_source</name>
<column esatapplus:flags="0"><name>source_id</name><dataType>long</dataType></column>
<column esatapplus:flags="0"><name>parallax</name><unit>mas</unit><dataType>double</dataType></column>
</table></schema></vod:tableset>"""


class _Esa(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        welcome = self.path == "/tap-server/login" and body == "username=cecilia&password=sigma"
        self._answer(200 if welcome else 401, "", {"Set-Cookie": "JSESSIONID=42; Path=/"} if welcome else {})

    def do_GET(self) -> None:
        welcome = self.path == f"/tap-server/tap/tables?tables={T}" and "JSESSIONID=42" in self.headers.get("Cookie", "")
        self._answer(200 if welcome else 404, ESA_TABLES if welcome else "", {})

    def _answer(self, status: int, body: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body.encode())


@pytest.fixture
def esa() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Esa)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/tap-server/tap"
    server.shutdown()
    server.server_close()
    thread.join()


def test_astroquery_logs_in_and_reads_the_columns_over_our_session(esa: str) -> None:
    with requests.Session() as session:
        assert columns_by_astroquery(session, esa, T) == []
        with pytest.raises(ArchiveError, match=r"refused access.*GAIADASK_TAP_PASSWORD"):
            log_in_by_astroquery(session, esa, "cecilia", "wrong")
        log_in_by_astroquery(session, esa, "cecilia", "sigma")
        found = columns_by_astroquery(session, esa, T)
    assert [(column.name, column.unit, column.dtype) for column in found] == [
        ("source_id", "", "long"),
        ("parallax", "mas", "double"),
    ]


# Damaged answers ----------------------------------------------------------------------------------------------------------
def answer(format: str, status: str = "OK") -> bytes:
    """Twenty stars as a service sends them, the status after the table."""
    n = 20
    table = Table({"source_id": np.arange(n) * 2**53 + 1, "ra": np.linspace(0, 359, n), "dec": np.linspace(-90, 90, n)})
    table["parallax"] = MaskedColumn(np.linspace(-1, 9, n), mask=np.arange(n) % 3 == 0, unit="mas")
    table["ra"].unit = table["dec"].unit = "deg"
    document = votable.from_table(table)
    buffer = io.BytesIO()
    document.to_xml(buffer, tabledata_format=format)
    trailing = f'<INFO name="QUERY_STATUS" value="{status}"/></RESOURCE>'
    return buffer.getvalue().replace(b"</RESOURCE>", trailing.encode())


CHUNK = Chunk("c", 0, SOURCE_ID_STOP)
ANSWERS = {format: answer(format) for format in ("tabledata", "binary", "binary2")}


def read(content: bytes, folder: Path) -> int:
    path = folder / "answer.vot"
    path.write_bytes(content)
    return sum(len(table) for table in archive()._read(CHUNK, path))


@pytest.mark.parametrize("format", ANSWERS)
def test_a_whole_answer_is_read(format: str, tmp_path: Path) -> None:
    assert read(ANSWERS[format], tmp_path) == 20


@pytest.mark.slow
@pytest.mark.parametrize("format", ANSWERS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_an_answer_cut_anywhere_is_never_taken_for_whole(
    format: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = ANSWERS[format]
    near_the_end = st.integers(len(whole) - 80, len(whole.rstrip()) - 1)
    cut = data.draw(st.one_of(st.integers(0, len(whole) - 80), near_the_end))
    with pytest.raises(Interrupted):
        read(whole[:cut], tmp_path_factory.getbasetemp())


def test_a_page_in_place_of_a_table_is_an_interruption(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        read(b"<html><body>Down for maintenance</body></html>", tmp_path)


def test_an_overflow_is_not_tried_again(tmp_path: Path) -> None:
    with pytest.raises(ChunkTooLargeError, match="row limit"):
        read(answer("binary2", "OVERFLOW"), tmp_path)


# Rows are counted, then asked for with room for one more ----------------------------------------------------------------------
def fetched_from(service: FakeService, chunk: Chunk, attempts: int = 1) -> list[int]:
    """The ids of the chunk."""
    settings = ArchiveConfig(url=service.url, attempts=attempts)
    return [i for table in TapArchive(settings, selected()).fetch(chunk, lambda _: None) for i in table["source_id"].to_pylist()]


@pytest.fixture
def service() -> Iterator[FakeService]:
    n = 50
    places = {"ra": np.linspace(0, 359, n), "dec": np.linspace(-90, 90, n), "parallax": np.linspace(0, 1, n)}
    with served(FakeService(pa.table({"source_id": np.arange(n) * 10, **places}))) as service:
        yield service


def test_a_job_has_room_for_one_row_more_than_were_counted(service: FakeService) -> None:
    """With less, a service that cuts without a word would give as many rows as were counted, and one more would be lost."""
    assert fetched_from(service, Chunk("c", 100, 300)) == list(range(100, 300, 10))
    assert service.limits == [21]


@pytest.mark.parametrize("says_so", [True, False])
def test_a_star_that_came_after_the_count_is_not_lost(service: FakeService, says_so: bool) -> None:
    service.counted_too_many, service.says_so = -1, says_so
    with pytest.raises(ArchiveError, match=r"chunk c: the service counted 19 rows and gave 20"):
        fetched_from(service, Chunk("c", 100, 300))
    service.counted_too_many = -5
    with pytest.raises(ArchiveError, match=r"row limit \(OVERFLOW\)" if says_so else r"counted 15 rows and gave 16"):
        fetched_from(service, Chunk("c", 100, 300))


@pytest.mark.parametrize("missing", [1, 7, 20])
def test_an_answer_with_fewer_rows_than_were_counted_is_refused(service: FakeService, missing: int) -> None:
    service.counted_too_many = missing
    with pytest.raises(ArchiveError, match=rf"chunk c: the service counted {20 + missing} rows and gave 20"):
        fetched_from(service, Chunk("c", 100, 300))


def test_stars_of_another_chunk_and_stars_that_come_twice_are_refused(service: FakeService) -> None:
    """As many rows as were counted, but not those that were asked for."""
    stars = service.stars
    for ids, words in (
        ([*range(100, 290, 10), 300], "source_id 300 is out of range"),
        ([100, 100, *range(110, 290, 10)], "more than once"),
    ):
        rows = {name: stars[name].to_numpy()[: len(ids)] for name in stars.column_names if name != "source_id"}
        wrong = pa.table({"source_id": ids, **rows})
        service.answer = lambda query, most, wrong=wrong: FakeService(wrong).answer(re.sub("WHERE.*", "", query), most)  # type: ignore[method-assign]
        service.answer_in_parquet = lambda query, most, wrong=wrong: FakeService(wrong).answer_in_parquet(
            re.sub("WHERE.*", "", query), most
        )  # type: ignore[method-assign]
        for service.parquet in ("", OFFERED[0]):
            with pytest.raises(DataError, match=rf"chunk c: .*{words}"):
                fetched_from(service, Chunk("c", 100, 300))


def test_rows_of_an_attempt_that_failed_are_not_given(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though they were read before the answer's end, which tells that it is not whole."""
    monkeypatch.setattr(attempts, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(votable_binary, "BLOCK_BYTES", 32)
    answers = iter([slice(None, -40), slice(None)])
    answer = service.answer

    def cut_once(query: str, most: int) -> bytes:
        return answer(query, most)[next(answers) if "COUNT" not in query else slice(None)]

    monkeypatch.setattr(service, "answer", cut_once)
    assert fetched_from(service, Chunk("c", 100, 300), attempts=3) == list(range(100, 300, 10))
    assert len(service.limits) == 2  # the same job is read once more, then a new one
    monkeypatch.setattr(service, "answer", answer)
    service.counted_too_many = -5
    found = TapArchive(ArchiveConfig(url=service.url, attempts=1), selected()).fetch(Chunk("c", 100, 300), lambda _: None)
    with pytest.raises(ChunkTooLargeError, match="OVERFLOW"):  # said behind 16 rows
        next(found)


# Parquet, where a service offers it -------------------------------------------------------------------------------------------
OFFERED = (
    "<outputFormat><mime>application/vnd.apache.parquet</mime></outputFormat>",
    "<outputFormat><mime>application/parquet</mime><alias>parquet</alias></outputFormat>",
)


@pytest.mark.parametrize("offered", [*OFFERED, ""])
def test_parquet_is_asked_for_where_it_is_offered(service: FakeService, offered: str) -> None:
    service.parquet = offered
    assert fetched_from(service, Chunk("c", 100, 300)) == list(range(100, 300, 10))
    assert [("parquet" in form) for form in service.forms] == [bool(offered)]
    said = Service(service.url, 5).rows_form
    assert said.startswith("parquet (application/") if offered else said.endswith("offers no parquet")


@pytest.mark.slow
@pytest.mark.parametrize("counted_too_many", [1, -1, -5])
def test_parquet_with_another_number_of_rows_is_asked_for_as_a_votable(
    service: FakeService, counted_too_many: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Which tells whether the service cut it."""
    monkeypatch.setattr(attempts, "FIRST_WAIT_S", 0.001)
    service.parquet, service.counted_too_many = OFFERED[0], counted_too_many
    words = (
        r"row limit \(OVERFLOW\)" if counted_too_many == -5 else rf"the service counted {20 + counted_too_many} rows and gave 20"
    )
    with pytest.raises(ArchiveError, match=words):
        fetched_from(service, Chunk("c", 100, 300), attempts=2)
    assert [("parquet" in form) for form in service.forms] == [True, False]
    assert "rows and gave" in caplog.text


@pytest.mark.parametrize("damage", ["cut", "empty", "a VOTable with an error"])
def test_parquet_that_is_none_is_not_taken(service: FakeService, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    service.parquet = OFFERED[0]
    whole = service.answer_in_parquet
    failed = answer("binary2", "ERROR")
    give = {"cut": lambda q, m: whole(q, m)[:-9], "empty": lambda q, m: b"", "a VOTable with an error": lambda q, m: failed}[damage]
    monkeypatch.setattr(service, "answer_in_parquet", give)
    with pytest.raises(ArchiveError, match="ended it with ERROR" if "VOTable" in damage else "is not whole"):
        fetched_from(service, Chunk("c", 100, 300))


def test_the_range_of_a_chunk_is_half_open_in_the_query(service: FakeService) -> None:
    found = [
        i for first, stop in ((0, 100), (100, 110), (110, 111), (111, 500)) for i in fetched_from(service, Chunk("c", first, stop))
    ]
    assert found == service.stars["source_id"].to_pylist()


def test_names_that_a_service_quotes_are_found() -> None:
    names = ("source_id", '"ra"', "DEC", '"Parallax"')
    archive()._check_columns([ColumnMetadata(name, "", "") for name in names])
    with pytest.raises(ArchiveError, match="has no column parallax"):
        archive()._check_columns([ColumnMetadata(name, "", "") for name in names[:3]])


# What a session sends and takes --------------------------------------------------------------------------------------------
class _Host(http.server.BaseHTTPRequestHandler):
    """Notes the headers of each request; redirects from /away to where the test says."""

    heard: ClassVar[list[tuple[int, str, str | None, str | None]]] = []
    away = ""

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.heard.append((self.server.server_address[1], self.path, self.headers.get("Authorization"), self.headers.get("Cookie")))
        self.send_response(307 if self.path == "/away" else 200)
        if self.path == "/away":
            self.send_header("Location", _Host.away)
        self.send_header("Content-Length", "0")
        self.end_headers()


def test_a_login_goes_to_the_services_own_origin_alone() -> None:
    servers = [http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Host) for _ in range(2)]
    threads = [threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}) for server in servers]
    for thread in threads:
        thread.start()
    own, other = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    _Host.heard, _Host.away = [], f"{other}/redirected"
    with Session(f"{own}/tap", 5) as session:
        log_in(session, f"{own}/tap", "cecilia", "sigma")
        session.cookies.set("JSESSIONID", "42", domain="127.0.0.1")
        for url in (f"{own}/tap/async/1", f"{other}/tap/async/1", f"{own}/away", f"{own}/tap/async/1"):
            session.get(url)
    for server, thread in zip(servers, threads, strict=True):
        server.shutdown()
        server.server_close()
        thread.join()
    shown = {(port, authorization, cookie) for port, _, authorization, cookie in _Host.heard}
    assert len(_Host.heard) == 5
    assert {cookie for port, _, cookie in shown if port == servers[0].server_port} == {"JSESSIONID=42"}
    assert {(authorization, cookie) for port, authorization, cookie in shown if port == servers[1].server_port} == {(None, None)}
    assert all(authorization for port, authorization, _ in shown if port == servers[0].server_port)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("https://a.example/tap", "https://a.example:443/x", True),
        ("https://a.example/tap", "http://a.example/x", False),
        ("https://a.example/tap", "https://b.example/x", False),
        ("https://a.example/tap", "https://a.example:8443/x", False),
    ],
)
def test_an_origin_is_scheme_host_and_port(one: str, other: str, same: bool) -> None:
    assert (origin(one) == origin(other)) is same


@given(st.binary(max_size=3_000), st.integers(1, 40), st.integers(1, 2))
def test_bodies_are_inflated_piece_by_piece(content: bytes, size: int, members: int) -> None:
    packed = b"".join(gzip.compress(part) for part in [content] * members)
    for body in (packed, b"plain" + content):
        blocks = [body[i : i + max(2, size)] for i in range(0, len(body), max(2, size))]
        expected = content * members if body is packed else body
        assert b"".join(inflated(blocks)) == expected
    with pytest.raises((EOFError, zlib.error)):
        b"".join(inflated([packed[:-3]]))


@pytest.mark.slow
def test_an_answer_that_inflates_past_the_limit_is_cut_before_it_is_held(tmp_path: Path) -> None:
    response = requests.Response()
    response.status_code, response.url = 200, "https://archive.example/result"
    response.raw = io.BytesIO(gzip.compress(bytes(64 << 20)))
    assert len(response.raw.getbuffer()) < 100_000
    tracemalloc.start()
    with pytest.raises(ChunkTooLargeError, match=r"gives more than 5 MB .archive.chunk_mb"):
        save(response, tmp_path, 5_000_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 << 20
    assert (tmp_path / "answer.vot").stat().st_size < 7_000_000


# The limit ----------------------------------------------------------------------------------------------------------------
class _Planning:
    """A service that answers what a plan asks: the largest random_index, then a histogram of these stars in one pixel."""

    row_limit = None
    rows_form = "a VOTable"

    def __init__(self, stars: int) -> None:
        self.stars, self.asked = stars, list[str]()

    def columns(self, table: str) -> list[ColumnMetadata]:
        return []

    def ask(self, query: str, maxrec: int, *, quick: bool = False) -> dict[str, np.ndarray]:
        self.asked.append(query)
        if "TOP" in query:
            return {"random_index_limit": np.array([7])}
        return {"pixel": np.array([3]), "n_stars": np.array([self.stars])}


def planned(stars: int, limit: int, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Chunk], _Planning]:
    service = _Planning(stars)
    monkeypatch.setattr(TapArchive, "_service", lambda self: service)
    return list(archive(limit=limit).plan().chunks), service


def test_a_limit_bounds_what_is_counted_and_every_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    chunks, service = planned(9, 9, monkeypatch)
    threshold, histogram = service.asked
    assert "SELECT TOP 9 random_index" in threshold
    assert histogram.count("random_index <= 7") == 1
    assert {chunk.random_index_limit for chunk in chunks} == {7}
    assert sum(chunk.expected_rows or 0 for chunk in chunks) == 9
    chunks, service = planned(9, 0, monkeypatch)
    assert {chunk.random_index_limit for chunk in chunks} == {None}
    assert "random_index" not in " ".join(service.asked)
    with pytest.raises(ArchiveError, match="asks for 9 stars but 10 have a random_index as small"):
        planned(10, 9, monkeypatch)


def test_a_chunk_is_counted_and_asked_for_within_its_limit(service: FakeService) -> None:
    asked: list[str] = []
    answer = service.answer
    service.answer = lambda query, most: asked.append(query) or answer(query, most)  # type: ignore[func-returns-value,method-assign]
    fetched_from(service, Chunk("c", 100, 300, random_index_limit=5))
    assert [query.endswith("random_index <= 5") for query in asked] == [True, True]
