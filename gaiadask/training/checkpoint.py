"""Checkpoints: everything that a training needs to resume, as one safetensors file, so that it is always of one moment."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import safetensors.torch
from pydantic import ValidationError
from safetensors import SafetensorError
from torch import Tensor, nn

from gaiadask.errors import StoreError
from gaiadask.records import JsonObject, Record
from gaiadask.store.files import Store
from gaiadask.training.adam import Adam

log = logging.getLogger(__name__)

State = TypeVar("State", bound=Record)


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training.

    network, best: state dicts of the newest and the best weights. optimiser: "<parameter number>.<name>" to tensor.
    state: everything that is not a tensor, as JSON; `key` says what is trained.
    """

    network: Mapping[str, Tensor]
    best: Mapping[str, Tensor]
    optimiser: Mapping[str, Tensor]
    state: JsonObject

    @classmethod
    def of(cls, network: nn.Module, best: Mapping[str, Tensor], optimiser: Adam, state: Record) -> Checkpoint:
        """The checkpoint of this moment; `state` has a field `key`."""
        moments = {f"{number}.{name}": tensor for number, named in optimiser.moments.items() for name, tensor in named.items()}
        return cls(network.state_dict(), best, moments, state.to_json())

    def load_into(self, network: nn.Module, optimiser: Adam) -> None:
        """Set a network and its optimiser to the newest weights and moments.

        Raises:
            StoreError: the tensors are not this network's.
        """
        moments: dict[int, dict[str, Tensor]] = {}
        for key, tensor in self.optimiser.items():
            number, name = key.split(".", 1)
            moments.setdefault(int(number), {})[name] = tensor
        try:
            network.load_state_dict(self.network)
            optimiser.load(moments)
        except (RuntimeError, ValueError, KeyError) as error:
            raise StoreError(
                f"the checkpoint is of another network than its key says ({error}): remove it and train again"
            ) from error


@dataclass(frozen=True)
class CheckpointFile:
    """Where the checkpoint of one training is, a file of the store, and the key of what is trained."""

    store: Store
    name: str
    key: str

    def read(self, kind: type[State]) -> tuple[Checkpoint, State] | None:
        """The checkpoint and its state as a record; None where there is none, or one of another key.

        Raises:
            StoreError: the file is damaged.
        """
        saved = read_checkpoint(self.store, self.name)
        if saved is None:
            return None
        if saved.state["key"] != self.key:
            log.info("%s is of another key (%s); training from the start", self.store.uri_of(self.name), saved.state["key"])
            return None
        try:
            return saved, kind.model_validate(saved.state)
        except ValidationError as error:
            raise _damaged(self.store, self.name, error) from error

    def write(self, checkpoint: Checkpoint) -> None:
        """Replace the file, whole or not at all."""
        groups = {"network": checkpoint.network, "best": checkpoint.best, "optimiser": checkpoint.optimiser}
        tensors = {
            # A copy each: newest and best weights may be one storage, which the format refuses.
            f"{group}.{name}": tensor.detach().cpu().clone().contiguous()
            for group, named in groups.items()
            for name, tensor in named.items()
        }
        metadata = {"state": json.dumps(checkpoint.state, allow_nan=False)}
        self.store.write_bytes(self.name, safetensors.torch.save(tensors, metadata))


def read_checkpoint(store: Store, name: str) -> Checkpoint | None:
    """Read the checkpoint in file `name` of the store, None where there is none. Raises StoreError where the file is damaged."""
    content = store.read_bytes_if_there(name)
    if content is None:
        return None
    try:
        tensors = safetensors.torch.load(content)
        # The format: 8 bytes with the header's length, then the header, JSON; safetensors' loader drops its metadata.
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        state = json.loads(header["__metadata__"]["state"])
    except (SafetensorError, ValueError, KeyError) as error:
        raise _damaged(store, name, error) from error
    groups: dict[str, dict[str, Tensor]] = {"network": {}, "best": {}, "optimiser": {}}
    for key, tensor in tensors.items():
        group, rest = key.split(".", 1)
        groups[group][rest] = tensor
    return Checkpoint(**groups, state=state)


def _damaged(store: Store, name: str, error: Exception) -> StoreError:
    return StoreError(f"{store.uri_of(name)} is damaged ({error}): remove it, then the same command trains from the start")
