"""One training's ranks on the workers of a cluster: placed together, watched, and placed again from the checkpoint when one is lost.

An attempt is one rank a worker, each in a task that is pinned to its worker. Rank 0 comes first; when it tells where it listens, the
others are placed. A rank that is killed, frozen or out of memory ends its task; a worker that dies tells nothing, so the scheduler
is asked for its workers. Either ends the whole attempt: its tasks are cancelled, and they end their ranks. The next one begins at the
last checkpoint, on the workers that there are then, and has a topic of its own, so that nobody hears an old one.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from typing import Any

from distributed import Future

from gaiadask.cluster.futures import Futures
from gaiadask.cluster.ranks import GPU, logged_event, run_rank
from gaiadask.errors import ConfigurationError, GaiadaskError, LostPeersError, LostRankError, WorkersDiedError
from gaiadask.training.assignment import Assignment
from gaiadask.training.events import Done, Listening, RankEvent, Report, Saved, Validated

log = logging.getLogger(__name__)

ATTEMPTS = 5
"""So many attempts in a row may end before the next checkpoint; then something is wrong that another one would meet too."""
REASONS_S = 3.0
"""The first rank to end has often only lost its peer: the others are given so long to say more; and to end, when one has saved."""
RETURN_S = 15.0
"""A worker that died is waited for so long: its nanny starts another one within seconds."""
LOOK_S = 1.0
"""How often the scheduler is asked for its workers."""


class Placement:
    """The training of one network by several ranks, as the client sees it.

    Args:
        futures: of the client and of the workers that may have ranks.
        assignment: for rank 0, were it alone; training.ranks says how many there are.
        report: receives the events of rank 0.
    """

    def __init__(self, futures: Futures, assignment: Assignment, report: Report) -> None:
        self.futures, self.assignment, self._report = futures, assignment, report
        self._lost_at: Counter[str] = Counter()
        self._saved_rows = -1

    def run(self) -> Done:
        """Train to the end.

        Raises:
            GaiadaskError: what a rank ended with; LostRankError where ranks are lost again and again.
            ConfigurationError: there are fewer workers, or GPUs, than training.ranks.
        """
        workers, in_vain = self._first_workers(), 0
        while True:
            saved_before = self._saved_rows
            attempt = _Attempt(self.futures, self.assignment, workers, self._hear)
            try:
                return attempt.run()
            except (LostRankError, WorkersDiedError) as error:
                self._lost_at.update(attempt.lost_at)
                in_vain = 0 if self._saved_rows > saved_before else in_vain + 1
                if in_vain == ATTEMPTS:
                    raise LostRankError(
                        f"{error}\nSo ended {ATTEMPTS} attempts in a row before the next checkpoint. Look at the machines of these workers "
                        "(memory first: lower training.buffer_rows). "
                        "The same command goes on from the last checkpoint"
                    ) from error
                log.warning("%s. Going on from the last checkpoint", str(error).partition("\n")[0])
            workers = self._workers_again(len(workers))

    def _hear(self, event: RankEvent) -> None:
        if isinstance(event, Validated | Saved):
            self._saved_rows = max(self._saved_rows, event.rows_seen)
        self._report(event)

    def _first_workers(self) -> list[str]:
        asked, workers = self.assignment.training.ranks, self._chosen()
        if asked > len(workers):
            kind = "GPU(s)" if self.futures.resource == GPU else "worker(s)"
            raise ConfigurationError(
                f"training.ranks is {asked}, but the cluster has {len(workers)} {kind}, and each rank takes one: lower it, set it to 0 (as many "
                "as there are), or start more workers"
            )
        return workers

    def _workers_again(self, before: int) -> list[str]:
        """The workers of the next attempt: as many as before, or those that are there when some time has passed."""
        until = time.monotonic() + RETURN_S

        def enough(seconds: float) -> bool:
            time.sleep(seconds)
            return len(self.futures.workers()) >= before or time.monotonic() > until

        self.futures.wait(enough)
        return self._chosen()

    def _chosen(self) -> list[str]:
        """As many workers as there are to be ranks, at least one, those first that lost none, then by host."""
        while not (there := self.futures.workers()):
            self.futures.threads()  # waits for some
        order = sorted(there, key=lambda worker: (self._lost_at[worker], there[worker], worker))
        return order[: self.assignment.training.ranks or None]


class _Attempt:
    """One try: a rank on each of these workers. lost_at: workers whose own rank was lost, not only its peers."""

    def __init__(self, futures: Futures, assignment: Assignment, workers: list[str], hear: Report) -> None:
        self.id = uuid.uuid4().hex[:8]
        self.lost_at: list[str] = []
        self._futures, self._assignment, self._workers, self._hear = futures, assignment, workers, hear
        hosts = futures.workers()
        self._hosts = [hosts.get(worker, worker) for worker in workers]
        self._ranks: list[Future] = []
        self._meeting = ""
        self._done: Done | None = None
        self._news = threading.Event()

    @property
    def _topic(self) -> str:
        return f"gaiadask-ranks-{self.id}"

    def run(self) -> Done:
        """Rank 0's last event. Raises what a rank ended with, LostRankError where one was lost."""
        log.info("training with %d rank(s), attempt %s", len(self._workers), self.id)
        try:
            with self._futures.hearing(self._topic, self._heard):
                self._place(0)
                if len(self._workers) > 1:
                    self._until(lambda: bool(self._meeting))
                    for rank in range(1, len(self._workers)):
                        self._place(rank)
                self._until(lambda: self._done is not None or self._ranks[0].status == "finished")
                self._let_end()
                return self._done or self._futures.result(self._ranks[0])
        finally:
            self._futures.cancel(self._ranks)

    def _place(self, rank: int) -> None:
        changes: dict[str, object] = {
            "attempt": self.id, "rank": rank, "world_size": len(self._workers), "meeting": self._meeting,
            "ranks_on_host": self._hosts.count(self._hosts[rank]),
        }  # fmt: skip
        assigned, key = self._assignment.model_copy(update=changes), f"rank-{self.id}-{rank}"
        future = self._futures.submit(run_rank, assigned, self._topic, key=key, worker=self._workers[rank])
        future.add_done_callback(lambda _: self._news.set())
        self._ranks.append(future)

    def _heard(self, message: Any) -> None:
        _, event = logged_event(message)
        if isinstance(event, Listening):
            self._meeting = event.address
        else:
            self._hear(event)
            self._done = event if isinstance(event, Done) else None
        if self._meeting or self._done:
            self._news.set()

    def _until(self, enough: Callable[[], bool]) -> None:
        """Wait. Raises what a rank ends with meanwhile."""
        while True:
            if enough():
                return
            if failures := self._failures():
                raise self._reason(failures)
            self._wait(LOOK_S)

    def _let_end(self) -> None:
        """Wait for the ranks' processes to end by themselves, now that the model is saved; not for long, as nothing depends on it."""
        until = time.monotonic() + REASONS_S
        while any(rank.status == "pending" for rank in self._ranks) and time.monotonic() < until:
            self._wait(until - time.monotonic())

    def _wait(self, seconds: float) -> None:
        """Until a rank ends or tells something of note, but not for longer than some seconds."""
        until = time.monotonic() + seconds

        def ready(seconds: float) -> bool:
            return self._news.wait(seconds) or time.monotonic() > until

        self._futures.wait(ready)
        self._news.clear()

    def _failures(self) -> dict[int, GaiadaskError]:
        """What ranks ended with, by their numbers."""
        there, failures = self._futures.workers(), dict[int, GaiadaskError]()
        for rank, (future, worker) in enumerate(zip(self._ranks, self._workers, strict=False)):
            if future.status in ("error", "cancelled"):
                failures[rank] = self._futures.outcome(future)
            elif future.status == "lost" and rank > 0:
                pass  # it ended well, and its worker has left since; its result cannot be asked for any more, and nobody needs it
            elif future.status == "lost" or (future.status != "finished" and worker not in there):
                failures[rank] = LostRankError(
                    f"worker {worker}, which had rank {rank} of {len(self._workers)}, has left the cluster"
                )
        return failures

    def _reason(self, failures: dict[int, GaiadaskError]) -> GaiadaskError:
        """What ended the attempt: an error that another attempt would meet too before one that it may not."""
        until = time.monotonic() + REASONS_S
        while all(isinstance(error, LostPeersError) for error in failures.values()) and time.monotonic() < until:
            self._wait(until - time.monotonic())
            failures = self._failures()
        lost = {rank: error for rank, error in failures.items() if isinstance(error, LostRankError | WorkersDiedError)}
        first = {rank: error for rank, error in lost.items() if not isinstance(error, LostPeersError)}
        self.lost_at = [self._workers[rank] for rank in first]
        others = [error for rank, error in failures.items() if rank not in lost]
        return (others or [*first.values(), *lost.values()])[0]
