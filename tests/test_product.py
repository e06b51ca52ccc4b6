"""Folders of stars: resumed, bound to one request, written by one process, never mixed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_run import copied, make_run, read_key

from gaiadask.catalogue import ROW_GROUP_ROWS
from gaiadask.cluster.here import Here
from gaiadask.config.sections import Config
from gaiadask.errors import DataError, KeyMismatchError, StoreError, StoreHeldError
from gaiadask.ingest import read_catalogue_record
from gaiadask.keys import digest
from gaiadask.product import COMPLETE, REQUEST, Piece, StarFolder, write_piece, write_product
from gaiadask.release.column import HEALPIX_29
from gaiadask.stages.decode import DecodeOptions, DecodeResult
from gaiadask.stages.engine import run_stages
from gaiadask.store.files import Store
from gaiadask.store.lease import Lease
from gaiadask.store.manifest import Manifest
from gaiadask.store.paths import RunPaths, Tile

TABLE = pa.table({"source_id": [1, 2, 3]})
PIECE = Piece("a.parquet", "k", 3, "stars of a")


@dataclass(frozen=True)
class Requested:
    """A folder of two files, and one request."""

    folder: StarFolder
    request: dict[str, Any]

    @property
    def store(self) -> Store:
        return self.folder.store

    @property
    def key(self) -> str:
        return digest(self.request)

    @property
    def is_complete(self) -> bool:
        return self.folder.is_complete(self.request, [Piece(name, self.key, 3, name) for name in ("a.parquet", "b.parquet")])

    def writing(self) -> AbstractContextManager[None]:
        return self.folder.writing(self.request, 2)

    def remove(self) -> None:
        self.folder.remove()


def folder(path: Path, **request: Any) -> Requested:
    return Requested(StarFolder(Store(str(path)), "new stars", pattern=r"[a-z]\.parquet"), request)


def fill(target: Requested, *names: str) -> None:
    for name in names:
        write_piece(target.store, Piece(name, target.key, 3, name), lambda: TABLE)


# Files ---------------------------------------------------------------------------------------------------------------
def test_a_file_with_its_key_is_not_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(str(tmp_path))
    assert read_key(store, "a.parquet") is None
    assert write_piece(store, PIECE, lambda: TABLE) is not None
    assert "made again" not in caplog.text
    assert read_key(store, "a.parquet") == "k"
    assert write_piece(store, PIECE, lambda: pytest.fail("made again")) is None
    assert write_piece(store, PIECE._replace(key="other"), lambda: TABLE) is not None
    assert read_key(store, "a.parquet") == "other"


def test_a_file_with_other_rows_is_not_written(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with pytest.raises(DataError, match="stars of a: expected 3 rows, found 2"):
        write_piece(store, PIECE, lambda: TABLE.slice(1))
    assert store.list("") == []


def test_a_file_is_written_in_pieces_each_made_when_it_is_needed(tmp_path: Path) -> None:
    """Whole or absent, in row groups of one size, its rows in the tile's order over all pieces."""
    store, tile = Store(str(tmp_path)), Tile(0, 0)
    index = pa.array(np.arange(2 * ROW_GROUP_ROWS + 5), pa.int64())
    table, piece = pa.table({HEALPIX_29: index}), Piece("a.parquet", "k", len(index), "stars of a")
    cuts = [0, 7, ROW_GROUP_ROWS + 9, len(index)]
    pieces = [table.slice(first, stop - first) for first, stop in pairwise(cuts)]
    assert write_piece(store, piece, lambda: iter(pieces), tile) is not None
    with pq.ParquetFile(tmp_path / "a.parquet") as file:
        assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [ROW_GROUP_ROWS, ROW_GROUP_ROWS, 5]
        assert file.read().equals(table)
    for wrong, message in ((pieces[::-1], "not sorted"), (pieces[:2], f"expected {len(index)} rows, found {cuts[2]}")):
        with pytest.raises(DataError, match=message):
            write_piece(store, piece._replace(name="b.parquet"), partial(iter, wrong), tile)
        assert store.list("") == ["a.parquet"]


def test_small_files_are_made_together_and_each_gets_its_rows(tmp_path: Path) -> None:
    """However the rows come; what is there already is not made, and too few or too many rows are noticed."""
    store, rows = Store(str(tmp_path)), pa.table({"a": pa.array(range(20), pa.int64())})
    pieces = [Piece(f"{number}.parquet", f"k{number}", count, f"file {number}") for number, count in enumerate((3, 1, 9, 7))]
    bounds = np.cumsum([0, *(piece.rows for piece in pieces)])
    write_piece(store, pieces[1], lambda: rows.slice(3, 1))
    asked: list[list[int]] = []

    def make(lacking: Sequence[int]) -> Iterator[pa.Table]:
        asked.append(list(lacking))
        lacked = pa.concat_tables(rows.slice(bounds[number], pieces[number].rows) for number in lacking)
        return (lacked.slice(first, 5) for first in range(0, len(lacked), 5))

    checksums = write_product(store, pieces, make, [None] * 4)
    assert asked == [[0, 2, 3]] and checksums[1] is None
    for number, piece in enumerate(pieces):
        assert checksums[number] in (None, store.sha256(piece.name))
        assert pq.read_table(tmp_path / piece.name).equals(rows.slice(bounds[number], piece.rows))
        assert read_key(store, piece.name) == piece.key
    assert write_product(store, pieces, make, [None] * 4) == [None] * 4 and len(asked) == 1
    other = [piece._replace(key="other") for piece in pieces]
    for count in (19, 21):
        given = pa.concat_tables([rows, rows]).slice(0, count)
        with pytest.raises(DataError, match=f"file 3: expected 7 rows, found {count - 13}"):
            write_product(store, other, lambda _, tables=(given,): tables, [None] * 4)
        store.remove("3.parquet")
        for piece in pieces[:3]:
            store.remove(piece.name)


# Folders -------------------------------------------------------------------------------------------------------------
def test_a_folder_is_complete_when_all_its_files_are_there(tmp_path: Path) -> None:
    target = folder(tmp_path, seed=1)
    with pytest.raises(RuntimeError), target.writing():
        fill(target, "a.parquet")
        raise RuntimeError("killed")
    assert not target.is_complete
    with target.writing():
        fill(target, "b.parquet")
    assert target.is_complete
    assert not folder(tmp_path, seed=2).is_complete
    assert sorted(target.store.list("")) == [COMPLETE, REQUEST, "a.parquet", "b.parquet"]
    assert pq.read_table(tmp_path).num_rows == 6, "readers pass over the rest"
    target.store.remove("b.parquet")
    assert not target.is_complete


def test_a_folder_of_another_request_is_refused(tmp_path: Path) -> None:
    with (target := folder(tmp_path, seed=1)).writing():
        fill(target, "a.parquet", "b.parquet")
    refused = pytest.raises(KeyMismatchError, match=r"has new stars of another request \(seed: 1 there, 2 asked for\)")
    with refused, folder(tmp_path, seed=2).writing():
        pass
    assert target.is_complete


def test_a_request_that_made_nothing_gives_way(tmp_path: Path) -> None:
    with pytest.raises(DataError), folder(tmp_path, seed=1).writing():
        raise DataError("no star is near")
    with (target := folder(tmp_path, seed=2)).writing():
        fill(target, "a.parquet", "b.parquet")
    assert target.is_complete


def test_other_peoples_files_are_left_alone(tmp_path: Path) -> None:
    with folder(tmp_path).writing():
        fill(folder(tmp_path), "a.parquet", "b.parquet")
    (tmp_path / "notes.txt").write_text("mine")
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(StoreError, match=r"has other files \(notes\.txt"), folder(tmp_path).writing():
        pass
    with pytest.raises(StoreError, match=r"has other files \(notes\.txt.* Nothing was changed"):
        folder(tmp_path).remove()
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    (tmp_path / "notes.txt").unlink()
    folder(tmp_path, seed=2).remove()
    assert not list(tmp_path.iterdir())


def test_a_file_of_the_same_name_without_a_request_is_somebodys(tmp_path: Path) -> None:
    pq.write_table(TABLE, tmp_path / "a.parquet")
    with pytest.raises(StoreError, match=r"has other files \(a\.parquet"), folder(tmp_path).writing():
        pass
    with pytest.raises(StoreError, match=r"has other files \(a\.parquet"):
        folder(tmp_path).remove()
    assert pq.read_table(tmp_path / "a.parquet").equals(TABLE)


def test_partitions_of_a_store_are_no_folder_of_stars(tmp_path: Path) -> None:
    """--replace with the store itself, or a folder above it, as the output: latents have keys in their footers too."""
    write_piece(Store(str(tmp_path)), Piece("runs/r/latent/a.parquet", "k", 3, "latents"), lambda: TABLE)
    with (inner := folder(tmp_path / "inner")).writing():
        fill(inner, "a.parquet", "b.parquet")
    with pytest.raises(StoreError, match="has other files"):
        folder(tmp_path).remove()
    assert inner.is_complete and (tmp_path / "runs/r/latent/a.parquet").exists()


def test_a_folder_that_is_being_written_is_not_removed(tmp_path: Path) -> None:
    with (target := folder(tmp_path, seed=1)).writing():
        fill(target, "a.parquet")
        with pytest.raises(StoreHeldError):
            folder(tmp_path, seed=2).remove()
        fill(target, "b.parquet")
    assert target.is_complete


def test_a_damaged_file_is_made_again(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), (target := folder(tmp_path)).writing():
        fill(target, "a.parquet", "b.parquet")
        raise RuntimeError("killed")
    (tmp_path / "b.parquet").write_bytes((tmp_path / "b.parquet").read_bytes()[:100])
    with target.writing():
        fill(target, "a.parquet", "b.parquet")
    assert pq.read_table(tmp_path).num_rows == 6
    (tmp_path / "b.parquet").write_bytes(b"PAR1")
    target.remove()
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_of_its_lease_bars_nobody(tmp_path: Path) -> None:
    (tmp_path / "_lease.json.taking-abc").write_text("{}")
    with (target := folder(tmp_path)).writing():
        fill(target, "a.parquet", "b.parquet")
    assert target.is_complete


def test_one_process_writes_a_folder(tmp_path: Path) -> None:
    with Lease(Store(str(tmp_path)), "_lease.json"), pytest.raises(StoreHeldError), folder(tmp_path).writing():
        pass


# Decoded stars -------------------------------------------------------------------------------------------------------
def decoded(config: Config, output: Path, *replacing: str, impute: bool = False) -> DecodeResult:
    request = DecodeOptions(output=str(output), impute=impute)
    result = run_stages(config, ["decode"], request=request, replacing=replacing, workers=Here())["decode"]
    assert isinstance(result, DecodeResult)
    return result


def state(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.parquet")}


@pytest.mark.slow
def test_decoding_is_resumed_and_never_mixed(small_run: Config, tmp_path: Path) -> None:
    config, output = copied(small_run, tmp_path / "store"), tmp_path / "stars"
    store, run = Store(config.store), RunPaths(config.name)
    rows = read_catalogue_record(store).rows
    assert decoded(config, output).rows == rows
    assert Manifest(store, run).require(f"decode {output}").result["uri"] == str(output)
    before = state(output)
    decoded(config, output)
    assert state(output) == before
    # A file that is gone, as after a kill: it alone is made.
    gone = sorted(before)[1]
    (output / gone).unlink()
    decoded(config, output)
    after = state(output)
    assert after.keys() == before.keys()
    assert {name for name in before if after[name] != before[name]} == {gone}
    # Another request, another run's model, and this run's model trained anew: none is mixed in.
    with pytest.raises(KeyMismatchError, match="impute: False there, True asked for"):
        decoded(config, output, impute=True)
    fewer = {"model": config.model.model_copy(update={"latents": 4}), "latent": config.latent.model_copy(update={"bits": 48})}
    other = config.model_copy(update={"name": "other", **fewer})
    make_run(other, "statistics", "train", "encode")
    with pytest.raises(KeyMismatchError, match=r"has rebuilt stars of another request .*model: .*--output"):
        decoded(other, output)
    assert state(output) == after
    run_stages(config, ["train"], replacing=["train"], workers=Here())
    assert f"decode {output}" not in Manifest(store, run).read().stages
    assert state(output) == after, "stars outside the run are left alone"
    make_run(config, "encode")
    assert decoded(config, output, "decode").rows == rows
    assert pq.read_table(output).num_rows == rows


@pytest.mark.slow
def test_nothing_is_dropped_for_a_request_that_cannot_be_met(small_run: Config, tmp_path: Path) -> None:
    config, output = copied(small_run, tmp_path / "store"), tmp_path / "stars"
    decoded(config, output)
    before = state(output)
    other = config.model_copy(update={"training": config.training.model_copy(update={"learning_rate": 0.5})})
    with pytest.raises(KeyMismatchError, match="learning_rate"):
        decoded(other, output, "decode")
    assert state(output) == before
    assert f"decode {output}" in Manifest(Store(config.store), RunPaths(config.name)).read().stages


@pytest.mark.slow
def test_stars_that_an_older_version_did_not_record_are_dropped_by_name(
    small_run: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config, output = copied(small_run, tmp_path / "store"), tmp_path / "stars"
    decoded(config, output)
    Manifest(Store(config.store), RunPaths(config.name)).remove(f"decode {output}")
    decoded(config, output, "decode", impute=True)
    assert "dropped decode of run small" in caplog.text


@pytest.mark.slow
def test_the_runs_configuration_is_that_of_its_own_stages(small_run: Config, tmp_path: Path) -> None:
    config = copied(small_run, tmp_path / "store")
    store, run = Store(config.store), RunPaths(config.name)
    before = store.read_bytes(run.config)
    decoded(config.model_copy(update={"quality": config.quality.model_copy(update={"rows": 777})}), tmp_path / "stars")
    assert store.read_bytes(run.config) == before


def test_a_result_of_another_version_is_named(small_run: Config, tmp_path: Path) -> None:
    config = copied(small_run, tmp_path / "store")
    store, run = Store(config.store), RunPaths(config.name)
    record = store.read_json(run.manifest)
    record["stages"]["train"]["result"]["loss_of_the_future"] = 1.0
    store.write_json(run.manifest, record)
    with pytest.raises(StoreError, match=r"manifest\.json has a result of train .*loss_of_the_future.*--replace train"):
        run_stages(config, ["train"], workers=Here())
