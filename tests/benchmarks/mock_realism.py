"""How real mock stars are: facts of the catalogue that do not depend on which stars one looks at. Prints a markdown table.

    python tests/benchmarks/mock_realism.py                    # 200,000 mock stars, half a minute
    python tests/benchmarks/mock_realism.py --rows rows.parquet    # real values measured anew on these rows of gaia_source

The facts, and how the real values were found, are in tests/conditionals.py; tests/test_conditionals.py holds the mock to them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from conditionals import CONDITIONALS, Measured, Stars, unique_stars

from gaiadask.archive.base import open_archive
from gaiadask.config.sections import ArchiveConfig, SelectionConfig
from gaiadask.release.dr2 import MOCK_COLUMNS


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stars", type=int, default=200_000, help="of the made-up sky")
    parser.add_argument("--rows", type=Path, help="a parquet file of real rows of gaia_source")
    options = parser.parse_args()
    archive = open_archive(ArchiveConfig(kind="mock", mock_stars=options.stars), SelectionConfig(columns=MOCK_COLUMNS, not_null=()))
    made_up = Stars(pa.concat_tables(t for chunk in archive.plan().chunks for t in archive.fetch(chunk, lambda _: None)))
    real = Stars(unique_stars(pq.read_table(options.rows))) if options.rows else None
    print("| quantity | real stars | real | mock | bound |\n| --- | --- | --- | --- | --- |")
    for c in CONDITIONALS:
        found, theirs = c.of(made_up), c.of(real) if real else Measured(c.real, c.stars)
        print(f"| {c.name} | {theirs.stars} | {theirs.value:.3g} | {found.value:.3g} | {c.low:.3g} to {c.high:.3g} |")


if __name__ == "__main__":
    main()
