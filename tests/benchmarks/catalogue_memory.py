"""How much memory each stage takes of a small catalogue and of a large one, in client and worker. Prints a markdown table.

    python tests/benchmarks/catalogue_memory.py                                           # 2 and 20 million mock stars, 25 columns
    python tests/benchmarks/catalogue_memory.py --all-columns --stars 200000 2000000      # 94 columns, the model has 25
    python tests/benchmarks/catalogue_memory.py --stages ingest statistics --folder /data/bench

Partitions are of 64 MB, so that the large catalogue has more of them and not larger ones. Each stage runs in a process of its own with
two workers; memory is the largest resident set of the client, and of one worker, when the stage has ended. The model is small and sees
few stars: what grows is meant to be the catalogue alone. Stars in all columns are made of mock stars (`tests/whole_release.py`) and
ingested from parquet files.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from contest import all_columns_config, mock_config
from stage_cost import STAGES, cost_of

from gaiadask.config.sections import Config


def config_of(folder: Path, stars: int, all_columns: bool) -> Config:
    """A short run; its stars are made where they must be files and are not there."""
    sections: dict[str, dict[str, Any]] = {
        "training": {"rows_seen": 400_000, "validate_every_rows": 200_000, "validation_rows": 10_000, "buffer_rows": 1_000_000},
        "model": {"latents": 6, "hidden": (64, 64)},
        "prior": {"rows_seen": 50_000, "stars": 50_000, "validation_stars": 5_000, "hidden": (16,), "transforms": 1},
        "quality": {"rows": 20_000, "two_sample_rows": 1_000, "two_sample_seeds": 1},
    }
    if all_columns:
        sections["model"]["columns"] = "seed25"
        return all_columns_config(folder, stars, **sections)
    return mock_config(folder / f"store-{stars}", stars, **sections)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--stars", type=int, nargs=2, default=[2_000_000, 20_000_000], help="of the small and of the large catalogue"
    )
    parser.add_argument(
        "--all-columns", action="store_true", help="the catalogue has the release's 94 columns, of which the model has 25"
    )
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=STAGES, help="in this order")
    parser.add_argument("--folder", type=Path, help="where catalogues are kept (default: a temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gaiadask-memory-") as scratch:
        configs = [config_of(options.folder or Path(scratch), stars, options.all_columns) for stars in options.stars]
        small, large = (f"{stars:,}" for stars in options.stars)
        print(f"| stage | client, MB: {small} stars | {large} stars | ratio | worker, MB: {small} stars | {large} stars | ratio |")
        print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
        for stage in options.stages:
            of_small, of_large = (cost_of(config, stage) for config in configs)
            cells: list[str] = [stage]
            for before, after in ((of_small.client_mb, of_large.client_mb), (of_small.worker_mb, of_large.worker_mb)):
                cells += [f"{before:,.0f}", f"{after:,.0f}", f"{after / before:.2f}"]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
