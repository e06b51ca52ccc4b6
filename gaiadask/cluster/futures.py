"""Futures of a Dask cluster: waited for while there are workers, and each way in which one can end turned into an outcome.

A piece of work ends with its result, or with an error of its own (a GaiadaskError; anything else is a bug and keeps its traceback). Or
the cluster ends it: a worker that dies has its work done again elsewhere, until it has killed three; another client cancels it; the
scheduler has no worker for it. Where the cluster itself is gone, no piece of work can end any more: a ClusterError says so.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, cast

from distributed import Client, Future, as_completed, get_worker
from distributed.client import ClosedClientError
from distributed.scheduler import KilledWorker, NoValidWorkerError, NoWorkerError

from gaiadask import __version__
from gaiadask.cluster.supply import Supply
from gaiadask.errors import ClusterError, GaiadaskError, WorkersDiedError

log = logging.getLogger(__name__)

NO_WORKERS_S = 300.0
"""A cluster that has no worker for so long is given up: longer than a batch system takes to replace one."""
FROZEN_S = 60.0
"""A worker of which the scheduler has heard nothing for so long is ended, and its work is done again: its process was stopped, or its
machine hangs (a worker tells of its life at least every five seconds; Dask itself waits for five minutes)."""
_END_S = 10.0
"""So long a frozen worker's nanny may take to end it; then it is left to itself."""
_LOOK_S = 5.0
"""How often the scheduler is asked for its workers while nothing ends."""
_WAIT_S = 0.1
_CLOSED = ("closing", "closed")
AGAIN = "run the same command again: it goes on from what is finished"
_OTHER_SOFTWARE = "Error during deserialization of the task graph"
"""Of the scheduler's error where it cannot read what it is sent."""


class _Worker(NamedTuple):
    address: str
    host: str
    threads: int


class _Silence(NamedTuple):
    """Of a worker: when the scheduler heard of it last, by its clock, and for how long it has been so, by this process's."""

    heard: float = 0.0
    seconds: float = 0.0


class Futures:
    """The futures of one client.

    Args:
        resource: of which a worker must have some to do the work; "": any worker can do it.
        supply: of workers, where none is there.
    """

    def __init__(self, client: Client, resource: str = "", supply: Supply | None = None) -> None:
        self.client, self.resource = client, resource
        self.supply = supply or Supply()
        self._silences: dict[str, _Silence] = {}
        self._looked = time.monotonic()

    def submit(self, function: Callable[..., Any], *given: Any, key: str, worker: str = "") -> Future:
        """`function` of what is given, on a worker: the one of an address, where it is named. That one's end is not told by the
        future. Raises ClusterError where the scheduler is gone."""
        resources = {self.resource: 1} if self.resource else None
        pinned = {"workers": [worker], "allow_other_workers": False, "retries": 0} if worker else {}
        with self.reaching():
            return self.client.submit(_contained, __version__, function, *given, key=key, pure=False, resources=resources, **pinned)

    def threads(self) -> int:
        """Threads of the workers that can do the work, as soon as there are any. Raises ClusterError as `ended` does."""
        if found := self.threads_now():
            return found

        def ready(seconds: float) -> int:
            time.sleep(seconds)
            return self.threads_now()

        self.wait(ready)
        return self.threads_now() or 1

    def workers(self) -> dict[str, str]:
        """Addresses of the workers that can do the work now, and their hosts."""
        return {worker.address: worker.host for worker in self._workers()}

    def ended(self, futures: as_completed, meanwhile: Callable[[], None] = lambda: None) -> Iterator[Future]:
        """Futures as they end; `meanwhile` is called every few seconds in which none does.

        Raises:
            ClusterError: where the scheduler is gone, or there has been no worker for NO_WORKERS_S.
        """

        def ready(seconds: float) -> bool:
            with futures.thread_condition:
                return futures.has_ready() or futures.thread_condition.wait(seconds)

        while not futures.is_empty():
            if not futures.has_ready():
                self.wait(ready, meanwhile)
            if futures.has_ready():
                yield next(futures)

    def outcome(self, future: Future) -> Any:
        """The result of a future, or the GaiadaskError that it ended with.

        Raises:
            ClusterError: where the scheduler is gone, or there has been no worker for NO_WORKERS_S.
            Exception: a bug of the work.
        """
        result, error = self._fetched(future)
        if error is None:
            return result
        if future.status == "error":
            return _failure(error)
        if isinstance(error, concurrent.futures.CancelledError) and self._is_reached(error):
            return GaiadaskError(f"the Dask scheduler lost the work ({error}): did it end, or did another client cancel it?")
        if self._is_reached(error):
            raise error
        raise self._gone(error) from error

    def result(self, future: Future) -> Any:
        """The result of a future. Raises the GaiadaskError that it ended with, and what `outcome` raises."""
        outcome = self.outcome(future)
        if isinstance(outcome, GaiadaskError):
            raise outcome
        return outcome

    def cancel(self, futures: Iterable[Future]) -> None:
        """Have the workers end, or forget, what these are futures of, none of them released; nothing where the scheduler is gone."""
        if left := list(futures):
            with contextlib.suppress(ClusterError), self.reaching():
                self.client.cancel(left)

    @contextlib.contextmanager
    def hearing(self, topic: str, handler: Callable[[Any], None]) -> Iterator[None]:
        """A block in which `handler` gets what workers log to `topic`."""

        def received(entry: Any) -> None:
            handler(entry[1] if isinstance(entry, tuple) else entry)  # some versions of distributed put a time before it

        with self.reaching():
            self.client.subscribe_topic(topic, received)
        try:
            yield
        finally:
            with contextlib.suppress(ClusterError), self.reaching():
                self.client.unsubscribe_topic(topic)

    @contextlib.contextmanager
    def reaching(self) -> Iterator[None]:
        """A block that speaks with the scheduler. Raises ClusterError where it is gone."""
        try:
            yield
        except Exception as error:
            if isinstance(error, GaiadaskError) or self._is_reached(error):
                raise
            raise self._gone(error) from error

    def wait(self, ready: Callable[[float], object], meanwhile: Callable[[], None] = lambda: None) -> None:
        """Call `ready`, each time with seconds to wait, until it says yes. Raises ClusterError where it never will."""
        seen = looked = time.monotonic()
        patience_s = self.supply.patience_s or NO_WORKERS_S
        while not ready(_WAIT_S):
            if self.client.status in _CLOSED:
                raise self._gone()
            now = time.monotonic()
            if now - looked <= min(_LOOK_S, patience_s / 2):
                continue
            looked = now
            if self.client.status != "running" or self.threads_now():  # a connection that is lost is made again, or closed
                seen = now
                meanwhile()
                continue
            self.supply.check()
            if now - seen > patience_s:
                kind = f"worker with a {self.resource}" if self.resource else "workers"
                why = f" ({news})" if (news := self.supply.news()) else ""
                raise ClusterError(f"the Dask cluster has had no {kind} for {now - seen:.0f} s{why}: start some, and {AGAIN}")

    def threads_now(self) -> int:
        """Threads of the workers that can do the work, 0 where there are none."""
        return sum(worker.threads for worker in self._workers())

    def _workers(self) -> list[_Worker]:
        async def ask() -> Any:
            # Not client.scheduler_info(): every other second the client puts one without workers in the place of its answer.
            return (await self.client.scheduler.identity(n_workers=-1))["workers"]  # type: ignore[union-attr]

        with self.reaching():
            workers = self.client.sync(ask)
            for address in self._frozen({address: float(worker["last_seen"]) for address, worker in workers.items()}):
                log.warning("worker %s said nothing for %.0f s: it is ended, and its work is done again", address, FROZEN_S)
                self.client.sync(self._end, address)
                del workers[address]
        return [
            _Worker(address, worker["host"], worker["nthreads"])
            for address, worker in workers.items()
            if not self.resource or worker.get("resources", {}).get(self.resource)
        ]

    def _frozen(self, heard: dict[str, float]) -> list[str]:
        """Addresses of workers that have frozen; heard: when the scheduler heard of each last."""
        now = time.monotonic()
        # Of a time in which this process itself was stopped, and the scheduler maybe with it, no worker is to blame.
        passed, self._looked = min(now - self._looked, 2 * _LOOK_S), now
        before, self._silences = self._silences, {}
        for address, when in heard.items():
            last = before.get(address, _Silence())
            self._silences[address] = _Silence(when, last.seconds + passed if last.heard == when else 0.0)
        return [address for address, silence in self._silences.items() if silence.seconds > FROZEN_S]

    async def _end(self, address: str) -> None:
        """Have a worker's nanny kill it, and start another one; where none answers, the scheduler strikes it off."""
        await self.client.scheduler.restart_workers(  # type: ignore[union-attr]
            workers=[address],
            timeout=_END_S,
            wait_for_workers=False,
            on_error="return",
            stimulus_id=f"gaiadask-frozen-{time.time()}",
        )

    def _fetched(self, future: Future) -> tuple[Any, Exception | None]:
        """The future's result, or the error instead of it."""

        async def fetch() -> tuple[Any, Exception | None]:
            try:
                # The result of a worker that dies before it is fetched is made again, where there are workers.
                return await self.client.gather(future, asynchronous=True), None
            except Exception as error:  # noqa: BLE001 - raised below; of some that pass between threads, asyncio makes its own
                return None, error

        with self.reaching():
            fetching = asyncio.run_coroutine_threadsafe(fetch(), cast(Any, self.client.loop).asyncio_loop)
            try:
                self.wait(lambda seconds: concurrent.futures.wait([fetching], seconds).done)
                return fetching.result()
            finally:
                fetching.cancel()

    def _is_reached(self, error: Exception) -> bool:
        """Whether the scheduler is there in spite of this error."""
        lost = getattr(error, "reason", "") == "scheduler-connection-lost" or isinstance(error, OSError | ClosedClientError)
        return not lost and self.client.status not in _CLOSED

    def _gone(self, error: Exception | None = None) -> ClusterError:
        why = f" ({' '.join(str(error).split())})" if error else ""
        return ClusterError(f"the Dask scheduler cannot be reached any more{why}: see that it runs, and {AGAIN}")


def _failure(error: Exception) -> GaiadaskError:
    """What the work ended with, or the scheduler instead of it. Raises what is a bug."""
    match error:
        case GaiadaskError():
            return error
        case KilledWorker() | MemoryError():
            reason = str(error) or type(error).__name__
            return WorkersDiedError(
                f"the workers that tried it died ({reason}): out of memory? Give workers more, or smaller partitions"
            )
        case NoValidWorkerError() | NoWorkerError():
            return WorkersDiedError(f"there was no worker for it ({error}): start some, and {AGAIN}")
        case RuntimeError() if _OTHER_SOFTWARE in str(error):
            raise ClusterError(
                "the Dask scheduler cannot read the work that it is sent: give it and the workers the gaiadask and the "
                f"packages of this machine, and {AGAIN}"
            ) from error
    raise error


def other_version(found: str, wanted: str = __version__) -> str:
    """What is said of a worker with another gaiadask than its client's."""
    return (
        f"gaiadask {found} is there, {wanted} on the client's machine: install the same version on both, and start the worker again"
    )


def _contained(version: str, function: Callable[..., Any], *given: Any) -> Any:
    """`function`, on a worker of the client's version; what would end the worker, and its successors, is an error like others."""
    if version != __version__:
        raise ClusterError(f"worker {get_worker().address}: {other_version(__version__, version)}")
    try:
        return function(*given)
    except Exception:
        raise
    except BaseException as error:
        raise RuntimeError(f"the work raised {type(error).__name__} ({error})") from error
