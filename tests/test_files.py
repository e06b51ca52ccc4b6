"""Stars from files: plans, identities, and files over http and s3."""

from __future__ import annotations

import functools
import http.server
import logging
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError
from star_files import (
    EVERYTHING,
    FORMATS,
    archive_of,
    fetched,
    random_stars,
    write_csv,
    write_parquet,
)

from gaiadask.archive.chunks import ChunkFile
from gaiadask.archive.files import transfer
from gaiadask.config.sections import Config, SelectionConfig
from gaiadask.config.toml import load_config, parse_config
from gaiadask.errors import ArchiveError, ConfigurationError, DataError
from gaiadask.sky import SOURCE_ID_STOP
from gaiadask.uris import public_uri


# Plans ----------------------------------------------------------------------------------------------------------------
def bulk_file(folder: Path, pixel: int, rows: int, seed: int) -> tuple[Path, pa.Table]:
    """A file as the archive's bulk download names it: the stars of one order-6 pixel."""
    width = SOURCE_ID_STOP // (12 * 4**6)
    source_id = pixel * width + np.sort(np.random.default_rng(seed).choice(width, rows, replace=False))
    table = random_stars(rows, seed)
    table = table.set_column(table.schema.get_field_index("source_id"), "source_id", pa.array(source_id))
    path = folder / f"GaiaSource_{source_id[0]}_{source_id[-1]}.csv.gz"
    write_csv(table, path)
    return path, table


@pytest.mark.slow
def test_bulk_files_tell_their_range_and_are_not_read_to_plan(tmp_path: Path) -> None:
    path, table = bulk_file(tmp_path, 77, 3_000, 0)
    other, other_table = bulk_file(tmp_path, 4_000, 1_000, 1)
    archive = archive_of(tmp_path / "GaiaSource_*.csv.gz")
    plan = archive.plan()
    ids = table.column("source_id").to_pylist()
    (chunk,) = plan.chunks  # consecutive files together, up to chunk_rows
    assert [file.uri for file in chunk.files] == [str(path), str(other)]
    assert (chunk.first, chunk.stop, chunk.expected_rows) == (ids[0], other_table.column("source_id")[-1].as_py() + 1, None)
    assert 3_000 <= plan.histogram[77] <= 3_600
    assert 1_000 <= plan.histogram[4_000] <= 1_200
    assert np.flatnonzero(plan.histogram).tolist() == [77, 4_000]
    assert len(fetched(archive, plan)) == 4_000

    cut = archive_of(path, selection=SelectionConfig(columns="all", not_null=("parallax",))).plan()
    kept = len(table) - table.column("parallax").null_count
    assert kept <= cut.histogram.sum() <= 1.2 * kept

    wrong = tmp_path / f"GaiaSource_{ids[0]}_{ids[-1] - 1}.csv.gz"
    other.unlink()
    path.rename(wrong)
    with pytest.raises(DataError, match=f"source_id {ids[-1]} is out of range .*as the file's name says"):
        fetched(archive_of(wrong))


@pytest.mark.slow
def test_a_bulk_file_over_several_pixels_is_spread_over_them(tmp_path: Path) -> None:
    width = SOURCE_ID_STOP // (12 * 4**6)
    path = tmp_path / f"GaiaSource_{width // 2}_{2 * width + width // 2 - 1}.csv.gz"
    write_csv(random_stars(1_000), path)
    histogram = archive_of(path).plan().histogram
    assert np.flatnonzero(histogram).tolist() == [0, 1, 2]
    assert histogram[1] == pytest.approx(2 * histogram[0], abs=2)
    assert histogram[2] == histogram[0]


def test_chunks_are_one_a_file_with_names_that_stay(tmp_path: Path) -> None:
    for folder in ("a", "b c"):
        (tmp_path / folder).mkdir()
        write_parquet(random_stars(10), tmp_path / folder / "stars 1.parquet")
    archive = archive_of(tmp_path / "*" / "*.parquet", tmp_path / "a" / "stars 1.parquet")
    first, again = archive.plan().chunks, archive.plan().chunks
    assert first == again
    assert [file.uri for chunk in first for file in chunk.files] == [
        str(tmp_path / folder / "stars 1.parquet") for folder in ("a", "b c")
    ]
    assert len({chunk.name for chunk in first}) == 2
    assert all(chunk.name.startswith("stars-1-parquet-") and chunk.name.replace("-", "").isalnum() for chunk in first)


def test_identity_notices_changed_files_and_selections(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_parquet(random_stars(10), path)
    before = archive_of(path).identity()
    assert before == archive_of(path).identity()
    assert archive_of(path, selection=EVERYTHING.model_copy(update={"where": "ra > 1"})).identity() != before
    os.utime(path, (1, 1))
    assert archive_of(path).identity() != before


def test_a_file_that_changes_after_the_plan_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_parquet(random_stars(10), path)
    archive = archive_of(path)
    plan = archive.plan()
    write_parquet(random_stars(9), path)
    with pytest.raises(ArchiveError, match=r"a.parquet: \d+ bytes, it had \d+ when it was planned: the file has changed"):
        fetched(archive, plan)
    forgotten = replace(plan.chunks[0], files=(ChunkFile(str(path)),))
    with pytest.raises(ArchiveError, match="9 stars pass the selection, 10 did when it was planned"):
        list(archive.fetch(forgotten, lambda facts: None))
    path.unlink()
    with pytest.raises(ArchiveError, match="matches no file"):
        fetched(archive, plan)


@pytest.mark.parametrize(
    ("uri", "public"),
    [
        ("https://me:secret@host:81/a/b.csv", "https://host:81/a/b.csv"),
        ("s3://bucket/a*.parquet", "s3://bucket/a*.parquet"),
        ("https://host/a.csv?version=3", "https://host/a.csv?version=3"),
        ("https://host/a.csv?v=3&X-Amz-Signature=secret&X-Amz-Credential=secret", "https://host/a.csv?v=3"),
        ("/a/b?c@d.csv", "/a/b?c@d.csv"),
        ("/a/b?token=c.csv", "/a/b?token=c.csv"),
        ("https://host/a.csv?keyword=b&sig=secret#x", "https://host/a.csv?keyword=b#x"),
        ("https://host/a.csv?access_token=secret", "https://host/a.csv"),
        ("simplecache::https://me:sec@ret@host/a.csv", "simplecache::https://host/a.csv"),
        ("sftp://me@host/a.csv", "sftp://me@host/a.csv"),
        ("abfs://stars@account.dfs.core.windows.net/a.csv", "abfs://stars@account.dfs.core.windows.net/a.csv"),
    ],
)
def test_uris_with_secrets_are_refused_and_no_secret_is_told(uri: str, public: str) -> None:
    assert public_uri(uri) == public
    assert public_uri(f"it says '{uri}' here") == f"it says '{public}' here"
    options = {"archive": {"kind": "files", "uris": [uri]}, "store": uri}
    if uri == public:
        config = parse_config(options)
        assert (config.archive.uris, config.store) == ((uri,), uri)
        return
    with pytest.raises(
        ConfigurationError, match=r"archive\.uris\.0: .*was given with a password, a token or a signature"
    ) as caught:
        parse_config(options)
    told = str(caught.value)
    assert "store: " in told
    assert "conf.json" in told
    with pytest.raises(ValidationError) as refused:
        Config.model_validate(options)
    assert not [text for text in (told, str(refused.value)) if "sec" in text.replace("AWS_SECRET_ACCESS_KEY", "")]


def test_relative_paths_start_at_the_configurations_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stars").mkdir()
    write_parquet(random_stars(10), tmp_path / "stars" / "a.parquet")
    (tmp_path / "linked").symlink_to(tmp_path / "stars")
    (tmp_path / "g.toml").write_text(
        '[archive]\nkind = "files"\nuris = ["stars/*.parquet", "./linked/a.parquet", "s3://b/c.csv"]\n'
    )
    monkeypatch.chdir("/")
    config = load_config(tmp_path / "g.toml")
    assert config.archive.uris == (f"{tmp_path}/stars/*.parquet", f"{tmp_path}/linked/a.parquet", "s3://b/c.csv")
    assert len(fetched(archive_of(config.archive.uris[0]))) == 10


# Refused addresses ------------------------------------------------------------------------------------------------------
def test_uris_without_files_are_named(tmp_path: Path) -> None:
    for uri in ("nothing-*.parquet", "nothing.parquet"):
        with pytest.raises(ArchiveError, match=rf"archive.uris: .*{uri.replace('*', '.')} matches no file"):
            archive_of(tmp_path / uri).plan()
    with pytest.raises(ArchiveError, match=r"it is a folder: name its files, as in .*/\*.parquet"):
        archive_of(tmp_path).plan()
    with pytest.raises(ArchiveError, match="nosuch://"):
        archive_of("nosuch://a/b.parquet").plan()
    (tmp_path / "broken.parquet").symlink_to(tmp_path / "gone.parquet")
    with pytest.raises(ArchiveError, match=r"\*.parquet matches no file .*broken.parquet"):
        archive_of(tmp_path / "*.parquet").plan()
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ConfigurationError, match=r"a.txt has no known format: expected a name that ends in .parquet"):
        archive_of(tmp_path / "a.txt").identity()


# Servers --------------------------------------------------------------------------------------------------------------
class RangedHandler(http.server.SimpleHTTPRequestHandler):
    """A static server that answers range requests, as ESA's does."""

    sent = 1.0  # share of the promised bytes

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        wanted = self.headers.get("Range")
        if not wanted or not path.is_file():
            super().do_GET()
            return
        data = path.read_bytes()
        first, last = wanted.removeprefix("bytes=").split("-")
        start, stop = int(first), min(int(last or len(data)) + 1, len(data))
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        self.wfile.write(data[start : start + int((stop - start) * self.sent)])

    def log_message(self, format: str, *args: Any) -> None:
        logging.getLogger(__name__).debug(format, *args)


class CuttingHandler(RangedHandler):
    """Breaks off each answer in its middle."""

    sent = 0.5


class GuardedHandler(RangedHandler):
    """Answers those alone who say the password."""

    def parse_request(self) -> bool:
        if super().parse_request() and self.headers.get("Authorization") == "Basic bWU6c2VjcmV0":
            return True
        self.send_error(401)
        return False


class PlainHandler(http.server.SimpleHTTPRequestHandler):
    """A static server that knows no ranges."""

    def log_message(self, format: str, *args: Any) -> None:
        logging.getLogger(__name__).debug(format, *args)


@pytest.fixture
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of a loopback server of tmp_path; its handler is the test's parameter."""
    handler = functools.partial(request.param, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.slow
@pytest.mark.parametrize("served", [RangedHandler], indirect=True)
def test_files_over_http(tmp_path: Path, served: str) -> None:
    table = random_stars(100)
    for name, write in (FORMATS[case] for case in ("parquet", "csv", "csv.gz", "votable.gz", "fits", "fits.gz")):
        write(table, tmp_path / name)
        archive = archive_of(f"{served}/{name}")
        assert fetched(archive).equals(table.select(archive.schema.names)), name
        assert {"size", "Last-Modified"} <= set(archive.identity().files[0])
    write_parquet(random_stars(100, 1), tmp_path / "more.parquet")
    plan = archive_of(f"{served}/*.parquet").plan()
    assert [(chunk.files[0].uri, chunk.expected_rows) for chunk in plan.chunks] == [
        (f"{served}/more.parquet", 100),
        (f"{served}/stars.parquet", 100),
    ]
    with pytest.raises(ArchiveError, match=r"none.parquet matches no file.*404"):
        archive_of(f"{served}/none.parquet").plan()


@pytest.mark.parametrize("served", [GuardedHandler], indirect=True)
def test_a_password_for_http_comes_from_fsspecs_configuration(tmp_path: Path, served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    table = random_stars(30)
    for name, write in (FORMATS[case] for case in ("parquet", "csv.gz")):
        write(table, tmp_path / name)
        with pytest.raises(ArchiveError, match="401"):
            archive_of(f"{served}/{name}").plan()
        with monkeypatch.context() as patch:
            patch.setitem(fsspec.config.conf, "http", {"headers": {"Authorization": "Basic bWU6c2VjcmV0"}})
            archive = archive_of(f"{served}/{name}")
            assert fetched(archive).equals(table.select(archive.schema.names))


@pytest.mark.parametrize("served", [PlainHandler], indirect=True)
def test_csv_streams_from_a_server_without_ranges(tmp_path: Path, served: str) -> None:
    table = random_stars(300)
    for name in ("stars.csv", "stars.csv.gz"):
        write_csv(table, tmp_path / name)
        archive = archive_of(f"{served}/{name}")
        assert fetched(archive).equals(table.select(archive.schema.names))


@pytest.mark.slow
@pytest.mark.parametrize("served", [CuttingHandler], indirect=True)
@pytest.mark.parametrize("case", ["parquet", "fits"])
def test_answers_that_break_off_are_noticed(tmp_path: Path, served: str, case: str) -> None:
    name, write = FORMATS[case]
    write(random_stars(50), tmp_path / name)
    with pytest.raises(ArchiveError, match=rf"{served}/{name} is not whole"):
        archive_of(f"{served}/{name}").plan()


@pytest.mark.parametrize("served", [CuttingHandler], indirect=True)
def test_a_votable_goes_on_where_an_answer_broke_off(tmp_path: Path, served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(transfer, "PROGRESS_BYTES", 1)  # each answer gives half of what is left
    table = random_stars(20)
    FORMATS["votable tabledata"][1](table, tmp_path / "stars.vot")
    archive = archive_of(f"{served}/stars.vot")
    assert fetched(archive).equals(table.select(archive.schema.names))


def test_a_server_that_is_not_there_is_named() -> None:
    with pytest.raises(ArchiveError, match=r"http://127.0.0.1:9/a.parquet matches no file"):
        archive_of("http://127.0.0.1:9/a.parquet").plan()


@pytest.mark.slow
def test_files_on_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server_module = pytest.importorskip("moto.server", reason="needs the test extra: moto[server]")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        options = {
            "endpoint_url": f"http://{host}:{port}",
            "key": "k",
            "secret": "s",
            "client_kwargs": {"region_name": "us-east-1"},
        }
        monkeypatch.setitem(fsspec.config.conf, "s3", options)
        filesystem = fsspec.filesystem("s3")
        filesystem.call_s3("create_bucket", Bucket="stars")
        table = random_stars(300)
        for name, write in (FORMATS[case] for case in ("parquet", "csv.gz", "votable binary2", "fits")):
            write(table, tmp_path / name)
            filesystem.put_file(str(tmp_path / name), f"stars/dr2/{name}")
            archive = archive_of(f"s3://stars/dr2/{name}")
            assert fetched(archive).equals(table.select(archive.schema.names)), name
        archive = archive_of("s3://stars/dr2/*.parquet")
        before = archive.identity()
        assert before.files[0]["uri"] == "s3://stars/dr2/stars.parquet"
        assert "ETag" in before.files[0]
        write_parquet(random_stars(299), tmp_path / "stars.parquet")
        filesystem.put_file(str(tmp_path / "stars.parquet"), "stars/dr2/stars.parquet")
        assert archive.identity() != before
        with pytest.raises(ArchiveError, match="matches no file"):
            archive_of("s3://stars/none/*.parquet").plan()
    finally:
        server.stop()
