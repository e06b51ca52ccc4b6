"""The ranks that train one network together, as one of them sees the others.

What one rank holds is its share of a whole: `sum_gradients`, `all_sum` and `gather` make the whole of it on every rank. All ranks
call them in the same order, and each waits there for the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gaiadask.errors import LostPeersError


class Group(Protocol):
    """Several ranks, each with its own share of every batch and the same weights after every step."""

    @property
    def rank(self) -> int:
        """Number of this rank, from 0. Rank 0 writes."""

    @property
    def world_size(self) -> int:
        """How many ranks there are."""

    def sum_gradients(self, network: nn.Module) -> None:
        """Replace each gradient by its sum over the ranks."""

    def all_sum(self, tensor: Tensor) -> Tensor:
        """The sum of the ranks' tensors, on each of them; `tensor` itself is left as it is, and no gradient passes."""

    def gather(self, tensor: Tensor) -> Tensor:
        """The ranks' tensors one after the other, along their first axis, which may be of different lengths."""

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Give every rank the values of rank 0, in place."""


@dataclass(frozen=True)
class OneRank:
    """A rank that trains alone: its share is the whole."""

    rank: int = 0
    world_size: int = 1

    def sum_gradients(self, network: nn.Module) -> None:
        pass

    def all_sum(self, tensor: Tensor) -> Tensor:
        return tensor.detach().clone()

    def gather(self, tensor: Tensor) -> Tensor:
        return tensor

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        pass


@dataclass(frozen=True)
class Peers:
    """Ranks in processes of their own, joined by torch.distributed.

    Every method raises LostPeersError where a rank is gone, or does not come within the time-out of `processes`.

    device: of the tensors that travel: with nccl this rank's GPU. processes: the process group.
    """

    rank: int
    world_size: int
    device: torch.device
    processes: dist.ProcessGroup

    def sum_gradients(self, network: nn.Module) -> None:
        # One message a step: each would wait for the slowest rank anew.
        parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        whole = self.all_sum(torch.cat([gradient.reshape(-1) for gradient in gradients]))
        for parameter, part in zip(parameters, whole.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = part.view_as(parameter)

    def all_sum(self, tensor: Tensor) -> Tensor:
        whole = tensor.detach().to(self.device, copy=True).contiguous()
        with self._reaching():
            dist.all_reduce(whole, group=self.processes)
        return whole.to(tensor.device)

    def gather(self, tensor: Tensor) -> Tensor:
        own = tensor.detach().to(self.device)
        lengths = torch.zeros(self.world_size, dtype=torch.int64, device=self.device)
        lengths[self.rank] = len(own)
        counts = self.all_sum(lengths).tolist()
        padded = own.new_zeros((max(counts), *own.shape[1:]))
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in counts]
        with self._reaching():
            dist.all_gather(parts, padded, group=self.processes)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)]).to(tensor.device)

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            values = tensor.detach().to(self.device, copy=True).contiguous()
            with self._reaching():
                dist.broadcast(values, 0, group=self.processes)
            with torch.no_grad():
                tensor.copy_(values)

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # of gloo; nccl's are a kind of it
            said = " ".join(str(error).split())
            raise LostPeersError(f"rank {self.rank} of {self.world_size} has lost the others: {said}") from error
