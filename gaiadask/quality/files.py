"""The rated stars, kept beside quality.json."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gaiadask.encode import latent_names
from gaiadask.quality import Rated
from gaiadask.store.files import Store
from gaiadask.store.paths import RunPaths

_TABLES = ("real", "rebuilt", "baseline", "sampled")


_OPTIONAL = ("baseline", "sampled")


def save_rated(store: Store, run: RunPaths, rated: Rated) -> None:
    """Keep the rated stars beside quality.json, as parquet: what the report draws, and anyone may look into."""
    latents = pa.table({name: rated.latents[:, i] for i, name in enumerate(latent_names(rated.latents.shape[1]))})
    for name, table in {**{t: getattr(rated, t) for t in _TABLES}, "latents": latents}.items():
        if table is not None:
            with store.writing(f"{run.rated}/{name}.parquet") as scratch:
                pq.write_table(table, scratch, compression="zstd")


def save_walks(store: Store, run: RunPaths, table: pa.Table | None) -> None:
    """Keep `walks` beside the rated stars; None removes what an earlier rating left."""
    name = f"{run.rated}/walks.parquet"
    if table is None:
        store.remove(name)
        return
    with store.writing(name) as scratch:
        pq.write_table(table, scratch, compression="zstd")


def read_walks(store: Store, run: RunPaths) -> pa.Table | None:
    """What `save_walks` kept."""
    name = f"{run.rated}/walks.parquet"
    return pq.read_table(io.BytesIO(store.read_bytes(name))) if store.exists(name) else None


def read_rated(store: Store, run: RunPaths) -> Rated:
    """What `save_rated` kept. Raises StoreError where it is missing."""
    tables = {
        name: pq.read_table(io.BytesIO(store.read_bytes(f"{run.rated}/{name}.parquet")))
        for name in (*_TABLES, "latents")
        if name not in _OPTIONAL or store.exists(f"{run.rated}/{name}.parquet")
    }
    latents = np.stack([column.to_numpy() for column in tables["latents"].columns], axis=1)
    return Rated(tables["real"], tables["rebuilt"], latents, tables.get("baseline"), tables.get("sampled"))
