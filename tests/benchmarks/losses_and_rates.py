"""Which loss and which course of the learning rate rebuild stars best: validation stars, in physical units. Prints a table.

    python tests/benchmarks/losses_and_rates.py                     # 155,000 made-up stars, 1 M shown to each, ten minutes

Losses cannot be compared by their own values, so everything is rated as `gaiadask tune` rates: by median |error| / IQR of
rebuilt validation stars, mean and worst over the 14 columns beside position. What a line does not say is as the preset sets it.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from collections.abc import Mapping
from typing import Any

from gaiadask.cluster import open_client
from gaiadask.columns import SEED16
from gaiadask.config import ClusterConfig, parse_config
from gaiadask.paths import RunPaths
from gaiadask.stages import run_on_request, run_stages
from gaiadask.store import Store
from gaiadask.tune import AFTER, TUNE, read_tuned

AUTOENCODER = {"preset": "autoencoder"}
# Columns that six latents rebuild worst, counted four times; and the same of those that they rebuild best.
HARD = ("phot_bp_mean_flux", "phot_rp_mean_flux", "parallax")
EASY = ("pmra", "pmdec", "radial_velocity")
# A search each: [model], [training], and the options that are tried.
SEARCHES: Mapping[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "preset": ({}, {"model": {"preset": ["vae", "autoencoder"]}}),
    "scaling": ({**AUTOENCODER, "loss": "mse"}, {"model": {"scaling": ["quantile", "min-max", "iqr"]}}),
    "loss": ({**AUTOENCODER, "scaling": "min-max", "linear_path": False}, {"model": {"loss": ["bce", "mse"]}}),
    "weights": (
        {**AUTOENCODER, "loss": "weighted-mse"},
        {"model": {"column_weights": [dict.fromkeys(names, 4.0) for names in (HARD, EASY)]}},
    ),
    "rate": (
        {},
        {
            "training": {
                "schedule": ["one-cycle", "exponential", "step", "constant"],
                "learning_rate": [2e-2, 5e-3, 1e-3],
            }
        },
    ),
}


def main() -> None:
    """Search and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stars", type=int, default=300_000, help="of the made-up sky; half of them have all columns")
    parser.add_argument("--rows-seen", type=int, default=1_000_000, help="stars shown to each candidate")
    parser.add_argument("--latents", type=int, default=6)
    parser.add_argument("--searches", nargs="*", default=list(SEARCHES), choices=list(SEARCHES))
    options = parser.parse_args()
    logging.getLogger("gaiadask").setLevel(logging.ERROR)
    print("| [model] | tried | error: mean | worst | seconds |\n| --- | --- | --- | --- | --- |", flush=True)
    with tempfile.TemporaryDirectory() as folder, open_client(ClusterConfig(workers=2)) as client:
        for name in options.searches:
            model, tried = SEARCHES[name]
            config = parse_config(
                {
                    "name": name,
                    "store": folder,
                    "archive": {"kind": "mock", "mock_stars": options.stars},
                    "model": {"latents": options.latents, "columns": SEED16, **model},
                    "training": {"threads": 1},
                    "tune": {**tried, "rows_seen": options.rows_seen, "factor": 100},
                }
            )
            run_stages(config, ["ingest", AFTER], client=client)
            run_on_request(config, TUNE, AFTER, client=client)
            for candidate in ordered(read_tuned(Store(folder), RunPaths(name))):
                print(line(model, candidate), flush=True)


def ordered(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Candidates, the best first."""
    return sorted(record["candidates"].values(), key=lambda c: c["rungs"][0]["score"] if c["rungs"] else float("inf"))


def line(model: Mapping[str, Any], candidate: Mapping[str, Any]) -> str:
    """A row of the table."""
    given = ", ".join(f"{name} = {json.dumps(value)}" for name, value in model.items()) or 'preset = "vae"'
    tried = ", ".join(f"{name.split('.')[1]} = {json.dumps(value)}" for name, value in candidate["options"].items())
    if not candidate["rungs"]:
        return f"| {given} | {tried} | {candidate['error']} | | |"
    found = candidate["rungs"][0]
    return f"| {given} | {tried} | {found['score']:.4f} | {found['worst']:.3f} ({found['worst_column']}) | {found['seconds']:.0f} |"


if __name__ == "__main__":
    main()
