"""The whole pipeline as users run it: to the end, killed and gone on with, and on real rows both ways."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask.dataframe as dd
import lsdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from distributed import Client
from hats.io.validation import is_valid_catalog
from small_run import fetched, small_config

from gaiadask import catalogue, ingest
from gaiadask.config.toml import parse_config
from gaiadask.errors import DataError
from gaiadask.ingest_plan import read_plan
from gaiadask.release.column import SOURCE_ID
from gaiadask.release.dr2 import COLUMNS, SEED16, SEED25
from gaiadask.run import open_run
from gaiadask.sky import separation_deg
from gaiadask.stages.decode import DecodeOptions
from gaiadask.stages.engine import run_stages
from gaiadask.store import paths
from gaiadask.store.files import Store
from gaiadask.training.metrics import read_metrics

from .conftest import Dachs
from .place import GAIADASK, Place, place

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def states(folder: str | Path) -> dict[str, tuple[int, str]]:
    """Of every file below a folder: when it was written, and its hash."""
    root = Path(folder)
    return {
        str(p.relative_to(root)): (p.stat().st_mtime_ns, hashlib.sha256(p.read_bytes()).hexdigest())
        for p in root.rglob("*")
        if p.is_file()
    }


def assert_every_star_once(place: Place, stars: pa.Table) -> None:
    """Catalogue and latents hold the archive's stars, each once, in the file its position tells, and are valid HATS."""
    store, record = place.store, ingest.read_catalogue_record(place.store)
    assert record.rows == len(stars)
    for folder in (paths.CATALOGUE, place.run.latent):
        assert is_valid_catalog(store.uri_of(folder), strict=True)
        found = []
        for partition in record.partitions:
            table = catalogue.read_partition(store, folder, partition.tile)
            catalogue.check_rows_in_tile(table, partition.tile)
            found.append(table[SOURCE_ID].to_numpy())
        assert np.array_equal(np.sort(np.concatenate(found)), stars[SOURCE_ID].to_numpy())
        files = store.list(f"{folder}/dataset", ".parquet")
        assert len(files) == len(record.partitions)
    assert not [name for name in states(store.uri) if ".partial-" in name or name.endswith("lease.json")]


# To the end ----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def stars(finished: Place) -> pa.Table:
    return fetched(finished.config)


def test_a_run_gives_every_star_once_and_a_report(finished: Place, stars: pa.Table) -> None:
    assert_every_star_once(finished, stars)
    report = finished.store.read_bytes(finished.run.report).decode()
    assert "<html" in report
    for name in SEED16:
        assert name in report
    assert len(report) > 100_000
    quality = open_run(f"{finished.config.store}/runs/dr2").quality
    assert quality.stars == 1_000


def test_dask_reads_one_partition_a_file(finished: Place, stars: pa.Table) -> None:
    folder = finished.store.path(f"{finished.run.latent}/dataset")
    frame = dd.read_parquet(folder)
    # Of the frame as it is read; dask may fuse small files when it optimises what is computed from it.
    assert frame.npartitions == len(list(Path(folder).rglob("*.parquet"))) > 3
    assert len(frame) == len(stars)


def test_lsdb_finds_the_stars_of_a_cone(finished: Place, stars: pa.Table) -> None:
    ra, dec, radius_deg = 266.4, -28.9, 12.0
    distance = separation_deg(stars["ra"].to_numpy(), stars["dec"].to_numpy(), ra, dec)
    wanted = stars[SOURCE_ID].to_numpy()[distance <= radius_deg]
    assert len(wanted) > 100
    for folder in (paths.CATALOGUE, finished.run.latent):
        opened = lsdb.open_catalog(finished.store.uri_of(folder))
        assert len(opened) == len(stars)
        found = opened.cone_search(ra, dec, radius_deg * 3600).compute()
        assert sorted(found[SOURCE_ID]) == sorted(wanted)


def test_the_same_command_again_changes_no_file(finished: Place) -> None:
    before = states(finished.store.uri)
    done = finished.command("run")
    assert done.returncode == 0, done.stderr
    assert states(finished.store.uri) == before


def test_missing_stays_missing_on_decode(finished: Place, stars: pa.Table, tmp_path: Path) -> None:
    done = finished.command("decode", "--output", tmp_path / "stars")
    assert done.returncode == 0, done.stderr
    assert f"{len(stars):,} stars rebuilt" in done.stdout
    rebuilt = pq.read_table(tmp_path / "stars").sort_by(SOURCE_ID)
    assert_nulls_where_they_were(rebuilt, stars)
    assert rebuilt["ra"].equals(stars["ra"])


def assert_nulls_where_they_were(rebuilt: pa.Table, stars: pa.Table) -> None:
    """In every column; what is derived is null too where the rebuilt star leaves it undefined (parallax not positive)."""
    assert rebuilt[SOURCE_ID].equals(stars[SOURCE_ID])
    assert sum(stars[name].null_count > 0 for name in SEED16) > 5
    for name in SEED16:
        null, was_null = rebuilt[name].is_null().to_numpy(), stars[name].is_null().to_numpy()
        assert null[was_null].all(), name
        if not COLUMNS[name].derived_from:
            assert not null[~was_null].any(), name
    if "radius_val" in rebuilt.column_names:
        undefined = pc.and_(rebuilt["radius_val"].is_null(), stars["radius_val"].is_valid())
        assert all(parallax <= 0 for parallax in rebuilt["parallax"].filter(undefined).to_pylist())


def test_another_model_leaves_the_first_runs_files_as_they_are(finished: Place, client: Client) -> None:
    before = states(finished.store.uri)
    other = place(
        finished.path.parent,
        name="other",
        model={"latents": 4},
        cluster={"address": client.scheduler.address},  # type: ignore[union-attr]
    )
    results = run_stages(other.config, ["ingest", "statistics", "train", "encode"])
    assert results["encode"].rows == 20_000
    after = states(finished.store.uri)
    assert {name: after[name] for name in before} == before
    assert "z03" in open_run(f"{other.config.store}/runs/other").latent().columns
    assert "z04" not in open_run(f"{other.config.store}/runs/other").latent().columns
    assert_every_star_once(other, fetched(other.config))


# Killed --------------------------------------------------------------------------------------------------------------
def descendants(process: int) -> set[int]:
    """Process ids below a process."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if fields[0] != "Z":
            parents[int(path.parent.name)] = int(fields[1])
    found, new = set(), {process}
    while new:
        new = {child for child, parent in parents.items() if parent in new} - found
        found |= new
    return found


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def stopped_when(made: Place, moment: Callable[[], bool], with_signal: int = signal.SIGKILL) -> tuple[int, str, set[int]]:
    """Run, signal the main process at the moment, or all of them as a terminal's Ctrl-C does; its exit code, what all said, what it had started."""
    with subprocess.Popen(
        [*GAIADASK, "run", str(made.path)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stderr
        try:
            end = time.monotonic() + 120
            while not moment():
                assert process.poll() is None, f"it ended before the moment came: {process.stderr.read()}"
                assert time.monotonic() < end, "the moment did not come"
                time.sleep(0.02)
            started = descendants(process.pid)
            if with_signal == signal.SIGINT:
                os.killpg(process.pid, with_signal)
            else:
                process.send_signal(with_signal)
            said = process.communicate(timeout=60)[1]
        finally:
            process.kill()
    return process.returncode, said, started


def assert_gone(processes: set[int], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while left := {p for p in processes if alive(p)}:
        assert time.monotonic() < end, {p: Path(f"/proc/{p}/cmdline").read_bytes() for p in left}
        time.sleep(0.1)


def done_chunks(store: Store) -> set[str]:
    return {name for name in store.list(paths.LEDGER, ".json") if store.read_json(name)["state"] == "done"}


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A run whose stages take long enough to be killed in."""
    training = {"rows_seen": 100_000, "validate_every_rows": 10_000, "batch_rows": 50, "patience": 1_000}
    return place(tmp_path_factory.mktemp("killed"), training=training)


def test_killed_three_times_it_goes_on_and_has_every_star_once(killed: Place) -> None:
    store, run = killed.store, killed.run

    # In ingest: chunks that were done are not fetched again.
    code, _, started = stopped_when(killed, lambda: len(done_chunks(store)) >= 3)
    assert code == -signal.SIGKILL
    assert_gone(started)
    plan = read_plan(store)
    done = done_chunks(store)
    assert 3 <= len(done) < len(plan.chunks)
    assert not catalogue.is_published(store, paths.CATALOGUE)
    ledger = {name: state for name, state in states(store.uri).items() if name in done}

    # In training, after a checkpoint: no row is shown again that was shown before it.
    code, _, started = stopped_when(killed, lambda: len(read_metrics(store, run)) >= 3)
    assert code == -signal.SIGKILL
    assert_gone(started)
    assert {name: state for name, state in states(store.uri).items() if name in done} == ledger
    assert not store.exists(run.card)
    seen = read_metrics(store, run)[-1].rows_seen
    published = {name: state for name, state in states(store.uri).items() if name.startswith(paths.CATALOGUE)}

    # In encoding: latents that were there are kept.
    code, _, started = stopped_when(killed, lambda: any(Path(store.path(run.latent)).rglob("*.parquet")))
    assert code == -signal.SIGKILL
    assert_gone(started)
    resumed = {record.resumed_from_rows for record in read_metrics(store, run)}
    assert max(resumed) >= seen - killed.config.training.validate_every_rows > 0
    assert len({record.attempt for record in read_metrics(store, run)}) == 2
    latents = {n: s for n, s in states(store.uri).items() if n.startswith(run.latent) and n.endswith(".parquet")}
    # Small partitions are one piece of work, so all of them may be there; the catalogue of them is not.
    assert 1 <= len(latents) <= len(ingest.read_catalogue_record(store).partitions)
    assert not catalogue.is_published(store, run.latent)
    model = states(store.path(run.model))

    done_at_last = killed.command("run")
    assert done_at_last.returncode == 0, done_at_last.stderr
    after = states(store.uri)
    assert {name: after[name] for name in latents} == latents
    assert {name: after[name] for name in published if not name.endswith("lease.json")} == published
    assert states(store.path(run.model)) == model
    assert store.exists(run.report)
    assert_every_star_once(killed, fetched(killed.config))


def test_interrupted_it_says_that_it_can_go_on_and_nothing_else(tmp_path: Path) -> None:
    made = place(tmp_path, training={"rows_seen": 10**8, "validate_every_rows": 5_000, "batch_rows": 50, "patience": 10_000})
    fetched_some, trained_some = (lambda: len(done_chunks(made.store)) >= 2), (lambda: len(read_metrics(made.store, made.run)) >= 2)
    for moment in (fetched_some, trained_some):
        code, said, started = stopped_when(made, moment, signal.SIGINT)
        assert code == 130
        assert "the same command goes on from there" in said
        assert "Traceback" not in said
        assert_gone(started)
        assert not made.store.exists(paths.INGEST_LEASE)
        assert not made.store.exists(made.run.lease)


# Real stars ----------------------------------------------------------------------------------------------------------
# Tiles that both kinds' histograms resolve: clusters put thousands of the real rows into one small pixel.
COARSE = {"partition_mb": 4}
NULLS = {"columns": "all", "not_null": ()}
CUTS = {"columns": "all", "not_null": "seed25"}


@pytest.fixture(scope="module")
def address(client: Client) -> str:
    return str(client.scheduler.address)  # type: ignore[union-attr]


def through_files(folder: Path, uri: Path, selection: dict[str, Any], address: str) -> Place:
    archive = {"kind": "files", "uris": (str(uri),)}
    return place(folder, archive=archive, selection=selection, catalogue=COARSE, cluster={"address": address})


def made_and_rated(made: Place) -> int:
    """Make the run, report and all; its stars."""
    results = run_stages(made.config)
    assert results["ingest"].rows == results["encode"].rows == results["statistics"].rows
    report = made.store.read_bytes(made.run.report).decode()
    assert all(name in report for name in SEED16)
    return int(results["ingest"].rows)


@pytest.fixture(scope="module")
def real_places(tmp_path_factory: pytest.TempPathFactory, real_rows_path: Path, address: str) -> Iterator[dict[str, Place]]:
    """The real rows through files: with the seed's cuts, and all of them."""
    yield {
        name: through_files(tmp_path_factory.mktemp(name), real_rows_path, selection, address)
        for name, selection in (("cuts", CUTS), ("nulls", NULLS))
    }


@pytest.mark.parametrize("which", ["cuts", "nulls"])
def test_real_rows_through_files(real_places: dict[str, Place], real_rows_path: Path, which: str) -> None:
    made = real_places[which]
    naive = pd.read_parquet(real_rows_path, columns=list(COLUMNS))
    naive = naive if which == "nulls" else naive.dropna(subset=list(SEED25))
    assert made_and_rated(made) == len(naive)
    wanted = fetched(made.config)
    assert sorted(naive[SOURCE_ID]) == wanted[SOURCE_ID].to_pylist()
    assert_every_star_once(made, wanted)


def test_what_real_rows_lack_stays_missing(real_places: dict[str, Place], tmp_path: Path) -> None:
    made = real_places["nulls"]
    run_stages(made.config)
    result = run_stages(made.config, ["decode"], request=DecodeOptions(output=str(tmp_path)))["decode"]
    assert result.rows == ingest.read_catalogue_record(made.store).rows
    rebuilt = pq.read_table(tmp_path).sort_by(SOURCE_ID)
    real = fetched(made.config)
    for name in made.config.model_columns:
        was_null = real[name].is_null().to_numpy()
        assert rebuilt[name].is_null().to_numpy()[was_null].all(), name
        if not COLUMNS[name].derived_from:
            assert not rebuilt[name].is_null().to_numpy()[~was_null].any(), name


@pytest.mark.parametrize("selection", [CUTS, NULLS], ids=["cuts", "nulls"])
def test_a_tap_service_and_files_give_the_same_catalogue(
    dachs: Dachs, tmp_path: Path, address: str, selection: dict[str, Any]
) -> None:
    selection = {**selection, "columns": [name for name in COLUMNS if name in dachs.rows.column_names]}
    pq.write_table(dachs.rows, tmp_path / "rows.parquet")
    (tmp_path / "files").mkdir()
    (tmp_path / "tap").mkdir()
    files = through_files(tmp_path / "files", tmp_path / "rows.parquet", selection, address)
    archive = {"kind": "tap", "url": dachs.url, "table": "gaiadr2.gaia_source", "max_jobs": 2}
    tap = place(tmp_path / "tap", archive=archive, selection=selection, catalogue=COARSE, cluster={"address": address})
    run_stages(files.config, ["ingest"])
    assert made_and_rated(tap) == ingest.read_catalogue_record(files.store).rows
    one, other = (ingest.read_catalogue_record(each.store) for each in (files, tap))
    assert [(p.tile, p.rows) for p in one.partitions] == [(p.tile, p.rows) for p in other.partitions]
    assert set(one.columns) == set(other.columns) == {catalogue.HEALPIX_29, *selection["columns"]}
    for partition in one.partitions:
        tables = [catalogue.read_partition(each.store, paths.CATALOGUE, partition.tile) for each in (files, tap)]
        assert tables[0].equals(tables[1].select(tables[0].column_names))
        assert same_bits(*tables)


def same_bits(one: pa.Table, other: pa.Table) -> bool:
    """Whether numbers are the same to the bit, zeros' signs included."""
    names = [field.name for field in one.schema if pa.types.is_floating(field.type)]
    pairs = ([pc.fill_null(t[name], 0).to_numpy().view(np.uint8) for t in (one, other)] for name in names)
    return all(np.array_equal(*pair) for pair in pairs)


# Stars that are not as they should be ---------------------------------------------------------------------------------
def test_far_outliers_nans_and_constant_columns_do_not_spoil_the_rest(tmp_path: Path, address: str) -> None:
    stars = fetched(small_config(tmp_path, selection={"columns": SEED25}, archive={"mock_stars": 20_000, "chunk_rows": 20_000}))
    random = np.random.default_rng(5)
    columns = {name: stars[name].to_numpy() for name in SEED25}
    for name in ("pmra", "parallax", "phot_bp_mean_flux"):
        columns[name] = np.where(random.random(len(stars)) < 2e-3, 1e30, columns[name])
    columns["pmdec"] = np.where(random.random(len(stars)) < 0.05, np.nan, columns["pmdec"])  # NaN, not null
    columns |= {"a_g_val": np.full(len(stars), 0.25), "radial_velocity": np.full(len(stars), np.nan)}
    spoilt = pa.table({n: pa.array(columns[n], stars.schema.field(n).type, from_pandas=n != "pmdec") for n in SEED25})
    pq.write_table(spoilt.append_column(SOURCE_ID, stars[SOURCE_ID]), tmp_path / "spoilt.parquet")

    made = through_files(tmp_path, tmp_path / "spoilt.parquet", {"columns": SEED25}, address)
    assert made_and_rated(made) == len(stars)
    quality = made.store.read_json(made.run.quality)
    rebuilt, pca = (quality["reconstruction"][which]["headline"]["beside_position"] for which in ("rebuilt", "baseline"))
    assert rebuilt["median"]["mean"] < min(0.06, pca["median"]["mean"])
    new = open_run(made.store.uri_of(made.run.root)).sample(2_000, seed=1).compute()
    assert new["radial_velocity"].isna().all() and (new["a_g_val"].dropna() == 0.25).all()
    assert new["pmra"].abs().median() < 50 and (new["pmra"].abs() > 1e10).mean() < 0.02

    for preset, scaling in (("keras-2020", "min-max"), ("pytorch-2020", "iqr")):
        with pytest.raises(DataError, match=rf"cannot be scaled by {scaling}: its values reach from .* to 1e\+30"):
            told = made.config.model_dump(mode="json", include={"store", "archive", "selection", "catalogue", "cluster"})
            run_stages(parse_config({**told, "name": preset, "model": {"preset": preset}}), ["statistics", "train"])
