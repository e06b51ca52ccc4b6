"""How honest imputed values are: the share of hidden values that lie within one and two of the deviations that come with them.

    python tests/benchmarks/imputed.py                               # mock stars, presets vae and flow: some ten minutes
    python tests/benchmarks/imputed.py --rows rows.parquet           # real rows of gaia_source
    python tests/benchmarks/imputed.py --folder imputed --stars 50000 --rows-seen 300000 --presets flow

A model of the seed's 25 columns is trained on stars with nulls (kept with --folder). Each null group is hidden from the test stars that have
it, together with what a star that lacks the group lacks too, and imputed again. Prints for each preset a table with a row a column: test
stars, the share that gets a value, the shares within one and two deviations (68 and 95 % where errors are normal), the median |error|
beside that of guessing the column's median, and the range of the values beside that of train stars.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from contest import mock_config
from hidden_values import Coverage, coverages

from gaiadask.catalogue import iterate_chosen
from gaiadask.cluster.here import Here
from gaiadask.decode import decode
from gaiadask.encode import encode
from gaiadask.impute import imputable
from gaiadask.ingest import read_catalogue_record
from gaiadask.model import StarModel
from gaiadask.model.files import load_model
from gaiadask.split import ANY_HASH, Part
from gaiadask.stages.engine import run_stages
from gaiadask.store import paths
from gaiadask.store.files import Store
from gaiadask.store.paths import RunPaths

HEAD = ("column", "stars", "imputed", "within 1 σ", "within 2 σ", "median error", "of the median", "range", "of train stars")


def trained(folder: Path, preset: str, options: argparse.Namespace) -> tuple[Store, StarModel]:
    """A store with a model of the preset."""
    training = {"rows_seen": options.rows_seen, "validate_every_rows": options.rows_seen // 10, "threads": 1, "ranks": 1}
    sections: dict[str, Any] = {"training": training, "model": {"preset": preset}, "prior": {"kind": "none"}}
    if options.rows:
        sections["archive"] = {"kind": "files", "uris": [str(options.rows.resolve())], "mock_stars": 1}
    config = mock_config(folder, options.stars, **sections).model_copy(update={"name": preset})
    run_stages(config, ["ingest", "statistics", "train"], workers=Here())
    return Store(config.store), load_model(Store(config.store), RunPaths(preset))


def test_stars(store: Store, most: int) -> pa.Table:
    """At most so many test stars."""
    tiles = read_catalogue_record(store).tiles
    tables = [t for tile in tiles for t in iterate_chosen(store, paths.CATALOGUE, tile, Part.TEST, ANY_HASH)]
    return pa.concat_tables(tables).slice(0, most)


def row(model: StarModel, found: Coverage) -> str:
    """A row of the table."""
    low, high = model.transform.limits[found.column]
    cells = (
        found.column, f"{found.stars:,}", f"{found.imputed:.1%}", f"{found.within_1:.3f}", f"{found.within_2:.3f}", f"{found.error:.3g}",
        f"{found.error_of_median:.3g}", f"{found.lowest:.4g} to {found.highest:.4g}", f"{low:.4g} to {high:.4g}",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, help="a parquet file of real rows of gaia_source, in the place of mock stars")
    parser.add_argument("--stars", type=int, default=300_000, help="mock stars")
    parser.add_argument("--rows-seen", type=int, default=3_000_000, help="stars shown to each model")
    parser.add_argument("--test-stars", type=int, default=20_000, help="at most so many are looked at")
    parser.add_argument("--presets", nargs="*", default=["vae", "flow"])
    parser.add_argument("--folder", type=Path, help="of the stores, which are kept")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        for preset in options.presets:
            store, model = trained((options.folder or Path(scratch)) / preset, preset, options)
            stars = test_stars(store, options.test_stars)
            print(f"\n{preset}\n\n| {' | '.join(HEAD)} |\n|{' --- |' * len(HEAD)}", flush=True)
            for found in coverages(stars, model):
                print(row(model, found), flush=True)
            latents = encode(stars, model)
            began = time.process_time()
            filled = decode(latents, model, impute=True)
            seconds = time.process_time() - began
            left = {name: filled[name].null_count for name in imputable(model) if filled[name].null_count}
            print(f"\n{len(stars):,} test stars, all nulls imputed in {seconds:.1f} s of CPU; nulls that stay: {left or 'none'}")


if __name__ == "__main__":
    main()
