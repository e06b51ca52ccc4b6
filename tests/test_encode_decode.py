"""Stars to latents and back: every star, nulls where they were, derived columns that follow from the rebuilt ones."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import untrained as untrained_outcome
from small_run import copied, fetched, make_run, read_key

from gaiadask import catalogue
from gaiadask.catalogue import Partition
from gaiadask.config.model import ModelConfig
from gaiadask.config.sections import Config
from gaiadask.decode import decode, decoded_schema
from gaiadask.encode import encode
from gaiadask.errors import DataError, KeyMismatchError, StoreError
from gaiadask.impute import imputable
from gaiadask.ingest import read_catalogue_record
from gaiadask.inputs.nulls import is_null, mask_names
from gaiadask.inputs.statistics import Statistics
from gaiadask.inputs.transform import Transform
from gaiadask.model import StarModel
from gaiadask.model.card import latent_names
from gaiadask.model.files import new_network, save_model
from gaiadask.model.source import ModelSource
from gaiadask.product import latent_key
from gaiadask.release.column import DEC, HEALPIX_29, RA, SOURCE_ID
from gaiadask.release.dr2 import COLUMNS, DR2, SEED16
from gaiadask.run import open_run
from gaiadask.sky import healpix
from gaiadask.stages.decode import DecodePartitions
from gaiadask.stages.encode import EncodePartitions
from gaiadask.stages.statistics import batch_statistics
from gaiadask.store import paths
from gaiadask.store.files import Store
from gaiadask.store.manifest import Manifest
from gaiadask.store.paths import RunPaths


@pytest.fixture(scope="module")
def stars(small_run: Config) -> pa.Table:
    """What the archive gave: nulls in the archive's blocks."""
    return fetched(small_run)


def untrained(table: pa.Table, columns: tuple[str, ...] = SEED16, position: str = "condition", latents: int = 5) -> StarModel:
    """A model of other columns: what holds of any network holds of one that learned nothing."""
    transform = Transform.fit(columns, Statistics.from_table(table, DR2).train, DR2, position)  # type: ignore[arg-type]
    config = ModelConfig(columns=columns, latents=latents, hidden=(8,))
    store = Store("memory://untrained")
    return save_model(store, RunPaths("r"), new_network(transform, config), transform, untrained_outcome(config, "untrained"))


def test_every_star_is_encoded_and_nulls_come_back_where_they_were(stars: pa.Table, star_model: StarModel) -> None:
    latents = encode(stars, star_model)
    assert latents.column_names == [SOURCE_ID, HEALPIX_29, RA, DEC, "null_mask", *latent_names(6)]
    assert latents[SOURCE_ID].equals(stars[SOURCE_ID])
    assert np.array_equal(latents[HEALPIX_29].to_numpy(), healpix(stars[RA].to_numpy(), stars[DEC].to_numpy()))
    rebuilt = decode(latents, star_model)
    assert rebuilt.column_names == [SOURCE_ID, *SEED16]
    assert {"bp_rp", "lum_val"} <= set(star_model.transform.derived)
    some_null = 0
    for name in SEED16:
        assert rebuilt.schema.field(name).equals(COLUMNS[name].field, check_metadata=True)
        lost = pc.and_(rebuilt[name].is_null(), stars[name].is_valid())
        # Where the network rebuilds a parallax or flux that is not positive, what follows from it is not defined.
        assert not pc.any(pc.and_(rebuilt[name].is_valid(), stars[name].is_null())).as_py(), name
        if name not in star_model.transform.derived:
            assert not pc.any(lost).as_py(), name
        some_null += stars[name].null_count > 0
    assert some_null >= 6


def test_positions_are_carried_to_the_bit(stars: pa.Table, star_model: StarModel) -> None:
    rebuilt = decode(encode(stars, star_model), star_model)
    assert rebuilt[RA].equals(stars[RA])
    assert rebuilt[DEC].equals(stars[DEC])


def test_what_a_star_lacks_can_be_asked_for(stars: pa.Table, star_model: StarModel) -> None:
    latents = encode(stars, star_model)
    plain, asked = decode(latents, star_model), decode(latents, star_model, impute=True)
    lacking = imputable(star_model)
    assert {"parallax", "radial_velocity", "teff_val", "lum_val"} <= set(lacking)
    assert asked.column_names == [*plain.column_names, *(f"{name}_std" for name in lacking)]
    assert asked.schema.equals(decoded_schema(star_model, True, SOURCE_ID))
    for name in SEED16:
        null = stars[name].is_null()
        if not pc.any(null).as_py():
            assert asked[name].equals(plain[name]), name
            continue
        assert pc.if_else(null, None, asked[name]).equals(pc.if_else(null, None, plain[name])), name
        std = asked[f"{name}_std"]
        assert pc.all(pc.or_(null, std.is_null())).as_py(), name
        told = asked[name].filter(null).is_valid()
        # A derived value of a star whose guessed parallax or flux is not positive is undefined.
        assert pc.all(told).as_py() or name in star_model.transform.derived
        assert pc.all(pc.greater_equal(std.filter(null).filter(told), 0)).as_py(), name
        assert np.isfinite(asked[name].filter(null).drop_null().to_numpy()).all()
    # The same star among others, and alone.
    few = decode(latents.slice(100, 5), star_model, impute=True)
    for name in few.column_names:
        assert np.allclose(few[name].fill_null(0).to_numpy(), asked[name].slice(100, 5).fill_null(0).to_numpy(), rtol=1e-4), name


def test_a_model_that_does_not_know_its_errors_guesses_nothing(stars: pa.Table) -> None:
    model = untrained(stars)
    with pytest.raises(DataError, match=r"lacks its errors, .*--replace train"):
        decode(encode(stars, model), model, impute=True)


def test_what_is_derived_follows_from_what_is_rebuilt(stars: pa.Table, star_model: StarModel) -> None:
    rebuilt = decode(encode(stars, star_model), star_model)
    names = star_model.transform.derived
    free = {n: np.asarray(rebuilt[n].to_numpy(), COLUMNS[n].dtype.to_pandas_dtype()) for n in SEED16 if n not in names}
    for name, values in DR2.derive(free, names).items():
        told = rebuilt[name].is_valid().to_numpy()
        assert told.any()
        # The free columns that a star lacks are not in the decoded table, but what derives from them is null then too.
        known = np.isfinite(values) & told
        assert known.sum() > 0.9 * told.sum()
        assert np.array_equal(rebuilt[name].to_numpy()[known], values[known]), name


def test_the_model_has_learned_something(stars: pa.Table, star_model: StarModel) -> None:
    rebuilt = decode(encode(stars, star_model), star_model)
    for name in ("phot_g_mean_flux", "bp_rp"):
        errors = pc.abs(pc.subtract(rebuilt[name], stars[name])).drop_null().to_numpy()
        spread = np.subtract(*np.nanpercentile(stars[name].to_numpy(), [75, 25]))
        assert np.median(errors) < 0.25 * spread, name


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_nulls_survive_the_round_trip(data: st.DataObject, stars: pa.Table, star_model: StarModel) -> None:
    few = stars.slice(data.draw(st.integers(0, len(stars) - 8)), 8)
    for name in SEED16[2:]:
        lost = data.draw(st.lists(st.booleans(), min_size=8, max_size=8))
        values = pc.if_else(pa.array(lost), pa.scalar(None, few[name].type), few[name])
        few = few.set_column(few.schema.get_field_index(name), few.schema.field(name), values)
    latents = encode(few, star_model)
    rebuilt = decode(latents, star_model)
    for i, name in enumerate(SEED16):
        null = is_null(latents["null_mask"].to_numpy()[:, None], i)
        assert np.array_equal(null, few[name].is_null().to_numpy()), name
        assert not (rebuilt[name].is_valid().to_numpy() & null).any(), name
        if name not in star_model.transform.derived:
            assert np.array_equal(rebuilt[name].is_null().to_numpy(), null), name


def test_a_star_does_not_depend_on_the_others(stars: pa.Table, star_model: StarModel) -> None:
    whole = encode(stars, star_model)
    pieces = pa.concat_tables([encode(stars.slice(0, 1_000), star_model), encode(stars.slice(1_000), star_model)])
    for name in latent_names(6):
        assert np.allclose(whole[name].to_numpy(), pieces[name].to_numpy(), rtol=0, atol=1e-5)


def test_columns_beyond_63_need_a_second_mask_word() -> None:
    assert mask_names(63) == ["null_mask"]
    assert mask_names(64) == ["null_mask", "null_mask_1"]
    mask = np.array([[1 << 62, 1 << 1]], dtype=np.int64)
    assert [bool(is_null(mask, i)[0]) for i in (61, 62, 63, 64)] == [False, True, False, True]


# Positions -----------------------------------------------------------------------------------------------------------
def test_a_conditioned_model_has_no_positions_of_its_own(stars: pa.Table, star_model: StarModel) -> None:
    latents = encode(stars.slice(0, 10), star_model)
    with pytest.raises(DataError, match=r"positions='model': this model takes position as a condition.*'catalogue'"):
        decode(latents, star_model, positions="model")
    with pytest.raises(DataError, match=r"cannot decode: no column dec\. Columns found: source_id"):
        decode(latents.drop_columns(["dec"]), star_model)


def test_a_model_with_positions_among_its_inputs_rebuilds_them(stars: pa.Table) -> None:
    model = untrained(stars, position="input")
    latents = encode(stars, model)
    carried, own = decode(latents, model), decode(latents, model, positions="model")
    assert carried[RA].equals(stars[RA])
    assert not own[RA].equals(stars[RA])
    assert all(0 <= ra < 360 for ra in own[RA].to_pylist())
    assert all(-90 <= dec <= 90 for dec in own[DEC].to_pylist())
    alone = latents.drop_columns([RA, DEC])
    assert decode(alone, model)[RA].equals(own[RA])


# Columns that do not fit ---------------------------------------------------------------------------------------------
def test_missing_columns_are_named(stars: pa.Table, star_model: StarModel) -> None:
    with pytest.raises(DataError, match=r"cannot encode: no column parallax, bp_rp\. Columns found"):
        encode(stars.drop_columns(["parallax", "bp_rp"]), star_model)
    with pytest.raises(DataError, match=r"cannot decode: no column null_mask, z03\. Columns found"):
        decode(encode(stars, star_model).drop_columns(["z03", "null_mask"]), star_model)


def test_more_columns_than_the_models_are_no_matter(stars: pa.Table, star_model: StarModel) -> None:
    assert "parallax_error" in stars.column_names
    names = [SOURCE_ID, *reversed(SEED16)]
    assert encode(stars.select(names), star_model).equals(encode(stars, star_model))


@pytest.mark.parametrize("value", [None, math.nan])
def test_a_star_without_position_is_refused(stars: pa.Table, star_model: StarModel, value: float | None) -> None:
    few = stars.slice(0, 3)
    ra = pa.array([1.0, value, 3.0], pa.float64())
    with pytest.raises(DataError, match="ra"):
        encode(few.set_column(few.schema.get_field_index(RA), few.schema.field(RA), ra), star_model)


def test_a_column_null_in_every_row_comes_back_null(stars: pa.Table) -> None:
    empty = pa.nulls(len(stars), pa.float64())
    table = stars.set_column(stars.schema.get_field_index("radial_velocity"), stars.schema.field("radial_velocity"), empty)
    model = untrained(table)
    rebuilt = decode(encode(table, model), model)
    assert rebuilt["radial_velocity"].null_count == len(stars)
    assert rebuilt["parallax"].null_count == stars["parallax"].null_count


# Partitions ----------------------------------------------------------------------------------------------------------
def test_partitions_hold_what_encode_gives(small_run: Config, stars: pa.Table, star_model: StarModel) -> None:
    store, run = Store(small_run.store), RunPaths(small_run.name)
    partitions = read_catalogue_record(store).partitions
    assert len(partitions) > 3
    found = pa.concat_tables([catalogue.read_partition(store, run.latent, p.tile) for p in partitions])
    assert found.num_rows == len(stars)
    wanted = encode(stars, star_model)
    found = found.sort_by(SOURCE_ID)
    assert found.select(["null_mask", RA, DEC, SOURCE_ID]).equals(wanted.select(["null_mask", RA, DEC, SOURCE_ID]))
    for code in star_model.card.codes:
        stored = found[code.name]
        assert stored.type == (pa.uint8() if code.bits <= 8 else pa.int16())
        entries = {key.decode(): value.decode() for key, value in found.schema.field(code.name).metadata.items()}
        # The three lines of README, for readers without gaiadask.
        latents = float(entries["offset"]) + float(entries["scale"]) * stored.to_numpy()
        # Another batch may round the last bit of a number in the middle of two steps to the other side.
        assert np.abs(latents - wanted[code.name].to_numpy()).max() <= code.scale
        assert (latents == wanted[code.name].to_numpy()).mean() > 0.999
    for p in partitions:
        assert read_key(store, f"{run.latent}/{p.tile.file}") == latent_key(star_model.key, p)


def test_a_partition_of_the_same_key_is_kept_and_of_another_made_anew(
    small_run: Config, tmp_path_factory: pytest.TempPathFactory
) -> None:
    config = copied(small_run, tmp_path_factory.mktemp("copy") / "store")
    store, run = Store(config.store), RunPaths(config.name)
    partition = read_catalogue_record(store).partitions[0]
    name = store.path(f"{run.latent}/{partition.tile.file}")
    key, before = open_run(f"{config.store}/runs/small").model.key, read_state(name)
    (kept,) = EncodePartitions(ModelSource(store, run, key))([partition])
    assert read_state(name) == before
    # Another key in the footer, as a model trained anew leaves it: made again, to the same rows.
    table = catalogue.read_partition(store, run.latent, partition.tile)
    catalogue.write_partition(store, run.latent, partition.tile, table, {"gaiadask.key": "of another model"})
    (again,) = EncodePartitions(ModelSource(store, run, key))([partition])
    assert (again.tile, again.rows) == (kept.tile, kept.rows)
    # The matrix product's last bits depend on where in memory its operands lie.
    for name, column in zip(table.column_names, catalogue.read_partition(store, run.latent, again.tile).columns, strict=True):
        assert np.allclose(column.to_numpy(), table[name].to_numpy(), rtol=0, atol=1e-5)
    assert read_key(store, f"{run.latent}/{partition.tile.file}") == latent_key(key, partition)


def test_latents_and_rebuilt_stars_are_made_anew_where_what_they_are_made_of_has_changed(
    small_run: Config, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """As many stars of the same names, with other values."""
    config = copied(small_run, tmp_path_factory.mktemp("copy") / "store")
    store, run, output = Store(config.store), RunPaths(config.name), Store(str(tmp_path_factory.mktemp("decoded")))
    model = ModelSource(store, run, open_run(f"{config.store}/runs/small").model.key)
    before = read_catalogue_record(store).partitions[0]
    DecodePartitions(model, output)([before])
    decoded = output.open_parquet(output.list("", ".parquet")[0]).read()
    latents = catalogue.read_partition(store, run.latent, before.tile)
    table = catalogue.read_partition(store, paths.CATALOGUE, before.tile)
    flux = pc.multiply(table["phot_g_mean_flux"], 2.0)
    table = table.set_column(table.column_names.index("phot_g_mean_flux"), table.schema.field("phot_g_mean_flux"), flux)
    changed = catalogue.write_partition(store, paths.CATALOGUE, before.tile, table, {})
    EncodePartitions(model)([changed])
    again = catalogue.read_partition(store, run.latent, before.tile)
    assert again[SOURCE_ID].equals(latents[SOURCE_ID]) and not again["z00"].equals(latents["z00"])
    DecodePartitions(model, output)([changed])
    assert not output.open_parquet(output.list("", ".parquet")[0]).read()["phot_g_mean_flux"].equals(decoded["phot_g_mean_flux"])


@pytest.mark.slow
def test_latents_are_not_published_while_their_partitions_change(
    small_run: Config, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are made anew, and a reader meanwhile, or one after a kill, finds none."""
    config = copied(small_run, tmp_path_factory.mktemp("copy") / "store")
    store, run = Store(config.store), RunPaths(config.name)
    assert catalogue.is_published(store, run.latent)
    Manifest(store, run).remove("encode")
    encoded, published = EncodePartitions.__call__, []

    def watched(self: EncodePartitions, sources: Sequence[Partition]) -> list[Partition]:
        for source in sources[:3]:
            published.append(catalogue.is_published(store, run.latent))
            encoded(self, [source])
        raise DataError("a partition is damaged")

    monkeypatch.setattr(EncodePartitions, "__call__", watched)
    with pytest.raises(DataError, match="damaged"):
        make_run(config, "encode")
    assert len(published) > 2 and not any(published)
    assert not catalogue.is_published(store, run.latent)
    monkeypatch.undo()
    make_run(config, "encode")
    assert catalogue.is_published(store, run.latent)


def read_state(path: str) -> tuple[bytes, int]:
    with open(path, "rb") as file:
        return file.read(), os.stat(path).st_mtime_ns


def test_a_model_trained_anew_meanwhile_is_noticed(small_run: Config) -> None:
    store, run = Store(small_run.store), RunPaths(small_run.name)
    partition = read_catalogue_record(store).partitions[0]
    with pytest.raises(KeyMismatchError, match="trained anew meanwhile"):
        EncodePartitions(ModelSource(store, run, "0123456789abcdef"))([partition])


def test_a_partition_that_lost_rows_is_noticed_and_made_again(small_run: Config, tmp_path_factory: pytest.TempPathFactory) -> None:
    config = copied(small_run, tmp_path_factory.mktemp("copy") / "store")
    store, run = Store(config.store), RunPaths(config.name)
    key = open_run(f"{config.store}/runs/small").model.key
    partition = read_catalogue_record(store).partitions[0]
    table = catalogue.read_partition(store, paths.CATALOGUE, partition.tile)
    catalogue.write_partition(store, paths.CATALOGUE, partition.tile, table.slice(1), {})
    store.remove(run.latent)
    for read in (EncodePartitions(ModelSource(store, run, key)), partial(batch_statistics, store, config.release, [SOURCE_ID])):
        with pytest.raises(DataError, match=rf"has {partition.rows - 1} rows, {partition.rows} were written: .*gaiadask ingest"):
            read([partition])
    make_run(config, "ingest")
    assert catalogue.read_partition(store, paths.CATALOGUE, partition.tile).equals(table)


def test_decoded_partitions_are_files_of_stars(
    small_run: Config, stars: pa.Table, tmp_path_factory: pytest.TempPathFactory
) -> None:
    output = Store(str(tmp_path_factory.mktemp("decoded")))
    store, run = Store(small_run.store), RunPaths(small_run.name)
    model = ModelSource(store, run, open_run(f"{small_run.store}/runs/small").model.key)
    partitions = read_catalogue_record(store).partitions
    assert DecodePartitions(model, output)(partitions) == partitions
    names = output.list("", ".parquet")
    assert len(names) == len(partitions)
    found = pa.concat_tables([output.open_parquet(name).read() for name in names]).sort_by(SOURCE_ID)
    assert found[SOURCE_ID].equals(stars[SOURCE_ID])
    assert found["teff_val"].is_null().equals(stars["teff_val"].is_null())
    DecodePartitions(model, output, impute=True)(partitions[:1])
    guessed = output.open_parquet(f"{partitions[0].tile.flat_name}.parquet").read()
    assert guessed["teff_val"].null_count == 0
    assert guessed["teff_val_std"].null_count < guessed.num_rows
    with pytest.raises(StoreError, match="no such file"):
        DecodePartitions(replace(model, run=RunPaths("other")), Store(str(tmp_path_factory.mktemp("other"))))(partitions[:1])
