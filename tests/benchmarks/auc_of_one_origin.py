"""How often a two-sample test says that stars of one origin differ: its 95 % interval should leave 0.5 out for one pair in twenty.

    python tests/benchmarks/auc_of_one_origin.py                  # 100 pairs of 80, 500 and 2,000 stars: a quarter of an hour
    python tests/benchmarks/auc_of_one_origin.py --pairs 10 --stars 80

Mock stars are cut into pairs of sets that have no star in common; boosted trees on the columns, three seeds a pair, as a rating has them.
Printed is the share of pairs whose interval leaves 0.5 out, by the bootstrap over stars alone and by the error that is reported (with the
scatter of the seeds), and how far the AUCs themselves scatter beside the mean error that is reported.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from contest import mock_catalogue, mock_config

from gaiadask import catalogue
from gaiadask.quality.records import CONFIDENCE_95
from gaiadask.quality.two_sample import two_sample_auc
from gaiadask.store.files import Store
from gaiadask.store.paths import CATALOGUE


def shuffled(folder: Path, stars: int) -> pa.Table:
    """Mock stars of 25 columns, in an order that has nothing to do with the sky."""
    record = mock_catalogue(folder, stars)
    store = Store(str(folder))
    tables = [group for part in record.partitions for group in catalogue.iterate_partition(store, CATALOGUE, part.tile)]
    table = pa.concat_tables(tables)
    return table.take(np.random.default_rng(0).permutation(len(table)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--stars", type=int, nargs="+", default=[80, 500, 2_000], help="on each side of a pair")
    options = parser.parse_args()
    release = mock_config(Path("."), 1).release
    print(
        "| stars a side | by the bootstrap alone | as reported | AUCs scatter by | mean reported error |\n| --- | --- | --- | --- | --- |"
    )
    with tempfile.TemporaryDirectory() as folder:
        table = shuffled(Path(folder), max(20_000, 2 * options.pairs * max(options.stars)))
        for rows in options.stars:
            results = [
                two_sample_auc(table.slice(2 * i * rows, rows), table.slice((2 * i + 1) * rows, rows), release, rows=rows)
                for i in range(options.pairs)
            ]
            of_seeds = [statistics.stdev(result.values) for result in results]
            reported = [result.spread or 0.0 for result in results]
            bootstrap = [math.sqrt(max(0.0, error**2 - seeds**2)) for error, seeds in zip(reported, of_seeds, strict=True)]
            means = [result.mean for result in results]
            outside = [
                sum(abs(mean - 0.5) > CONFIDENCE_95 * error for mean, error in zip(means, errors, strict=True)) / len(means)
                for errors in (bootstrap, reported)
            ]
            cells = (
                f"{rows:,}",
                *(f"{share:.0%}" for share in outside),
                f"{statistics.stdev(means):.4f}",
                f"{statistics.mean(reported):.4f}",
            )
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
