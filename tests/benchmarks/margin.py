"""What a margin costs: time beside that of the ingest, and bytes and stars beside the catalogue's. Prints a markdown table.

    python tests/benchmarks/margin.py                                  # 10 million mock stars of 25 columns, made first: some four minutes
    python tests/benchmarks/margin.py --stars 2000000 --partition-mb 64 4
    python tests/benchmarks/margin.py --folder /data/bench              # keeps the stars for the next time

For each size of partitions a catalogue is ingested and the margins of each width are made, on a LocalCluster of two workers.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from contest import mock_config

from gaiadask.cluster.clients import open_workers
from gaiadask.config.cluster import ClusterConfig
from gaiadask.margin import read_margin
from gaiadask.stages import margin
from gaiadask.stages.context import Context
from gaiadask.stages.engine import run_stages
from gaiadask.store import paths

HEAD = ("partition_mb", "partitions", "margin_arcsec", "ingest, s", "margin, s", "stars of the margin", "bytes of the margin")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stars", type=int, default=10_000_000)
    parser.add_argument("--partition-mb", type=float, nargs="*", default=[200, 20])
    parser.add_argument("--arcsec", type=float, nargs="*", default=[10, 60])
    parser.add_argument("--folder", type=Path, help="of the catalogues, which are kept")
    options = parser.parse_args()
    print(f"| {' | '.join(HEAD)} |\n|{' --- |' * len(HEAD)}", flush=True)
    with tempfile.TemporaryDirectory() as scratch, open_workers(ClusterConfig(workers=2, dashboard=False)) as workers:
        for size in options.partition_mb:
            config = mock_config((options.folder or Path(scratch)) / f"{size:g}", options.stars, partition_mb=size)
            began = time.monotonic()
            run_stages(config, ["ingest"], workers=workers)
            ingest = time.monotonic() - began
            for arcsec in options.arcsec:
                section = config.catalogue.model_copy(update={"margin_arcsec": arcsec})
                context = Context(config.model_copy(update={"catalogue": section}), given_workers=workers)
                margin.remove(context)
                began = time.monotonic()
                margin.make(context)
                seconds, store, record = time.monotonic() - began, context.store, context.catalogue
                made = read_margin(store)
                assert made is not None
                stars, size_share = made.rows / record.rows, store.size(paths.MARGIN) / store.size(f"{paths.CATALOGUE}/dataset")
                cells = (
                    f"{size:g}",
                    len(record.partitions),
                    f"{arcsec:g}",
                    f"{ingest:.0f}",
                    f"{seconds:.1f}",
                    f"{stars:.1%}",
                    f"{size_share:.1%}",
                )
                print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
