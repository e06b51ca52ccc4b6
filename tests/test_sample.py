"""New stars: whole, within what stars are, consistent, and the same from the same seed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import astropy.units as u
import dask
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_up import made_up_stars
from small_run import copied, fetched, make_run, small_config

from gaiadask import sample as sampling
from gaiadask.cluster.dask_workers import DaskWorkers
from gaiadask.cluster.here import Here
from gaiadask.config.sections import ClusterConfig, Config
from gaiadask.errors import ConfigurationError, DataError, KeyMismatchError, MissingStageError, StoreError
from gaiadask.inputs.statistics import Statistics
from gaiadask.inputs.transform import Transform
from gaiadask.model import StarModel, load_model
from gaiadask.prior import Cone, Prior, PriorResult, load_prior
from gaiadask.prior.artifact import point_masses
from gaiadask.release.dr2 import COLUMNS, DR2, SEED16, SEED25, g_magnitude
from gaiadask.run import open_run
from gaiadask.sample import SampleRegion, sample, sample_block, sample_schema
from gaiadask.sky import healpix, separation_deg
from gaiadask.split import Part, part_of
from gaiadask.stages.engine import run_stages
from gaiadask.stages.sample import SampleOptions, SampleResult
from gaiadask.stages.validation import validate_run
from gaiadask.store.files import Store
from gaiadask.store.manifest import Manifest
from gaiadask.store.paths import RunPaths, Tile


@pytest.fixture(scope="module")
def prior(small_run: Config) -> Prior:
    return load_prior(Store(small_run.store), RunPaths(small_run.name))


@pytest.fixture(scope="module")
def model(small_run: Config) -> StarModel:
    return load_model(Store(small_run.store), RunPaths(small_run.name))


@pytest.fixture(scope="module")
def stars(model: StarModel, prior: Prior) -> pa.Table:
    return sample(model, prior, 6_000, seed=1)


@pytest.fixture(scope="module")
def train(small_run: Config) -> pa.Table:
    table = fetched(small_run)
    return table.filter(pa.array(part_of(table["source_id"].to_numpy()) == Part.TRAIN))


def numbers(table: pa.Table, name: str) -> np.ndarray:
    return np.asarray(table[name].to_numpy(), np.float64)


# What stars are ------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_columns_types_and_units_are_the_column_tables(stars: pa.Table, model: StarModel) -> None:
    assert stars.schema == sample_schema(model.transform)
    assert stars.column_names == list(model.transform.columns)
    for field in stars.schema:
        assert field.metadata[b"unit"].decode() == COLUMNS[field.name].unit


def test_every_value_is_within_what_train_stars_are_or_null(stars: pa.Table, train: pa.Table) -> None:
    for name in stars.column_names:
        known, real = (c[~np.isnan(c)] for c in (numbers(stars, name), numbers(train, name)))
        assert np.isfinite(known).all()
        assert len(known) > 1_000
        if name not in ("ra", "dec"):
            assert real.min() <= known.min()
            assert known.max() <= real.max()


def test_nulls_come_in_the_blocks_and_about_as_often_as_in_real_stars(stars: pa.Table, train: pa.Table) -> None:
    names = stars.column_names

    def patterns(table: pa.Table) -> np.ndarray:
        return np.stack([np.isnan(numbers(table, name)) for name in names], axis=1)

    real, made_up = patterns(train), patterns(stars)
    assert {tuple(row) for row in made_up} <= {tuple(row) for row in real}
    assert real.any()
    # 6,000 and 9,600 stars: the standard error of a share is below 0.9 %.
    assert np.abs(real.mean(0) - made_up.mean(0)).max() < 0.05


def test_derived_columns_follow_exactly(stars: pa.Table, model: StarModel) -> None:
    derived = model.transform.derived
    assert {"bp_rp", "lum_val", "radius_val"} <= set(derived)
    again = DR2.derive({name: numbers(stars, name) for name in stars.column_names}, derived)
    for name in derived:
        ours = numbers(stars, name)
        here = ~np.isnan(ours)
        assert np.array_equal(ours[here], np.asarray(again[name], np.float64)[here]), name


@pytest.mark.slow
def test_errors_are_drawn_where_they_were_trained_on(tmp_path: Path) -> None:
    """The 25 columns of stars with nulls: each error beside its value or both null, above 0, and as large as the stars' own."""
    config = small_config(tmp_path / "store", model={"columns": "seed25", "latents": 16}, training={"rows_seen": 30_000})
    make_run(config)
    store, run = Store(config.store), RunPaths(config.name)
    made = sample(load_model(store, run), load_prior(store, run), 2_000, seed=1)
    assert set(made.column_names) == set(SEED25)
    real = fetched(config)
    for name in SEED25:
        error_column = COLUMNS[name].error_column
        if error_column not in SEED25:
            continue
        assert made.schema.field(error_column).metadata[b"unit"] == COLUMNS[error_column].unit.encode()
        value, error = numbers(made, name), numbers(made, error_column)
        assert np.array_equal(np.isnan(value), np.isnan(error)), name
        error = error[~np.isnan(error)]
        assert error.min() > 0
        theirs = numbers(real, error_column)
        middle = np.nanquantile(theirs, [0.25, 0.75])
        assert 0.25 < ((error > middle[0]) & (error < middle[1])).mean() < 0.75, error_column


def test_a_column_of_few_values_has_no_others(model: StarModel, prior: Prior) -> None:
    """As counts, flags and templates are; the small run has none, so one is said to be."""
    low, high = prior.limits["a_g_val"]
    values = np.array([low, 0.2, 0.5, high])
    scores = model.transform.encodings["a_g_val"].forward(values)[:, 0]
    edges = np.concatenate([[-np.inf], (scores[1:] + scores[:-1]) / 2, [np.inf]])
    few = replace(prior, masses={"a_g_val": np.stack([edges[:-1], edges[1:], values])})
    found = numbers(sample(model, few, 1_000), "a_g_val")
    # The smallest and the largest too, to the bit: what is beyond the train stars' limits would be drawn again.
    assert set(found[~np.isnan(found)].astype(np.float32)) == set(values.astype(np.float32))


@pytest.mark.slow
def test_a_value_that_many_stars_share_is_drawn_exactly_as_often(model: StarModel, prior: Prior) -> None:
    """As no excess noise is, that a third of the stars have; the small run has none, so a range of values is said to be one."""
    least, edge = prior.limits["a_g_val"][0], float(model.transform.encodings["a_g_val"].inverse(np.array([[-0.5]]))[0])
    shared = replace(prior, masses={"a_g_val": np.array([[-np.inf], [-0.5], [least]])})
    before, after = (numbers(sample(model, p, 1_000), "a_g_val") for p in (prior, shared))
    assert set(after[after < edge].astype(np.float32)) == {np.float32(least)}
    assert 0.1 < (before < edge).mean() < 0.6
    assert (after < edge).mean() == pytest.approx((before < edge).mean(), abs=0.03)
    assert len(set(after[after > edge])) > 100


def test_point_masses_are_few_values_or_shared_ones() -> None:
    table = made_up_stars(3_000)
    extinction = np.round(numbers(table, "a_g_val") * 4) / 4  # few values, each shared
    velocity = numbers(table, "radial_velocity").copy()
    velocity[np.abs(velocity) < 10] = 3.0  # one that many share, among many that none share
    for name, column in (("a_g_val", extinction), ("radial_velocity", velocity)):
        nulls = table[name].is_null().to_numpy()
        column = pa.array(np.nan_to_num(column), table[name].type, mask=nulls)
        table = table.set_column(table.column_names.index(name), name, column)
    train = Statistics.from_table(table, DR2).train
    transform = Transform.fit(SEED16, train, DR2, "condition", "min-max")  # an encoding without cells
    masses = point_masses(train, transform)
    assert set(masses) == {"a_g_val", "radial_velocity"}
    in_train = part_of(table["source_id"].to_numpy()) == Part.TRAIN
    low, high, value = masses["a_g_val"]
    assert np.array_equal(value, np.unique(extinction[in_train]))
    assert np.array_equal(low[1:], high[:-1])
    assert (low[0], high[-1]) == (-np.inf, np.inf)
    (low,), (high,), (value,) = masses["radial_velocity"]
    known = np.unique(velocity[in_train & np.isfinite(velocity)])
    at = int(np.searchsorted(known, 3.0))
    score = transform.encodings["radial_velocity"].score_of
    assert value == 3.0
    assert score(known[at - 1]) < low < score(3.0) < high < score(known[at + 1])


def test_a_prior_that_is_made_leaves_no_checkpoints(small_run: Config) -> None:
    assert sorted(Path(small_run.store, RunPaths(small_run.name).prior).iterdir()) == [
        Path(small_run.store, name) for name in (RunPaths(small_run.name).prior_card, RunPaths(small_run.name).prior_weights)
    ]


def test_no_real_star_is_repeated(stars: pa.Table, train: pa.Table) -> None:
    assert not set(numbers(stars, "ra")) & set(numbers(train, "ra"))
    assert not set(numbers(stars, "pmra")) & set(numbers(train, "pmra"))


def test_marginals_are_roughly_the_stars(stars: pa.Table, train: pa.Table) -> None:
    """A prior of forty steps: that medians lie within a third of the IQR shows that nothing is turned or scaled wrongly."""
    for name in ("phot_g_mean_flux", "bp_rp", "parallax", "pmra", "teff_val"):
        ours, theirs = (c[~np.isnan(c)] for c in (numbers(stars, name), numbers(train, name)))
        low, middle, high = np.quantile(theirs, [0.25, 0.5, 0.75])
        assert abs(np.median(ours) - middle) < (high - low) / 3, name


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gaussian", "free"])
def test_the_other_priors_draw_too(small_run: Config, tmp_path: Path, kind: str) -> None:
    config = copied(small_run, tmp_path / "store")
    config = config.model_copy(update={"prior": config.prior.model_copy(update={"kind": kind, "rows_seen": 2_000})})
    store, run = Store(config.store), RunPaths(config.name)
    Manifest(store, run).remove("prior")
    make_run(config, "prior")
    other = load_prior(store, run)
    assert list(other.densities) == (["free"] if kind == "free" else [])
    assert sample(load_model(store, run), other, 500).num_rows == 500


# Seeds and blocks ----------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_the_seed_tells_the_stars_and_more_begin_with_fewer(model: StarModel, prior: Prior, stars: pa.Table) -> None:
    assert sample(model, prior, 6_000, seed=1).equals(stars)
    assert sample(model, prior, 700, seed=1).equals(stars.slice(0, 700))
    assert not sample(model, prior, 700, seed=2).equals(stars.slice(0, 700))
    assert sample(model, prior, 0).num_rows == 0


@pytest.mark.slow
def test_blocks_are_independent_of_each_other(model: StarModel, prior: Prior, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "BLOCK_ROWS", 1_000)
    whole = sample(model, prior, 2_500, seed=3)
    later = sample_block(model, prior, 2_500, 3, SampleRegion(), 2)
    assert later.num_rows == 500
    assert later.equals(whole.slice(2_000).combine_chunks())
    assert sample_block(model, prior, 2_500, 3, SampleRegion(), 3).num_rows == 0
    # Each from a seed of its own: no star, and no value, is drawn again in the next block.
    for name in ("ra", "pmra", "phot_g_mean_flux"):
        drawn = numbers(whole, name)
        assert len(set(drawn[~np.isnan(drawn)])) == np.isfinite(drawn).sum(), name


def test_no_draw_is_left_out(model: StarModel, prior: Prior) -> None:
    """Each position that is drawn gets its star, in the order of the draws, however often its values are drawn again."""
    seed = np.random.SeedSequence(4, spawn_key=(0,))
    ra, dec, _ = prior.sky.draw(sampling.DRAWN_ROWS, np.random.default_rng(seed))
    found = sample(model, prior, sampling.DRAWN_ROWS, seed=4)
    assert np.array_equal(numbers(found, "ra"), ra) and np.array_equal(numbers(found, "dec"), dec)


# Conditions ----------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_a_cone_and_a_magnitude_range(model: StarModel, prior: Prior) -> None:
    wanted = SampleRegion(cone=Cone(266.4, -28.9, 5.0), magnitude=(13.0, 15.0))
    found = sample(model, prior, 500, region=wanted)
    assert found.num_rows == 500
    assert separation_deg(numbers(found, "ra"), numbers(found, "dec"), 266.4, -28.9).max() <= 5.0
    g = g_magnitude(numbers(found, "phot_g_mean_flux"))
    assert 13.0 <= g.min() <= g.max() <= 15.0


@pytest.mark.slow
def test_after_so_many_draws_for_a_star_no_more_are_made(model: StarModel, prior: Prior, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "MAX_DRAWS_PER_STAR", 1)
    rows = 2 * sampling.DRAWN_ROWS
    with pytest.raises(DataError, match=rf"of {rows} stars drawn only [1-9]\d* are in the region .* expected {rows}: ask"):
        sample(model, prior, rows, region=SampleRegion(magnitude=(5.0, 16.0)))


def test_a_tile(model: StarModel, prior: Prior) -> None:
    found = sample(model, prior, 300, region=SampleRegion(tile=Tile(2, 77)))
    assert (healpix(numbers(found, "ra"), numbers(found, "dec"), 2) == 77).all()


@pytest.mark.slow
def test_what_no_star_is_ends_and_says_so(model: StarModel, prior: Prior, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "MAX_DRAWS_PER_STAR", 3)
    brightest = float(g_magnitude(prior.limits["phot_g_mean_flux"][1]))
    with pytest.raises(
        DataError, match=r"only 0 are in the region asked for .*magnitude.*wider range of magnitudes or a larger region"
    ):
        sample(model, prior, 100, region=SampleRegion(magnitude=(brightest - 1, brightest + 1e-6)))


@pytest.mark.parametrize("magnitude", [(-9.0, -8.0), (30, 31)])
def test_magnitudes_that_no_train_star_has_are_refused_before_anything_is_drawn(
    model: StarModel, prior: Prior, monkeypatch: pytest.MonkeyPatch, magnitude: tuple[float, float]
) -> None:
    monkeypatch.setattr(sampling, "_drawn", None)
    with pytest.raises(DataError, match=r"magnitude \(.*\): no new star is beyond the train stars' G, from \d+\.\d+ to \d+\.\d+"):
        sample(model, prior, 100, region=SampleRegion.of(magnitude=magnitude))


@pytest.mark.slow
def test_places_of_which_the_model_knows_nothing_end_soon(model: StarModel, prior: Prior) -> None:
    nothing = dict.fromkeys(prior.limits, (1000000000.0, 2000000000.0))
    unknown = replace(prior, card=prior.card.model_copy(update={"limits": nothing}))
    with pytest.raises(DataError, match="of 10240 stars drawn, each 20 times, none is within the train stars' ranges"):
        sample(model, unknown, 5)


@pytest.mark.slow
def test_arguments_as_people_write_them(small_run: Config) -> None:
    run = open_run(f"{small_run.store}/runs/small")
    with dask.config.set(scheduler="synchronous"):
        wanted = run.sample(20, seed=3, cone=(266.4, -28.9, 30.0)).compute()
        for cone in (
            [266.4, -28.9, 30],
            np.array([266.4, -28.9, 30.0]),
            np.array([266.4, -28.9, 30.0], "f4").astype(float).round(6),
        ):
            assert run.sample(2e1, np.int64(3), cone=cone).compute().equals(wanted)
        assert len(run.sample(np.float64(7), tile=np.array([0, 4]), magnitude=np.array([10, 21])).compute()) == 7


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ({"stars": 1.5}, "stars=1.5: expected a whole number of at least 0"),
        ({"stars": -1}, "stars=-1: expected a whole number"),
        ({"stars": "many"}, "stars=.*many.*: expected one number"),
        ({"stars": None}, "stars=.*None"),
        ({"stars": float("nan")}, "stars=nan"),
        ({"stars": 5, "seed": -1}, "seed=-1: expected a whole number of at least 0"),
        ({"stars": 5, "seed": 0.5}, "seed=0.5"),
        ({"stars": 5, "cone": (1, 2)}, r"cone=\(1, 2\): expected ra, dec, radius in degrees"),
        ({"stars": 5, "cone": 7}, "cone=7"),
        ({"stars": 5, "cone": "1,2,3"}, "cone='1,2,3'"),
        ({"stars": 5, "cone": [10, 0, 20] * u.arcmin}, "cone=.*plain numbers"),
        ({"stars": 5, "tile": (1.5, 2)}, "tile=1.5"),
        ({"stars": 5, "tile": (1, 48)}, "a pixel below"),
        ({"stars": 5, "magnitude": 15}, "magnitude=15: expected the bright end, the faint end"),
        ({"stars": 5, "magnitude": (15, np.nan)}, "the brighter"),
    ],
)
def test_arguments_that_are_none_are_named(small_run: Config, wanted: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        open_run(f"{small_run.store}/runs/small").sample(**wanted)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"cone": (0, 95, 1)}, "expected ra, dec in -90 to 90"),
        ({"tile": Tile(1, 48)}, r"a pixel below 12 \* 4\*\*order"),
        ({"tile": Tile(1, -1)}, "a pixel below"),
        ({"tile": Tile(-1, 0)}, "order of 0 to 29"),
        ({"tile": Tile(30, 0)}, "order of 0 to 29"),
        ({"magnitude": (13.0, 13.0)}, "the brighter"),
        ({"magnitude": (15.0, 13.0)}, "the brighter"),
        ({"cone": (0, 0, 1), "tile": Tile(0, 0)}, "one of them"),
    ],
)
def test_wishes_that_are_none(wanted: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        SampleRegion(**wanted)  # type: ignore[arg-type]


@pytest.mark.parametrize("tile", [Tile(0, 0), Tile(0, 11), Tile(1, 47), Tile(29, 12 * 4**29 - 1)])
def test_every_pixel_of_the_sky_is_a_tile(tile: Tile) -> None:
    assert SampleRegion(tile=tile).tile == tile


# Runs ----------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_a_run_samples_lazily(small_run: Config, stars: pa.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "BLOCK_ROWS", 4_000)
    run = open_run(f"{small_run.store}/runs/small")
    with dask.config.set(scheduler="synchronous"):
        frame = run.sample(5_000, seed=1)
        assert frame.npartitions == 2
        found = frame.compute()
        assert list(found.dtypes) == list(frame.dtypes)
        assert np.array_equal(found["ra"].to_numpy()[:4_000], numbers(stars, "ra")[:4_000])
        near = run.sample(50, cone=(10, 20, 30), magnitude=(5, 20)).compute()
    assert len(near) == 50
    with pytest.raises(ConfigurationError, match="stars=-1: expected a whole number"):
        run.sample(-1)


def test_a_run_without_a_prior_says_what_makes_one(small_run: Config, tmp_path: Path) -> None:
    config = copied(small_run, tmp_path / "store")
    manifest = Manifest(Store(config.store), RunPaths("small"))
    manifest.remove("prior")
    with pytest.raises(MissingStageError, match="`gaiadask prior CONFIG`"):
        open_run(f"{config.store}/runs/small").sample(10)
    manifest.write("prior", {}, PriorResult(kind="none"), 0.0)
    with pytest.raises(MissingStageError, match=r"prior\.kind 'none'"):
        open_run(f"{config.store}/runs/small").sample(10)


@pytest.mark.slow
def test_the_blocks_of_a_folder_are_the_samples(
    small_run: Config, tmp_path: Path, model: StarModel, prior: Prior, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "BLOCK_ROWS", 400)
    config, output = copied(small_run, tmp_path / "store"), tmp_path / "stars"
    request = SampleOptions(stars=1_000, seed=3, output=str(output))
    result = run_stages(config, ["sample"], request=request, workers=Here())["sample"]
    assert (result.rows, result.files) == (1_000, 3)
    assert [pq.read_metadata(path).num_rows for path in sorted(output.glob("*.parquet"))] == [400, 400, 200]
    found, wanted = pq.read_table(output), sample(model, prior, 1_000, seed=3)
    assert np.array_equal(numbers(found, "ra"), numbers(wanted, "ra"))


@pytest.mark.slow
def test_a_few_stars_need_no_cluster(small_run: Config, tmp_path: Path) -> None:
    """Nobody listens at the address: workers would be missed."""
    config = copied(small_run, tmp_path / "store")
    config = config.model_copy(update={"cluster": ClusterConfig(address="tcp://127.0.0.1:9")})
    request = SampleOptions(stars=500, seed=3, output=str(tmp_path / "stars"))
    assert run_stages(config, ["sample"], request=request)["sample"].rows == 500
    assert pq.read_table(tmp_path / "stars").num_rows == 500


@pytest.mark.slow
def test_on_the_cluster_the_stars_are_the_same_and_a_second_call_makes_none_again(
    small_run: Config, tmp_path: Path, workers: DaskWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = copied(small_run, tmp_path / "store")

    def draw(stars: int, seed: int = 0, output: str = "") -> SampleResult:
        options = SampleOptions(stars=stars, seed=seed, output=output)
        return run_stages(config, ["sample"], request=options, workers=workers)["sample"]

    result = run_stages(config, ["prior"], replacing=["prior"], workers=workers)["prior"]
    assert (result.kind, result.train) == ("latent", result.counted)
    store, run = Store(config.store), RunPaths(config.name)
    drawn = draw(17_000, seed=5)
    assert (drawn.rows, drawn.files) == (17_000, 2)
    folder = Path(config.store) / "runs/small/samples"
    files = sorted(folder.glob("*.parquet"))
    written = pq.read_table(folder)  # the request and the marker beside them are no data files
    here = sample_block(load_model(store, run), load_prior(store, run), 17_000, 5, SampleRegion(), 1)
    assert written.slice(16_384).select(here.column_names).combine_chunks().equals(here.cast(written.schema).combine_chunks())
    before = [file.stat().st_mtime_ns for file in files]
    draw(17_000, seed=5)
    assert [file.stat().st_mtime_ns for file in files] == before
    files[1].unlink()
    draw(17_000, seed=5)
    after = [file.stat().st_mtime_ns for file in files]
    assert after[0] == before[0]
    assert after[1] > before[1]
    # Another request has a folder of its own, which it finds again.
    another = draw(300, seed=6)
    assert pq.read_table(another.uri).num_rows == 300
    assert another.uri.endswith("runs/small/more_samples/300-seed6")
    written = (Path(another.uri) / "part-00000.parquet").stat().st_mtime_ns
    assert draw(300, seed=6) == another
    assert (Path(another.uri) / "part-00000.parquet").stat().st_mtime_ns == written
    assert draw(17_000, seed=5) == drawn
    other = tmp_path / "other"
    draw(100, seed=6, output=str(other))
    assert pq.read_table(other).num_rows == 100
    with pytest.raises(StoreError, match="has other files"):
        draw(10, output=f"{config.store}/runs/small")
    assert set(Manifest(store, run).read().stages) >= {"sample", "sample 300-seed6", f"sample {other}"}
    assert not validate_run(config, quick=False, workers=workers).findings
    run_stages(config, ["prior"], replacing=["prior"], workers=workers)
    assert not folder.exists() or not list(folder.iterdir())
    assert not Path(another.uri).exists()
    assert not [name for name in Manifest(store, run).read().stages if name.startswith("sample")]
    # Stars elsewhere are left alone, and those of another prior are not mixed with them.
    assert pq.read_table(other).num_rows == 100
    again = SampleOptions(stars=100, seed=7, output=str(other))
    with pytest.raises(KeyMismatchError, match="has new stars of another request"):
        run_stages(config, ["sample"], request=again, workers=workers)
    run_stages(config, ["sample"], request=again, replacing=["sample"], workers=workers)
    assert pq.read_table(other).num_rows == 100
