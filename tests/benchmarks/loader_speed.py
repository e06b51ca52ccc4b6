"""How fast rows become batches: `gaiadask.batches` and the stream that training reads, beside what others do with the same columns.

    python tests/benchmarks/loader_speed.py                                 # 10 M mock stars, 25 columns
    python tests/benchmarks/loader_speed.py --stars 2000000 --repeats 3 --store /path/to/a/store/with/a/catalogue

Contestants, one after the other, each in a fresh process, batches of 4,096:

- bare: pyarrow reads the row groups of these columns and does nothing with them.
- gaiadask.batches: float32 tensors with null masks, shuffled in a buffer of a million rows.
- training, streamed and held: `TrainBatches`, raw columns transformed, coded, mixed; and a pass over codes in memory.
- lsdb: partitions one after the other as LSDB gives them, each shuffled and made tensors.
- hyrax: batches of its stream of LSDB partitions, as numpy arrays, where hyrax is installed; of the first --slow rows after the first batch.
- rows of dictionaries, collated, and a DataLoader of rows, as in 2020: of the first --slow rows alone.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from contest import Part, bound, cpu_seconds, interleaved, mock_catalogue, mock_config, table

BATCH_ROWS = 4_096
BUFFER_ROWS = 1_000_000
CARRIED = ("source_id", "_healpix_29")


def files(store: str) -> list[Path]:
    return sorted(Path(store).glob("catalogue/dataset/*/*/*.parquet"))


def columns(store: str) -> list[str]:
    return [name for name in pq.read_schema(files(store)[0]).names if name not in CARRIED]


def row_groups(store: str) -> Iterator[pa.Table]:
    for path in files(store):
        file = pq.ParquetFile(path)
        for number in range(file.num_row_groups):
            yield file.read_row_group(number, columns=columns(store))


class Clock:
    """Measures a contestant's own part: not its imports and preparations."""

    def __init__(self) -> None:
        self.cpu, self.wall = cpu_seconds(), time.perf_counter()

    def part(self, rows: float) -> Part:
        return Part(rows, time.perf_counter() - self.wall, cpu_seconds() - self.cpu)


def bare(store: str) -> Part:
    clock = Clock()
    return clock.part(sum(group.num_rows for group in row_groups(store)))


def loader(store: str) -> Part:
    import gaiadask

    next(iter(gaiadask.batches(f"{store}/catalogue", columns(store), BATCH_ROWS, buffer_rows=1)))  # loads compiled functions
    stars = gaiadask.batches(f"{store}/catalogue", columns(store), BATCH_ROWS, BUFFER_ROWS)
    clock = Clock()
    return clock.part(sum(len(each.values) for each in stars))


def training(store: str, held: bool) -> Part:
    """Train stars a second: of a pass over what is in memory, or of one that reads, as long as the bare read of all stars."""
    from gaiadask.ingest import read_catalogue_record
    from gaiadask.inputs.statistics import Statistics
    from gaiadask.inputs.transform import Transform
    from gaiadask.store.files import Store
    from gaiadask.training.batches import TrainBatches
    from gaiadask.training.codes import Codec

    torch.set_num_threads(1)
    release, first = mock_config(Path(store), 1).release, pq.ParquetFile(files(store)[0]).read_row_group(0)
    statistics = Statistics.from_table(first, release).train
    transform = Transform.fit(columns(store), statistics, release, "condition")
    record = read_catalogue_record(Store(store))
    names = [f"catalogue/{partition.tile.file}" for partition in record.partitions]
    batches = TrainBatches(
        Store(store), names, transform, Codec.fit(transform, statistics, errors=False), BATCH_ROWS,
        10 * record.rows if held else BUFFER_ROWS // 10, file_rows=[partition.rows for partition in record.partitions],
    )  # fmt: skip
    stream, steps = batches.stream(), int(0.8 * record.rows) // BATCH_ROWS
    if held:
        next(stream)
    clock = Clock()
    return clock.part(sum(len(share.places) for share in islice(stream, steps)))


def lsdb_partitions(store: str) -> Part:
    import lsdb

    catalog, names = lsdb.open_catalog(f"{store}/catalogue", columns=columns(store)), columns(store)
    clock, rows = Clock(), 0
    for number in range(catalog.npartitions):
        frame = catalog.partitions[number].compute().sample(frac=1.0, random_state=0)
        values = torch.from_numpy(frame[names].to_numpy(np.float32, na_value=np.nan))
        for batch in values.split(BATCH_ROWS):
            rows += len(batch)
    return clock.part(rows)


def hyrax_stream(store: str, most: int) -> Part:
    """What hyrax trains on and infers from; of it alone, without its conversion to tensors. Its first batch reads a partition."""
    import hyrax
    import lsdb
    from hyrax.datasets import LSDBStreamDataset
    from hyrax.pytorch_ignite import dist_data_loader, setup_dataset

    names = columns(store)
    catalog = LSDBStreamDataset.register_catalog("stars", lsdb.open_catalog(f"{store}/catalogue", columns=["source_id", *names]))
    config = hyrax.Hyrax().config
    config["data_loader"]["batch_size"] = BATCH_ROWS
    config["data_set"]["LSDBStreamDataset"]["stream_type"] = "catalog"
    stars = {"dataset_class": "LSDBStreamDataset", "data_location": catalog, "primary_id_field": "source_id", "fields": names}
    config["data_request"] = {"infer_stream": {"stars": stars}}
    batches = iter(dist_data_loader(setup_dataset(config, splits=("infer_stream",))["infer_stream"], config))
    next(batches)
    clock, rows = Clock(), 0
    while rows < most:
        rows += len(next(batches)["object_id"])
    return clock.part(rows)


def dictionaries(store: str, most: int) -> Part:
    """A dictionary a row, collated to tensors by batches."""
    clock, rows = Clock(), 0
    for group in row_groups(store):
        records = group.slice(0, most - rows).to_pylist()
        for first in range(0, len(records), BATCH_ROWS):
            some = records[first : first + BATCH_ROWS]
            {name: torch.tensor([np.nan if row[name] is None else row[name] for row in some]) for name in some[0]}
            rows += len(some)
        if rows >= most:
            break
    return clock.part(rows)


class OfRows(torch.utils.data.Dataset):
    """A frame in memory whose rows are items, as the notebooks of 2020 had it."""

    def __init__(self, group: pa.Table) -> None:
        self.frame = group.to_pandas()

    def __len__(self) -> int:
        return len(self.frame)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor(self.frame.iloc[index].to_numpy(np.float32))


def data_loader(store: str, most: int) -> Part:
    rows = OfRows(next(row_groups(store)).slice(0, most))
    clock = Clock()
    return clock.part(sum(len(batch) for batch in torch.utils.data.DataLoader(rows, batch_size=BATCH_ROWS, shuffle=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stars", type=int, default=10_000_000)
    parser.add_argument("--slow", type=int, default=50_000, help="rows that the contestants of rows are given")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--store", type=Path, default=Path("loader-store"), help="folder of the store; its catalogue is made if it has none"
    )
    options = parser.parse_args()
    store = str(options.store.resolve())
    mock_catalogue(options.store.resolve(), options.stars)
    others = {"hyrax": bound(hyrax_stream, store, options.slow)} if importlib.util.find_spec("hyrax") else {}
    if not others:
        print("not installed, so not measured: hyrax\n")
    runs = interleaved(
        {
            "bare": bound(bare, store),
            "gaiadask.batches": bound(loader, store),
            "training, streamed": bound(training, store, False),
            "training, held": bound(training, store, True),
            "lsdb": bound(lsdb_partitions, store),
            **others,
            "dictionaries": bound(dictionaries, store, options.slow),
            "DataLoader of rows": bound(data_loader, store, options.slow),
        },
        options.repeats,
    )
    print(table(runs, "bare"))


if __name__ == "__main__":
    main()
