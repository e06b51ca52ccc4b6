"""`gaiadask.batches`: any HATS catalogue as shuffled batches, on a disk and over the network."""

from __future__ import annotations

import datetime
import http.server
import ipaddress
import json
import os
import re
import ssl
import subprocess
import sys
import tarfile
import threading
import tracemalloc
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import lsdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from small_catalogue import NUMBERS, ROWS, TABLE, loaded, numbers, write_catalogue
from test_files import RangedHandler

import gaiadask
from gaiadask.errors import DataError, MissingFileError, StoreError
from gaiadask.loader.batches import rows_of
from gaiadask.loader.row_ranges import read_rows
from gaiadask.split import Part, part_of
from gaiadask.store import attempts
from gaiadask.store.paths import Tile

DOCS = Path(__file__).parents[1] / "docs" / "loader.md"


def test_every_row_comes_once_with_its_values_and_nulls(small_catalogue: Path) -> None:
    stars = loaded(small_catalogue)
    assert [len(each.values) for each in stars] == [128] * 39 + [8]
    assert sorted(numbers(stars)) == list(range(ROWS))
    assert numbers(stars) != list(range(ROWS))
    rows = TABLE.take(numbers(stars)).to_pandas()
    values, null = torch.cat([each.values for each in stars]), torch.cat([each.null for each in stars])
    assert (values.dtype, null.dtype) == (torch.float32, torch.bool)
    expected = rows[NUMBERS].apply(pd.to_numeric, errors="coerce").astype(np.float64).to_numpy()
    np.testing.assert_array_equal(null.numpy(), np.isnan(expected))
    np.testing.assert_array_equal(values.numpy(), np.nan_to_num(expected).astype(np.float32))
    assert null[:, 1:].float().mean(0).min() > 0.05


def test_positions_keep_their_digits(small_catalogue: Path) -> None:
    exact = torch.cat([each.values for each in loaded(small_catalogue, ["brightness"], dtype="float64")])
    assert exact.dtype == torch.float64
    assert set(exact[exact != 0].tolist()) == set(TABLE["brightness"].to_pandas().dropna())


def test_the_order_is_told_by_the_seed(small_catalogue: Path) -> None:
    assert numbers(loaded(small_catalogue)) == numbers(loaded(small_catalogue))
    assert numbers(loaded(small_catalogue)) != numbers(loaded(small_catalogue, seed=1))


@pytest.mark.slow
@pytest.mark.parametrize("buffer_rows", [300, 1_000, 100_000])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"passes": None},
        {"part": "train", "passes": 3},
        {"part": "test", "passes": 2},
        {"part": "validation", "passes": None},
        {"rank": 1, "world_size": 3, "passes": 2},
        {"rank": 1, "world_size": 2, "passes": 3, "part": "train"},
        {"rank": 0, "world_size": 2, "passes": None, "part": "train"},
    ],
    ids=str,
)
def test_it_goes_on_with_the_very_batch(small_catalogue: Path, options: dict[str, Any], buffer_rows: int) -> None:
    """After any batch, of any pass, also the last one."""
    whole = list(islice(gaiadask.batches(small_catalogue, NUMBERS, 128, buffer_rows, **options), 130))
    ends = len(whole) < 130
    assert ends == (options.get("passes", 1) is not None)
    for after in sorted({0, len(whole) // 3, len(whole) // 2, len(whole) - 2, len(whole) - 1}):
        state = json.loads(json.dumps(whole[after].state))
        again = gaiadask.batches(small_catalogue, NUMBERS, 128, buffer_rows, start=state, **options)
        rest = list(again if ends else islice(again, 129 - after))
        assert numbers(rest) == numbers(whole[after + 1 :])
        assert [each.state for each in rest] == [each.state for each in whole[after + 1 :]]


@pytest.mark.parametrize(("buffer_rows", "passes"), [(400_000, 1), (400_000, 3), (100_000, 1)])
def test_the_buffer_is_what_it_is_said_to_be(tmp_path: Path, buffer_rows: int, passes: int) -> None:
    """Where each pass is shuffled by itself and where rows are mixed; whoever has the latest batch does not keep the pass before."""
    rows, columns = 200_000, [f"x{i}" for i in range(8)]
    values = np.random.default_rng(0).random((len(columns), rows), np.float32)
    where = write_catalogue(tmp_path, pa.table(list(values), columns), row_group_rows=2_000)
    for _ in gaiadask.batches(where, columns, passes=2, buffer_rows=buffer_rows):  # what is loaded and compiled is not counted
        pass
    tracemalloc.start(1)
    try:
        shown = sum(len(latest.values) for latest in gaiadask.batches(where, columns, passes=passes, buffer_rows=buffer_rows))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert shown == passes * rows
    row_groups = 8 * 2_000 * len(columns) * (4 + 8)
    assert peak < 1.2 * buffer_rows * len(columns) * 4 + row_groups


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_have_rows_of_their_own_and_take_equal_steps(small_catalogue: Path, world_size: int) -> None:
    shares = [loaded(small_catalogue, passes=2, buffer_rows=100, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert len({len(share) for share in shares}) == 1
    assert len(shares[0]) == gaiadask.batches(small_catalogue, NUMBERS, 128, passes=2, world_size=world_size).steps
    in_pass_one = [number for share in shares for number in numbers(share[: len(share) // 3])]
    assert len(set(in_pass_one)) == len(in_pass_one)
    assert len({number for share in shares for number in numbers(share)}) > ROWS - world_size


@pytest.mark.slow
@pytest.mark.parametrize("buffer_rows", [300, 1_000, 1_000_000])
@pytest.mark.parametrize(("part", "passes"), [("train", 1), ("train", 3), ("test", 2)])
@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_show_every_star_of_a_part_in_equal_steps(
    small_catalogue: Path, buffer_rows: int, part: Any, passes: int, world_size: int
) -> None:
    """To within chance: how many stars of the part a rank has is binomial, and so is what is shown too often or left out."""
    options = {"batch_rows": 16, "buffer_rows": buffer_rows, "part": part, "passes": passes, "world_size": world_size}
    shares = [loaded(small_catalogue, rank=rank, **options) for rank in range(world_size)]
    assert {len(share) for share in shares} == {gaiadask.batches(small_catalogue, NUMBERS, **options).steps}
    assert all(len(each.values) == 16 for share in shares for each in share)
    own = np.flatnonzero(part_of(TABLE["source_id"].to_numpy()) == Part[part.upper()])
    times = np.bincount(np.concatenate([numbers(share) for share in shares]), minlength=ROWS)
    assert times.sum() == times[own].sum()
    off = np.abs(times[own] - passes).sum()
    assert off <= world_size * (5 * np.sqrt(0.2 * passes * ROWS / world_size) + 16), "mostly as often as there are passes"
    if passes == 1:
        assert times.max() <= 2


@pytest.mark.slow
def test_with_room_for_a_pass_each_is_a_shuffle_of_its_own(small_catalogue: Path) -> None:
    for options in ({}, {"part": "validation"}, {"rank": 1, "world_size": 2}):
        found = numbers(loaded(small_catalogue, batch_rows=1, passes=3, buffer_rows=2 * ROWS, **options))
        first, second, third = np.split(np.array(found), 3)
        if "rank" not in options:
            assert set(first) == set(second) == set(third)
        assert len(set(first)) == len(first) and len(set(second)) == len(second) and len(set(third)) == len(third)
        assert abs(np.corrcoef(first, np.arange(len(first)))[0, 1]) < 0.15
        assert first.tolist() != second.tolist()


def test_a_small_catalogue_begins_at_once_however_large_the_buffer(small_catalogue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not read again and again until the buffer is full."""
    read: list[str] = []
    monkeypatch.setattr(
        "gaiadask.loader.batches.read_rows", lambda store, rows, *given: read.append(rows.name) or read_rows(store, rows, *given)
    )
    for options in ({"passes": None}, {"passes": None, "part": "test", "world_size": 2}, {"part": "test", "world_size": 2}):
        read.clear()
        next(iter(gaiadask.batches(small_catalogue, NUMBERS, 16, **options)))
        assert len(read) < 30, "one pass of 15 row groups, and what is read ahead"


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_parts_are_those_of_the_split(small_catalogue: Path, part: Any) -> None:
    expected = np.flatnonzero(part_of(TABLE["source_id"].to_numpy()) == Part[part.upper()])
    assert sorted(numbers(loaded(small_catalogue, part=part))) == expected.tolist()


@pytest.mark.slow
def test_passes_follow_each_other(small_catalogue: Path) -> None:
    assert sorted(numbers(loaded(small_catalogue, passes=3))) == sorted(3 * list(range(ROWS)))
    endless = gaiadask.batches(small_catalogue, NUMBERS, 128, 1_000, passes=None)
    assert endless.steps is None
    assert len(set(numbers(list(islice(endless, 100))))) == ROWS


def test_slices_with_and_without_nulls_are_read_as_they_are() -> None:
    """By their buffers: at any offset, of any length."""
    for first, rows in ((0, 20), (3, 9), (8, 1), (13, 3_000), (5, 0)):
        part = TABLE.slice(first, rows)
        expected = (
            part.select(NUMBERS).to_pandas().apply(pd.to_numeric, errors="coerce").astype(np.float64).to_numpy().reshape(-1, 4)
        )
        places = np.random.default_rng(first).permutation(len(part))
        np.testing.assert_array_equal(rows_of(part, NUMBERS, "float64", places, "")[places], expected)


# Catalogues of others -------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_a_catalogue_that_lsdb_wrote(tmp_path: Path) -> None:
    """A collection, as its `write_catalog` makes them, with names of its own and an index."""
    random = np.random.default_rng(0)
    frame = pd.DataFrame({"id": np.arange(600), "RAJ2000": random.uniform(0, 360, 600), "DEJ2000": random.uniform(-90, 90, 600)})
    frame["mag"] = random.normal(18, 1, 600).astype(np.float32)
    catalog = lsdb.from_dataframe(frame, ra_column="RAJ2000", dec_column="DEJ2000", lowest_order=0, partition_rows=100)
    catalog.write_catalog(tmp_path / "theirs", catalog_name="theirs")
    for where in (tmp_path / "theirs", tmp_path / "theirs" / "theirs"):
        stars = loaded(where, ["id", "mag"], batch_rows=50)
        found = {int(row[0]): float(row[1]) for each in stars for row in each.values}
        assert found == dict(zip(frame["id"], map(float, frame["mag"]), strict=True))


def test_partitions_that_are_folders(tmp_path: Path) -> None:
    folder = write_catalogue(tmp_path, TABLE)
    for number in range(3):
        file = folder / Tile(0, number).file
        whole = pq.read_table(file)
        file.unlink()
        inside = file.with_suffix("")
        inside.mkdir()
        for i in range(2):
            pq.write_table(whole.slice(i * 800, 800 if i == 0 else None), inside / f"part{i}.parquet")
    with (folder / "hats.properties").open("a") as properties:
        properties.write("hats_npix_suffix=/\n")
    assert sorted(numbers(loaded(folder))) == list(range(ROWS))


# Over the network ----------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_a_catalogue_over_http_gives_the_same_batches(small_catalogue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handler = partial(RangedHandler, directory=str(small_catalogue))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        there = f"http://127.0.0.1:{server.server_address[1]}"
        own, found = loaded(small_catalogue), loaded(there)
        assert [numbers([stars]) for stars in found] == [numbers([stars]) for stars in own]
        assert all(torch.equal(a.values, b.values) and torch.equal(a.null, b.null) for a, b in zip(own, found, strict=True))
        assert numbers(loaded(there, start=found[9].state)) == numbers(own[10:])
        with pytest.raises(DataError, match=r"no column\(s\) nope"):
            gaiadask.batches(there, ["nope"])
        with pytest.raises(MissingFileError, match="no HATS catalogue in http"):
            gaiadask.batches(f"{there}/dataset", NUMBERS)
        server.shutdown()
        thread.join()
    monkeypatch.setattr(attempts, "sleep", lambda _: monkeypatch.setattr(attempts, "clock", lambda: float("inf")))
    with pytest.raises(StoreError, match=r"properties cannot be read: .*127\.0\.0\.1.*2 attempts"):
        gaiadask.batches(there, NUMBERS)


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 that nobody but itself vouches for, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name, now = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")]), datetime.datetime.now(datetime.UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    builder = x509.CertificateBuilder(
        name, name, key.public_key(), x509.random_serial_number(), now, now + datetime.timedelta(hours=1)
    )
    signed = builder.add_extension(address, critical=False).sign(key, hashes.SHA256())
    paths = tmp_path / "cert.pem", tmp_path / "key.pem"
    paths[0].write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    pem, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    paths[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, pem, plain))
    return paths


@pytest.mark.slow
def test_a_catalogue_over_https_gives_the_same_batches_where_its_certificate_is_trusted(
    small_catalogue: Path, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*certificate)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(RangedHandler, directory=str(small_catalogue))) as server:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        there = f"https://127.0.0.1:{server.server_address[1]}"
        # Which certificates are trusted is read once a process.
        program = (
            f"import gaiadask; print(*(float(s.values.sum()) for s in gaiadask.batches({there!r}, {NUMBERS!r}, batch_rows=128)))"
        )
        trusting = {**os.environ, "SSL_CERT_FILE": str(certificate[0])}
        done = subprocess.run(
            [sys.executable, "-c", program], env=trusting, capture_output=True, text=True, timeout=100, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == [
            str(float(s.values.sum())) for s in gaiadask.batches(small_catalogue, NUMBERS, batch_rows=128)
        ]
        monkeypatch.setattr(attempts, "sleep", lambda _: monkeypatch.setattr(attempts, "clock", lambda: float("inf")))
        with pytest.raises(StoreError, match="certificate"):
            gaiadask.batches(there, NUMBERS)
        server.shutdown()
        thread.join()


# The page -------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_the_lines_of_the_page_train_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tarfile.open(Path(__file__).parent / "data" / "store-0.1.0.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S)
    assert len([line for line in code.splitlines() if line.strip()]) <= 13
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["loss"].item() < 5.0, "or nothing was learnt: it begins at 90"
