"""The ranks that train one network together, as one of them sees the others. Today a rank trains alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from gaiadask.errors import TrainingError


class Group(Protocol):
    """Several ranks, each with its own share of every batch and the same weights after every step."""

    @property
    def rank(self) -> int:
        """Number of this rank, from 0."""

    @property
    def world_size(self) -> int:
        """How many ranks there are."""

    def gather(self, tensor: Tensor) -> Tensor:
        """The ranks' tensors one after the other, along their first axis, which may be of different lengths."""

    def average_gradients(self, network: nn.Module) -> None:
        """Replace each gradient by its mean over the ranks."""


@dataclass(frozen=True)
class OneRank:
    """A rank that trains alone: all stars are its own, and its gradients are the means already."""

    rank: int = 0
    world_size: int = 1

    def gather(self, tensor: Tensor) -> Tensor:
        return tensor

    def average_gradients(self, network: nn.Module) -> None:
        """Nothing to do; with more ranks an all-reduce stands here."""


def join_group(rank: int, world_size: int) -> Group:
    """The group of an assignment. Raises TrainingError where there is more than one rank."""
    if world_size != 1:
        raise TrainingError(f"world_size is {world_size}: training with more than one rank is not there yet; use 1")
    return OneRank(rank)
