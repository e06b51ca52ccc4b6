"""Several ranks in processes of their own, without a cluster: each runs a function of its group."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.reduction import DupFd
from typing import Any

import torch

from gaiadask.training.group import Group
from gaiadask.training.meeting import Place, address_of, join, listen

_PROCESSES = multiprocessing.get_context("spawn")


def together(world_size: int, function: Callable[[Group], Any]) -> list[Any]:
    """What `function`, picklable, returns on each rank."""
    with listen("127.0.0.1") as listening, ProcessPoolExecutor(world_size, mp_context=_PROCESSES) as pool:
        meeting = address_of(listening)
        first = pool.submit(_rank, function, Place(0, world_size, meeting), DupFd(listening.fileno()))
        others = [pool.submit(_rank, function, Place(rank, world_size, meeting), None) for rank in range(1, world_size)]
        return [future.result(timeout=100) for future in (first, *others)]


def _rank(function: Callable[[Group], Any], place: Place, listening: Any) -> Any:
    torch.set_num_threads(1)
    if listening:
        place = place._replace(listening=listening.detach())
    return function(join(place, torch.device("cpu")))
