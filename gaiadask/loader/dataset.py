"""The files of any HATS catalogue, also of one that others have published."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

from hats.loaders.read_hats import read_hats
from pydantic import ValidationError
from upath import UPath

from gaiadask.errors import DamagedFileError, MissingFileError
from gaiadask.records import problems
from gaiadask.store.attempts import reason
from gaiadask.store.files import Store
from gaiadask.store.paths import Tile

_MARKERS = ("hats.properties", "properties", "collection.properties")
"""One of them is in the folder of a HATS catalogue or collection."""


class Dataset(NamedTuple):
    """The partition files of a HATS catalogue: their names, relative to the store that is its folder, in the order of its pixels."""

    store: Store
    names: tuple[str, ...]


def _read(uri: str) -> Any:
    """What hats makes of a catalogue. Raises DamagedFileError where its files are not what the format says."""
    try:
        return read_hats(UPath(uri), read_moc=False)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        said = problems(error)[0] if isinstance(error, ValidationError) else reason(error)
        raise DamagedFileError(
            f"the HATS catalogue {uri} cannot be read ({said}): its hats.properties or partition_info.csv is damaged or not of HATS; "
            "restore it, or fetch it again"
        ) from error


def find_dataset(uri: str) -> Dataset:
    """The files of any HATS catalogue, or of the main one of a collection. Raises StoreError where there is none."""
    where = Store(uri)
    try:
        # Asked for first: hats takes a server that does not answer, or refuses, for an empty folder.
        if all(where.read_bytes_if_there(name) is None for name in _MARKERS):
            raise MissingFileError(f"none of {', '.join(_MARKERS)}")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "_common_metadata or _metadata")  # a catalogue may do without
            found = where.reading("", lambda: _read(uri))
    except MissingFileError as error:
        raise MissingFileError(
            f"no HATS catalogue in {uri}: expected a folder with hats.properties, partition_info.csv and dataset/Norder=…, or a "
            "collection of such folders"
        ) from error
    catalog: Any = getattr(found, "main_catalog", found)
    store, suffix = Store(str(catalog.catalog_base_dir)), catalog.catalog_info.npix_suffix
    tiles = [Tile(pixel.order, pixel.pixel) for pixel in catalog.get_healpix_pixels()]
    if suffix == "/":  # a partition is a folder of files
        return Dataset(store, tuple(name for tile in tiles for name in store.list(tile.file.removesuffix(".parquet"), ".parquet")))
    return Dataset(store, tuple(tile.file.removesuffix(".parquet") + suffix for tile in tiles))
