"""What the client does for each partition and each file: little, the same for each, and no star is read there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from small_run import small_config

from gaiadask import ingest_plan
from gaiadask.archive.base import open_archive
from gaiadask.archive.files import find
from gaiadask.cluster.here import Here
from gaiadask.cluster.workers import Outcomes, Task
from gaiadask.config.sections import Config
from gaiadask.stages import context as context_module
from gaiadask.stages.engine import run_stages
from gaiadask.store import attempts
from gaiadask.store.attempts import Operation
from gaiadask.store.parquet import ParquetReader
from gaiadask.store.paths import Tile

STAGES = ("ingest", "statistics", "train", "encode", "prior", "evaluate")
COLUMNS = ("parallax", "phot_g_mean_flux", "bp_rp")
FOOTERS = dict.fromkeys(STAGES, 0) | {"again": 2}
"""Of each partition, that the client reads: where nothing is to be made, and no cluster started, the catalogue's and the latents'."""


@dataclass
class Elsewhere(Here):
    """Workers in this process whose operations on a store are told from the client's, which are counted."""

    at_work: int = 0
    operations: Counter[str] = field(default_factory=Counter)
    rows_read: int = 0

    def outcomes(self, function: Callable[[Any], Any], items: Sequence[Any], task: Task[Any, Any]) -> Outcomes[Any]:
        return super().outcomes(partial(self._there, function), items, task)

    def reduce(self, function: Any, merge: Any, items: Any, *arguments: Any, **named: Any) -> Any:
        return super().reduce(partial(self._there, function), partial(self._there, merge), items, *arguments, **named)

    def one(self, function: Any, *arguments: Any) -> Any:
        return super().one(partial(self._there, function), *arguments)

    def train(self, *arguments: Any) -> Any:
        return self._there(super().train, *arguments)

    def _there(self, function: Callable[..., Any], *given: Any) -> Any:
        self.at_work += 1
        try:
            return function(*given)
        finally:
            self.at_work -= 1

    @contextmanager
    def counting(self) -> Iterator[None]:
        """A block in which the client's operations are counted."""
        perform, read = attempts.perform, ParquetReader.read_row_group

        def noted(operation: Operation, call: Callable[[], Any]) -> Any:
            # A lease is renewed by the clock.
            self.operations[operation.kind] += not self.at_work and "lease.json" not in operation.where
            return perform(operation, call)

        def read_here(reader: ParquetReader, *arguments: Any, **named: Any) -> Any:
            table = read(reader, *arguments, **named)
            self.rows_read += 0 if self.at_work else len(table)
            return table

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(attempts, "perform", noted)
            patch.setattr(ParquetReader, "read_row_group", read_here)
            yield


def config_of(folder: Path) -> Config:
    return small_config(
        folder, archive={"mock_stars": 6_000, "chunk_rows": 6_000}, selection={"columns": COLUMNS, "not_null": ()},
        model={"latents": 2, "hidden": (8,), "columns": COLUMNS},
        training={"rows_seen": 600, "validate_every_rows": 300, "batch_rows": 60, "validation_rows": 50},
        prior={"rows_seen": 200, "batch_rows": 50, "hidden": (4,), "transforms": 1, "bins": 4},
        quality={"rows": 200, "two_sample_rows": 100, "two_sample_seeds": 1},
    )  # fmt: skip


def tiles_of(order: int, *_: object) -> tuple[Tile, ...]:
    return tuple(Tile(order, pixel) for pixel in range(12 * 4**order))


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Elsewhere]]:
    """What the client did in each stage of a run of 12 and of one of 48 partitions, and where all of it was there already."""
    torch.set_num_threads(1)
    found: dict[int, dict[str, Elsewhere]] = {}
    for order in (0, 1):
        config, stages = config_of(tmp_path_factory.mktemp("linear")), found.setdefault(12 * 4**order, {})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ingest_plan, "tile_cover", partial(tiles_of, order))
            patch.setattr(context_module, "MANY", 1)
            for name in (*STAGES, "again"):
                stages[name] = Elsewhere()
                with stages[name].counting():
                    run_stages(config, STAGES if name == "again" else [name], workers=stages[name])
    return found


@pytest.mark.slow
def test_no_star_is_read_in_the_client(counted: dict[int, dict[str, Elsewhere]]) -> None:
    assert {name: stage.rows_read for stages in counted.values() for name, stage in stages.items()} == dict.fromkeys(
        (*STAGES, "again"), 0
    )


@pytest.mark.slow
@pytest.mark.parametrize("stage", FOOTERS)
def test_footers_are_read_by_workers_where_they_have_work(stage: str, counted: dict[int, dict[str, Elsewhere]]) -> None:
    """Of the partitions that a stage needs, when it starts: are they there, whole and of the same origin?"""
    few, many = (counted[partitions][stage].operations for partitions in (12, 48))
    assert {kind: many[kind] - few[kind] for kind in many if many[kind] != few[kind]} == (
        {"read": (48 - 12) * FOOTERS[stage]} if FOOTERS[stage] else {}
    )


def test_the_checksums_of_files_that_are_named_one_by_one_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"GaiaSource_{number}_{number}.csv.gz" for number in range(40)]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / find.CHECKSUMS).write_text("".join(f"{number:032x}  {name}\n" for number, name in enumerate(names)))
    read, lists = find._read_checksums, list[str]()
    monkeypatch.setattr(find, "_read_checksums", lambda system, path: (lists.append(path), read(system, path))[1])
    config = small_config("unused", archive={"kind": "files", "uris": [str(tmp_path / name) for name in names]})
    files: Any = open_archive(config.archive, config.selection)
    assert [file.state for file in files.find()] == [{"md5": f"{number:032x}"} for number in range(40)]
    assert lists == [str(tmp_path / find.CHECKSUMS)]
