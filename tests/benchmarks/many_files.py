"""What a file costs beside its stars: bulk downloads of more and more files found, planned, ingested and resumed. Prints a markdown table.

    python tests/benchmarks/many_files.py                          # 1,000, 8,000 and 61,234 files
    python tests/benchmarks/many_files.py --files 500 2000 --named each

The files are as the Gaia archive's, `GaiaSource_<first>_<last>.csv.gz` with `MD5SUM.txt`, of one star each, so that there is nothing
but files. `--named each` names each in the configuration, as those of an http server are, instead of a glob. Seconds are CPU seconds of
one process; per file they should not grow with the number of files.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
from isal import igzip

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bulk_files import filled
from contest import mock_config

from gaiadask.archive.base import open_archive
from gaiadask.archive.files.archive import FileArchive
from gaiadask.cluster.here import Here
from gaiadask.config.sections import Config
from gaiadask.ingest_plan import load_or_make_plan, make_plan, selection_in
from gaiadask.ledger import pending, read_ledger
from gaiadask.sky import SOURCE_ID_STOP
from gaiadask.stages.engine import run_stages
from gaiadask.store.files import Store


def write_files(folder: Path, files: int) -> None:
    """Bulk files of one star each, whose ranges cover the sky."""
    folder.mkdir(parents=True)
    config = mock_config(folder / "none", 2_000)
    archive = open_archive(config.archive, config.selection)
    stars = pa.concat_tables(table for chunk in archive.plan().chunks for table in archive.fetch(chunk, lambda _: None))
    text = io.BytesIO()
    pacsv.write_csv(filled(stars.slice(0, 1), 0), text, pacsv.WriteOptions(quoting_style="needed"))
    head, line = text.getvalue().decode().split("\n")[:2]
    own_id = str(stars["source_id"][0].as_py())
    bounds = np.linspace(0, SOURCE_ID_STOP, files + 1).astype(np.int64)
    sums = []
    for first, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        name = f"GaiaSource_{first}_{stop - 1}.csv.gz"
        content = igzip.compress(f"{head}\n{line.replace(own_id, str(first))}\n".encode(), 1)
        (folder / name).write_bytes(content)
        sums.append(f"{hashlib.md5(content).hexdigest()}  {name}\n")
    (folder / "MD5SUM.txt").write_text("".join(sums))


def config_of(store: Path, bulk: Path, named: str) -> Config:
    """An ingest of the files, some twenty of them a chunk, into large partitions."""
    uris = [str(bulk / "GaiaSource_*.csv.gz")] if named == "glob" else sorted(map(str, bulk.glob("*.csv.gz")))
    archive: dict[str, Any] = {"kind": "files", "uris": uris, "chunk_rows": 20}
    config: Config = mock_config(store, 1, archive=archive, catalogue={"partition_mb": 10_000})
    return config


def steps_of(config: Config) -> dict[str, Callable[[], object]]:
    """What is measured, in this order."""
    archive, store = open_archive(config.archive, config.selection), Store(config.store)
    assert isinstance(archive, FileArchive)
    return {
        "find": archive.find,
        "plan": lambda: make_plan(config, archive),
        "ingest": lambda: run_stages(config, ["ingest"], workers=Here()),
        "plan and ledger again": lambda: pending(load_or_make_plan(store, config, archive).chunks, read_ledger(store)),
        "same files?": lambda: selection_in(store, config, archive),
        "resume": lambda: run_stages(config, ["ingest"], workers=Here()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, nargs="+", default=[1_000, 8_000, 61_234])
    parser.add_argument("--named", choices=("glob", "each"), default="glob", help="how the configuration names the files")
    parser.add_argument("--skip", nargs="*", default=[], help="steps to leave out")
    options = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="many-files-"))
    print("| step | files | CPU s | ms a file |")
    print("| --- | --- | --- | --- |", flush=True)
    try:
        for files in options.files:
            write_files(scratch / str(files), files)
            for name, step in steps_of(config_of(scratch / f"store-{files}", scratch / str(files), options.named)).items():
                if name in options.skip:
                    continue
                before = time.process_time()
                step()
                used = time.process_time() - before
                print(f"| {name} | {files:,} | {used:.1f} | {1e3 * used / files:.2f} |", flush=True)
            shutil.rmtree(scratch / str(files))
    finally:
        shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
