"""Workers that are killed in the middle: once in each task, after the work has had its effect and before its result is known."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from distributed import Client

from gaiadask.cluster.dask_workers import DaskWorkers
from gaiadask.cluster.workers import FAN_IN, Outcomes, RankReport, Task, counted_once
from gaiadask.errors import GaiadaskError
from gaiadask.progress import Progress
from gaiadask.training.assignment import Assignment
from gaiadask.training.events import Done, RankEvent, Validated


def die_once(marker: Path) -> None:
    """Kill -9 this process, if nobody died here before."""
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class DyingAfterwards:
    """Work whose first worker dies when it has done it."""

    function: Callable[[Any], Any]
    marker: Path

    def __call__(self, item: Any) -> Any:
        result = self.function(item)
        die_once(self.marker)
        return result


@dataclass(frozen=True)
class DyingHalfway:
    """A long piece of work whose first worker dies when half of it is done."""

    function: Callable[[Callable[[float], None]], Any]
    marker: Path

    def __call__(self, report: Callable[[float], None]) -> Any:
        def reported(share: float) -> None:
            report(share)
            if share >= 0.5:
                die_once(self.marker)

        return self.function(reported)


class DyingWorkers(DaskWorkers):
    """The workers of a client, of which one is killed in each of these tasks. folder: of marks, one a task in which one has died."""

    def __init__(self, client: Client, folder: Path, tasks: frozenset[str]) -> None:
        super().__init__(client)
        self._marks = {task: folder / task.replace(" ", "-") for task in tasks}

    @property
    def died(self) -> set[str]:
        """Tasks in which a worker has died."""
        return {task for task, mark in self._marks.items() if mark.exists()}

    def _dying(self, function: Any, task: str, how: Callable[[Any, Path], Any]) -> Any:
        return how(function, self._marks[task]) if task in self._marks else function

    def outcomes(self, function: Callable[[Any], Any], items: Sequence[Any], task: Task[Any, Any]) -> Outcomes[Any]:
        return super().outcomes(self._dying(function, task.name, DyingAfterwards), items, task)

    def reduce(
        self,
        function: Callable[[Any], Any],
        merge: Callable[[list[Any]], Any],
        items: Sequence[Any],
        task: str,
        progress: Progress | None = None,
        fan_in: int = FAN_IN,
        *,
        size: Callable[[Any], float] = counted_once,
    ) -> Any:
        return super().reduce(self._dying(function, task, DyingAfterwards), merge, items, task, progress, fan_in, size=size)

    def one(self, function: Callable[[Callable[[float], None]], Any], task: str, progress: Progress | None = None) -> Any:
        return super().one(self._dying(function, task, DyingHalfway), task, progress)

    def train(self, assignments: Sequence[Assignment], report: RankReport) -> list[Done | GaiadaskError]:
        mark = self._marks["training"]

        def reported(run: str, event: RankEvent) -> None:
            report(run, event)
            if isinstance(event, Validated) and not mark.exists() and (rank := next(ranks(psutil.Process()), None)):
                os.kill(rank.ppid(), signal.SIGKILL)
                mark.touch()

        return super().train(assignments, reported)


def ranks(root: psutil.Process) -> Iterator[psutil.Process]:
    """Training ranks below a process."""
    for process in root.children(recursive=True):
        try:
            if "gaiadask.training.process" in process.cmdline():
                yield process
        except psutil.Error:
            continue
