"""Every number and flag of gaia_source: how well a run with all columns rebuilds stars, and how near new ones come.

    python tests/benchmarks/all_columns.py --folder all --stars 600000 --bits 480             # mock stars, extended to all columns
    python tests/benchmarks/all_columns.py --folder all --preset vae --latents 48 --bits 480  # the same stars, another preset
    python tests/benchmarks/all_columns.py --folder all --rows rows.parquet --rows-seen 300000

Mock stars are those of the mock archive (`--stars` of them, about half with a value in all 25 columns of the seed), in the columns that
`tests/whole_release.py` makes of theirs; `--rows` takes real rows of gaia_source instead, those of full tables (with a solution_id).
Nulls are kept, but with `--complete`. The folder keeps stars, store and runs, so that a call that was ended goes on.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from models import number, pair

from gaiadask.cluster.clients import open_workers
from gaiadask.config.sections import ClusterConfig, Config
from gaiadask.config.toml import parse_config
from gaiadask.model.files import load_model
from gaiadask.quality.files import read_quality
from gaiadask.quality.records import ColumnRating, Quality
from gaiadask.release.column import DEC, RA
from gaiadask.release.dr2 import COLUMNS
from gaiadask.stages.engine import run_stages
from gaiadask.store.files import Store
from gaiadask.store.manifest import Manifest
from gaiadask.store.paths import RunPaths

from whole_release import write_whole_release  # isort: skip

ENCODED = [name for name, column in COLUMNS.items() if column.is_encodable]
WORST = 6


def configuration(options: argparse.Namespace, rows: Path) -> Config:
    """The run."""
    stars = f"{rows.stem}{'-complete' if options.complete else ''}"
    model: dict[str, Any] = {"preset": options.preset, "columns": ENCODED}
    model |= {"latents": options.latents} if options.preset != "flow" else {}
    return parse_config(
        {
            "name": f"{options.preset}-{options.latents if options.preset != 'flow' else 'all'}-{options.bits}-{options.prior}",
            "store": str(options.folder.resolve() / stars),
            "archive": {"kind": "files", "uris": [str(rows.resolve() / "*.parquet" if rows.is_dir() else rows.resolve())]},
            "selection": {"columns": ["solution_id", *ENCODED], "not_null": ENCODED if options.complete else ["solution_id"]},
            "model": model,
            "latent": {"bits": options.bits},
            "training": {
                "rows_seen": options.rows_seen,
                "validate_every_rows": max(options.rows_seen // 10, 1),
                "threads": options.threads,
            },
            "prior": {"kind": options.prior, "rows_seen": options.prior_rows_seen},
            "quality": {"rows": 20_000, "two_sample_rows": options.auc_rows, "two_sample_seeds": 1},
        }
    )


def report(config: Config) -> None:
    """Print the table of the run, and its columns."""
    store, run = Store(config.store), RunPaths(config.name)
    manifest = Manifest(store, run)
    model = load_model(store, run)
    quality = read_quality(store, run, manifest.require("evaluate").key)
    kinds = {column.name: column.kind or column.role for column in model.card.columns}
    for title in ("rebuilt", "baseline"):
        rating = quality.reconstruction[title]
        own = rating.headline.beside_position
        print(
            f"{title}: error / IQR {pair(own.median.to_json())} of {own.median.columns} columns, 99 % {number(own.p99.mean)}, KS {number(own.ks.mean)}"
        )
    for name, summary in sorted(summaries(kinds, quality.reconstruction["rebuilt"].columns).items()):
        print(f"{name}: {summary}")
    print(f"AUC: {aucs(quality)}")
    if sampling := quality.sampling:
        print(f"new stars: KS {pair(sampling.ks.to_json())} {sampling.ks.worst_column}")
    print(
        f"{quality.stars:,} test stars; {model.bits} bits; {model.card.training.rows_seen:,} shown in {model.card.training.seconds:.0f} s"
    )
    for code, name in zip(model.card.codes, model.transform.value_names, strict=False):
        if config.model.preset == "flow":
            print(f"  {name}: {code.bits} bits{f' of {len(code.errors) - 1}' if code.errors else ''}")


def summaries(kinds: dict[str, str], ratings: dict[str, ColumnRating]) -> dict[str, str]:
    """Of each kind of columns its mean error, the share that came back exactly, and the worst."""
    found = {}
    for kind in set(kinds.values()):
        own = {name: rating for name, rating in ratings.items() if kinds[name] == kind and name not in (RA, DEC)}
        if not own:
            continue
        errors = {name: rating.error_over_iqr.median for name, rating in own.items() if rating.iqr > 0}
        worst = sorted(errors, key=lambda name: -errors[name])[:WORST]
        exact = {name: rating.identical for name, rating in own.items()}
        least = sorted(exact, key=lambda name: exact[name])[:WORST]
        found[kind] = (
            f"{len(own)} columns, mean error {number(sum(errors.values()) / max(len(errors), 1))}, exact {number(sum(exact.values()) / len(own))}; "
            f"worst {', '.join(f'{name} {number(errors[name])}' for name in worst)}; least exact {', '.join(f'{n} {number(exact[n])}' for n in least)}"
        )
    return found


def aucs(quality: Quality) -> str:
    """Of rebuilt and new stars, and the yardstick, with their 95 % intervals."""
    parts = []
    for name in ("real", "rebuilt", "baseline", "sampled", "copula"):
        if comparison := quality.comparison(name):
            each = ", ".join(f"{f} {number(result.mean)}" for f, result in comparison.classifiers.items())
            parts.append(
                f"{name} {number(comparison.auc)} ({number(comparison.interval[0])} to {number(comparison.interval[1])}; {each})"
            )
    return "; ".join(parts)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="of stars, store and runs")
    parser.add_argument("--rows", type=Path, help="a parquet file of real rows of gaia_source, in the place of mock stars")
    parser.add_argument("--stars", type=int, default=300_000, help="mock stars")
    parser.add_argument("--complete", action="store_true", help="only stars with a value in every column")
    parser.add_argument("--preset", default="flow", choices=["flow", "vae"])
    parser.add_argument("--latents", type=int, default=48, help="of preset vae")
    parser.add_argument("--bits", type=int, default=480, help="of a star")
    parser.add_argument("--rows-seen", type=int, default=5_000_000, help="stars shown to the model")
    parser.add_argument(
        "--prior", default="gaussian", choices=["gaussian", "latent", "none"], help="gaussian: a flow's own density"
    )
    parser.add_argument("--prior-rows-seen", type=int, default=1_000_000, help="stars shown to each flow of the prior")
    parser.add_argument("--auc-rows", type=int, default=3_000, help="stars on each side of a classifier's test")
    parser.add_argument("--threads", type=int, default=2, help="of training")
    options = parser.parse_args()
    logging.getLogger("gaiadask").setLevel(logging.WARNING)
    options.folder.mkdir(parents=True, exist_ok=True)
    if not (rows := options.rows):
        write_whole_release(rows := options.folder / f"mock-{options.stars}", options.stars)
    config = configuration(options, rows)
    with open_workers(ClusterConfig(workers=2)) as workers:
        run_stages(config, workers=workers)
    report(config)


if __name__ == "__main__":
    main()
