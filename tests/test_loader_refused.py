"""What `gaiadask.batches` refuses: arguments, catalogues, files and columns that are not what they should be; each by name."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from small_catalogue import NUMBERS, ROWS, TABLE, loaded, numbers, write_catalogue

import gaiadask
from gaiadask.errors import ConfigurationError, DataError, GaiadaskError, MissingFileError, StoreError
from gaiadask.split import Part, part_of
from gaiadask.store.paths import Tile


# What is refused ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"columns": ["number", "color"]}, DataError, r"has no column\(s\) color: there are brightness, "),
        ({"columns": ["title"]}, DataError, r"no numbers in these columns: \{'title': 'string'\}"),
        ({"columns": "number"}, ConfigurationError, "expected a list of names"),
        ({"columns": []}, ConfigurationError, "expected a list of names"),
        ({"columns": ["number", "number"]}, ConfigurationError, "each once"),
        ({"columns": {"number", "count"}}, ConfigurationError, "expected a list of names"),
        ({"columns": np.array(NUMBERS)}, ConfigurationError, "expected a list of names"),
        ({"columns": (name for name in NUMBERS)}, ConfigurationError, "expected a list of names"),
        ({"columns": [1]}, ConfigurationError, "expected a list of names"),
        ({"catalogue": None}, ConfigurationError, "catalogue is None: expected a folder or the URI of one"),
        ({"batch_rows": 0}, ConfigurationError, "batch_rows is 0: expected a whole number from 1 on"),
        ({"buffer_rows": 1.5}, ConfigurationError, "buffer_rows is 1.5"),
        ({"passes": 0}, ConfigurationError, "passes is 0"),
        ({"batch_rows": True}, ConfigurationError, "batch_rows is True: expected a whole number from 1 on"),
        ({"part": np.array(["train"])}, ConfigurationError, "part is array.*: expected one of None, 'train'"),
        ({"dtype": np.float64}, ConfigurationError, "dtype is <class 'numpy.float64'>: expected one of 'float32', 'float64'"),
        ({"rank": 2, "world_size": 2}, ConfigurationError, "rank is 2, and world_size 2"),
        ({"part": "trian"}, ConfigurationError, "part is 'trian': expected one of None, 'train', 'validation', 'test'"),
        ({"dtype": "int8"}, ConfigurationError, "dtype is 'int8'"),
        ({"rank": 1, "world_size": 6_000}, DataError, "has 5000 rows, too few for 6000 ranks"),
        ({"start": {"batch": 3}}, ConfigurationError, "start is no state of a batch"),
        ({"start": {"of": "x", "batch": -3, "slab": 0, "taken": 0}}, ConfigurationError, "start is no state of a batch.*batch: "),
    ],
)
def test_what_is_wrong_is_said_before_the_first_batch(
    small_catalogue: Path, options: dict[str, Any], kind: type, message: str
) -> None:
    with pytest.raises(kind, match=message):
        gaiadask.batches(**{"catalogue": small_catalogue, "columns": NUMBERS, **options})


def test_whole_numbers_of_numpy_are_whole_numbers(small_catalogue: Path) -> None:
    given = loaded(small_catalogue, batch_rows=np.int64(128), seed=np.uint8(3))
    assert numbers(given) == numbers(loaded(small_catalogue, seed=3))
    assert json.loads(json.dumps(given[0].state)) == given[0].state


def test_a_state_is_of_its_own_arguments(small_catalogue: Path) -> None:
    state = loaded(small_catalogue)[3].state
    with pytest.raises(ConfigurationError, match=r"start says that 999999 rows of a slab of \d+ have left: it was changed by hand"):
        loaded(small_catalogue, start={**state, "taken": 999_999})
    others = ({"seed": 1}, {"columns": ["number"]}, {"world_size": 2}, {"buffer_rows": 999}, {"batch_rows": 127})
    for options in (*others, {"passes": 2}, {"passes": None}):  # rows that come in the next pass are mixed with the last ones
        with pytest.raises(ConfigurationError, match="start is the state of a batch of another catalogue or of other arguments"):
            gaiadask.batches(
                small_catalogue, **{"columns": NUMBERS, "batch_rows": 128, "buffer_rows": 1_000, "start": state, **options}
            )


def test_where_there_is_no_catalogue(tmp_path: Path) -> None:
    for where in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(
            MissingFileError, match=re.escape(f"no HATS catalogue in {where}: expected a folder with hats.properties")
        ):
            gaiadask.batches(where, ["number"])


def test_a_part_needs_source_ids_and_stars(tmp_path: Path) -> None:
    folder = write_catalogue(tmp_path / "a", TABLE.drop_columns(["source_id"]))
    with pytest.raises(DataError, match=r"has no column\(s\) source_id"):
        gaiadask.batches(folder, NUMBERS, part="train")
    none = TABLE.filter(pa.array(part_of(TABLE["source_id"].to_numpy()) != Part.TEST))
    for passes in (1, None):
        with pytest.raises(DataError, match="no test star among the"):
            list(gaiadask.batches(write_catalogue(tmp_path / str(passes), none), NUMBERS, part="test", passes=passes))


@pytest.mark.parametrize(("value", "dtype"), [(np.inf, "float64"), (-np.inf, "float32"), (1e300, "float32")])
def test_what_is_infinite_is_named(tmp_path: Path, value: float, dtype: str) -> None:
    brightness = TABLE["brightness"].to_numpy(zero_copy_only=False).copy()
    brightness[1_234] = value
    folder = write_catalogue(tmp_path, TABLE.set_column(2, "brightness", pa.array(brightness)))
    with pytest.raises(DataError, match=r"Npix=0.parquet: column brightness has values that are infinite"):
        loaded(folder, dtype=dtype)


def column(name: str, values: pa.Array) -> Callable[[pa.Table], pa.Table]:
    """Another column in the place of one."""
    return lambda rows: rows.set_column(rows.column_names.index(name), name, values.slice(0, len(rows)))


TEXTS = pa.array([str(i) for i in range(ROWS)])
IDS_WITH_NULL = pa.array([None, *range(1, ROWS)], pa.int64())


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (column("brightness", TEXTS), {}, r"Npix=2.parquet has no numbers in these columns: \{'brightness': 'string'\}"),
        (column("brightness", pa.array([[1.0]] * ROWS)), {}, r"Npix=2.parquet has no numbers in these columns: \{'brightness': 'list"),
        (lambda rows: rows.append_column("count", rows["count"]), {}, r"Npix=2.parquet has more than one column named count"),
        (column("source_id", TEXTS), {"part": "train"}, r"Npix=2.parquet: source_id is string with 0 nulls, expected a whole number"),
        (column("source_id", IDS_WITH_NULL), {"part": "train"}, r"Npix=2.parquet: source_id is int64 with 1 nulls"),
        (column("source_id", pa.array(np.arange(ROWS) + 0.0)), {"part": "test"}, r"Npix=2.parquet: source_id is double"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("everywhere", [False, True])
def test_odd_columns_are_named_with_their_file_or_before_the_first_batch(
    tmp_path: Path, change: Callable[[pa.Table], pa.Table], options: dict[str, Any], message: str, everywhere: bool
) -> None:
    folder = write_catalogue(tmp_path, TABLE)
    for file in sorted(folder.rglob("Npix=*.parquet"))[0 if everywhere else 2 :]:
        pq.write_table(change(pq.read_table(file)), file)
    what = message.removeprefix("Npix=2.parquet").lstrip(":")
    with pytest.raises(DataError, match=rf"(the catalogue .*|Npix=\d.parquet:?){what}" if everywhere else message):
        loaded(folder, **options)


def test_half_precision_is_numbers_too(tmp_path: Path) -> None:
    half = pa.array(np.arange(ROWS).astype(np.float16) / 16)
    folder = write_catalogue(tmp_path, TABLE.append_column("half", half))
    stars = torch.cat([each.values for each in loaded(folder, ["number", "half"])])
    np.testing.assert_array_equal(stars[:, 1], stars[:, 0].numpy().astype(np.float16) / 16)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("hats.properties", b""),
        ("hats.properties", b"\xff\xfe\x00"),
        ("hats.properties", b"obs_collection=a\n"),
        ("partition_info.csv", b""),
        ("partition_info.csv", b"order,pixel\n0,0\n"),
        ("partition_info.csv", b"Norder,Npix\na,b\n"),
    ],
)
def test_metadata_that_are_damaged_are_named(tmp_path: Path, name: str, content: bytes) -> None:
    folder = write_catalogue(tmp_path, TABLE)
    (folder / name).write_bytes(content)
    with pytest.raises(
        StoreError, match=rf"the HATS catalogue {folder} cannot be read \(.*its hats.properties or partition_info.csv"
    ):
        gaiadask.batches(folder, NUMBERS)


def test_a_file_that_is_cut_and_a_catalogue_without_stars_are_named(tmp_path: Path) -> None:
    folder = write_catalogue(tmp_path / "cut", TABLE)
    file = folder / Tile(0, 2).file
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(StoreError, match=r"Npix=2.parquet is not a whole parquet file"):
        loaded(folder)
    with pytest.raises(DataError, match="has 0 rows, too few for 1 ranks"):
        loaded(write_catalogue(tmp_path / "none", TABLE.slice(0, 0)))


def test_a_partition_that_vanished_or_lacks_a_column_is_named(tmp_path: Path) -> None:
    folder = write_catalogue(tmp_path, TABLE)
    stars = gaiadask.batches(folder, NUMBERS)
    other = folder / Tile(0, 1).file
    pq.write_table(pq.read_table(other).drop_columns(["count"]), other)
    with pytest.raises(DataError, match=r"Npix=1.parquet lacks the column\(s\) \['count'\]"):
        list(stars)
    other.unlink()
    with pytest.raises(GaiadaskError, match=r"Npix=1.parquet: no such file: restore it, or make it again with what made it"):
        list(stars)
