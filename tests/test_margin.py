"""The catalogue's margin: complete, found by readers, made again where it is missing, and LSDB's cross-match with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hats.catalog.catalog_collection import CatalogCollection
from hats.io.validation import is_valid_collection
from hats.loaders import read_hats
from made_up import made_up_stars
from scipy.spatial import KDTree
from small_run import context_of, copied, make_run, small_config

from gaiadask import publishing
from gaiadask.catalogue import Partition
from gaiadask.cluster.here import Here
from gaiadask.config.sections import Config
from gaiadask.errors import ConfigurationError
from gaiadask.ingest import read_catalogue_record
from gaiadask.margin import (
    GatherMargins,
    MarginRecord,
    at_edge,
    expected_share,
    fine_order,
    neighbourhoods,
    read_margin,
    strips_of,
)
from gaiadask.release.dr2 import DR2
from gaiadask.sky import healpix, unit_vector
from gaiadask.stages.engine import run_stages
from gaiadask.store import paths
from gaiadask.store.files import Store
from gaiadask.store.paths import Tile
from gaiadask.validate import validate

pytestmark = pytest.mark.slow

ARCSEC = 100.0
CORNERS = ((45.0, 0.0, 5_000), (0.0, 0.0, 13_000))
"""Where stars are, and how many: about a corner of base pixels, and about one of smaller pixels, into which so many are cut."""


def test_the_share_of_stars_that_is_expected_is_that_of_the_pixels_about_a_partition() -> None:
    order = publishing.margin_order(60)
    tiles = [Tile(2, 17), Tile(4, 1_000), Tile(5, 3)]
    around = [len(publishing.border(tile, order)) * 4.0 ** (tile.order - order) for tile in tiles]
    assert expected_share(60, tiles) == pytest.approx(sum(around) / 3, rel=1e-3)


def chord(arcsec: float) -> float:
    return float(2 * np.sin(np.radians(arcsec / 3600) / 2))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run of a catalogue whose stars are where partitions meet, with a margin."""
    folder, random = tmp_path_factory.mktemp("margin"), np.random.default_rng(0)
    ra, dec = (np.concatenate([c[i] + random.uniform(-0.7, 0.7, c[2]) for c in CORNERS]) for i in (0, 1))
    ra %= 360
    ids = healpix(ra, dec, 12) << 35 | np.arange(len(ra)) << 7
    table = made_up_stars(len(ra))
    for name, values in {"source_id": ids, "ra": ra, "dec": dec}.items():
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values))
    pq.write_table(table, folder / "stars.parquet")
    made = small_config(
        folder / "store",
        archive={"kind": "files", "uris": [str(folder / "stars.parquet")], "mock_stars": 1},
        selection={"columns": "seed16"},
        catalogue={"margin_arcsec": ARCSEC},
    )
    make_run(made, "ingest")
    return made


def catalogue_of(config: Config) -> pa.Table:
    store = Store(config.store)
    files = [f"{config.store}/catalogue/{tile.file}" for tile in read_catalogue_record(store).tiles]
    return pa.concat_tables([pq.read_table(file) for file in files])


def margin_of(config: Config) -> MarginRecord:
    record = read_margin(Store(config.store))
    assert record is not None
    return record


@pytest.mark.parametrize("order", [0, 1, 3])
def test_what_touches_a_tile_from_outside_is_at_the_edge_of_its_own(order: int) -> None:
    random, fine = np.random.default_rng(order), order + 4
    inside = np.arange(4**4) << 2 * (29 - fine)
    assert at_edge(inside, Tile(order, 0), fine).sum() == 4 * 2**4 - 4
    for pixel in random.integers(0, 12 * 4**order, 8).tolist():
        border = publishing.border(Tile(order, pixel), fine)
        assert len(border) >= 4 * 2**4
        for each in border.tolist():
            own = Tile(order, each >> 8)
            assert own.pixel != pixel
            assert at_edge(np.array([each << 2 * (29 - fine)]), own, fine).all()


def test_every_star_that_is_near_a_partition_is_in_its_margin(config: Config) -> None:
    stars, margin = catalogue_of(config), margin_of(config)
    tiles = read_catalogue_record(Store(config.store)).tiles
    assert len(tiles) >= 7 and {tile.order for tile in tiles} >= {0, 1}, tiles
    index, ids = (stars[name].to_numpy() for name in ("_healpix_29", "source_id"))
    places = unit_vector(stars["ra"].to_numpy(), stars["dec"].to_numpy())
    in_margin = {p.tile: pq.read_table(f"{config.store}/margin/{p.tile.file}") for p in margin.partitions}
    some = 0
    for tile in tiles:
        first, stop = tile.healpix_29
        inside = (index >= first) & (index < stop)
        near, _ = KDTree(places[inside]).query(places[~inside])
        missed = set(ids[~inside][near <= chord(ARCSEC)]) - set(
            in_margin[tile]["source_id"].to_pylist() if tile in in_margin else []
        )
        assert not missed, tile
        some += int((near <= chord(ARCSEC)).sum())
        if tile in in_margin:
            own = in_margin[tile]["_healpix_29"].to_numpy()
            assert ((own < first) | (own >= stop)).all() and (np.diff(own) >= 0).all()
    assert some > 200
    # Not much more than it has to have: a pixel is at most some four times as wide as the margin.
    assert some < margin.rows < 6 * some
    assert all(table.schema.names == stars.schema.names for table in in_margin.values())


def test_readers_find_it_and_hats_and_validate_have_nothing_against_it(config: Config) -> None:
    collection = read_hats(config.store)
    assert isinstance(collection, CatalogCollection) and is_valid_collection(config.store, strict=True)
    assert collection.get_margin_thresholds() == {"margin": ARCSEC}
    assert not Store(config.store).exists(paths.MARGIN_STRIPS)
    assert not validate(Here(), Store(config.store), DR2)


@pytest.mark.usefixtures("in_this_process")
def test_a_cross_match_over_borders_is_complete_with_it_and_not_without(config: Config) -> None:
    lsdb = pytest.importorskip("lsdb")
    stars, random, radius = catalogue_of(config), np.random.default_rng(1), 90.0
    moved = stars.select(["source_id", "ra", "dec"]).to_pandas().sample(4_000, random_state=1)
    for name in ("ra", "dec"):
        moved[name] += random.uniform(-80, 80, len(moved)) / 3600
    moved["ra"] %= 360
    left = lsdb.from_dataframe(moved, ra_column="ra", dec_column="dec", lowest_order=1)
    tree = KDTree(unit_vector(stars["ra"].to_numpy(), stars["dec"].to_numpy()))
    nearest, number = tree.query(unit_vector(moved["ra"].to_numpy(), moved["dec"].to_numpy()))
    expected = dict(zip(moved["source_id"], stars["source_id"].to_numpy()[number], strict=True))
    wanted = {own: other for (own, other), near in zip(expected.items(), nearest <= chord(radius), strict=True) if near}
    found = []
    for place in (config.store, f"{config.store}/catalogue"):
        right = lsdb.open_catalog(place, columns=["source_id", "ra", "dec"])
        matched = left.crossmatch(right, radius_arcsec=radius, suffixes=("_l", "_r"), suffix_method="all_columns").compute()
        found.append(dict(zip(matched["source_id_l"], matched["source_id_r"], strict=True)))
    assert found[0] == wanted
    missed = [own for own in wanted if found[1].get(own) != wanted[own]]
    assert len(missed) > 5, "without it some have no match, or one that is not the nearest"


def test_a_margin_that_is_missing_damaged_or_of_another_width_is_made_again(config: Config, tmp_path: Path) -> None:
    own = copied(config, tmp_path / "store")
    store, rows = Store(own.store), margin_of(own).rows
    file = Path(own.store) / "margin" / margin_of(own).partitions[0].tile.file
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    assert any("margin" in finding.where for finding in validate(Here(), store, DR2))
    chunks = (Path(own.store) / paths.LEDGER).stat().st_mtime_ns
    run_stages(own, ["ingest"], workers=Here())
    assert file.read_bytes() == whole and (Path(own.store) / paths.LEDGER).stat().st_mtime_ns == chunks
    other = own.model_copy(update={"catalogue": own.catalogue.model_copy(update={"margin_arcsec": 20.0})})
    run_stages(other, ["ingest"], workers=Here())
    assert margin_of(own).arcsec == 20.0 and 0 < margin_of(own).rows < rows
    # One that is not asked for is left: another run may read it. With the catalogue it goes.
    none = own.model_copy(update={"catalogue": own.catalogue.model_copy(update={"margin_arcsec": 0.0})})
    run_stages(none, ["ingest"], workers=Here())
    assert store.exists(paths.COLLECTION) and margin_of(own).arcsec == 20.0
    run_stages(none, ["ingest"], replacing=["ingest"], workers=Here())
    assert not store.exists(paths.COLLECTION) and not store.exists(paths.MARGIN)


def test_one_that_was_stopped_midway_is_absent_and_made_at_the_next_start(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = copied(config, tmp_path / "store")
    store = Store(own.store)
    store.remove(paths.MARGIN_RECORD)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(GatherMargins, "__call__", _stopped)
        run_stages(own, ["ingest"], workers=Here())
    assert not store.exists(paths.COLLECTION) and not store.exists(paths.MARGIN_RECORD)
    assert not store.exists(f"{paths.MARGIN}/{paths.HATS_MARKER}")
    run_stages(own, ["statistics"], workers=Here())  # no later stage needs it
    run_stages(own, ["ingest"], workers=Here())
    assert margin_of(own) == margin_of(config) and context_of(own).catalogue.id == margin_of(own).catalogue_id


def _stopped(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_piece_of_work_names_the_strips_near_its_tiles_only() -> None:
    tiles = [Tile(3, pixel) for pixel in range(12 * 4**3)]
    strips = strips_of([Partition(tile=tile, rows=1_000_000, checksum="") for tile in tiles])
    pieces = neighbourhoods([[tile] for tile in tiles], strips)
    assert len(strips) == len(tiles) and {len(piece.strips) for piece in pieces} == {7, 8}  # 7 where three base pixels meet
    piece = pieces[Tile(3, 100).pixel]
    assert piece.tiles == (Tile(3, 100),)
    assert [strip.tiles for strip in piece.strips] == [(Tile(3, pixel),) for pixel in publishing.border(Tile(3, 100), 3).tolist()]


def test_a_margin_wider_than_partitions_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"margin_arcsec = 600 is too wide .* order 9: give at most 1.3e\+02"):
        fine_order(600.0, [Tile(3, 1), Tile(9, 5)])
