"""Every operation of a store fails once: what is done to the store, what is right afterwards, and what became of each run.

A run is right where what it leaves is whole and equal to the undisturbed result to the bit, or where it ended with an error of
gaiadask's (or its process died) and the second start leaves that. Compared are all files but the times in them.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow.parquet as pq
from faulty_store import MODES, Death, Faulty, Mode, copied_state, starting
from small_run import fetched, small_config

from gaiadask.cluster.here import Here
from gaiadask.config.sections import Config
from gaiadask.errors import GaiadaskError
from gaiadask.sky import healpix_of_source_id
from gaiadask.stages.decode import DecodeOptions
from gaiadask.stages.engine import run_stages
from gaiadask.stages.sample import SampleOptions
from gaiadask.store.files import PARTIAL

STARS = 240
"""In three files, which are three chunks."""

COLUMNS = ("parallax", "phot_g_mean_flux", "bp_rp")
# What differs between two runs that give the same: times, sentences with times, names of tries, and the machine.
_TIMES = frozenset(("seconds", "summary", "rows_per_s", "finished", "attempt", "host", "files", "renewed_unix_s"))
_NOT_COMPARED = ("last.safetensors", "metrics.jsonl")  # times within; whole where the model is
_DATED = ("hats_creation_date",)


@dataclass(frozen=True)
class Work:
    """Something that is done to a store.

    Attributes:
        name: as the table calls it.
        start: does it.
        after: name of the work that it needs.
        again: the second start, where it is not the same command.
        prepare: what is made with the state before it begins, undisturbed.
    """

    name: str
    start: Callable[[Config], Any]
    after: str = ""
    again: Callable[[Config], Any] | None = None
    prepare: Callable[[Config], Any] = lambda _: None


def _stages(*names: str, **options: Any) -> Callable[[Config], Any]:
    return lambda config: run_stages(config, list(names), workers=Here(), **options)


def _sample(config: Config) -> Any:
    return _stages("sample", request=SampleOptions(stars=40))(config)


def _decode(config: Config) -> Any:
    return _stages("decode", request=DecodeOptions(output=f"{config.store}/../rebuilt"))(config)


def _unpublish(config: Config) -> None:
    system, path = fsspec.core.url_to_fs(f"{config.store}/catalogue")
    for name in ("hats.properties", "partition_info.csv", "_ingest/catalogue.json"):
        system.rm(f"{path}/{name}")


WORKS = (
    Work("ingest", _stages("ingest")),
    Work("statistics", _stages("statistics"), after="ingest"),
    Work("train", _stages("train"), after="statistics"),
    Work("encode", _stages("encode"), after="train"),
    Work("prior", _stages("prior"), after="encode"),
    Work("sample", _sample, after="prior"),
    Work("decode", _decode, after="encode"),
    Work(
        "replace ingest", _stages("ingest", "statistics", replacing=["ingest"]), after="statistics",
        again=_stages("ingest", "statistics"),
    ),
    Work("replace encode", _stages("encode", replacing=["encode"]), after="encode", again=_stages("encode")),
)  # fmt: skip
BY_NAME = {work.name: work for work in WORKS}


@dataclass(frozen=True)
class Outcome:
    """What became of a run. problem: why it is not right; empty where it is."""

    work: str
    mode: str
    number: int
    fired: int
    at_once: bool
    problem: str = ""


def config_of(folder: Path, store: str) -> Config:
    """A run of 240 stars in three chunks. folder: of the files that the stars come from, made where it is not there."""
    if not folder.exists():
        folder.mkdir(parents=True)
        table = fetched(small_config("unused", archive={"mock_stars": 12_000, "chunk_rows": 12_000}))
        pixel = healpix_of_source_id(table["source_id"].to_numpy(), 0)
        rows = np.flatnonzero((pixel == 1) | (pixel == 6))
        table = table.take(rows[:: len(rows) // STARS][:STARS])  # of two tiles
        for number in range(3):
            pq.write_table(table.slice(number * STARS // 3, STARS // 3), folder / f"{number}.parquet")
    return small_config(
        store, name="r", archive={"kind": "files", "uris": (str(folder / "*.parquet"),)},
        model={"latents": 2, "hidden": (8,), "columns": COLUMNS}, selection={"columns": COLUMNS},
        training={"rows_seen": 600, "validate_every_rows": 300, "batch_rows": 60, "validation_rows": 50},
        prior={"rows_seen": 200, "batch_rows": 50, "hidden": (4,), "transforms": 1, "bins": 4},
    )  # fmt: skip


class Bench:
    """Runs the works, each from the state that it needs, in one folder. store: "local", or the URI of a folder of an object store."""

    def __init__(self, folder: Path, store: str = "local") -> None:
        self.folder, self.store = folder, store
        self.local = store == "local"
        place = str(folder / "work" / "store") if self.local else f"{store}/work/store"
        self.config = config_of(folder / "stars", place)
        self._states: dict[str, Path] = {}
        self.expected: dict[str, dict[str, object]] = {}
        self.operations: dict[str, list[Any]] = {}

    # States ----------------------------------------------------------------------------------------------------------
    def _before(self, work: Work) -> None:
        """The state that a work begins with."""
        if work.after:
            self._made(BY_NAME[work.after])
        self._put(self._states.get(work.after))

    def _made(self, work: Work) -> None:
        """The state that a work leaves, made once."""
        if work.name in self._states:
            return
        self._before(work)
        with starting() as faulty:
            work.start(self.config)
        self.operations[work.name] = faulty.operations
        self.expected[work.name] = self.found()
        self._states[work.name] = self.folder / "states" / work.name
        self._get(self._states[work.name])

    def _put(self, state: Path | None) -> None:
        if self.local:
            shutil.rmtree(self.folder / "work", ignore_errors=True)
            if state:
                copied_state(state, self.folder / "work")
            return
        system, path = fsspec.core.url_to_fs(f"{self.store}/work")
        with contextlib.suppress(FileNotFoundError):
            system.rm(path, recursive=True)
        if state:
            system.put(f"{state}/", f"{path}/", recursive=True)
        system.invalidate_cache()

    def _get(self, state: Path) -> None:
        if self.local:
            copied_state(self.folder / "work", state)
        else:
            system, path = fsspec.core.url_to_fs(f"{self.store}/work")
            system.invalidate_cache()
            system.get(f"{path}/", f"{state}/", recursive=True)

    def found(self) -> dict[str, object]:
        """Every file by its name, as far as it is compared."""
        system, path = fsspec.core.url_to_fs(str(self.folder / "work") if self.local else f"{self.store}/work")
        system.invalidate_cache()
        files = system.find(path)
        return {str(name)[len(path) + 1 :]: _compared(str(name), system.cat_file(name)) for name in files}

    # Runs ------------------------------------------------------------------------------------------------------------
    def faults(self, work: Work) -> list[tuple[str, int]]:
        """Every operation of an undisturbed run in every mode in which it can fail."""
        self._made(work)
        return [
            (mode.name, number)
            for mode in MODES.values()
            for number in range(sum(not mode.kinds or o.kind in mode.kinds for o in self.operations[work.name]))
        ]

    def run(self, work: Work, mode: Mode, number: int) -> Outcome:
        """Do a work while its `number`-th operation fails; where it does not end well, once more undisturbed."""
        self._made(work)
        self._before(work)
        said = ""
        with starting(mode, number) as faulty:
            try:
                work.start(self.config)
            except GaiadaskError as error:
                said = str(error) or type(error).__name__
            except Death:
                said = "died"
            except Exception as error:  # noqa: BLE001  that is what is looked for
                return self._outcome(work, mode, number, faulty, False, f"raised {type(error).__name__}: {error}")
        if not said:
            return self._outcome(work, mode, number, faulty, True, self._differs(work, mode.lasts))
        with starting():
            try:
                (work.again or work.start)(self.config)
            except Exception as error:  # noqa: BLE001
                problem = f"after {said[:200]!r} the second start raised {type(error).__name__}: {error}"
                return self._outcome(work, mode, number, faulty, False, problem)
        differs = self._differs(work, mode.lasts or said == "died")
        return self._outcome(work, mode, number, faulty, False, differs and f"after {said[:200]!r}: {differs}")

    @staticmethod
    def _outcome(work: Work, mode: Mode, number: int, faulty: Faulty, at_once: bool, problem: str) -> Outcome:
        return Outcome(work.name, mode.name, number, faulty.fired, at_once, problem)

    def _differs(self, work: Work, held: bool = False) -> str:
        """In what the store is not as it is to be. held: whether a process was cut off that held leases, which end by themselves."""
        expected, found = self.expected[work.name], self.found()
        if held:
            # What such a process was writing is swept by the next one that works; where all is there already, none does.
            swept = not work.again
            found = {n: content for n, content in found.items() if (swept if PARTIAL in n else "lease.json" not in n)}
        missing, more = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
        other = sorted(name for name in expected.keys() & found.keys() if expected[name] != found[name])
        parts = {"missing": missing, "too many": more, "other content": other}
        return "; ".join(f"{word}: {names[:5]}" for word, names in parts.items() if names)


def _compared(name: str, content: bytes) -> object:
    """What of a file must be equal."""
    if name.endswith(_NOT_COMPARED):
        return True
    if name.endswith(".json"):
        return _without_times(json.loads(content))
    if name.endswith("hats.properties"):
        return [line for line in content.splitlines() if not line.startswith(tuple(word.encode() for word in _DATED))]
    return content


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(v) for key, v in value.items() if key not in _TIMES}
    return [_without_times(v) for v in value] if isinstance(value, list) else value


def table(outcomes: Sequence[Outcome]) -> str:
    """Markdown: for each work and mode how many runs ended how."""
    head = ("work", "failure", "runs", "whole at once", "said so, whole after the second start", "not right")
    found: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        found.setdefault((outcome.work, outcome.mode), []).append(outcome)
    order = {(work.name, mode): None for work in WORKS for mode in MODES}
    rows = [(*pair, *_counts(found[pair])) for pair in order if pair in found]
    lines = [head, ("---", "---", *["---:"] * 4), *rows, ("**all**", "", *_counts(outcomes))]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _counts(outcomes: Sequence[Outcome]) -> tuple[int, int, int, int]:
    right = [outcome for outcome in outcomes if not outcome.problem]
    at_once = sum(outcome.at_once for outcome in right)
    return len(outcomes), at_once, len(right) - at_once, len(outcomes) - len(right)
