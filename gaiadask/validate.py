"""Compares a published catalogue with its own records and the rules of HATS, and names every way in which it is wrong.

Each partition is checked on its own, row group by row group: readable, its checksum, rows and schema as recorded, rows
sorted, in their tile and where their position says, every star once. Then what concerns more than one partition: that
chunks, tiles and catalogue count the same rows, that no file is left over, and that no star is in two partitions.
For the last, only stars that lie in another tile than their source_id says matter: of two copies, at least one does. There
are few of them (0.7 % between the archive's order-12 pixels, fewer between larger tiles), so their ids fit into memory:
8 bytes each. They are compared with each other and, in a second pass, with the ids of the partition that their source_id
says: their home.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gaiadask import catalogue, publishing
from gaiadask.archive.chunks import Chunk
from gaiadask.catalogue import Partition
from gaiadask.checks import repeated
from gaiadask.cluster.workers import Task, Workers
from gaiadask.errors import DataError, GaiadaskError, MissingFileError, StoreError
from gaiadask.ingest import CatalogueRecord, catalogue_id, recorded_catalogue
from gaiadask.ingest_plan import IngestPlan, planned_tiles, read_plan
from gaiadask.keys import digest
from gaiadask.ledger import ChunkRecord, filed, leaves, read_ledger
from gaiadask.margin import margin_findings
from gaiadask.progress import Progress
from gaiadask.release.column import DEC, HEALPIX_29, RA, SOURCE_ID
from gaiadask.release.release import Release
from gaiadask.sky import SOURCE_ID_STOP, healpix
from gaiadask.store import paths
from gaiadask.store.files import Store
from gaiadask.store.paths import Tile

Ids = NDArray[np.int64]

_METADATA_KEYS = (b"unit", b"ucd", b"description")
_PLACE_COLUMNS = (HEALPIX_29, SOURCE_ID, RA, DEC)
"""They say where a row belongs."""
_NAMED_STARS = 10
"""Of the stars in two partitions, so many are named a partition: enough to look into it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong: where (a partition, a file, a chunk), and the problem with what was expected."""

    where: str
    problem: str


@dataclass(frozen=True, slots=True)
class Checked:
    """One partition: its problems, and the sorted source_ids whose home is another tile."""

    tile: Tile
    findings: tuple[Finding, ...]
    away: Ids


@dataclass(frozen=True, slots=True)
class Expected:
    """The columns and the selection's key that every partition must have; quick: checksums are not made."""

    schema: pa.Schema
    selection_key: str
    quick: bool


def validate(
    workers: Workers, store: Store, release: Release, progress: Progress | None = None, *, quick: bool = False
) -> list[Finding]:
    """Everything that is wrong with the store's published catalogue.

    Args:
        workers: check the partitions.
        store: where the catalogue is.
        release: the data release that its stars are of.
        progress: receives how far it is.
        quick: files are not read whole for their checksums, only the columns that say where a row belongs: a changed byte in
            another column is then not noticed.

    Returns:
        The findings; empty where the catalogue is complete and correct.

    Raises:
        MissingStageError: no catalogue is published.
    """
    record = recorded_catalogue(store)
    names = [name for name in record.columns if name != HEALPIX_29]
    expected = Expected(release.catalogue_schema(names), record.selection.key, quick)
    findings = [*catalogue_findings(store, record), *ledger_findings(store, record), *stray_findings(store, record)]
    findings += [Finding(*problem) for problem in margin_findings(workers, store, record, progress, quick)]
    task = Task[Sequence[Partition], list[Checked]]("validate", label=catalogue.shown, amount=len, size=len)
    batches = catalogue.batches(record.partitions)
    checked = [each for batch in workers.map(partial(check_partitions, store, expected), batches, task, progress) for each in batch]
    findings += [finding for each in checked for finding in each.findings]
    twice, visits = compare_away(checked)
    rows = {partition.tile: partition.rows for partition in record.partitions}
    visit = Task[Sequence[Visit], list[Finding]]("compare", label=lambda some: str(some[0].tile), size=len)
    at_home = workers.map(partial(find_at_home, store), catalogue.batches(visits, lambda v: rows[v.tile]), visit, progress)
    return [*findings, *twice, *(finding for each in at_home for finding in each)]


# One partition -------------------------------------------------------------------------------------------------------
def check_partitions(store: Store, expected: Expected, partitions: Sequence[Partition]) -> list[Checked]:
    """Some partition files against their records."""
    problems = _SchemaProblems(expected)
    return [check_partition(store, expected, partition, problems) for partition in partitions]


def check_partition(
    store: Store, expected: Expected, partition: Partition, schema_problems: Callable[[pa.Schema], Sequence[str]] | None = None
) -> Checked:
    """One partition file against its record; in memory are one row group's positions and the ids.

    schema_problems: of a file's schema, where they are known from other files.
    """
    schema_problems = schema_problems or _SchemaProblems(expected)
    tile, where = partition.tile, str(partition.tile)
    name = f"{paths.CATALOGUE}/{tile.file}"
    problems = [] if expected.quick else list(_checksum_problems(store, name, partition))
    rows = _Rows(tile)
    try:
        with store.open_parquet(name) as file:
            schema = file.schema_arrow
            problems += schema_problems(schema)
            places = (schema.field(name).type if name in schema.names else None for name in _PLACE_COLUMNS)
            if all(place == expected.schema.field(name).type for name, place in zip(_PLACE_COLUMNS, places, strict=True)):
                for group in range(file.num_row_groups):
                    rows.add(file.read_row_group(group, _PLACE_COLUMNS))
                problems += rows.problems(partition.rows)
    except MissingFileError:
        return Checked(tile, (Finding(where, f"its file {tile.file} is missing"),), _no_ids())
    except StoreError as error:
        problems.append(str(error))
    return Checked(tile, tuple(Finding(where, problem) for problem in problems), rows.away)


def _checksum_problems(store: Store, name: str, partition: Partition) -> Iterator[str]:
    try:
        checksum = store.sha256(name)
    except StoreError as error:
        yield f"its file cannot be read: {error}"
        return
    if checksum != partition.checksum:
        yield f"its file was changed: sha256 {checksum[:16]}…, recorded {partition.checksum[:16]}…"


class _SchemaProblems:
    """Problems of schemas, which are mostly that of the file before."""

    def __init__(self, expected: Expected) -> None:
        self._expected = expected
        self._last: tuple[pa.Schema, list[str]] | None = None

    def __call__(self, schema: pa.Schema) -> Sequence[str]:
        if self._last is None or not self._last[0].equals(schema, check_metadata=True):
            self._last = schema, list(_schema_problems(schema, self._expected))
        return self._last[1]


def _schema_problems(schema: pa.Schema, expected: Expected) -> Iterator[str]:
    if schema.names != expected.schema.names:
        missing, more = (
            sorted(set(a) - set(b)) for a, b in ((expected.schema.names, schema.names), (schema.names, expected.schema.names))
        )
        yield f"its columns are not the catalogue's: missing {missing}, too many {more}" + (
            "" if missing or more else ", in another order"
        )
        return
    for field in expected.schema:
        stored = schema.field(field.name)
        if stored.type != field.type:
            yield f"column {field.name} is {stored.type}: expected {field.type}"
        for key in _METADATA_KEYS:
            value, wanted = ((f.metadata or {}).get(key) for f in (stored, field))
            if value != wanted:
                yield f"{key.decode()} of {field.name} is {_text(value)}: expected {_text(wanted)}"
    key = (schema.metadata or {}).get(b"gaiadask.selection", b"").decode()
    if key != expected.selection_key:
        yield f"it was made from another selection: key {key or 'none'} in its footer, expected {expected.selection_key}"


def _text(value: bytes | None) -> str:
    return "missing" if value is None else repr(value.decode())


class _Rows:
    """Problems of a partition's rows, added up over its row groups."""

    def __init__(self, tile: Tile) -> None:
        self.tile = tile
        self.rows = 0
        self.last = -1
        self.wrong: dict[str, tuple[int, int]] = {}
        self.ids: list[Ids] = []

    def add(self, table: pa.Table) -> None:
        self.rows += table.num_rows
        for name in table.column_names:
            if nulls := table[name].null_count:
                self._count(f"have no {name}", nulls, -1)
        table = table.drop_null()
        index, ids, ra, dec = (table[name].to_numpy() for name in (HEALPIX_29, SOURCE_ID, RA, DEC))
        first, stop = self.tile.healpix_29
        self._count_where("lie in another tile", (index < first) | (index >= stop), ids)
        self._count_where(f"come after a row of larger {HEALPIX_29}", np.diff(index, prepend=self.last) < 0, ids)
        on_sphere = (ra >= 0) & (ra <= 360) & (dec >= -90) & (dec <= 90)
        self._count_where("have a position off the sphere", ~on_sphere, ids)
        elsewhere = healpix(np.where(on_sphere, ra, 0.0), np.where(on_sphere, dec, 0.0)) != index
        self._count_where(f"have another {HEALPIX_29} than their position", elsewhere & on_sphere, ids)
        self.last = int(index[-1]) if len(index) else self.last
        self.ids.append(ids)

    def _count_where(self, problem: str, wrong: NDArray[np.bool_], ids: Ids) -> None:
        if wrong.any():
            self._count(problem, int(wrong.sum()), int(ids[np.argmax(wrong)]))

    def _count(self, problem: str, rows: int, source_id: int) -> None:
        before, first = self.wrong.get(problem, (0, source_id))
        self.wrong[problem] = (before + rows, first)

    @property
    def away(self) -> Ids:
        """Sorted source_ids whose home is another tile."""
        ids = self._all_ids()
        first, stop = self.tile.source_ids
        return np.unique(ids[(ids < first) | (ids >= stop)])

    def _all_ids(self) -> Ids:
        return np.concatenate(self.ids) if self.ids else _no_ids()

    def problems(self, expected_rows: int) -> Iterator[str]:
        """One line each."""
        if self.rows != expected_rows:
            yield f"it has {self.rows} rows: {expected_rows} were written"
        for problem, (rows, source_id) in self.wrong.items():
            yield f"{rows} of {self.rows} rows {problem}" + (f" (source_id {source_id} first)" if source_id >= 0 else "")
        twice = repeated(self._all_ids())
        if len(twice):
            yield f"{len(twice)} stars are in it more than once (source_id {twice[0]} first)"


def _no_ids() -> Ids:
    return np.empty(0, np.int64)


# Stars in two partitions ---------------------------------------------------------------------------------------------
class Visit(NamedTuple):
    """A tile, and the ids whose home it is and that are filed elsewhere."""

    tile: Tile
    away: Ids


def compare_away(checked: Sequence[Checked]) -> tuple[list[Finding], list[Visit]]:
    """Stars that are in two partitions, neither their home; and for each tile the ids whose home it is and that are filed
    elsewhere."""
    tiles = sorted((each.tile for each in checked), key=lambda tile: tile.source_ids)
    away = np.sort(np.concatenate([each.away for each in checked] or [_no_ids()]))
    twice = repeated(away)
    findings = [
        _in_two(int(source_id), [c.tile for c in checked if _contains(c.away, source_id)]) for source_id in twice[:_NAMED_STARS]
    ]
    if more := len(twice) - len(findings):
        findings.append(Finding("catalogue", f"{more:,} more stars are in two partitions or more: expected each star once"))
    visits = []
    for tile in tiles:
        low, high = np.searchsorted(away, tile.source_ids)
        if high > low:
            visits.append(Visit(tile, np.unique(away[low:high])))
    return findings, visits


def _contains(ordered: Ids, source_id: int) -> bool:
    at = int(np.searchsorted(ordered, source_id))
    return at < len(ordered) and int(ordered[at]) == source_id


def find_at_home(store: Store, visits: Sequence[Visit]) -> list[Finding]:
    """Stars that are filed in their home tile and in another one too."""
    found: list[Finding] = []
    for tile, away in visits:
        try:
            ids = catalogue.read_partition(store, paths.CATALOGUE, tile, [SOURCE_ID])[SOURCE_ID].drop_null().to_numpy()
        except GaiadaskError:  # reported by check_partition
            continue
        problem = "is in another partition too: expected each star once"
        found += [Finding(str(tile), f"star {int(i)} {problem}") for i in np.intersect1d(ids, away)[:_NAMED_STARS]]
    return found


def _in_two(source_id: int, tiles: Sequence[Tile]) -> Finding:
    return Finding(", ".join(map(str, tiles)), f"star {source_id} is in {len(tiles)} partitions: expected each star once")


# Records and files ---------------------------------------------------------------------------------------------------
def catalogue_findings(store: Store, record: CatalogueRecord) -> Iterator[Finding]:
    """The catalogue's record and HATS metadata against each other and against hats' own strict validation."""
    rows = sum(p.rows for p in record.partitions)
    if rows != record.rows:
        yield Finding(paths.PUBLISHED, f"it records {record.rows} rows, its partitions {rows}")
    if catalogue_id(record.partitions) != record.id:
        yield Finding(paths.PUBLISHED, f"its id {record.id} is not that of its partitions")
    for wrong in publishing.wrong_metadata(store, paths.CATALOGUE, record.partitions, record.rows, record.id):
        yield Finding("HATS metadata", f"{wrong.name} is {wrong.value}: expected {wrong.expected}")
    for line in publishing.strict_problems(store, paths.CATALOGUE):
        yield Finding("HATS", line)


def ledger_findings(store: Store, record: CatalogueRecord) -> list[Finding]:
    """Plan and ledger: every chunk fetched, their ranges without gap or overlap, their rows those of the tiles."""
    try:
        plan, ledger = read_plan(store), read_ledger(store)
        selection_key = digest(store.read_json(paths.SELECTION))
    except StoreError as error:
        return [Finding("ledger", str(error))]
    findings = [Finding("ledger", problem) for problem in _range_problems(plan, ledger)]
    if selection_key != record.selection.key:
        findings.append(Finding(paths.SELECTION, "it is not the selection that the catalogue was made from"))
    try:
        records = filed(plan.chunks, ledger)
    except DataError as error:
        return [*findings, Finding("ledger", str(error))]
    fetched = sum(chunk.rows for chunk in records.values())
    if fetched != record.rows:
        findings.append(Finding("ledger", f"its chunks gave {fetched} rows, the catalogue has {record.rows}"))
    for chunk in records.values():
        if sum(chunk.tiles.values()) != chunk.rows:
            findings.append(Finding(f"chunk {chunk.chunk}", f"{chunk.rows} rows came, {sum(chunk.tiles.values())} were filed"))
    rows_of = Counter[str]()
    for partition, tile in zip(record.partitions, planned_tiles(plan, record.tiles), strict=True):
        rows_of[tile.flat_name] += partition.rows
    filed_rows = Counter[str]()
    for chunk in records.values():
        filed_rows.update(chunk.tiles)
    for name in sorted(rows_of.keys() | filed_rows.keys()):
        if filed_rows[name] != rows_of[name]:
            problem = f"the chunks filed {filed_rows[name]} rows, its partition has {rows_of[name]}"
            findings.append(Finding(f"tile {name}", problem))
    return findings


def _range_problems(plan: IngestPlan, ledger: dict[str, ChunkRecord]) -> Iterator[str]:
    """Ranges of source_id that no chunk, or two, ask for. Chunks of files are left out: their ranges may overlap."""
    chunks = [chunk for chunk in leaves(plan.chunks, ledger) if not chunk.files]
    if not chunks:
        return
    ends = (
        Chunk("the first", 0, 0),
        *sorted(chunks, key=lambda c: (c.first, c.stop)),
        Chunk("the end", SOURCE_ID_STOP, SOURCE_ID_STOP),
    )
    for before, after in pairwise(ends):
        if after.first != before.stop:
            word = "no chunk asks for" if after.first > before.stop else "two chunks ask for"
            low, high = sorted((before.stop, after.first))
            yield f"{word} source_id {low} to {high - 1} (chunks {before.name} and {after.name})"


def stray_findings(store: Store, record: CatalogueRecord) -> list[Finding]:
    """Files beside the partitions, which readers of the folder would take for part of the catalogue."""
    known = {f"{paths.CATALOGUE}/{name}" for name in (*publishing.METADATA_FILES, *(tile.file for tile in record.tiles))}
    files = (name for name in store.list(paths.CATALOGUE) if not name.startswith(f"{paths.INGEST}/"))
    return [Finding(name, "no file of this catalogue: remove it") for name in files if name not in known]
