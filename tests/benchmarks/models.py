"""The systems one could pick, on the same mock stars: how well stars are rebuilt, how well new ones hide among real ones.

    pip install 'gaiadask[benchmark]'
    python tests/benchmarks/models.py --folder models                     # every row that is not there yet; then the table
    python tests/benchmarks/models.py --folder models --rows PCA vae      # rows whose name contains one of these
    python tests/benchmarks/models.py --folder models --rows none         # the table of what is there

Half a million mock stars with the seed's 16 columns; every number is of test stars, by hash of source_id. A row trains for
`--seconds` on one thread (how many stars that is, is found by showing it a few first); `--prior-seconds` for each flow. Rows
are kept in the folder by what they depend on, so that the table can grow run by run. Errors and KS are over the 14 columns
beside position (of the rows with 25 columns, over 23), σ shares over those of them that have a catalogue error; AUCs are of a
classifier that is to tell the stars from real ones, out of fold: boosted trees on raw columns, with physics features, a neural
network.

TVAE (Xu et al. 2019, arXiv:1907.00503) comes from the ctgan package, whose licence forbids more than to compare with it.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent))
os.environ["KERAS_BACKEND"] = "torch"

from gaiadask import catalogue
from gaiadask.cluster.clients import open_workers
from gaiadask.cluster.dask_workers import DaskWorkers
from gaiadask.config.sections import ClusterConfig, Config
from gaiadask.config.toml import parse_config
from gaiadask.ingest import read_catalogue_record
from gaiadask.keys import digest
from gaiadask.model.files import load_model
from gaiadask.prior import load_prior
from gaiadask.prior.fitting import LATENT
from gaiadask.quality import FEATURES, gaussian_copula_sample, independent_columns_sample, two_sample_auc
from gaiadask.quality.files import read_rated
from gaiadask.quality.reconstruction import ks_distance, reconstruction
from gaiadask.quality.records import Summary
from gaiadask.quality.tables import halves, values
from gaiadask.release.column import DEC, RA, SOURCE_ID
from gaiadask.release.dr2 import COLUMNS, DR2, SEED16
from gaiadask.sample import sample
from gaiadask.split import Part, part_of
from gaiadask.stages.engine import run_stages
from gaiadask.store import paths
from gaiadask.store.files import Store
from gaiadask.store.manifest import Manifest
from gaiadask.store.paths import RunPaths

Json = dict[str, Any]
CALIBRATION_ROWS = 2_000_000  # some twenty seconds of it: the first passes read files
REFERENCE = "vae, 8 latents"  # whose test stars are everybody's


@dataclass(frozen=True)
class Bench:
    """What the rows share."""

    folder: Path
    workers: DaskWorkers
    options: argparse.Namespace

    @property
    def store(self) -> Store:
        return Store(str(self.folder / "store"))

    def config(self, name: str, model: Json, training: Json, prior: Json, nulls: bool = False) -> Config:
        """nulls: of all mock stars, in a store of their own, not only of those with all columns."""
        told = self.options
        flow_seconds = told.prior_seconds * (2 if prior["kind"] == "free" else 1)  # alone, it has the time of both
        return parse_config(
            {
                "name": name,
                "store": f"{self.store.uri}-nulls" if nulls else self.store.uri,
                "archive": {"kind": "mock", "mock_stars": told.stars // 2 if nulls else told.stars, "chunk_rows": 50_000},
                "selection": {"not_null": ()} if nulls else {},
                "catalogue": {"partition_mb": 20},
                "model": model,
                "training": {"validate_every_rows": 1_000_000, "threads": 1, "seed": told.seed, **training},
                "prior": {"seed": told.seed, "stars": 400_000, "max_seconds": flow_seconds, "rows_seen": 20_000_000, **prior},
                "quality": {"rows": 50_000, "two_sample_rows": told.auc_rows, "two_sample_seeds": told.seeds},
            }
        )

    def real(self) -> pa.Table:
        """The rated test stars."""
        return read_rated(self.store, RunPaths(slug(REFERENCE)), DR2).real

    def train_stars(self) -> pa.Table:
        tables = []
        for partition in read_catalogue_record(self.store).partitions:
            table = catalogue.read_partition(self.store, paths.CATALOGUE, partition.tile, [SOURCE_ID, *SEED16])
            tables.append(table.filter(pa.array(part_of(table[SOURCE_ID].to_numpy()) == Part.TRAIN)))
        return pa.concat_tables(tables).drop_columns([SOURCE_ID])


@dataclass(frozen=True)
class Row:
    """A line of the table. told: all that its result depends on, beside the options. needs: rows that come first."""

    name: str
    make: Callable[[Bench, Row], Json]
    told: Json = field(default_factory=dict)
    needs: tuple[str, ...] = ()


def slug(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name).strip("-")


# Rows ----------------------------------------------------------------------------------------------------------------
def by_gaiadask(bench: Bench, row: Row) -> Json:
    """A run of its own in the store that all share: the stages as a user walks them."""
    told = row.told
    prior, nulls = told.get("prior", {"kind": "none"}), told.get("nulls", False)
    rows_seen = told.get("rows_seen") or _affordable_rows(bench, row)
    training = {"rows_seen": rows_seen, "patience": 1_000, **told.get("training", {})}
    config = bench.config(slug(row.name), told["model"], training, prior, nulls)
    run_stages(config, workers=bench.workers)
    store, run = Store(config.store), RunPaths(config.name)
    quality, card, entry = store.read_json(run.quality), store.read_json(run.card), Manifest(store, run).entry("prior")
    rebuilds = not told.get("only_samples")
    return {
        "reconstruction": quality["reconstruction"]["rebuilt"] if rebuilds else None,
        "rebuilt": _aucs(quality, "rebuilt") if rebuilds else None,
        "sampled": _aucs(quality, "sampled"),
        "sampled_ks": quality["sampling"] and quality["sampling"]["ks"],
        "nearer_to_train": quality["sampling"] and quality["sampling"]["nearer_to_train"],
        "active_units": card["metrics"].get("active_units"),
        "seconds": card["training"]["seconds"] if rebuilds else None,
        "prior_seconds": entry.seconds if entry and prior["kind"] != "none" else None,
        "rows_seen": card["training"]["rows_seen"],
    }


def _affordable_rows(bench: Bench, row: Row) -> int:
    """How many stars can be shown in the budget."""
    training = {"rows_seen": CALIBRATION_ROWS, "validate_every_rows": CALIBRATION_ROWS, **row.told.get("training", {})}
    name, nulls = f"{slug(row.name)}-speed", row.told.get("nulls", False)
    config = bench.config(name, row.told["model"], training, {"kind": "none"}, nulls)
    run_stages(config, ["ingest", "statistics", "train"], workers=bench.workers)
    speed = Store(config.store).read_json(RunPaths(name).card)["training"]["rows_per_s"]
    return int(row.told.get("minutes", bench.options.seconds / 60) * 60 * speed)


def _aucs(quality: Mapping[str, Any], comparison: str) -> Json | None:
    found = quality["two_sample"]["comparisons"].get(comparison)
    return found and {name: result["mean"] for name, result in found["classifiers"].items()}


def by_pca(bench: Bench, row: Row) -> Json:
    """The baseline of the run of the same width, fitted on the very inputs that its network saw."""
    quality = bench.store.read_json(RunPaths(slug(row.needs[-1])).quality)
    return {"reconstruction": quality["reconstruction"]["baseline"], "rebuilt": _aucs(quality, "baseline")}


def by_part_of_the_prior(bench: Bench, row: Row) -> Json:
    """New stars of the run before it with some of its prior's flows alone."""
    run = RunPaths(slug(row.needs[-1]))
    model, prior = load_model(bench.store, run), load_prior(bench.store, run)
    part = replace(prior, densities={name: prior.densities[name] for name in row.told["flows"]})
    return _rated_samples(bench, sample(model, part, 3 * bench.options.auc_rows, bench.options.seed))


def by_yardstick(bench: Bench, row: Row) -> Json:
    """Made up after train stars: the test stars of one half are what they are held against."""
    train, rows = bench.train_stars(), 3 * bench.options.auc_rows
    if row.told["kind"] == "real":
        half, other = halves(bench.real())
        return {"sampled": _told_apart(bench, bench.real().take(other), bench.real().take(half))}
    make = gaussian_copula_sample if row.told["kind"] == "copula" else independent_columns_sample
    return _rated_samples(bench, make(train, rows, DR2, bench.options.seed))


def by_tvae(bench: Bench, row: Row) -> Json:
    """As its users call it, on the 16 columns as they are; epochs as many as the budget affords once its inputs are prepared."""
    import torch
    from ctgan import TVAE

    torch.set_num_threads(1)
    frame = bench.train_stars().slice(0, row.told["train_stars"]).to_pandas()
    few, took = frame[:10_000], []
    # Many epochs, since preparing the inputs takes far longer than one; and a fit before, since the first takes longer still.
    for epochs in (1, 1, 31):
        began = time.monotonic()
        TVAE(epochs=epochs, enable_gpu=False).fit(few)
        took.append(time.monotonic() - began)
    epoch = max(0.1, (took[2] - took[1]) / 30) * len(frame) / len(few)
    epochs = max(1, int(bench.options.seconds / epoch))
    model = TVAE(epochs=epochs, enable_gpu=False)
    model.set_random_state(bench.options.seed)
    began = time.monotonic()
    model.fit(frame)
    seconds = time.monotonic() - began
    made = model.sample(3 * bench.options.auc_rows)
    schema = pa.schema([COLUMNS[name].field.remove_metadata() for name in SEED16])
    sampled = pa.table([pa.array(made[f.name].to_numpy().astype(f.type.to_pandas_dtype())) for f in schema], schema=schema)
    return _rated_samples(bench, sampled) | {"seconds": seconds, "rows_seen": epochs * len(frame)}


def by_keras(bench: Bench, row: Row) -> Json:
    """The autoencoder of 2020 as it was written, on what our twin of it sees."""
    import torch
    from keras_parity import keras_network, scheduled

    torch.set_num_threads(1)
    twin = slug(row.needs[-1])
    model = load_model(bench.store, RunPaths(twin))
    config = bench.config(twin, {"preset": "keras-2020"}, {}, {"kind": "none"})
    train, real = bench.train_stars(), bench.real()
    x = model.transform.forward(train).values
    network = keras_network(config, bench.options.seed)
    options = {"batch_size": config.training.batch_rows, "verbose": 0}
    began = time.monotonic()
    network.fit(x[:CALIBRATION_ROWS], x[:CALIBRATION_ROWS], epochs=1, **options)
    epoch = (time.monotonic() - began) * len(x) / min(len(x), CALIBRATION_ROWS)
    epochs = max(1, round(bench.options.seconds / epoch))
    network = keras_network(config, bench.options.seed)
    began = time.monotonic()
    network.fit(x, x, epochs=epochs, callbacks=[scheduled(config, epochs)], **options)
    seconds = time.monotonic() - began
    rebuilt = model.transform.inverse(network.predict(model.transform.forward(real).values, batch_size=16_384, verbose=0))
    table = pa.table(
        {SOURCE_ID: real[SOURCE_ID]}
        | {name: pa.array(_typed(rebuilt[name], name), mask=~np.isfinite(rebuilt[name])) for name in SEED16}
    )
    half, other = halves(real)
    return {
        "reconstruction": reconstruction(real, table, SEED16, DR2).to_json(),
        "rebuilt": _told_apart(bench, real.take(other), table.take(half)),
        "seconds": seconds,
        "rows_seen": epochs * len(x),
    }


def _typed(column: NDArray[np.float64], name: str) -> NDArray[Any]:
    return np.where(np.isfinite(column), column, 0).astype(COLUMNS[name].dtype.to_pandas_dtype())


def _rated_samples(bench: Bench, made: pa.Table) -> Json:
    real = bench.real()
    ks = {}
    for name in (n for n in SEED16 if n not in (RA, DEC)):
        ours, theirs = values(real, name), values(made, name)
        ks[name] = ks_distance(ours[np.isfinite(ours)], theirs[np.isfinite(theirs)])
    _, other = halves(real)
    return {"sampled": _told_apart(bench, real.take(other), made), "sampled_ks": Summary.of(ks).to_json()}


def _told_apart(bench: Bench, real: pa.Table, made: pa.Table) -> Json:
    names = list(SEED16)
    rows, seeds = bench.options.auc_rows, bench.options.seeds
    return {f: two_sample_auc(real.select(names), made.select(names), DR2, f, rows, seeds=seeds).mean for f in FEATURES}


def _network_rows() -> list[Row]:
    rows = [Row(REFERENCE, by_gaiadask, {"model": {"preset": "vae", "latents": 8}, "prior": {"kind": "latent"}})]
    for preset in ("autoencoder", "vae"):
        for latents in (8, 6, 4):
            told = {"model": {"preset": preset, "latents": latents}, "prior": {"kind": "latent" if preset == "vae" else "none"}}
            if (name := f"{preset}, {latents} latents") != REFERENCE:
                rows.append(Row(name, by_gaiadask, told, (REFERENCE,)))
    longer = {"model": {"preset": "vae", "latents": 8}, "prior": {"kind": "latent"}, "minutes": 10}
    wide = {"model": {"preset": "vae", "columns": "seed25", "latents": 16}, "prior": {"kind": "latent"}}
    return [
        *rows,
        Row("vae, 8 latents, 10 minutes", by_gaiadask, longer, (REFERENCE,)),
        Row("vae, 25 columns, 16 latents", by_gaiadask, wide, (REFERENCE,)),
        Row("vae, 25 columns with nulls, 16 latents", by_gaiadask, {**wide, "nulls": True}),
    ]


ROWS = {
    row.name: row
    for row in (
        *_network_rows(),
        *(Row(f"PCA, {n} components", by_pca, {}, (REFERENCE, f"autoencoder, {n} latents")) for n in (8, 6, 4)),
        Row("keras-2020, gaiadask", by_gaiadask, {"model": {"preset": "keras-2020"}}, (REFERENCE,)),
        Row("keras-2020, Keras", by_keras, {}, (REFERENCE, "keras-2020, gaiadask")),
        Row("pytorch-2020", by_gaiadask, {"model": {"preset": "pytorch-2020"}}, (REFERENCE,)),
        Row(
            "flow on the free columns, no latents", by_gaiadask,
            {"model": {"latents": 8}, "prior": {"kind": "free"}, "rows_seen": 10_000, "only_samples": True}, (REFERENCE,),
        ),
        Row("vae, 8 latents drawn from N(0, 1)", by_part_of_the_prior, {"flows": []}, (REFERENCE,)),
        Row("vae, 8 latents, without the residual flow", by_part_of_the_prior, {"flows": [LATENT]}, (REFERENCE,)),
        Row("TVAE", by_tvae, {"train_stars": 100_000}, (REFERENCE,)),
        Row("Gaussian copula", by_yardstick, {"kind": "copula"}, (REFERENCE,)),
        Row("independent columns", by_yardstick, {"kind": "independent"}, (REFERENCE,)),
        Row("real stars", by_yardstick, {"kind": "real"}, (REFERENCE,)),
    )
}  # fmt: skip


# The table -----------------------------------------------------------------------------------------------------------
def kept(bench: Bench, row: Row) -> Path:
    """Where a row's result lies: named by all it depends on."""
    told = row.told
    shared = {name: value for name, value in vars(bench.options).items() if name not in ("folder", "rows", "workers")}
    depends = {"row": told, "options": shared, "needs": [kept(bench, ROWS[name]).name for name in row.needs]}
    if "model" in told:  # with the defaults of today
        config = bench.config("any", told["model"], told.get("training", {}), told.get("prior", {"kind": "none"}))
        depends["config"] = config.model_dump(mode="json", include={"model", "training", "prior", "quality"})
    return bench.folder / "rows" / f"{slug(row.name)}-{digest(depends)}.json"


def made(bench: Bench, row: Row) -> Json:
    """The row's result, of now or of before."""
    for name in row.needs:
        made(bench, ROWS[name])
    path = kept(bench, row)
    if not path.exists():
        print(f"{time.strftime('%H:%M:%S')} {row.name}", file=sys.stderr, flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(row.make(bench, row), indent=1, default=str))
    return dict(json.loads(path.read_text()))


HEAD = (
    "row", "error / IQR: median", "90 %", "99 %", "all 16: median", "90 %", "99 %", "KS: mean, worst", "within 1σ", "beyond 3σ",
    "rebuilt: raw", "physics", "MLP", "sampled: raw", "physics", "MLP", "KS of samples", "latents in use", "seconds", "rows seen",
)  # fmt: skip


def line(name: str, found: Json) -> tuple[str, ...]:
    rebuilt, sampled = found.get("rebuilt") or {}, found.get("sampled") or {}
    cells = ["–"] * 9
    if rating := found.get("reconstruction"):
        beside, whole = rating["headline"]["beside_position"], rating["headline"]["all_columns"]
        cells = [pair(part[what]) for part in (beside, whole) for what in ("median", "p90", "p99")] + [pair(beside["ks"])]
        # Beside position, which most of the models do not rebuild but carry.
        sigma = [c["error_in_sigma"] for name, c in rating["columns"].items() if c["error_in_sigma"] and name not in (RA, DEC)]
        cells += [number(np.mean([s[what] for s in sigma])) for what in ("within_1_sigma", "beyond_3_sigma")]
    seconds = [f"{s:.0f}" for s in (found.get("seconds"), found.get("prior_seconds")) if s is not None]
    return (
        name, *cells, *(number(rebuilt.get(f)) for f in FEATURES), *(number(sampled.get(f)) for f in FEATURES),
        pair(found["sampled_ks"]) if found.get("sampled_ks") else "–", str(found.get("active_units") or "–"),
        " + ".join(seconds) or "–",
        f"{found['rows_seen']:,}" if found.get("rows_seen") else "–",
    )  # fmt: skip


def pair(summary: Mapping[str, Any]) -> str:
    return f"{number(summary['mean'])}, {number(summary['worst'])}"


def number(x: float | None) -> str:
    return "–" if x is None else f"{x:.3f}" if x >= 0.1 else f"{x:.2g}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="of the stars, the runs and the rows")
    parser.add_argument("--rows", nargs="*", default=[""], help="only rows whose names contain one of these")
    parser.add_argument("--stars", type=int, default=1_000_000, help="mock stars asked for; half of them have all columns")
    parser.add_argument("--seconds", type=float, default=300.0, help="of training, a row")
    parser.add_argument("--prior-seconds", type=float, default=150.0, help="of each of a prior's flows")
    parser.add_argument("--auc-rows", type=int, default=20_000, help="stars a side of a two-sample test")
    parser.add_argument("--seeds", type=int, default=1, help="of each two-sample test")
    parser.add_argument("--seed", type=int, default=0, help="of weights and of the order of stars")
    parser.add_argument("--workers", type=int, default=2, help="of the cluster; 1 where two of these run side by side")
    options = parser.parse_args()
    logging.getLogger("gaiadask").setLevel(logging.WARNING)
    options.folder = options.folder.resolve()
    with open_workers(ClusterConfig(workers=options.workers)) as workers:
        bench = Bench(options.folder, workers, options)
        for name, row in ROWS.items():
            if any(part in name for part in options.rows):
                made(bench, row)
        print(f"| {' | '.join(HEAD)} |\n|{' --- |' * len(HEAD)}")
        for name, row in ROWS.items():
            if kept(bench, row).exists():
                print(f"| {' | '.join(line(name, made(bench, row)))} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
