"""The presets on real rows of gaia_source: how well test stars are rebuilt, and how near new stars come to their marginals.

    python tests/benchmarks/real_rows.py --rows rows.parquet                # every preset, some ten minutes
    python tests/benchmarks/real_rows.py --rows rows.parquet --precise pyia gpyro stardate gyrointerp Hyades_only fabioles

Published tables are a small and biased sample, and many of them were rounded. Where the file tells in a column `origin` which
table a row is from, `--precise` names those whose values have the archive's digits (any origin that contains one of the
words): errors are printed for their stars apart. Train, validation and test stars are a hash of source_id as ever.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from models import number, pair, slug

from gaiadask.cluster.clients import open_workers
from gaiadask.cluster.dask_workers import DaskWorkers
from gaiadask.config.sections import ClusterConfig, Config
from gaiadask.config.toml import parse_config
from gaiadask.ingest import read_catalogue_record
from gaiadask.quality.files import read_quality, read_rated
from gaiadask.quality.reconstruction import reconstruction
from gaiadask.quality.records import Reconstruction, Summary
from gaiadask.release.column import SOURCE_ID
from gaiadask.release.dr2 import SEED25
from gaiadask.stages.engine import run_stages
from gaiadask.store.files import Store
from gaiadask.store.manifest import Manifest
from gaiadask.store.paths import RunPaths

COMPLETE, ANY = "complete", "nulls and all"
# Which stars, what of [model]; presets of 2020 know no nulls and no errors.
ROWS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "keras-2020, 16 columns": (COMPLETE, {"preset": "keras-2020"}),
    "pytorch-2020, 16 columns": (COMPLETE, {"preset": "pytorch-2020"}),
    "autoencoder, 16 columns, 8 latents": (COMPLETE, {"preset": "autoencoder", "latents": 8}),
    "vae, 16 columns, 8 latents": (COMPLETE, {"latents": 8}),
    "vae, 25 columns, 16 latents": (COMPLETE, {"columns": "seed25", "latents": 16}),
    "vae, 16 columns with nulls, 8 latents": (ANY, {"latents": 8}),
    "vae, 25 columns with nulls, 16 latents": (ANY, {"columns": "seed25", "latents": 16}),
}
HEAD = (
    "preset", "stars", "test stars", "error / IQR: mean, worst", "PCA of the same width", "test stars with archive precision", "their error / IQR",
    "KS: mean, worst", "values lost, invented", "KS of new stars", "largest difference of a null share", "AUC of new stars",
)  # fmt: skip


def run(store: Store, workers: DaskWorkers, name: str, options: argparse.Namespace) -> Config:
    """A whole run, prior and rating and all."""
    stars, model = ROWS[name]
    config = parse_config(
        {
            "name": slug(name),
            "store": f"{store.uri}/{'cuts' if stars == COMPLETE else 'nulls'}",
            "archive": {"kind": "files", "uris": [str(options.rows.resolve())]},
            "selection": {"columns": SEED25, "not_null": SEED25 if stars == COMPLETE else ()},
            "model": model,
            "training": {"rows_seen": options.rows_seen, "validate_every_rows": options.rows_seen // 20, "threads": 1},
            "prior": {"kind": "none" if "2020" in name else "latent", "rows_seen": options.rows_seen},
        }
    )
    run_stages(config, workers=workers)
    return config


def line(name: str, config: Config, precise: set[int]) -> tuple[str, ...]:
    """A row of the table."""
    store, paths = Store(config.store), RunPaths(config.name)
    quality, rated = (
        read_quality(store, paths, Manifest(store, paths).require("evaluate").key),
        read_rated(store, paths, config.release),
    )
    rebuilt, pca = quality.reconstruction["rebuilt"], quality.reconstruction.get("baseline")
    chosen = pa.array(np.isin(rated.real[SOURCE_ID].to_numpy(), list(precise)))
    apart = reconstruction(rated.real.filter(chosen), rated.rebuilt.filter(chosen), config.model_columns, config.release)
    lost, invented = (sum(getattr(c, which) for c in rebuilt.columns.values()) for which in ("lost", "invented"))
    stars = read_catalogue_record(store).rows
    cells = [name, f"{stars:,}", f"{rated.real.num_rows:,}", error(rebuilt), error(pca) if pca else "–"]
    cells += [f"{chosen.true_count:,}", error(apart), error(rebuilt, "ks"), f"{lost}, {invented}"]
    if not (sampling := quality.sampling):
        return (*cells, "–", "–", "–")
    nulls = max(abs(c.null_share_real - c.null_share_sampled) for c in sampling.columns.values())
    comparison = quality.comparison("sampled")
    return (*cells, _pair(sampling.ks), number(nulls), number(comparison and comparison.auc))


def error(rating: Reconstruction, which: str = "median") -> str:
    """Mean and worst over the columns beside position."""
    return _pair(getattr(rating.headline.beside_position, which))


def _pair(summary: Summary) -> str:
    return pair(summary.to_json())


def precise_stars(rows: Path, words: Sequence[str]) -> set[int]:
    """source_id of the rows from tables with the archive's own digits; every row's where the file does not tell."""
    names = pq.read_schema(rows).names
    table = pq.read_table(rows, columns=[SOURCE_ID, *(["origin"] if "origin" in names else [])])
    keep = (
        [any(word in origin for word in words) for origin in table["origin"].to_pylist()] if "origin" in names and words else None
    )
    return set((table.filter(pa.array(keep)) if keep is not None else table)[SOURCE_ID].to_pylist())


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, required=True, help="a parquet file of real rows of gaia_source")
    parser.add_argument("--precise", nargs="*", default=[], help="words of the origins whose values were not rounded")
    parser.add_argument("--presets", nargs="*", default=[""], help="only presets whose names contain one of these")
    parser.add_argument("--rows-seen", type=int, default=1_000_000, help="stars shown to each model, and to each flow of its prior")
    options = parser.parse_args()
    logging.getLogger("gaiadask").setLevel(logging.WARNING)
    precise = precise_stars(options.rows, options.precise)
    print(f"| {' | '.join(HEAD)} |\n|{' --- |' * len(HEAD)}", flush=True)
    with tempfile.TemporaryDirectory() as folder, open_workers(ClusterConfig(workers=2)) as workers:
        for name in (name for name in ROWS if any(part in name for part in options.presets)):
            print(f"| {' | '.join(line(name, run(Store(folder), workers, name, options), precise))} |", flush=True)


if __name__ == "__main__":
    main()
