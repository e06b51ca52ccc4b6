"""The rows of the table of faults: the whole ingest stage, run while something breaks, and what became of the catalogue."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gaiadask import catalogue, ingest
from gaiadask.archive.base import open_archive
from gaiadask.cluster.dask_workers import DaskWorkers
from gaiadask.config.sections import Config
from gaiadask.config.toml import parse_config
from gaiadask.errors import GaiadaskError
from gaiadask.ingest_plan import adopt_store, load_or_make_plan, read_plan, selection_of
from gaiadask.ledger import read_ledger
from gaiadask.release.column import HEALPIX_29
from gaiadask.stages.engine import run_stages
from gaiadask.store import paths
from gaiadask.store.files import Store

from .child import Child, Ended
from .conftest import Dachs
from .faults import FORM, Fault, Proxy

MOCK = "gaiadr2.mock_source"
FEW = ("parallax", "teff_val")
CHUNKS = 2
# Where in a chunk's life things break: at its count, its creation, its start, a poll, its result, its end.
COUNT, CREATE, START, POLL = r"^POST \S*/sync ", r"^POST \S*/async ", r"^POST \S*/phase ", r"^GET \S*/async/[^/\s]+ "
RESULT, DELETE = r"^GET \S*/results/result ", r"^DELETE "


@dataclass(frozen=True)
class Outcome:
    """What became of one run.

    well: it ended with 0. complete: the catalogue then was the served table, row for row and bit for bit. named: it ended
    otherwise and said which chunk, tile or file is at fault, or was killed. resumed: after another start the catalogue
    was complete. fired: what should break did, and what should follow from it at the service or in the ledger. created, left:
    jobs made, and left behind at the service, over both starts.
    """

    well: bool
    complete: bool
    named: bool
    resumed: bool | None
    fired: bool
    said: str
    created: int
    left: int

    @property
    def silent_loss(self) -> bool:
        return (self.well and not self.complete) or self.resumed is False

    @property
    def right(self) -> bool:
        return self.complete if self.well else self.named and bool(self.resumed)


@dataclass
class Setting:
    """What the rows share. folder: of their own."""

    dachs: Dachs
    proxy: Proxy
    workers: DaskWorkers
    folder: Path
    runs: int = field(default=0, init=False)

    def config(self, store: Path, where: str = "", **archive: Any) -> Config:
        told = {"kind": "tap", "url": f"{self.proxy.address}/tap", "table": MOCK, "chunk_rows": 3_000, "max_jobs": 2, **archive}
        address = told.pop("address", "")
        return parse_config(
            {
                "store": str(store),
                "archive": told,
                "selection": {"columns": FEW, "not_null": (), "where": where},
                "model": {"columns": FEW},
                "cluster": {"address": address},
            }
        )

    @cached_property
    def _template(self) -> Path:
        config = self.config(self.folder / "template")
        store, archive = Store(config.store), open_archive(config.archive, config.selection)
        adopt_store(store, selection_of(config, archive))
        assert len(load_or_make_plan(store, config, archive).chunks) == CHUNKS
        return self.folder / "template"

    def planned(self, store: Path, **archive: Any) -> Config:
        """A store whose plan is made: the run begins with its chunks."""
        shutil.copytree(self._template, store, dirs_exist_ok=True)
        self.proxy.forget()
        return self.config(store, **archive)

    def here(self, config: Config) -> Ended:
        """Ingest from this process."""
        try:
            run_stages(config, ["ingest"], workers=self.workers)
        except GaiadaskError as error:
            return Ended(1, str(error))
        return Ended(0, "")

    def judge(self, config: Config, ended: Ended, *faults: Fault, says: str = r"chunk \d\d-\d+|tile Norder") -> Outcome:
        """Look at the catalogue; where the run did not end well, start again with nothing broken, then look."""
        well = ended.code == 0
        named = not well and (ended.code not in (0, 1) or re.search(says, ended.said) is not None)
        resumed = None if well else self.here(config).code == 0 and self.is_complete(config)
        fired = all(fault.fired for fault in faults)
        complete = well and self.is_complete(config)
        return Outcome(well, complete, named, resumed, fired, ended.said, self.proxy.created, len(self.proxy.jobs))

    def is_complete(self, config: Config) -> bool:
        """Whether the published catalogue is the served table."""
        store = Store(config.store)
        rows = self.dachs.mock_rows
        if config.selection.where:
            rows = rows.filter(pc.less_equal(rows["source_id"], int(config.selection.where.split()[-1])))
        archive = open_archive(config.archive, config.selection)
        tables = []
        for partition in ingest.read_catalogue_record(store).partitions:
            table = catalogue.read_partition(store, paths.CATALOGUE, partition.tile)
            catalogue.check_rows_in_tile(table, partition.tile)
            tables.append(table.drop_columns([HEALPIX_29]))
        return same_bits(pa.concat_tables(tables), rows.select(archive.schema.names).cast(archive.schema))


def same_bits(found: pa.Table, wanted: pa.Table) -> bool:
    """Whether these are the same rows to the bit, -0.0 and 0.0 told apart; nulls in the same places."""
    if found.column_names != wanted.column_names or len(found) != len(wanted):
        return False
    found, wanted = (table.sort_by("source_id") for table in (found, wanted))
    for name in wanted.column_names:
        ours, theirs = (table.column(name).combine_chunks() for table in (found, wanted))
        if not (pa.types.is_integer(ours.type) or pa.types.is_floating(ours.type)):
            if not ours.equals(theirs):
                return False
            continue
        bits = [np.ascontiguousarray(pc.fill_null(a, 0).to_numpy(zero_copy_only=False)).view(np.uint8) for a in (ours, theirs)]
        if ours.type != theirs.type or not ours.is_null().equals(theirs.is_null()) or not np.array_equal(*bits):
            return False
    return True


Run = Callable[[Setting, Path, Random], Outcome]


@dataclass(frozen=True)
class Row:
    """Breaks one thing in the run that fills a store, at random places where there are several.

    survives: the first run must end well; otherwise it may, or must say what is missing.
    """

    run: Run
    survives: bool


ROWS: dict[str, Row] = {}


def row(name: str, survives: bool = True) -> Callable[[Run], Run]:
    def enter(run: Run) -> Run:
        ROWS[name] = Row(run, survives)
        return run

    return enter


def _with(setting: Setting, store: Path, *faults: Fault, **archive: Any) -> Outcome:
    config = setting.planned(store, **archive)
    with setting.proxy.broken(*faults):
        ended = setting.here(config)
    return setting.judge(config, ended, *faults)


# The network and the service -------------------------------------------------------------------------------------------
@row("connection reset at each request")
def _reset(setting: Setting, store: Path, random: Random) -> Outcome:
    return _with(setting, store, *(Fault("reset", where) for where in (COUNT, CREATE, START, POLL, RESULT, DELETE)))


@row("answer lost after the service acted")
def _lose(setting: Setting, store: Path, random: Random) -> Outcome:
    return _with(setting, store, *(Fault("lose", where) for where in (COUNT, START, POLL, RESULT, DELETE)))


@row("body cut, with Content-Length")
def _cut(setting: Setting, store: Path, random: Random) -> Outcome:
    shares = (0.0, random.uniform(0.01, 0.3), random.uniform(0.3, 0.99), 0.999)
    return _with(setting, store, *(Fault("cut", RESULT, share=share) for share in shares))


@row("body cut, without Content-Length")
def _mute(setting: Setting, store: Path, random: Random) -> Outcome:
    shares = (0.0, random.uniform(0.01, 0.3), random.uniform(0.3, 0.99), 0.999)
    return _with(setting, store, *(Fault("cut", RESULT, share=share, mute=True) for share in shares))


@row("answers to count and poll cut")
def _cut_small(setting: Setting, store: Path, random: Random) -> Outcome:
    return _with(setting, store, *(Fault("cut", where, share=random.uniform(0, 0.99)) for where in (COUNT, POLL, POLL)))


@row("stall in the body")
def _stall(setting: Setting, store: Path, random: Random) -> Outcome:
    return _with(setting, store, Fault("stall", RESULT, share=random.uniform(0, 0.99)), timeout_s=1.5)


@row("stall at a poll")
def _stall_poll(setting: Setting, store: Path, random: Random) -> Outcome:
    return _with(setting, store, Fault("stall", POLL, share=0), timeout_s=1.5)


@row("503 with Retry-After")
def _busy(setting: Setting, store: Path, random: Random) -> Outcome:
    return _with(setting, store, *(Fault("busy", where) for where in (COUNT, CREATE, START, RESULT)))


@row("503 without Retry-After")
def _busy_mute(setting: Setting, store: Path, random: Random) -> Outcome:
    return _with(setting, store, *(Fault("busy", where, retry_after=None, times=2) for where in (COUNT, CREATE, POLL, RESULT)))


@row("500 at the result")
def _broken(setting: Setting, store: Path, random: Random) -> Outcome:
    return _with(setting, store, Fault("busy", RESULT, status=500, retry_after=None, times=2))


@row("maintenance page with 200")
def _page(setting: Setting, store: Path, random: Random) -> Outcome:
    faults = [Fault("page", where, status=200) for where in ("^GET .*/capabilities", COUNT, CREATE, POLL, RESULT)]
    return _with(setting, store, *faults)


@row("maintenance page with 503")
def _page_503(setting: Setting, store: Path, random: Random) -> Outcome:
    # More than one request outlasts.
    return _with(setting, store, Fault("page", random.choice((COUNT, CREATE, POLL, RESULT)), times=6, retry_after=None))


@row("job aborted on the server")
def _abort(setting: Setting, store: Path, random: Random) -> Outcome:
    return _with(setting, store, Fault("abort", POLL, times=2))


@row("job deleted on the server")
def _vanish(setting: Setting, store: Path, random: Random) -> Outcome:
    return _with(setting, store, Fault("vanish", POLL), Fault("vanish", START))


def _held(setting: Setting, job: str) -> None:
    """The job that is started next executes until the service has ended it, or forgotten it: its table is locked so long."""

    def let_go() -> None:
        while setting.proxy.ask("GET", f"{job}/phase")[2] in (b"PENDING", b"QUEUED", b"EXECUTING"):
            time.sleep(0.2)
        mine = "usename = current_user AND query LIKE '%pg_sleep(100)%' AND pid <> pg_backend_pid()"
        setting.dachs.sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {mine}").wait(20)

    setting.dachs.sql(f"BEGIN; LOCK TABLE {MOCK} IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(100); COMMIT")
    time.sleep(0.3)
    threading.Thread(target=let_go).start()


@row("job ended at its time limit")
def _time_limit(setting: Setting, store: Path, random: Random) -> Outcome:
    def hold(job: str) -> None:
        setting.proxy.ask("POST", f"{job}/executionduration", b"EXECUTIONDURATION=1", {"Content-Type": FORM})
        _held(setting, job)

    outcome = _with(setting, store, Fault("pass", START, hook=hold))
    return replace(outcome, fired=_splits(store) == 1)


@row("job that executes for ever")
def _dead_job(setting: Setting, store: Path, random: Random) -> Outcome:
    """As a service shows what it did when it was killed; it is found so by the next attempt, after a broken connection."""

    def until_it_executes(job: str) -> None:
        while setting.proxy.ask("GET", f"{job}/phase")[2] == b"QUEUED":
            time.sleep(0.2)

    hold = Fault("pass", START, hook=partial(_held, setting))
    # Three tries of what the start redirects to, which it gets over, then three of a poll.
    breaks = Fault("reset", POLL, times=6, after=hold, hook=until_it_executes)
    # One after another: else others would wait for the lock too.
    outcome = _with(setting, store, hold, breaks, attempts=8, timeout_s=1, max_jobs=1)
    return replace(outcome, fired=outcome.fired and outcome.created == CHUNKS + 1 and not _splits(store))


def _splits(store: Path) -> int:
    return sum(bool(record.children) for record in read_ledger(Store(str(store))).values())


def _overflow(beyond: int) -> Run:
    def run(setting: Setting, store: Path, random: Random) -> Outcome:
        """One chunk of chunk with as many rows as the service's row limit and some, of a service that does not state its limit."""
        ids = np.sort(setting.dachs.mock_rows["source_id"].to_numpy())
        last = ids[setting.dachs.row_limit - 1 + beyond]
        config = setting.config(store, where=f"source_id <= {last}", chunk_rows=5_000)
        setting.proxy.forget()
        unlimited = Fault("unlimited", "/capabilities", times=10_000)
        with setting.proxy.broken(unlimited):
            ended = setting.here(config)
        splits = _splits(store)
        return replace(setting.judge(config, ended, unlimited), fired=splits == (beyond >= 0))

    return run


for _beyond in (-1, 0, 1):
    row(f"{'as many rows as' if not _beyond else 'one row less than' if _beyond < 0 else 'one row more than'} the service gives")(
        _overflow(_beyond)
    )


@row("ADQL error", survives=False)
def _adql(setting: Setting, store: Path, random: Random) -> Outcome:
    setting.proxy.forget()
    wrong = setting.config(store, where="nope > 3")
    ended = setting.here(wrong)
    return setting.judge(setting.config(store), ended, says="refused the query.*No such field known: column 'nope'")


@row("one chunk fails at every attempt", survives=False)
def _stays_broken(setting: Setting, store: Path, random: Random) -> Outcome:
    config = setting.planned(store, attempts=2)
    chunk = random.choice(read_plan(Store(config.store)).chunks)
    fault = Fault("busy", rf"^POST \S*/async .*source_id >= {chunk.first} ", status=500, times=1_000)
    with setting.proxy.broken(fault):
        ended = setting.here(config)
    done = sum(record.done for record in read_ledger(Store(config.store)).values())
    says = rf"1 of {CHUNKS} failed.*\s*{chunk.name}: chunk {chunk.name}: given up after 2 attempts"
    outcome = setting.judge(config, ended, fault, says=says)
    return replace(outcome, fired=bool(fault.fired) and done == CHUNKS - 1)


@row("server killed and started again")
def _server_killed(setting: Setting, store: Path, random: Random) -> Outcome:
    again = threading.Thread(target=lambda: (time.sleep(1), setting.dachs.serve()))

    def kill(job: str) -> None:
        setting.dachs.kill()
        again.start()

    outcome = _with(setting, store, Fault("pass", random.choice((COUNT, START, POLL, RESULT)), hook=kill), attempts=8, timeout_s=4)
    again.join()
    return outcome


# The client and its workers --------------------------------------------------------------------------------------------
def _killed(setting: Setting, store: Path, moment: Callable[[], bool], *faults: Fault) -> Outcome:
    # The chunks come one after another at first.
    config = setting.planned(store, max_jobs=1)
    with setting.proxy.broken(*faults):
        ended = Child(config, store.with_suffix(".log")).kill_when(moment)
    return setting.judge(setting.config(store), ended, *faults)


def _killed_at(where: str, share: float | None = 0.0) -> Run:
    def run(setting: Setting, store: Path, random: Random) -> Outcome:
        # Of all chunks, a random one: the exchanges before pass.
        skipped = Fault("pass", CREATE, times=random.randrange(CHUNKS))
        started = Fault("pass", START, after=skipped if skipped.times else None)
        before = {COUNT: (), CREATE: (skipped,), START: (skipped,)}.get(where, (skipped, started))
        before = tuple(fault for fault in before if fault.times)
        fault = Fault(
            "stall", where, share=random.uniform(0.1, 0.9) if share is None else share, after=before[-1] if before else None
        )
        outcome = _killed(setting, store, lambda: bool(fault.fired), *before, fault)
        # A job that was noted is gone on with, not asked for again.
        noted = where in (START, POLL, RESULT)
        return replace(outcome, fired=outcome.fired and (not noted or outcome.created == CHUNKS))

    return run


for _name, _where, _share in (
    ("before the job", COUNT, 0.0),
    ("as the job is made", CREATE, 0.0),
    ("when the job is recorded", START, 0.0),
    ("while the job runs", POLL, 0.0),
    ("half-way through the body", RESULT, None),
    ("as the job is deleted", DELETE, 0.0),
):
    row(f"client killed {_name}", survives=False)(_killed_at(_where, _share))


def _killed_with(count: Callable[[Path], int], most: int) -> Run:
    def run(setting: Setting, store: Path, random: Random) -> Outcome:
        wanted = random.randint(1, most)
        return _killed(setting, store, lambda: count(store) >= wanted)

    return run


def _files(folder: Path, pattern: str) -> int:
    return sum(1 for _ in folder.rglob(pattern))


def _done(store: Path) -> int:
    return sum('"state": "done"' in _text(path) for path in (store / paths.LEDGER).glob("*.json"))


def _text(path: Path) -> str:
    with contextlib.suppress(FileNotFoundError):
        return path.read_text()
    return ""


for _name, _count, _most in (
    ("as parts are written", lambda store: _files(store / paths.PARTS, "*.parquet"), CHUNKS),
    ("as a record is written", _done, CHUNKS),
    ("as tiles are merged", lambda store: _files(store / paths.CATALOGUE / "dataset", "*.parquet"), 12),
    ("as the catalogue is published", lambda store: (store / paths.PUBLISHED).exists(), 1),
):
    row(f"client killed {_name}", survives=False)(_killed_with(_count, _most))


@row("client killed while planning", survives=False)
def _killed_planning(setting: Setting, store: Path, random: Random) -> Outcome:
    config = setting.config(store)
    setting.proxy.forget()
    fault = Fault("stall", random.choice(("^GET .*/capabilities", COUNT, CREATE, START, POLL, RESULT)), share=0)
    with setting.proxy.broken(fault):
        ended = Child(config, store.with_suffix(".log")).kill_when(lambda: bool(fault.fired))
    return setting.judge(config, ended, fault)


@row("client killed, its workers keep running", survives=False)
def _orphaned(setting: Setting, store: Path, random: Random) -> Outcome:
    config = setting.planned(store, address=setting.workers.client.scheduler.address)
    fault = Fault("pass", random.choice((COUNT, CREATE, START, POLL, RESULT)), times=1)
    with setting.proxy.broken(fault):
        ended = Child(config, store.with_suffix(".log")).kill_when(lambda: bool(fault.fired))
    return setting.judge(config, ended, fault)


@row("worker killed during a chunk")
def _worker_killed(setting: Setting, store: Path, random: Random) -> Outcome:
    setting.workers.client.wait_for_workers(2)
    workers = list(setting.workers.client.run(os.getpid).values())

    def kill(_: str) -> None:
        for pid in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    try:
        return _with(setting, store, Fault("pass", random.choice((COUNT, CREATE, START, POLL, RESULT)), hook=kill))
    finally:
        setting.workers.client.wait_for_workers(2)


# The store -------------------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def _file_system(folder: Path) -> Iterator[None]:
    """A small file system of its own at the folder. Raises PermissionError where this user may not mount one."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder]
    if not shutil.which("mount") or subprocess.run(command, check=False, capture_output=True).returncode:
        raise PermissionError("this user may not mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@row("disk full", survives=False)
def _disk_full(setting: Setting, store: Path, random: Random) -> Outcome:
    with contextlib.ExitStack() as mounts:
        try:
            mounts.enter_context(_file_system(store))
        except PermissionError:  # then files may not grow beyond a size
            config = setting.planned(store, attempts=1)
            ended = Child(config, store.with_suffix(".log"), file_bytes=20_000).end()
            return setting.judge(config, ended)
        config = setting.planned(store, max_jobs=1)
        ballast = store / "ballast"

        def fill(_: str) -> None:
            with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
                while file.write(b"0" * 4096):
                    pass
            os.truncate(ballast, max(0, ballast.stat().st_size - random.randrange(0, 60_000)))

        fault = Fault("pass", random.choice((COUNT, START, RESULT)), hook=fill)
        with setting.proxy.broken(fault):
            ended = Child(config, store.with_suffix(".log")).end()
        ballast.unlink()
        return setting.judge(config, ended, fault, says="No space left on device")


@row("store made read-only", survives=False)
def _read_only(setting: Setting, store: Path, random: Random) -> Outcome:
    with _file_system(store):
        config = setting.planned(store, max_jobs=1)

        def remount(how: str) -> None:
            subprocess.run(["mount", "-o", f"remount,{how}", store], check=True)

        fault = Fault("pass", random.choice((COUNT, START, RESULT)), hook=lambda _: remount("ro"))
        with setting.proxy.broken(fault):
            ended = Child(config, store.with_suffix(".log")).end()
        remount("rw")
        return setting.judge(config, ended, fault, says="Read-only file system")
