"""A HATS catalogue as small as the format allows, and its rows as `gaiadask.batches` gives them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import gaiadask
from gaiadask.loader.batches import Stars
from gaiadask.store.paths import Tile

ROWS = 5_000
NUMBERS = ["number", "brightness", "count", "known"]


def table(rows: int = ROWS) -> pa.Table:
    """Numbers of several types, some null, some NaN; `number` names the row."""
    random = np.random.default_rng(0)
    null = random.random(rows) < 0.2
    brightness = random.normal(15, 2, rows)
    brightness[random.random(rows) < 0.1] = np.nan
    return pa.table({
        "number": pa.array(np.arange(rows)),
        "source_id": pa.array(random.integers(0, 2**60, rows)),
        "brightness": pa.array(brightness, mask=null),
        "count": pa.array(random.integers(-5, 5, rows).astype(np.int16), mask=random.random(rows) < 0.1),
        "known": pa.array(random.random(rows) < 0.5, mask=random.random(rows) < 0.1),
        "title": pa.array([f"star {i}" for i in range(rows)]),
    })  # fmt: skip


TABLE = table()


def write_catalogue(folder: Path, rows: pa.Table, files: int = 3, row_group_rows: int = 400) -> Path:
    """A HATS catalogue as small as the format allows: partitions, their list, properties."""
    tiles = [Tile(0, i) for i in range(files)]
    for tile, part in zip(tiles, np.array_split(np.arange(len(rows)), files), strict=True):
        path = folder / tile.file
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(rows.take(part), path, row_group_size=row_group_rows)
    lines = [f"{tile.order},{tile.pixel}" for tile in tiles]
    (folder / "partition_info.csv").write_text("\n".join(["Norder,Npix", *lines]) + "\n")
    properties = {
        "obs_collection": "small",
        "dataproduct_type": "object",
        "hats_nrows": len(rows),
        "hats_col_ra": "ra",
        "hats_col_dec": "dec",
    }
    (folder / "hats.properties").write_text("".join(f"{name}={value}\n" for name, value in properties.items()))
    return folder


def loaded(where: Path, columns: list[str] = NUMBERS, **options: Any) -> list[Stars]:
    return list(gaiadask.batches(where, columns, **{"batch_rows": 128, "buffer_rows": 1_000, **options}))


def numbers(stars: list[Stars]) -> list[int]:
    return [int(number) for each in stars for number in each.values[:, 0]]
