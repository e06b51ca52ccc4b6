"""A finished run as users read it: `gaiadask.open_run("s3://bucket/store/runs/dr2")`.

Frames are lazy dask dataframes with one partition a file; encode and decode take dask, pandas or arrow and give the same
kind back.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, TypeVar

import dask.dataframe as dd
import pandas as pd
import pyarrow as pa

from gaiadask import catalogue, ingest
from gaiadask.config.sections import Config
from gaiadask.config.toml import parse_config
from gaiadask.decode import Positions, decode, decoded_schema
from gaiadask.encode import encode, latent_schema
from gaiadask.errors import ConfigurationError, DataError, MissingStageError, StoreError
from gaiadask.ingest import CatalogueRecord
from gaiadask.model.files import load_model_cached
from gaiadask.model.star_model import StarModel
from gaiadask.prior import Cone, Prior, load_prior_cached
from gaiadask.release.column import HEALPIX_29, SOURCE_ID
from gaiadask.sample import Request, SampleBlocks, Wanted, blocks_of, require_prior, sample_schema
from gaiadask.store import paths
from gaiadask.store.files import Store
from gaiadask.store.manifest import Manifest
from gaiadask.store.paths import RunPaths, Tile

Frame = TypeVar("Frame", dd.DataFrame, pd.DataFrame, pa.Table)


def open_run(uri: str | os.PathLike[str]) -> Run:
    """Open the run at `<store>/runs/<name>`.

    Raises StoreError where there is no such run, naming those that are.
    """
    address = os.fspath(uri)
    # Workers may run in another folder.
    address = address if "://" in address else os.path.abspath(address)
    head, _, name = address.rstrip("/").rpartition("/")
    store_uri, _, folder = head.rpartition("/")
    if folder != paths.RUNS or not store_uri:
        raise StoreError(f"{str(uri)!r} is not the address of a run: expected <store>/{paths.RUNS}/<name>")
    store, run = Store(store_uri), RunPaths(name)
    if not store.exists(run.manifest):
        names = sorted({n.split("/")[1] for n in store.list(paths.RUNS, "manifest.json")})
        raise StoreError(f"no run {name!r} in the store {store_uri}; it has {names or 'none'}")
    return Run(store, run)


@dataclass(frozen=True)
class Run:
    """One run of one store. Reads only."""

    store: Store
    paths: RunPaths

    @cached_property
    def config(self) -> Config:
        """The configuration the run was made with."""
        import tomllib

        return parse_config(
            tomllib.loads(self.store.read_bytes(self.paths.config).decode()), where=self.store.uri_of(self.paths.config)
        )

    @property
    def manifest(self) -> Manifest:
        """What the run has made, and from what."""
        return Manifest(self.store, self.paths)

    @property
    def catalogue_record(self) -> CatalogueRecord:
        """Id, rows, columns and partitions of the store's catalogue."""
        return ingest.read_catalogue_record(self.store)

    @property
    def quality(self) -> dict[str, Any]:
        """quality.json. Raises MissingStageError where the run is not evaluated."""
        self._require("evaluate")
        return dict(self.store.read_json(self.paths.quality))

    @cached_property
    def model(self) -> StarModel:
        """The trained model. Raises MissingStageError where the run is not trained."""
        return load_model_cached(self.store, self.paths, self._require("train"))

    def catalogue(self, columns: list[str] | None = None) -> dd.DataFrame:
        """The raw catalogue, one partition a file; all columns, or some. Raises DataError for columns that it lacks."""
        record = self.catalogue_record
        unknown = [name for name in columns or () if name not in record.columns]
        if unknown:
            raise DataError(f"the catalogue has no column(s) {unknown}; it has {list(record.columns)}")
        schema = self.config.release.catalogue_schema([name for name in record.columns if name != HEALPIX_29])
        return self._frame(paths.CATALOGUE, record.tiles, pa.schema([schema.field(name) for name in columns or record.columns]))

    def latent(self) -> dd.DataFrame:
        """The latents: source_id, _healpix_29, ra, dec, null_mask, z00, …; one partition a file."""
        self._require("encode")
        schema = latent_schema(self.model)
        return self._frame(self.paths.latent, self.catalogue_record.tiles, schema)

    def encode(self, frame: Frame) -> Frame:
        """Latents of the stars in `frame` (the model's columns, source_id, ra, dec), of the frame's own kind."""
        schema = latent_schema(self.model)
        return _apply(partial(_encode_here, self.store, self.paths, self.model.key), frame, schema)

    def decode(self, frame: Frame, positions: Positions = "catalogue", impute: bool = False) -> Frame:
        """Stars in physical columns and units behind the latents in `frame`, of the frame's own kind.

        positions: "catalogue" gives the carried ra and dec, "model" the network's own where it has them. impute: what a star
        lacks is what the model says of it, with its uncertainty in columns <name>_std, instead of null.
        """
        schema = decoded_schema(self.model, impute, *([SOURCE_ID] if SOURCE_ID in _names(frame) else []))
        return _apply(partial(_decode_here, self.store, self.paths, self.model.key, positions, impute), frame, schema)

    @cached_property
    def prior(self) -> Prior:
        """What new stars are drawn from. Raises MissingStageError where the run has none."""
        return load_prior_cached(self.store, self.paths, require_prior(self.manifest))

    def sample(
        self,
        stars: int,
        seed: int = 0,
        *,
        cone: tuple[float, float, float] | None = None,
        tile: tuple[int, int] | None = None,
        magnitude: tuple[float, float] | None = None,
    ) -> dd.DataFrame:
        """`stars` new stars in physical columns and units, one partition a block of 16,384: ra, dec, then the model's columns.

        The same seed gives the same stars, wherever they are computed; the first ones of more. cone: (ra, dec, radius) in
        degrees; tile: HEALPix (order, pixel), nested; magnitude: G, bright end first. Raises MissingStageError where the
        run has no prior, ConfigurationError for a region that is none; computing raises DataError where hardly any star
        is as asked for.
        """
        if stars < 0:
            raise ConfigurationError(f"{stars} new stars: expected a number of at least 0")
        wanted = Wanted(Cone(*cone) if cone else None, Tile(*tile) if tile else None, magnitude)
        request = Request.of(self.store, self.manifest, stars, seed, wanted)
        draw = partial(_block_of_pandas, SampleBlocks(self.store, self.paths, request))
        meta = _meta(sample_schema(self.model.transform))
        return dd.from_map(draw, list(range(blocks_of(stars))) or [0], meta=meta)

    def _require(self, stage: str) -> str:
        entry = self.manifest.entry(stage)
        if entry is None:
            raise MissingStageError(f"run {self.paths.name!r} has no {stage} yet: make it with `gaiadask {stage}`")
        return entry.key

    def _frame(self, folder: str, tiles: tuple[Tile, ...], schema: pa.Schema) -> dd.DataFrame:
        # Not read_parquet: it fuses small files, and one file is one partition here.
        read = partial(_read_pandas, self.store, folder, schema.names)
        return dd.from_map(read, list(tiles), meta=_meta(schema))


def _names(frame: dd.DataFrame | pd.DataFrame | pa.Table) -> list[str]:
    return list(frame.column_names if isinstance(frame, pa.Table) else frame.columns)


def _to_pandas(table: pa.Table) -> pd.DataFrame:
    # Arrow-backed: integers and booleans keep their nulls, 64-bit ids their last digits.
    return table.replace_schema_metadata(None).to_pandas(types_mapper=pd.ArrowDtype)


def _meta(schema: pa.Schema) -> pd.DataFrame:
    return _to_pandas(pa.schema([f.remove_metadata() for f in schema]).empty_table())


def _read_pandas(store: Store, folder: str, columns: list[str], tile: Tile) -> pd.DataFrame:
    return _to_pandas(catalogue.read_partition(store, folder, tile, columns))


def _block_of_pandas(blocks: SampleBlocks, block: int) -> pd.DataFrame:
    return _to_pandas(blocks(block))


def _encode_here(store: Store, run: RunPaths, key: str, table: pa.Table) -> pa.Table:
    return encode(table, load_model_cached(store, run, key))


def _decode_here(store: Store, run: RunPaths, key: str, positions: Positions, impute: bool, table: pa.Table) -> pa.Table:
    return decode(table, load_model_cached(store, run, key), positions, impute)


def _apply(function: Callable[[pa.Table], pa.Table], frame: Any, schema: pa.Schema) -> Any:
    if isinstance(frame, pa.Table):
        return function(frame)
    on_pandas = partial(_pandas_through_arrow, function)
    if isinstance(frame, pd.DataFrame):
        return on_pandas(frame)
    return frame.map_partitions(on_pandas, meta=_meta(schema))


def _pandas_through_arrow(function: Callable[[pa.Table], pa.Table], frame: pd.DataFrame) -> pd.DataFrame:
    result = _to_pandas(function(pa.Table.from_pandas(frame, preserve_index=False)))
    return result.set_index(frame.index)
