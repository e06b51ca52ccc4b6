"""quality.json and the rated stars beside it."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gaiadask.errors import DamagedFileError, KeyMismatchError, MissingFileError
from gaiadask.keys import require_same
from gaiadask.model.card import latent_names
from gaiadask.quality.rating import Rated
from gaiadask.quality.records import Quality
from gaiadask.release.release import Release
from gaiadask.store.files import Store
from gaiadask.store.paths import RunPaths

_TABLES = ("real", "rebuilt", "baseline", "sampled")


def save_quality(store: Store, run: RunPaths, quality: Quality) -> None:
    """Write quality.json."""
    store.write_json(run.quality, quality.to_json())


def read_quality(store: Store, run: RunPaths, key: str) -> Quality:
    """Read the quality.json of this key.

    Raises:
        KeyMismatchError: it is of another key.
        StoreError: it is missing, damaged or of another version of gaiadask.
    """
    remedy = "make it again with `gaiadask evaluate CONFIG --replace evaluate`"
    quality = store.read_record(run.quality, Quality, remedy)
    require_same(store.uri_of(run.quality), {"key": quality.key or None}, {"key": key}, remedy)
    return quality


def rating_is_whole(store: Store, run: RunPaths, release: Release, key: str) -> bool:
    """Whether quality.json of this key and the rated stars are there. Raises StoreError where the store cannot tell."""
    try:
        read_quality(store, run, key)
        read_rated(store, run, release)
        read_latent_traversal(store, run)
    except (MissingFileError, DamagedFileError, KeyMismatchError):
        return False
    return True


def save_rated(store: Store, run: RunPaths, rated: Rated) -> None:
    """Write the rated stars beside quality.json, as parquet: for the report, and for anyone who wants to look into them."""
    latents = pa.table({name: rated.latents[:, i] for i, name in enumerate(latent_names(rated.latents.shape[1]))})
    for name, table in {**{t: getattr(rated, t) for t in _TABLES}, "latents": latents}.items():
        if table is not None:
            _write(store, f"{run.rated}/{name}.parquet", table)


def read_rated(store: Store, run: RunPaths, release: Release) -> Rated:
    """The stars that `save_rated` wrote. Raises StoreError where they are missing."""
    read = {name: _read(store, f"{run.rated}/{name}.parquet") for name in ("real", "rebuilt", "latents")}
    baseline, sampled = (_read_optional(store, f"{run.rated}/{name}.parquet") for name in ("baseline", "sampled"))
    latents = np.stack([column.to_numpy() for column in read["latents"].columns], axis=1)
    return Rated(read["real"], read["rebuilt"], latents, release, baseline, sampled)


def save_latent_traversal(store: Store, run: RunPaths, table: pa.Table | None) -> None:
    """Write a `latent_traversal` beside the rated stars; None removes that of an earlier rating."""
    if table is None:
        store.remove(_traversal(run))
    else:
        _write(store, _traversal(run), table)


def read_latent_traversal(store: Store, run: RunPaths) -> pa.Table | None:
    """The table that `save_latent_traversal` wrote; None where there is none."""
    return _read_optional(store, _traversal(run))


def _traversal(run: RunPaths) -> str:
    return f"{run.rated}/walks.parquet"


def _write(store: Store, name: str, table: pa.Table) -> None:
    with store.writing(name) as scratch:
        pq.write_table(table, scratch, compression="zstd")


def _read(store: Store, name: str) -> pa.Table:
    return _parsed(store, name, store.read_bytes(name))


def _read_optional(store: Store, name: str) -> pa.Table | None:
    content = store.read_bytes_if_there(name)
    return None if content is None else _parsed(store, name, content)


def _parsed(store: Store, name: str, content: bytes) -> pa.Table:
    try:
        return pq.read_table(io.BytesIO(content))
    except (OSError, pa.ArrowInvalid) as error:
        raise DamagedFileError(
            f"{store.uri_of(name)} is damaged ({error}): make it again with `gaiadask evaluate CONFIG`"
        ) from error
