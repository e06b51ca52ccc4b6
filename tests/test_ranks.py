"""Ranks on real workers: whatever is killed or frozen, training goes on from the checkpoint, and no process is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pyarrow.parquet as pq
import pytest
import torch
from distributed import Client, LocalCluster
from made_up import VALIDATION, fitted, made_up_stars, write_partitions

from gaiadask.cluster import placement, rank_process
from gaiadask.cluster.dask_workers import DaskWorkers
from gaiadask.cluster.futures import Futures
from gaiadask.cluster.here import Here
from gaiadask.cluster.placement import ATTEMPTS, Placement
from gaiadask.cluster.workers import Workers
from gaiadask.config.model import ModelConfig
from gaiadask.config.sections import TrainingConfig
from gaiadask.errors import (
    ClusterError,
    ConfigurationError,
    DataError,
    GaiadaskError,
    LostPeersError,
    LostRankError,
)
from gaiadask.inputs.statistics import Statistics
from gaiadask.model import load_model
from gaiadask.release.dr2 import DR2
from gaiadask.store.files import Store
from gaiadask.store.paths import RunPaths
from gaiadask.training.assignment import Assignment
from gaiadask.training.checkpoint import read_checkpoint
from gaiadask.training.codes import Codec
from gaiadask.training.events import Done, RankEvent, Validated
from gaiadask.training.metrics import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

RUN = RunPaths("r")
TABLE = made_up_stars(4_000)
TRANSFORM = fitted(TABLE)
CODEC = Codec.fit(TRANSFORM, Statistics.from_table(TABLE, DR2).train, errors=True)
EVERY, BUDGET = 10_000, 120_000
LONG = 3 * BUDGET


def assignment(store: Store, **changes: Any) -> Assignment:
    training = {"rows_seen": BUDGET, "validate_every_rows": EVERY, "batch_rows": 250, "validation_rows": 200, "patience": 1_000}
    return Assignment(
        store=store.uri,
        run=RUN.name,
        partitions=tuple(write_partitions(store, TABLE)),
        validation=VALIDATION,
        transform=TRANSFORM.to_json(),
        codec=CODEC.to_json(),
        model=ModelConfig(latents=4, hidden=(16,)),
        training=TrainingConfig(**(training | changes)),
        key="k",
    )


def train(workers: Workers, assigned: Assignment, report: Callable[[RankEvent], None] = lambda _: None) -> Done:
    """The last event; raises what training ended with."""
    (end,) = workers.train([assigned], lambda _, event: report(event))
    if isinstance(end, GaiadaskError):
        raise end
    return end


def ranks() -> set[int]:
    """Process ids of the training ranks on this machine that belong to this user's tests."""
    return {process.pid for process in psutil.Process().children(recursive=True) if is_rank(process.pid)}


def is_rank(process: int) -> bool:
    try:
        found = psutil.Process(process)
        return "gaiadask.training.process" in found.cmdline() and found.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.1)
    return False


class Disturbing:
    """A report that does something to the ranks each time that a validation beyond some stars has been told."""

    def __init__(self, acts: dict[int, Callable[[list[int]], None]]) -> None:
        self.acts = acts
        self.met: set[int] = set()
        self.events: list[RankEvent] = []

    def __call__(self, event: RankEvent) -> None:
        self.events.append(event)
        if isinstance(event, Validated) and self.acts and event.rows_seen >= min(self.acts):
            now = sorted(ranks())
            self.met |= set(now)
            self.acts.pop(min(self.acts))(now)


def assert_went_on(store: Store, disturbing: Disturbing, times: int, last: Done) -> None:
    """Every validation is there once, each disturbance made a new try, the loss went on falling; nobody is left."""
    assert (last.event, last.rows_seen) == ("done", BUDGET)
    assert isinstance(disturbing.events[-1], Done)
    records = read_metrics(store, RUN)
    assert [record.rows_seen for record in records] == list(range(0, BUDGET + 1, EVERY))
    tries = [record.resumed_from_rows for record in records]
    assert tries == sorted(tries) and len(set(tries)) == 1 + times and tries[-1] >= 2 * EVERY
    for resumed in set(tries) - {0}:
        before, after = (next(r for r in records if r.rows_seen == resumed + step) for step in (0, EVERY))
        assert after.validation_loss < 1.05 * before.validation_loss < 0.9 * records[0].validation_loss
    assert len(disturbing.met) == 2 * times
    assert wait_for(lambda: not any(is_rank(rank) for rank in [*disturbing.met, *ranks()]))


@pytest.fixture
def workers_here() -> Iterator[DaskWorkers]:
    """Two workers in this process."""
    options: dict[str, Any] = {"n_workers": 2, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with LocalCluster(**options) as cluster, Client(cluster, set_as_default=False) as client:
        yield DaskWorkers(client)


def test_a_killed_and_a_frozen_rank_are_placed_again(
    workers_here: DaskWorkers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_process, "FROZEN_S", 8.0)
    store = Store(str(tmp_path))
    disturbing = Disturbing(
        {2 * EVERY: lambda met: os.kill(met[-1], signal.SIGKILL), 6 * EVERY: lambda met: os.kill(met[0], signal.SIGSTOP)}
    )
    assert_went_on(store, disturbing, 2, train(workers_here, assignment(store), disturbing))


def test_the_rank_of_a_worker_that_dies_is_placed_again(workers: DaskWorkers, tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    disturbing = Disturbing({2 * EVERY: lambda met: os.kill(psutil.Process(met[0]).ppid(), signal.SIGKILL)})
    assert_went_on(store, disturbing, 1, train(workers, assignment(store), disturbing))
    workers.client.wait_for_workers(2, timeout=60)


def test_a_rank_that_ended_well_may_lose_its_worker(workers: DaskWorkers) -> None:
    """Rank 0 saves the model when the others have ended; their workers may go then. Rank 0's own must not."""
    futures_of_client = Futures(workers.client)
    rank_0, worker = sorted(futures_of_client.workers())
    attempt = placement._Attempt(futures_of_client, Assignment.model_construct(), [rank_0, worker], lambda _: None)
    attempt._ranks = [
        futures_of_client.submit(time.sleep, 3.0, key="rank-of-a-test-0", worker=rank_0),
        futures_of_client.submit(os.getpid, key="rank-of-a-test-1", worker=worker),
    ]
    try:
        os.kill(futures_of_client.result(attempt._ranks[1]), signal.SIGKILL)
        assert wait_for(lambda: attempt._ranks[1].status == "lost")
        assert attempt._failures() == {}
        attempt._workers.reverse()
        attempt._ranks.reverse()
        ((rank, error),) = attempt._failures().items()
        assert rank == 0 and isinstance(error, LostRankError) and "which had rank 0 of 2, has left" in str(error)
    finally:
        futures_of_client.cancel(attempt._ranks)
        workers.client.wait_for_workers(2, timeout=60)


SLEEPS = (sys.executable, "-c", "import time; time.sleep(200)")


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("is_wanted", "told"), [(False, "was ended, as its training was cancelled"), (True, "said nothing for")])
def test_a_rank_that_does_not_read_yet_is_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_wanted: bool, told: str
) -> None:
    """An assignment is more than a pipe takes at once, so whoever writes it waits for the rank to import torch."""
    monkeypatch.setattr(rank_process, "_COMMAND", SLEEPS)
    monkeypatch.setattr(rank_process, "START_S", 2.0)
    given = assignment(Store(str(tmp_path)))
    given = given.model_copy(update={"partitions": given.partitions * 10_000})
    with pytest.raises(LostRankError, match=told):
        rank_process.run_process(given, "127.0.0.1", lambda _: None, lambda: is_wanted)


@pytest.mark.timeout(60)
def test_where_rank_0_cannot_listen_nobody_waits_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(host: str) -> None:
        raise ClusterError(f"{host} has no port")

    monkeypatch.setattr(rank_process, "listen", refuse)
    with pytest.raises(ClusterError, match="has no port"):
        train(Here(), assignment(Store(str(tmp_path)), ranks=2))


LOUD = """
import os, sys
from gaiadask.training import process
train = process.train
def loud(assignment, emit):
    os.write(1, b"host:1:1 [0] NCCL INFO Bootstrap\\n")
    train(assignment, emit)
process.train = loud
process.main()
sys.stdout.flush()
os._exit(7)
"""


def test_what_a_library_prints_is_no_event_and_a_late_failure_no_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """nccl writes to the descriptor of stdout; and what fails when the model is saved has no model to spoil."""
    monkeypatch.setattr(rank_process, "_COMMAND", (sys.executable, "-c", LOUD))
    store = Store(str(tmp_path))
    assert train(Here(), assignment(store, ranks=2, rows_seen=EVERY)).rows_seen == EVERY
    assert "rank 0 of 2 had done its work, and ended with code 7" in caplog.text
    assert load_model(store, RUN)


def test_there_may_be_more_ranks_than_validation_stars(tmp_path: Path) -> None:
    losses = []
    for count in (1, 3):
        store = Store(str(tmp_path / str(count)))
        given = assignment(store, ranks=count, rows_seen=EVERY)
        with store.open_parquet(VALIDATION) as file:
            star = file.read().slice(0, 1)
        with store.writing(VALIDATION) as scratch:
            pq.write_table(star, scratch)
        losses.append(train(Here(), given).validation_loss)
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


CLIENT = """
import sys
from {} as ending
from gaiadask.cluster.clients import open_workers
from gaiadask.config.cluster import ClusterConfig
from gaiadask.training.assignment import read_assignment
with ending(), open_workers(ClusterConfig(address=sys.argv[1])) as workers:
    workers.train([read_assignment(sys.stdin.readline())], lambda run, event: print(event.event, flush=True))
"""


@pytest.mark.parametrize(
    ("by", "count", "how"),
    [
        (signal.SIGKILL, 2, "contextlib import nullcontext"),
        (signal.SIGINT, 1, "contextlib import nullcontext"),
        (signal.SIGTERM, 1, "prefect.utilities.engine import capture_sigterm"),
    ],
)
def test_ranks_end_with_their_client(workers: DaskWorkers, tmp_path: Path, by: signal.Signals, count: int, how: str) -> None:
    """Killed, interrupted by Ctrl-C, or cancelled as Prefect cancels the process of a flow run; the checkpoint is kept, and the next client
    goes on from it: each validation is there once, the loss goes on falling."""
    given = assignment(Store(str(tmp_path)), rows_seen=LONG, ranks=count)
    store, address = Store(str(tmp_path)), workers.client.scheduler.address  # type: ignore[union-attr]
    command = [sys.executable, "-c", CLIENT.format(how), address]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    ) as client:
        try:
            assert client.stdin and client.stdout
            client.stdin.write(given.model_dump_json() + "\n")
            client.stdin.flush()
            told = 0
            for line in client.stdout:
                told += line.strip() == "validated"
                if told == 2:
                    break
            met = ranks()
            assert len(met) == count
            client.send_signal(by)
            assert wait_for(lambda: not any(map(is_rank, met)), 10.0)
        finally:
            client.kill()
    saved = read_checkpoint(store, RUN.checkpoint)
    assert saved is not None and LONG > saved.state["rows_seen"] >= EVERY
    assert wait_for(lambda: not workers.client.processing() or not any(workers.client.processing().values()))
    if by != signal.SIGKILL:  # once is enough
        return
    assert train(workers, given).rows_seen == LONG
    records, resumed = read_metrics(store, RUN), saved.state["rows_seen"]
    assert [record.rows_seen for record in records] == list(range(0, LONG + 1, EVERY))
    assert {record.resumed_from_rows for record in records} == {0, resumed}
    before, after = (next(r for r in records if r.rows_seen > resumed - step * EVERY) for step in (1, 0))
    assert after.validation_loss < 1.05 * before.validation_loss
    assert records[-1].validation_loss < 0.9 * records[0].validation_loss


def test_two_ranks_and_one_rank_train_the_same_model(tmp_path: Path) -> None:
    """The same stars in the same batches, whoever holds them; processes of this machine, no cluster."""
    ends, weights = [], []
    for count in (1, 2):
        store = Store(str(tmp_path / str(count)))
        ends.append(train(Here(), assignment(store, ranks=count, rows_seen=3 * EVERY)))
        weights.append(load_model(store, RUN).network.state_dict())
        records = read_metrics(store, RUN)
        assert [record.rows_seen for record in records] == [0, EVERY, 2 * EVERY, 3 * EVERY]
        assert records[-1].validation_loss < 0.9 * records[0].validation_loss
    assert ends[1].validation_loss == pytest.approx(ends[0].validation_loss, rel=1e-3)
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-2, atol=1e-3)


# What is wrong is said once ------------------------------------------------------------------------------------------
def test_more_ranks_than_workers_are_refused(workers: DaskWorkers, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"training\.ranks is 3, but the cluster has 2 worker\(s\)"):
        train(workers, assignment(Store(str(tmp_path)), ranks=3))


# Attempts ------------------------------------------------------------------------------------------------------------
class Try(NamedTuple):
    """How an attempt is to end: what it raises, and the rows of a validation that it told before."""

    error: GaiadaskError | None
    rows: int = -1


class Ended:
    """An attempt that ends as it is told to."""

    left: list[Try]
    ranks: list[int]

    def __init__(self, futures: Futures, assignment: Assignment, workers: list[str], hear: Callable[[Any], None]) -> None:
        self.lost_at, self.hear = [workers[0]], hear
        self.ranks.append(len(workers))

    def run(self) -> str:
        told = self.left.pop(0)
        if told.rows >= 0:
            self.hear(Validated.model_construct(rows_seen=told.rows))
        if told.error:
            raise told.error
        return "done"


class TwoWorkers:
    """Futures of two workers, one of which leaves after a while."""

    resource = ""
    asked = 0

    def threads(self) -> int:
        return 2

    def workers(self) -> dict[str, str]:
        self.asked += 1
        return {"a": "host", "b": "host"} if self.asked < 4 else {"b": "host"}

    def wait(self, ready: Callable[[float], object]) -> None:
        while not ready(0.01):
            pass


def placed(monkeypatch: pytest.MonkeyPatch, *tries: Try) -> Any:
    monkeypatch.setattr(placement, "_Attempt", Ended)
    monkeypatch.setattr(placement, "RETURN_S", 0.1)
    Ended.left, Ended.ranks = list(tries), []
    assigned = Assignment.model_construct(training=TrainingConfig())
    return Placement(TwoWorkers(), assigned, lambda _: None).run()  # type: ignore[arg-type]


LOST = LostRankError("killed")


def test_attempts_go_on_while_they_come_further(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = [Try(LOST, rows=n) for n in range(3 * ATTEMPTS)]
    assert placed(monkeypatch, *tries, Try(None)) == "done"
    assert Ended.ranks[0] == 2 and set(Ended.ranks[2:]) == {1}, "the next attempt has the workers that are there"


def test_attempts_that_come_no_further_end_in_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LostRankError, match=rf"killed\nSo ended {ATTEMPTS} attempts in a row.*training\.buffer_rows"):
        placed(monkeypatch, Try(LOST, rows=5), *[Try(LOST, rows=5)] * ATTEMPTS, Try(None))
    assert len(Ended.ranks) == ATTEMPTS + 1


def test_an_error_that_would_come_again_ends_training(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="no star"):
        placed(monkeypatch, Try(LOST), Try(DataError("no star")), Try(None))


class Future(NamedTuple):
    status: str
    error: GaiadaskError | None = None


@pytest.mark.parametrize(
    ("ends", "says", "lost_at"),
    [
        ([LostPeersError("no peer"), LostRankError("killed")], "killed", ["b"]),
        ([LostPeersError("no peer"), DataError("no star")], "no star", []),
        ([LostRankError("killed"), None], "killed", ["a"]),
        ([LostPeersError("no peer"), None], "no peer", []),
    ],
)
def test_the_rank_with_the_reason_is_heard(
    monkeypatch: pytest.MonkeyPatch, ends: list[GaiadaskError | None], says: str, lost_at: list[str]
) -> None:
    """Not the one that only lost its peer."""
    monkeypatch.setattr(placement, "REASONS_S", 0.3)

    class Told(TwoWorkers):
        def outcome(self, future: Future) -> GaiadaskError | None:
            return future.error

    attempt = placement._Attempt(Told(), Assignment.model_construct(), ["a", "b"], lambda _: None)  # type: ignore[arg-type]
    attempt._ranks = [Future("error", error) if error else Future("pending") for error in ends]  # type: ignore[misc]
    failures = {0: attempt._failures()[0]}  # the first that is seen
    assert str(attempt._reason(failures)) == says
    assert attempt.lost_at == lost_at
