"""Which device networks run on, and how stars get there in batches: the one place that turns `[cluster] device` into torch's."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gaiadask.config.cluster import known_device
from gaiadask.errors import ConfigurationError, OutOfMemoryError

log = logging.getLogger(__name__)

Finish = Callable[[], None]
"""Waits for a batch that was started, and stores what came out of it."""


def torch_device(choice: str = "auto") -> torch.device:
    """The device that `choice` names.

    Args:
        choice: "auto" (a GPU where this machine has one, else the CPU), "cpu", "cuda" or "cuda:N".

    Raises:
        ConfigurationError: where torch has no such device on this machine.
    """
    if choice == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        known_device(choice)
    except ValueError as error:
        raise ConfigurationError(f"device is {choice!r}: {error}") from error
    try:
        return torch.zeros(1, device=choice).device
    except (RuntimeError, AssertionError) as error:
        raise ConfigurationError(
            f"device {choice!r} is not there, torch sees {gpu_count()} GPUs ({str(error).splitlines()[0]}): set [cluster] device to "
            "'auto' or 'cpu', or run where there is such a GPU"
        ) from error


def gpu_count() -> int:
    """How many GPUs torch sees here."""
    return torch.cuda.device_count()


class Batches:
    """Cuts stars into batches that a network computes at once, and halves them where the device has no memory for so many.

    Args:
        rows: stars of a batch.
        least: fewer are never tried.
    """

    def __init__(self, rows: int, least: int) -> None:
        self.rows, self.least = rows, least

    def run(self, stars: int, start: Callable[[slice], Finish]) -> None:
        """`start` of each batch's rows, and what it returned once the next batch is under way: a GPU never waits for the host.

        Raises:
            OutOfMemoryError: where not even `least` stars fit.
        """
        first, finish = 0, _nothing
        while first < stars:
            tried = self.rows
            rows = slice(first, min(first + tried, stars))
            started, reason = _started(start, rows)
            finish()
            finish = started
            if reason:
                self._halve(tried, reason)
            else:
                first = rows.stop
        finish()

    def _halve(self, tried: int, reason: str) -> None:
        """Half of what was tried from now on; of several threads that had no memory for as many, one halves it."""
        if tried // 2 < self.least:
            raise OutOfMemoryError(
                f"the GPU has no memory for {tried} stars at once ({reason}): end what else uses it, lower cluster.workers where "
                "several share it, or set [cluster] device = 'cpu'"
            )
        if self.rows > tried // 2:
            self.rows = tried // 2
            log.warning("the GPU's memory is short (%s): %d stars at once from now on", reason, self.rows)
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def _nothing() -> None:
    pass


def _started(start: Callable[[slice], Finish], rows: slice) -> tuple[Finish, str]:
    """What `start` gave, and "" or why there was no memory. What it had allocated is free again: the error's frames hold it no more."""
    try:
        return start(rows), ""
    except torch.OutOfMemoryError as error:
        return _nothing, str(error).splitlines()[0]


class Copies:
    """Copies between the host and a device; with a GPU, beside what it computes: from and to pinned memory, inputs in a stream of their own."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.is_gpu = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if self.is_gpu else None

    def pinned(self, array: NDArray) -> Tensor:
        """An array as a tensor of the host, ready to be copied."""
        tensor = torch.from_numpy(np.require(array, requirements=["C", "W"]))
        return tensor.pin_memory() if self.is_gpu else tensor

    def to_device(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The host's tensors on the device."""
        if self._stream is None:
            return tuple(tensor.to(self.device) for tensor in tensors)
        with torch.cuda.stream(self._stream):
            copies = tuple(tensor.to(self.device, non_blocking=True) for tensor in tensors)
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self._stream)
        for copy in copies:
            copy.record_stream(current)
        return copies

    def to_host(self, tensor: Tensor) -> Callable[[], NDArray]:
        """A function that waits for a tensor of the device, which is computed and copied meanwhile, and gives it as an array."""
        if self._stream is None:
            return tensor.cpu().numpy
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        host.copy_(tensor, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record(torch.cuda.current_stream(self.device))

        def wait() -> NDArray:
            copied.synchronize()
            return host.numpy()

        return wait
