"""HATS catalogues: written whole, published last, read by others; damage is named."""

from __future__ import annotations

import errno
import logging
from pathlib import Path

import lsdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hats.io.parquet_metadata import write_parquet_metadata
from hats.io.validation import is_valid_catalog
from small_run import fetched, read_key, small_config

from gaiadask import catalogue, publishing
from gaiadask.catalogue import Partition
from gaiadask.errors import DataError, StoreError
from gaiadask.release.column import HEALPIX_29, SOURCE_ID
from gaiadask.release.dr2 import COLUMNS, DR2
from gaiadask.sky import healpix, healpix_of_source_id, separation_deg
from gaiadask.split import Part, chosen, hash_bound
from gaiadask.store import attempts
from gaiadask.store.files import Store
from gaiadask.store.parquet import ParquetReader
from gaiadask.store.paths import HATS_MARKER, Tile

FOLDER = "catalogue"
NAMES = ("parallax", "phot_g_mean_flux", "teff_val")


def _stars() -> pa.Table:
    rows = fetched(
        small_config(
            "unused",
            archive={"mock_stars": 3_000},
            selection={"not_null": (), "columns": NAMES},
            model={"columns": NAMES},
        )
    )
    index = healpix(rows["ra"].to_numpy(), rows["dec"].to_numpy())
    schema = DR2.catalogue_schema(rows.column_names)
    return catalogue.sort_rows(rows.append_column(HEALPIX_29, pa.array(index)).select(schema.names).cast(schema))


STARS = _stars()
TILES = [Tile(0, 0), *(Tile(1, pixel) for pixel in range(4, 8)), *(Tile(0, pixel) for pixel in range(2, 12))]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def in_tile(tile: Tile) -> pa.Table:
    first, stop = tile.healpix_29
    index = STARS[HEALPIX_29].to_numpy()
    return STARS.filter(pa.array((index >= first) & (index < stop)))


def write(store: Store, footer: dict[str, str] | None = None) -> list[Partition]:
    return [catalogue.write_partition(store, FOLDER, tile, in_tile(tile), footer or {}) for tile in TILES]


def publish(store: Store, partitions: list[Partition] | None = None) -> list[Partition]:
    partitions = write(store) if partitions is None else partitions
    summary = publishing.summary_of(store, FOLDER, publishing.has_footers(partitions), partitions)
    publishing.publish(store, FOLDER, "stars", partitions, {"gaiadask_catalogue_id": "abc"}, summary)
    return partitions


# Partitions ----------------------------------------------------------------------------------------------------------
def test_rows_of_another_tile_are_refused(store: Store) -> None:
    rows = pa.concat_tables([in_tile(TILES[0]), in_tile(TILES[1]).slice(0, 3)])
    with pytest.raises(DataError, match=rf"partition Norder=0/Npix=0: 3 of {len(rows)} rows lie in another tile"):
        catalogue.write_partition(store, FOLDER, TILES[0], rows, {})
    assert store.list("") == []


@pytest.mark.parametrize("tile", [Tile(0, 0), Tile(1, 5), Tile(6, 1), Tile(29, 12)])
def test_the_range_of_a_tile_is_half_open(tile: Tile) -> None:
    first, stop = tile.healpix_29
    catalogue.check_rows_in_tile(pa.table({HEALPIX_29: pa.array(sorted({first, stop - 1}), pa.int64())}), tile)
    for outside in (first - 1, stop):
        with pytest.raises(DataError, match="1 of 1 rows lie in another tile"):
            catalogue.check_rows_in_tile(pa.table({HEALPIX_29: pa.array([outside], pa.int64())}), tile)
    assert Tile(tile.order, tile.pixel + 1).healpix_29[0] == stop, "the next begins where it ends"
    if tile.order <= 12:
        low, high = tile.source_ids
        pixels = healpix_of_source_id(np.array([max(low - 1, 0), low, high - 1, high]), tile.order).tolist()
        assert pixels == [max(tile.pixel - 1, 0), tile.pixel, tile.pixel, tile.pixel + 1]


def test_rows_out_of_order_are_refused(store: Store) -> None:
    rows = in_tile(TILES[0])
    swapped = rows.take(pa.array([1, 0, *range(2, len(rows))]))
    neighbours = pa.table({HEALPIX_29: pa.array([8, 7], pa.int64())})
    for table in (swapped, neighbours):
        with pytest.raises(DataError, match="partition Norder=0/Npix=0: rows are not sorted by _healpix_29"):
            catalogue.write_partition(store, FOLDER, TILES[0], table, {})
    assert store.list("") == []


def test_a_partition_comes_back_as_it_was(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "ROW_GROUP_ROWS", 50)
    tile, rows = TILES[0], in_tile(TILES[0])
    written = catalogue.write_partition(store, FOLDER, tile, rows, {"gaiadask.key": "k"})
    assert catalogue.read_partition(store, FOLDER, tile).equals(rows)
    pieces = list(catalogue.iterate_partition(store, FOLDER, tile, [SOURCE_ID]))
    assert max(map(len, pieces)) <= 50
    assert sum(map(len, pieces)) == len(rows) == written.rows
    assert catalogue.reread(store, FOLDER, tile) == written
    assert read_key(store, f"{FOLDER}/{tile.file}") == "k"
    assert read_key(store, f"{FOLDER}/{Tile(0, 3).file}") is None
    assert Partition.model_validate(written.to_json()) == written


def test_the_same_rows_have_the_same_checksum(store: Store, tmp_path: Path) -> None:
    assert write(store) == write(Store(str(tmp_path / "other")))


def test_stars_at_one_position_are_in_order(store: Store) -> None:
    rows = in_tile(TILES[0]).slice(0, 3).take(pa.array([0, 1, 1, 2]))
    assert catalogue.write_partition(store, FOLDER, TILES[0], rows, {}).rows == 4


def test_a_partition_has_an_index_of_its_pages(store: Store) -> None:
    """Cone searches read the pages that they need."""
    write(store)
    column = pq.read_metadata(store.path(f"{FOLDER}/{TILES[0].file}")).row_group(0).column(0)
    assert column.has_offset_index and column.has_column_index
    assert not column.has_dictionary_page, "measured values do not repeat"


@pytest.mark.slow
@pytest.mark.parametrize("part", Part)
def test_the_chosen_stars_of_a_partition_are_those_of_the_split(store: Store, monkeypatch: pytest.MonkeyPatch, part: Part) -> None:
    monkeypatch.setattr(catalogue, "ROW_GROUP_ROWS", 50)
    write(store)
    rows, below = in_tile(TILES[0]), hash_bound(part, 20, len(in_tile(TILES[0])))
    pieces = list(catalogue.iterate_chosen(store, FOLDER, TILES[0], part, below, [SOURCE_ID, "parallax"]))
    wanted = rows.filter(pa.array(chosen(rows[SOURCE_ID].to_numpy(), part, below))).select([SOURCE_ID, "parallax"])
    assert 0 < len(wanted) < len(rows) / 2 and len(pieces) == -(-len(rows) // 50)
    assert pa.concat_tables(pieces).equals(wanted)
    assert pa.concat_tables(catalogue.iterate_chosen(store, FOLDER, TILES[0], part, 2.0)).column_names == rows.column_names


def test_unknown_columns_are_named(store: Store) -> None:
    write(store)
    with pytest.raises(DataError, match=r"has no column\(s\) \['parallaxe'\]; it has .*'parallax'"):
        catalogue.read_partition(store, FOLDER, TILES[0], ["parallaxe"])


def test_damaged_and_missing_files_are_named(store: Store) -> None:
    write(store)
    path = Path(store.path(f"{FOLDER}/{TILES[0].file}"))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StoreError, match=r"Norder=0/Dir=0/Npix=0\.parquet is not a whole parquet file"):
        catalogue.read_partition(store, FOLDER, TILES[0])
    # The footer whole, the pages not.
    path.write_bytes(whole[:4] + bytes(len(whole) // 2) + whole[4 + len(whole) // 2 :])
    with pytest.raises(StoreError, match=r"Norder=0/Dir=0/Npix=0\.parquet is damaged"):
        catalogue.read_partition(store, FOLDER, TILES[0])
    path.unlink()
    with pytest.raises(StoreError, match=r"Npix=0\.parquet: no such file"):
        catalogue.read_partition(store, FOLDER, TILES[0])


# Publishing ----------------------------------------------------------------------------------------------------------
def test_a_published_catalogue_is_valid_and_says_what_it_is(store: Store) -> None:
    publish(store)
    assert catalogue.is_published(store, FOLDER)
    assert is_valid_catalog(store.uri_of(FOLDER), strict=True)
    properties = publishing.read_properties(store, FOLDER)
    assert (properties.total_rows, properties.ra_column, properties.healpix_column) == (len(STARS), "ra", HEALPIX_29)
    assert properties.extra_dict()["gaiadask_catalogue_id"] == "abc"
    counts = publishing.read_skymap(store, FOLDER)
    order = int(np.log2(len(counts) // 12) / 2)
    assert np.array_equal(counts, np.bincount(STARS[HEALPIX_29].to_numpy() >> (2 * (29 - order)), minlength=len(counts)))


def test_the_footers_and_the_schema_are_what_hats_makes_of_the_files(store: Store, tmp_path: Path) -> None:
    publish(store, write(store, {"gaiadask.key": "k"}))
    write_parquet_metadata(store.uri_of(FOLDER), output_path=tmp_path, create_metadata=True)
    footers, common = (Path(store.path(f"{FOLDER}/dataset/{name}")) for name in ("_metadata", "_common_metadata"))
    assert footers.read_bytes() == (tmp_path / "dataset/_metadata").read_bytes()
    assert pq.read_schema(common).equals(pq.read_schema(tmp_path / "dataset/_common_metadata"))
    assert pq.read_schema(common).metadata[b"gaiadask.key"] == b"k"


def test_a_summary_does_not_depend_on_how_partitions_are_grouped(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "ROW_GROUP_ROWS", 50)
    partitions = write(store)
    whole = publishing.summary_of(store, FOLDER, True, partitions)
    parts = [publishing.summary_of(store, FOLDER, True, partitions[first : first + 4]) for first in range(0, len(partitions), 4)]
    merged = publishing.merged_summaries(parts)
    assert merged.rows == whole.rows == len(STARS) and (merged.first, merged.schema) == (whole.first, whole.schema)
    assert np.array_equal(merged.pixels, whole.pixels) and np.array_equal(merged.stars, whole.stars)
    assert [tile for tile, _ in merged.footers] == [tile for tile, _ in whole.footers] == TILES


def test_a_row_group_in_one_pixel_of_the_sky_map_is_not_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    index = STARS[HEALPIX_29].to_numpy()
    tile = Tile(7, int(index[0]) >> 44)
    partition = catalogue.write_partition(store, FOLDER, tile, STARS.filter(pa.array(index >> 44 == tile.pixel)), {})
    monkeypatch.setattr(ParquetReader, "read_row_group", lambda *_: pytest.fail("it was read"))
    summary = publishing.summary_of(store, FOLDER, False, [partition])
    assert (summary.pixels.tolist(), summary.stars.tolist(), summary.footers) == ([tile.pixel // 4], [partition.rows], ())


@pytest.mark.slow
def test_of_many_row_groups_the_footers_are_left_out(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """One file of all footers would be larger than a reader's memory; hats and lsdb do without."""
    publish(store)
    monkeypatch.setattr(publishing, "MOST_ROW_GROUPS", len(TILES) - 1)
    partitions = publish(store)
    assert not store.exists(f"{FOLDER}/dataset/_metadata"), "the earlier one would be of other files"
    assert is_valid_catalog(store.uri_of(FOLDER), strict=True)
    assert publishing.wrong_metadata(store, FOLDER, partitions, len(STARS), "abc") == []
    assert len(lsdb.open_catalog(store.uri_of(FOLDER)).compute()) == len(STARS)


@pytest.mark.parametrize("rows", [[10], [70_000] * 3, [10] * 130, [200_000, 5, 5, 131_066]])
def test_batches_are_of_neighbours_that_are_small_together(rows: list[int]) -> None:
    partitions = [Partition(tile=Tile(5, i), rows=n, checksum="") for i, n in enumerate(rows)]
    found = catalogue.batches(partitions)
    assert [p for batch in found for p in batch] == partitions
    assert all(len(batch) == 1 or sum(p.rows for p in batch) <= catalogue.BATCH_ROWS for batch in found)
    assert [len(batch) for batch in found] == {1: [1], 3: [1, 1, 1], 130: [64, 64, 2], 4: [1, 2, 1]}[len(rows)]


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2, 64])
@pytest.mark.parametrize("rows", [[10], [200_000] * 60, [10] * 2_000, [3_000_000, 5, 5]])
def test_pieces_of_work_taper_off(rows: list[int], threads: int) -> None:
    partitions = [Partition(tile=Tile(7, i), rows=n, checksum="") for i, n in enumerate(rows)]
    found = catalogue.tapering(partitions, threads)
    assert [p for group in found for p in group] == partitions
    sizes = [sum(max(p.rows, 2_048) for p in group) for group in found]
    assert all(len(group) == 1 or size <= catalogue.LARGEST_BATCH_ROWS for group, size in zip(found, sizes, strict=True))
    if rows[0] == 200_000:
        assert max(sizes) == {1: 1_000_000, 2: 1_000_000, 64: 200_000}[threads]
        # When the last piece begins, the others have less to do than it: all end together.
        assert sizes == sorted(sizes, reverse=True) and sizes[-1] == 200_000


def test_units_and_ucds_are_where_readers_look(store: Store) -> None:
    publish(store)
    for file in (f"{FOLDER}/{TILES[0].file}", f"{FOLDER}/dataset/_common_metadata"):
        field = pq.read_schema(store.path(file)).field("parallax")
        assert field.metadata[b"unit"] == b"mas"
        assert field.metadata[b"ucd"].decode() == COLUMNS["parallax"].ucd
    common = pq.read_schema(store.path(f"{FOLDER}/dataset/_common_metadata")).metadata
    votable = common[b"IVOA.VOTable-Parquet.content"].decode()
    assert 'unit="mas"' in votable
    assert f'ucd="{COLUMNS["parallax"].ucd}"' in votable


class KilledError(BaseException):
    """What a kill looks like from inside: nothing after it runs but `finally`."""


@pytest.mark.slow
@pytest.mark.parametrize("step", ["write_voparquet_in_common_metadata", "write_skymap", "is_valid_catalog"])
@pytest.mark.parametrize("published_before", [False, True])
def test_the_marker_comes_last_and_goes_first(
    store: Store, monkeypatch: pytest.MonkeyPatch, step: str, published_before: bool
) -> None:
    partitions = publish(store) if published_before else write(store)

    def killed(*_: object, **__: object) -> None:
        raise KilledError

    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(publishing, step, killed)
        publish(store, partitions)
    # Validation reads the marker, so it is the one step that comes after it.
    assert catalogue.is_published(store, FOLDER) == (step == "is_valid_catalog")
    publish(store, partitions)
    assert catalogue.is_published(store, FOLDER)
    assert is_valid_catalog(store.uri_of(FOLDER), strict=True)


@pytest.mark.slow
@pytest.mark.parametrize("before", publishing.METADATA_FILES)
def test_a_catalogue_without_all_its_metadata_is_not_published(store: Store, monkeypatch: pytest.MonkeyPatch, before: str) -> None:
    partitions, write_bytes = write(store), Store.write_bytes

    def killed(self: Store, name: str, content: bytes) -> None:
        if name.endswith(before):
            raise KilledError
        write_bytes(self, name, content)

    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(Store, "write_bytes", killed)
        publish(store, partitions)
    assert not catalogue.is_published(store, FOLDER)
    with pytest.raises(StoreError, match=f"no published catalogue.*{HATS_MARKER}"):
        publishing.read_properties(store, FOLDER)


def test_files_of_tiles_that_are_none_are_removed(store: Store) -> None:
    partitions = write(store)
    stranger = Tile(1, 0)
    catalogue.write_partition(store, FOLDER, stranger, in_tile(stranger), {})
    leftover = Path(store.path(f"{FOLDER}/{TILES[0].file}.partial-1234"))
    leftover.write_bytes(b"half")
    publish(store, partitions)
    assert not store.exists(f"{FOLDER}/{stranger.file}")
    assert not leftover.exists()
    assert sorted(store.list(f"{FOLDER}/dataset", ".parquet")) == sorted(f"{FOLDER}/{tile.file}" for tile in TILES)


def test_a_partition_that_was_changed_is_not_published(store: Store) -> None:
    partitions = write(store)
    path = store.path(f"{FOLDER}/{TILES[0].file}")
    pq.write_table(pq.read_table(path).slice(1), path)
    with pytest.raises(DataError, match=rf"{len(STARS)} rows were written, its files hold {len(STARS) - 1}"):
        publish(store, partitions)
    assert not catalogue.is_published(store, FOLDER)


def test_what_hats_refuses_is_not_published_and_its_reasons_are_told(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """hats tells them in its log alone; what the log had before and has after is none of them."""

    def refuses(*_: object, strict: bool) -> bool:
        assert strict, "not all files are looked at otherwise"
        logging.getLogger("hats").warning("the partitions\n are upside down")
        return False

    logging.getLogger("hats").warning("something else")
    monkeypatch.setattr(publishing, "is_valid_catalog", refuses)
    with pytest.raises(DataError, match="is not a valid HATS catalogue: the partitions are upside down: not published"):
        publish(store)
    assert not catalogue.is_published(store, FOLDER)
    assert publishing.strict_problems(store, FOLDER) == ["the partitions are upside down"]
    monkeypatch.setattr(publishing, "is_valid_catalog", lambda *_, **__: False)
    assert publishing.strict_problems(store, FOLDER) == ["hats' strict validation refuses it and gives no reason"]

    def breaks(*_: object, **__: object) -> bool:
        raise KeyError("hats_nrows")

    monkeypatch.setattr(publishing, "is_valid_catalog", breaks)
    assert publishing.strict_problems(store, FOLDER) == ["hats cannot read it: 'hats_nrows'"]
    assert not any(isinstance(handler, publishing._Warnings) for handler in logging.getLogger().handlers)


def test_an_error_that_passes_is_no_verdict_on_a_catalogue(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stale file handle while hats reads: it is read again, and what was published stays published."""
    publish(store)
    calls: list[int] = []

    def stale_twice(*arguments: object, **named: object) -> bool:
        calls.append(0)
        if len(calls) < 3:
            raise OSError(errno.ESTALE, "Stale file handle")
        return bool(is_valid_catalog(*arguments, **named))

    monkeypatch.setattr(attempts, "sleep", lambda _: None)
    monkeypatch.setattr(publishing, "is_valid_catalog", stale_twice)
    assert publishing.strict_problems(store, FOLDER) == []
    assert len(calls) == 3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Error validating header")
@pytest.mark.parametrize("name", ["dataset/_metadata", "skymap.fits", HATS_MARKER])
def test_metadata_that_cannot_be_read_is_a_finding(store: Store, name: str) -> None:
    partitions = publish(store)
    assert publishing.wrong_metadata(store, FOLDER, partitions, len(STARS), "abc") == []
    path = Path(store.path(f"{FOLDER}/{name}"))
    path.write_bytes(path.read_bytes()[:40])
    (found,) = publishing.wrong_metadata(store, FOLDER, partitions, len(STARS), "abc")
    assert (found.name, found.expected) == ("the metadata", "whole files")
    assert str(found.value).startswith("unreadable (")


@pytest.mark.slow
def test_lsdb_opens_it_and_finds_every_star_of_a_cone(store: Store) -> None:
    publish(store)
    opened = lsdb.open_catalog(store.uri_of(FOLDER))
    assert len(opened) == len(STARS)
    ra, dec, radius_deg = 266.4, -28.9, 12.0
    found = opened.cone_search(ra, dec, radius_deg * 3600).compute()
    distance = separation_deg(STARS["ra"].to_numpy(), STARS["dec"].to_numpy(), ra, dec)
    wanted = STARS[SOURCE_ID].to_numpy()[distance <= radius_deg]
    assert len(wanted) > 50
    assert sorted(found[SOURCE_ID]) == sorted(wanted)
