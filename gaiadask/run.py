"""A finished run as users read it: `gaiadask.open_run("s3://bucket/store/runs/dr2")`.

Frames are lazy dask dataframes with one partition a file; encode and decode take dask and pandas frames and give the same kind
back, and any other kind of table (`frames.TAKEN`), of which they give an arrow table.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import dask.dataframe as dd
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from gaiadask import catalogue, ingest, lazy
from gaiadask.codec.compressed import Compressed, CompressedRecord
from gaiadask.config.sections import Config
from gaiadask.config.toml import parse_config
from gaiadask.decode import Positions, decode, decoded_schema, needed_latents
from gaiadask.encode import encode, latent_schema
from gaiadask.errors import DataError, StoreError, known_names
from gaiadask.frames import column_names
from gaiadask.html import html_table
from gaiadask.ingest import CatalogueRecord
from gaiadask.keys import require_same
from gaiadask.lazy import FileToRead
from gaiadask.model.files import model_identity
from gaiadask.model.source import ModelSource
from gaiadask.model.star_model import StarModel
from gaiadask.nearest import LatentIndex, check_memory, points_of, points_of_file
from gaiadask.prior import Prior, load_prior_cached
from gaiadask.product import latent_footer, latent_origin
from gaiadask.quality.files import read_quality
from gaiadask.quality.records import Quality
from gaiadask.quality.single_stars import FindOutliers, require_latent_prior
from gaiadask.records import JsonObject
from gaiadask.release.column import HEALPIX_29, SOURCE_ID
from gaiadask.sample import SampleBlocks, SampleRegion, SampleRequest, blocks_of, require_prior, sample_schema, whole_number
from gaiadask.store import paths
from gaiadask.store.files import Store
from gaiadask.store.manifest import Manifest, StageEntry
from gaiadask.store.paths import RunPaths
from gaiadask.uris import absolute_uri


def open_run(uri: str | os.PathLike[str], device: str = "auto") -> Run:
    """Open a run of a store.

    Args:
        uri: `<store>/runs/<name>`, a path or any fsspec URI.
        device: where networks run that encode, decode and sample: auto (a GPU where the process that computes has one, else its
            CPU), cpu, cuda or cuda:N.

    Returns:
        The run; nothing but its manifest has been looked at.

    Raises:
        StoreError: where there is no such run; it names those that are there.

    >>> run = open_run("store/runs/dr2")
    >>> run.model.latents, run.quality.stars
    (6, 196)
    """
    # Workers may run in another folder.
    address = absolute_uri(os.fspath(uri))
    head, _, name = address.rstrip("/").rpartition("/")
    store_uri, _, folder = head.rpartition("/")
    if folder != paths.RUNS or not store_uri:
        raise StoreError(f"{str(uri)!r} is not the address of a run: expected <store>/{paths.RUNS}/<name>")
    store, run = Store(store_uri), RunPaths(name)
    if not store.exists(run.manifest):
        names = sorted({n.split("/")[1] for n in store.list(paths.RUNS, "manifest.json")})
        raise StoreError(f"no run {name!r} in the store {store_uri}: {known_names([name], names) if names else 'it has none'}")
    return Run(store, run, device)


@dataclass(frozen=True, repr=False)
class Run:
    """One run of one store. Reads only.

    Attributes:
        store: that the run lies in.
        paths: names of the run's files.
        device: where networks run.
    """

    store: Store
    paths: RunPaths
    device: str = "auto"

    def __repr__(self) -> str:
        return f"Run({self.store.uri_of(self.paths.root)!r})"

    def _repr_html_(self) -> str:
        """The run in a notebook: what it has made."""
        stages = self.manifest.read().stages
        rows = [(name, entry.moment, entry.shown) for name, entry in stages.items()]
        return html_table(repr(self), ("stage", "finished, UTC", "result"), rows)

    @cached_property
    def config(self) -> Config:
        """The configuration that the run was made with."""
        text = self.store.read_bytes(self.paths.config).decode()
        return parse_config(tomllib.loads(text), where=self.store.uri_of(self.paths.config))

    @property
    def manifest(self) -> Manifest:
        """Which stages have run, and from what."""
        return Manifest(self.store, self.paths)

    @property
    def catalogue_record(self) -> CatalogueRecord:
        """Id, rows, columns and partitions of the catalogue that the run was made from.

        Raises:
            MissingStageError: where the store has no catalogue.
            KeyMismatchError: where another run has replaced it.
        """
        record = ingest.read_catalogue_record(self.store)
        entries = self.manifest.read().stages
        ingested = entries["ingest"].result if "ingest" in entries else {}
        for name, recorded in {**{n: e.inputs for n, e in entries.items()}, "ingest": ingested}.items():
            remedy = (
                f"another run has replaced it. Run `gaiadask run CONFIG --replace {name}`, or make the run in a store of its own"
            )
            require_same(f"{name} of run {self.paths.name!r}", recorded, {"catalogue_id": record.id}, remedy)
        return record

    @property
    def quality(self) -> Quality:
        """How good the run is: quality.json.

        Raises:
            MissingStageError: where the run is not evaluated.
            KeyMismatchError: where the run has been made anew since.
            StoreError: where quality.json is damaged or of another version.
        """
        return read_quality(self.store, self.paths, self._made("evaluate").key)

    @cached_property
    def model(self) -> StarModel:
        """The trained model.

        Raises:
            MissingStageError: where the run is not trained.
            KeyMismatchError: where it is not the model that the run was made with.
        """
        return self._model_source.load()

    def catalogue(self, columns: list[str] | None = None) -> dd.DataFrame:
        """The raw catalogue.

        Args:
            columns: names of columns; all by default.

        Returns:
            A lazy frame, one partition a file.

        Raises:
            DataError: for columns that the catalogue lacks.
            MissingStageError: where the store has no catalogue.
        """
        record = self.catalogue_record
        unknown = [name for name in columns or () if name not in record.columns]
        if unknown:
            raise DataError(f"the catalogue has no column(s) {', '.join(unknown)}: {known_names(unknown, record.columns)}")
        whole = self.config.release.catalogue_schema([name for name in record.columns if name != HEALPIX_29])
        schema = pa.schema([whole.field(name) for name in columns or record.columns])
        footer = {catalogue.SELECTION_KEY: record.selection.key}
        return lazy.frame(self.store, schema, [FileToRead(f"{paths.CATALOGUE}/{tile.file}", footer) for tile in record.tiles])

    def latent(self) -> dd.DataFrame:
        """The latents.

        Returns:
            A lazy frame with source_id, _healpix_29, ra, dec, null_mask, z00, …; one partition a file. The latents are floating-point
            numbers, in files of integers too.

        Raises:
            MissingStageError: where the run is not encoded.
            KeyMismatchError: where the latents are of other stars or of another model than the run's.

        >>> latents = open_run("store/runs/dr2").latent()
        >>> latents.npartitions, list(latents.columns)[-6:]
        (12, ['z00', 'z01', 'z02', 'z03', 'z04', 'z05'])
        """
        files = self._latent_files()
        return lazy.latent_frame(self._model_source, latent_schema(self.model), files)

    def _latent_files(self) -> list[FileToRead]:
        """The files of the latents. Errors as of `latent`."""
        encode_key, record, model = self._made("encode").key, self.catalogue_record, self._model_source
        where, recorded = self.store.uri_of(self.paths.latent), catalogue.provenance(self.store, self.paths.latent)
        require_same(where, recorded, latent_origin(record.id, encode_key, model), "run `gaiadask encode CONFIG` again")
        return [FileToRead(f"{self.paths.latent}/{p.tile.file}", latent_footer(model, p)) for p in record.partitions]

    def encode(self, frame: Any) -> Any:
        """Latents of stars.

        Args:
            frame: the model's columns, source_id, ra (degrees) and dec (degrees), named in any case; other columns do not matter.
                dask or pandas, or another table: arrow, polars, astropy, a dict of arrays.

        Returns:
            The latents, one row a star: dask of dask, pandas of pandas (with its index), else an arrow table.

        Raises:
            DataError: where a column is missing or its values would lose something (ids in float64), or a position is null or not
                on the sphere.
            MissingStageError: where the run is not trained.

        >>> run = open_run("store/runs/dr2")
        >>> stars = run.catalogue().get_partition(0)
        >>> run.encode(stars).columns.equals(run.latent().columns)
        True
        """
        return lazy.applied(partial(_encode_table, self._model_source), frame, latent_schema(self.model))

    def decode(self, frame: Any, positions: Positions = "catalogue", impute: bool = False) -> Any:
        """Stars in physical columns and units, rebuilt from latents.

        Args:
            frame: latents, as `latent` and `encode` give them, of any kind that `encode` takes.
            positions: "catalogue" gives the ra and dec that the frame carries, "model" the network's own where it has them.
            impute: fill null values with the model's estimates; columns <name>_std give their standard deviation.

        Returns:
            The stars, one row a row of the frame: dask of dask, pandas of pandas (with its index), else an arrow table.

        Raises:
            DataError: where a column is missing, a latent is null or NaN, the latents are of another model, or the choice of
                positions does not fit the model.
            MissingStageError: where the run is not trained.

        >>> run = open_run("store/runs/dr2")
        >>> list(run.decode(run.latent()).columns)[:4]
        ['source_id', 'ra', 'dec', 'parallax']
        """
        needed = needed_latents(column_names(frame, "cannot decode"), self.model, positions)
        schema = decoded_schema(self.model, impute, *([SOURCE_ID] if SOURCE_ID in needed.names else []))
        return lazy.applied(partial(_decode_table, self._model_source, positions, impute), frame, schema)

    @cached_property
    def prior(self) -> Prior:
        """What new stars are drawn from.

        Raises:
            MissingStageError: where the run has none.
        """
        self._made("prior")
        return load_prior_cached(self.store, self.paths, require_prior(self.manifest))

    def sample(
        self,
        stars: float,
        seed: int = 0,
        *,
        cone: Sequence[float] | NDArray[Any] | None = None,
        tile: Sequence[int] | NDArray[Any] | None = None,
        magnitude: Sequence[float] | NDArray[Any] | None = None,
    ) -> dd.DataFrame:
        """Draw new stars from the run's prior. They are simulated, not measured.

        Args:
            stars: how many; 1e4 is taken, too.
            seed: a whole number from 0 on; the same seed gives the same stars, wherever they are computed, and the first ones of more.
            cone: only stars within a circle: ra, dec, radius, degrees.
            tile: only in this HEALPix pixel: order, pixel, nested.
            magnitude: only stars with G between these two, the bright end first.

        Returns:
            A lazy frame in physical columns and units, one partition a block of 16,384 stars: ra, dec, then the model's columns.

        Raises:
            MissingStageError: where the run has no prior.
            ConfigurationError: for a number, a region or a range that is none; it names the argument.
            DataError: for a region or a range without train stars; when it is computed, where hardly any star is as asked for.

        >>> north = open_run("store/runs/dr2").sample(100, seed=7, cone=(0.0, 90.0, 40.0))
        >>> len(north), bool((north.dec > 50).all().compute())
        (100, True)
        """
        self._made("prior")
        region = SampleRegion.of(cone, tile, magnitude)
        wanted, seed = whole_number("stars", stars), whole_number("seed", seed)
        request = SampleRequest.of(self.store, self.manifest, self.config.release, wanted, seed, region)
        draw = SampleBlocks(self.store, self.paths, request, self.device)
        return lazy.frame_of(draw, range(blocks_of(wanted)) or [0], sample_schema(self.model.transform))

    def nearest(self, stars: Any, k: int = 10) -> pd.DataFrame:
        """The stars of the catalogue that are most like given ones: nearest by their latents (see `gaiadask.nearest`).

        All latents are read once, into an index in memory: some 100 bytes a star with eight latents, half as much again while it is made.

        Args:
            stars: source_ids of the catalogue; or a frame of latents, as `latent` and `encode` give them, of any stars.
            k: how many neighbours each gets; fewer where fewer stars lack the same columns.

        Returns:
            A row a neighbour, in the order of the stars: source_id, rank (1: the nearest), neighbour (its source_id), distance (1: the
            rebuilt columns differ by about their interquartile range). A star is no neighbour of itself.

        Raises:
            ConfigurationError: for a k that is none.
            DataError: for a source_id that is none or that the catalogue does not have, latents of another model, and more neighbours
                than there are stars.
            KeyMismatchError: where the latents have been made anew since they were read.
            OutOfMemoryError: where this machine has no memory for the index.
            MissingStageError: where the run is not encoded.

        >>> run = open_run("store/runs/dr2")
        >>> star = run.catalogue(["source_id"]).get_partition(0).compute().source_id.iloc[0]
        >>> run.nearest([star], k=3)["rank"].tolist()
        [1, 2, 3]
        """
        k, index = whole_number("k", k, least=1), self._latent_index
        now = {"encode": self._made("encode").key, "weights": model_identity(self.store, self.paths)}
        require_same(f"the index of run {self.paths.name!r}", index.origin, now, "its latents were made anew: open the run again")
        return lazy.to_pandas(index.nearest(points_of(stars, index, self.model), k))

    def outliers(self, n: int = 10) -> pd.DataFrame:
        """The stars of the catalogue that are like no other: every star is rebuilt and rated, partition by partition, wherever dask computes.

        Args:
            n: how many for each reason.

        Returns:
            A row a star and reason: why ("worst rebuilt", in units of the star's own catalogue error, or "least likely", its latents under
            the prior), rank, source_id, ra, dec, and what `quality.records.Outlier` says of a star.

        Raises:
            ConfigurationError: for an n that is none.
            MissingStageError: where the run is not encoded, or has no prior of latents.

        >>> open_run("store/runs/dr2").outliers(1).why.tolist()
        ['worst rebuilt', 'least likely']
        """
        find = FindOutliers(self._model_source, require_latent_prior(self.manifest), whole_number("n", n, least=1))
        self._latent_files(), self._made("prior")
        return lazy.to_pandas(lazy.merged(find, find.merged, catalogue.batches(self.catalogue_record.partitions)))

    @cached_property
    def _latent_index(self) -> LatentIndex:
        files, source = self._latent_files(), self._model_source
        check_memory(self.catalogue_record.rows, self.model)
        origin = {"encode": self._made("encode").key, "weights": source.weights}
        return LatentIndex.of(lazy.each(partial(points_of_file, source), files), origin)

    def compress(self, bound_sigma: float | None = None, bounds: Mapping[str, float] | None = None) -> CompressedRecord:
        """Compress the run's catalogue, as `gaiadask compress` does; what is there with the same bounds is not made again.

        Args:
            bound_sigma: how far a value may be off, in units of its own catalogue error; by default the run's configuration says it.
            bounds: of single columns in place of it.

        Returns:
            What was made: bytes, the largest error over its bound and the exceptions of every column.

        Raises:
            ConfigurationError: for a bound that is none, or of a column that the catalogue does not have.
            KeyMismatchError: where the run has a compressed catalogue with other bounds.
        """
        from gaiadask.stages.engine import run_stages

        codec = self.config.codec.to_json()
        codec |= {} if bound_sigma is None else {"bound_sigma": bound_sigma}
        codec |= {} if bounds is None else {"bounds": dict(bounds)}
        here: JsonObject = {"store": self.store.uri, "name": self.paths.name, "codec": codec}
        run_stages(parse_config(self.config.to_json() | here, where="run.compress"), ["compress"])
        return self._compressed.record

    def decompress(self, columns: Sequence[str] | None = None) -> dd.DataFrame:
        """The stars of the run's compressed catalogue, each value within its bound; only what the columns depend on is read.

        Args:
            columns: names; None: all of the catalogue's.

        Returns:
            A lazy frame, one partition a file.

        Raises:
            StoreError: where there is no whole compressed catalogue, or it is of another version.
            DataError: for a column that it does not have.
        """
        return lazy.decompressed(self._compressed, columns)

    @property
    def _compressed(self) -> Compressed:
        return Compressed(self.store, self.paths.compressed)

    @cached_property
    def _model_source(self) -> ModelSource:
        return ModelSource.of(self.store, self.paths, self._made("train").key, self.device)

    def _made(self, stage: str) -> StageEntry:
        """The entry of a finished stage, which was made from what the run has now.

        Raises:
            MissingStageError: it has not run.
            KeyMismatchError: what it was made from was made anew since.
        """
        entry = self.manifest.require(stage)
        self._check_origin(stage, self.manifest.read().stages)
        return entry

    def _check_origin(self, stage: str, entries: Mapping[str, StageEntry]) -> None:
        """Compare what a finished stage, and those that it was made from, record with what the run has now."""
        entry = entries[stage]
        remedy = f"run `gaiadask {stage} CONFIG --replace {stage}`"
        what = f"{stage} of run {self.paths.name!r}"
        # Beside keys of stages, inputs have sections of the configuration, one of them with a stage's name.
        needed = {name: key for name, key in entry.inputs.items() if name in entries and isinstance(key, str)}
        require_same(what, needed, {name: other.key for name, other in entries.items()}, remedy)
        if "weights" in entry.inputs:
            require_same(what, entry.inputs, {"weights": model_identity(self.store, self.paths)}, remedy)
        for name in needed:
            self._check_origin(name, entries)


def decompress(uri: str | os.PathLike[str], columns: Sequence[str] | None = None) -> dd.DataFrame:
    """The stars of a compressed catalogue that was sent by itself: the folder `compressed` of a run.

    Args:
        uri: of the folder, any fsspec URI.
        columns: names; None: all of the catalogue's.

    Returns:
        A lazy frame, one partition a file.

    Raises:
        StoreError: where the folder is not a whole compressed catalogue, or of another version.
        DataError: for a column that it does not have.
    """
    return lazy.decompressed(Compressed(Store(absolute_uri(os.fspath(uri)))), columns)


def _encode_table(source: ModelSource, frame: Any) -> pa.Table:
    return encode(frame, source.load())


def _decode_table(source: ModelSource, positions: Positions, impute: bool, frame: Any) -> pa.Table:
    return decode(frame, source.load(), positions, impute)
