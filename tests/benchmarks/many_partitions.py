"""What a partition costs beside its stars: the same stars in few and in many partitions, stage by stage. Prints a markdown table.

    python tests/benchmarks/many_partitions.py                             # 1,000,000 stars in 48 and in 12,288 partitions
    python tests/benchmarks/many_partitions.py --stars 200000 --orders 1 4 --stages ingest statistics

The stars are mock stars written to parquet files, which are then ingested, so that making them is not measured. The partitions are all
HEALPix pixels of one order that have stars (order 1: 48, order 5: 12,288): no option makes them so small. Each stage runs in a process
of its own, with two workers that have started already. Ratios are those of CPU seconds, of the client and of all processes, to the
first order's; memory is the largest resident set of the client, and of one worker, when the stage has ended.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from contest import mock_config
from stage_cost import STAGES, cost_of

from gaiadask import ingest_plan
from gaiadask.archive.base import open_archive
from gaiadask.config.sections import Config
from gaiadask.store.paths import Tile

FILES = 4


def config_of(folder: Path, stars: Path) -> Config:
    """A short run on the files in `stars`."""
    sections: dict[str, dict[str, Any]] = {
        "archive": {"kind": "files", "uris": [str(stars / "*.parquet")]},
        "catalogue": {"partition_mb": 10_000},
        "model": {"latents": 6, "hidden": (64, 64)},
        "training": {"rows_seen": 200_000, "validate_every_rows": 100_000, "batch_rows": 2_000, "validation_rows": 5_000},
        "prior": {"rows_seen": 20_000, "stars": 20_000, "validation_stars": 2_000, "hidden": (16,), "transforms": 1},
        "quality": {"rows": 10_000, "two_sample_rows": 1_000, "two_sample_seeds": 1},
        "cluster": {"workers": 2},
    }
    config: Config = mock_config(folder, 1, **sections)
    return config


def write_stars(folder: Path, stars: int) -> None:
    """Mock stars of all columns that the run selects, in a few parquet files, unordered over the sky as archives' files are."""
    folder.mkdir(parents=True)
    config = mock_config(folder / "none", stars)
    archive = open_archive(config.archive, config.selection)
    table = pa.concat_tables(table for chunk in archive.plan().chunks for table in archive.fetch(chunk, lambda _: None))
    for number in range(FILES):
        pq.write_table(table.take(list(range(number, len(table), FILES))), folder / f"{number}.parquet", row_group_size=65_536)


def tiles_of(order: int, *_: object) -> tuple[Tile, ...]:
    """The whole sky in tiles of one order."""
    return tuple(Tile(order, pixel) for pixel in range(12 * 4**order))


def in_tiles_of(order: int) -> AbstractContextManager[object]:
    """Within it a catalogue's partitions are the tiles of one order."""
    return mock.patch.object(ingest_plan, "tile_cover", partial(tiles_of, order))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stars", type=int, default=1_000_000, help="mock stars before the selection")
    parser.add_argument(
        "--orders", type=int, nargs="+", default=[1, 5], help="HEALPix orders of the partitions; the first is compared with"
    )
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=STAGES, help="in this order")
    parser.add_argument(
        "--folder", type=Path, help="where to write, and to find what is there already; a temporary folder by default"
    )
    options = parser.parse_args()
    scratch = options.folder or Path(tempfile.mkdtemp(prefix="many-partitions-"))
    try:
        if not (stars := scratch / f"stars-{options.stars}").exists():
            write_stars(stars, options.stars)
        print("| stage | partitions | wall, s | client, CPU s | all, CPU s | of the first | client, MB | worker, MB |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
        for stage in options.stages:
            measure(stage, scratch, stars, options.orders)
    finally:
        if not options.folder:
            shutil.rmtree(scratch)


def measure(stage: str, scratch: Path, stars: Path, orders: Sequence[int]) -> None:
    """Print a stage's lines."""
    first = 0.0
    for order in orders:
        config = config_of(scratch / f"{stars.name}-order-{order}", stars)
        cost = cost_of(config, stage, partial(in_tiles_of, order))
        first = first or cost.cpu_s
        partitions = len(list(Path(config.store, "catalogue", "dataset").rglob("Npix=*.parquet")))
        cells = (
            stage, f"{partitions:,}", f"{cost.wall_s:.1f}", f"{cost.client_s:.1f}", f"{cost.cpu_s:.1f}", f"{cost.cpu_s / first:.2f}",
            f"{cost.client_mb:,.0f}", f"{cost.worker_mb:,.0f}",
        )  # fmt: skip
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
