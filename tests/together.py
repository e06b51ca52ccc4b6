"""Several ranks in processes of their own, without a cluster: each runs a function of its group."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing.queues import Queue
from typing import Any

import torch

from gaiadask.training.group import Group
from gaiadask.training.meeting import Place, join

_PROCESSES = multiprocessing.get_context("spawn")


def together(world_size: int, function: Callable[[Group], Any]) -> list[Any]:
    """What `function`, picklable, returns on each rank."""
    with _PROCESSES.Manager() as manager, ProcessPoolExecutor(world_size, mp_context=_PROCESSES) as pool:
        told: Queue[str] = manager.Queue()  # type: ignore[assignment]
        first = pool.submit(_rank, function, Place(0, world_size, "127.0.0.1:0"), told)
        address = told.get(timeout=60)
        others = [pool.submit(_rank, function, Place(rank, world_size, address), told) for rank in range(1, world_size)]
        return [future.result(timeout=60) for future in (first, *others)]


def _rank(function: Callable[[Group], Any], place: Place, told: Queue[str]) -> Any:
    torch.set_num_threads(1)
    return function(join(place, torch.device("cpu"), partial(_tell, told)))


def _tell(told: Queue[str], address: str) -> None:
    told.put(address)
