"""The validation stars: found once by the workers, kept in a file of the run, read by every rank.

The file has the columns that any transform of the model's columns needs, and the stars in the order of their hashes: the first n of
it are the n validation stars of smallest hash.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from gaiadask import catalogue
from gaiadask.catalogue import Partition
from gaiadask.checks import check_finite
from gaiadask.errors import DataError
from gaiadask.inputs.transform import Transform
from gaiadask.release.column import DEC, RA, SOURCE_ID
from gaiadask.release.release import Release
from gaiadask.split import Part, hash64, smallest
from gaiadask.store import paths
from gaiadask.store.files import Store
from gaiadask.training.codes import Batch


def validation_columns(columns: Sequence[str], available: Sequence[str], release: Release) -> tuple[str, ...]:
    """What the file has of a catalogue with the columns `available`: source_id, the position, a model's columns, and their errors."""
    errors = (release.columns[name].error_column for name in columns)
    return tuple(
        dict.fromkeys((SOURCE_ID, RA, DEC, *columns, *(name for name in errors if name is not None and name in available)))
    )


@dataclass(frozen=True)
class ValidationStars:
    """Gathers the validation stars of smallest hash; for workers.

    columns: what is read of them. stars: at most how many. below: no star of a hash above it is looked at (`split.hash_bound`).
    """

    store: Store
    columns: tuple[str, ...]
    stars: int
    below: float

    def of(self, partitions: Sequence[Partition]) -> pa.Table:
        """Those of some partitions."""
        given = self.store, paths.CATALOGUE
        return self.merged(
            [
                table
                for partition in partitions
                for table in catalogue.iterate_chosen(*given, partition.tile, Part.VALIDATION, self.below, self.columns)
            ]
        )

    def merged(self, tables: Sequence[pa.Table]) -> pa.Table:
        """Those of several tables, in the order of their hashes."""
        table = pa.concat_tables(tables)
        return table.take(smallest(hash64(table[SOURCE_ID].to_numpy()), self.stars))


def read_validation(store: Store, name: str, transform: Transform, stars: int, *, errors: bool = False) -> Batch:
    """The first `stars` stars of a file of validation stars (fewer where it has fewer), as a transform's network inputs.

    errors: whether the batch has the catalogue's errors.

    Raises:
        DataError: a column is missing, or a value is NaN or infinite.
        StoreError: the file cannot be read.
    """
    with store.open_parquet(name) as file:
        table = file.read().slice(0, stars)
    check_finite(table, store.uri_of(name))
    try:
        inputs = transform.forward(table)
    except DataError as error:
        raise DataError(f"{store.uri_of(name)}: {error}") from error
    sigma = transform.sigma(table) if errors else np.empty((len(table), 0), np.float32)
    return Batch(*(torch.from_numpy(part) for part in (*inputs, sigma)))
