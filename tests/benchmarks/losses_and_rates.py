"""Which loss and which course of the learning rate rebuild stars best, and which step from 2020 to now brings what.

    python tests/benchmarks/losses_and_rates.py                             # 155,000 mock stars, 1 M shown to each
    python tests/benchmarks/losses_and_rates.py --groups keras pytorch --latents 8      # from 2020 to now, step by step

Losses cannot be compared by their own values, so everything is rated as `gaiadask tune` rates: by median |error| / IQR of
rebuilt validation stars, mean and worst over the 14 columns beside position. What a line does not say is as the preset sets it.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gaiadask.cluster.clients import open_workers
from gaiadask.config.cluster import ClusterConfig
from gaiadask.config.toml import parse_config
from gaiadask.inputs.scaling import NORMAL_IQR
from gaiadask.stages.engine import run_stages
from gaiadask.store.files import Store
from gaiadask.store.paths import RunPaths
from gaiadask.training.search import CandidateRecord, SearchRecord, read_search


@dataclass(frozen=True)
class Search:
    """What is tried of [model] and [training], given the rest of them."""

    title: str
    tried: Mapping[str, Mapping[str, Any]]
    model: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)


def steps(first: Search, *changes: tuple[str, Mapping[str, Any], Mapping[str, Any]]) -> list[Search]:
    """The first search, then one for each change of [model] and [training], each on top of those before."""
    found = [first]
    for title, model, training in changes:
        last = found[-1]
        found.append(Search(title, first.tried, {**last.model, **model}, {**last.training, **training}))
    return found


AUTOENCODER = {"preset": "autoencoder"}
# Columns whose squared errors count four times as much as the others': what six latents rebuild worst, and what best.
HARD = dict.fromkeys(("phot_bp_mean_flux", "phot_rp_mean_flux", "parallax"), 4 / NORMAL_IQR**2)
EASY = dict.fromkeys(("pmra", "pmdec", "radial_velocity"), 4 / NORMAL_IQR**2)
NOW = (
    ("… derived columns computed, position given", {"derive": True, "position": "condition"}, {}),
    ("… a Gaussian likelihood by the catalogue's own errors", {"loss": "gaussian", "error_share": 0.03}, {}),
    ("… three layers of 128, SiLU", {"hidden": (128, 128, 128), "activation": "silu"}, {}),
    ("… a linear path from the principal components", {"linear_path": True}, {}),
    ("… one-cycle rate, gradients cut at 1", {}, {"schedule": "one-cycle", "gradient_norm": 1.0, "second_moment_decay": 0.98}),
    ("… tails of the likelihood that fall off exponentially", {"loss": "hyperbolic"}, {}),
)
GROUPS: Mapping[str, list[Search]] = {
    "losses": [
        Search("likelihood", {"model": {"preset": ["vae", "autoencoder"], "loss": ["hyperbolic", "gaussian"]}}),
        Search("squared error", {"model": {"scaling": ["quantile", "min-max", "iqr"]}}, {**AUTOENCODER, "loss": "mse"}),
        Search(
            "without a linear path", {"model": {"loss": ["bce", "mse"]}},
            {**AUTOENCODER, "scaling": "min-max", "linear_path": False},
        ),
        Search(
            "weights on hard columns, on easy ones", {"model": {"column_weights": [HARD, EASY]}},
            {**AUTOENCODER, "loss": "weighted-mse"},
        ),
    ],
    "rates": [
        Search(
            "rate",
            {"training": {"schedule": ["one-cycle", "exponential", "step", "constant"], "learning_rate": [2e-2, 5e-3, 1e-3]}},
        )
    ],
    "keras": steps(
        Search("keras-2020", {"training": {"learning_rate": [1e-3, 1e-2]}}, {"preset": "keras-2020"}),
        ("… quantile scaling, squared error", {"scaling": "quantile", "loss": "mse"}, {}), *NOW,
    ),
    "pytorch": steps(
        Search("pytorch-2020", {"training": {"learning_rate": [0.1, 1e-2]}}, {"preset": "pytorch-2020"}),
        ("… no batch normalisation", {"batch_norm": "none"}, {}), ("… quantile scaling", {"scaling": "quantile"}, {}), NOW[0],
    ),
}  # fmt: skip


def main() -> None:
    """Search and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stars", type=int, default=300_000, help="of the made-up sky; half of them have all columns")
    parser.add_argument("--rows-seen", type=int, default=1_000_000, help="stars shown to each candidate")
    parser.add_argument("--latents", type=int, default=6)
    parser.add_argument("--groups", nargs="*", default=list(GROUPS), choices=list(GROUPS))
    options = parser.parse_args()
    logging.getLogger("gaiadask").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder, open_workers(ClusterConfig(workers=2)) as workers:
        for group in options.groups:
            print(f"\n{group}\n\n| what | tried | error: mean | worst | seconds |\n| --- | --- | --- | --- | --- |", flush=True)
            for number, search in enumerate(GROUPS[group]):
                config = parse_config(
                    {
                        "name": f"{group}-{number}",
                        "store": folder,
                        "archive": {"kind": "mock", "mock_stars": options.stars},
                        "model": {"latents": options.latents, **search.model},
                        "training": {"threads": 1, **search.training},
                        "tune": {**search.tried, "rows_seen": options.rows_seen, "factor": 100},
                    }
                )
                run_stages(config, ["ingest", "statistics", "tune"], workers=workers)
                for candidate in ordered(read_search(Store(folder), RunPaths(config.name))):
                    print(line(search.title, candidate), flush=True)


def ordered(record: SearchRecord) -> list[CandidateRecord]:
    """Candidates, the best first."""
    return sorted(record.candidates.values(), key=lambda c: c.rungs[0].score if c.rungs else float("inf"))


def line(title: str, candidate: CandidateRecord) -> str:
    """A row of the table."""
    tried = ", ".join(f"{name.split('.')[1]} = {told(value)}" for name, value in candidate.options.items())
    if not candidate.rungs:
        return f"| {title} | {tried} | {candidate.error} | | |"
    rung = candidate.rungs[0]
    return f"| {title} | {tried} | {rung.score:.4f} | {rung.worst:.3f} ({rung.worst_column}) | {rung.seconds:.0f} |"


def told(value: Any) -> str:
    """An option's value; of column weights, the columns."""
    return ", ".join(value) if isinstance(value, dict) else json.dumps(value)


if __name__ == "__main__":
    main()
