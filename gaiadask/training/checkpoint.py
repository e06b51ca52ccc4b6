"""What is left behind by a network in training: a checkpoint, a single safetensors file, so that it is always of one moment;
and metrics.jsonl."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from gaiadask.errors import StoreError
from gaiadask.store.files import Store


@dataclass(frozen=True)
class Checkpoint:
    """network, best: state dicts of the newest and the best weights. optimiser: "<parameter number>.<name>" to tensor.
    state: everything that is not a tensor, JSON-able."""

    network: dict[str, Tensor]
    best: dict[str, Tensor]
    optimiser: dict[str, Tensor]
    state: dict[str, Any]

    @classmethod
    def of(cls, network: nn.Module, best: dict[str, Tensor], optimiser: torch.optim.Optimizer, state: dict[str, Any]) -> Checkpoint:
        moments = {
            f"{number}.{name}": tensor
            for number, named in optimiser.state_dict()["state"].items()
            for name, tensor in named.items()
        }
        return cls(network.state_dict(), best, moments, state)

    def load_into(self, network: nn.Module, optimiser: torch.optim.Optimizer) -> None:
        """Raises StoreError where the tensors are not this network's."""
        moments: dict[int, dict[str, Tensor]] = {}
        for key, tensor in self.optimiser.items():
            number, name = key.split(".", 1)
            moments.setdefault(int(number), {})[name] = tensor
        try:
            network.load_state_dict(self.network)
            optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})
        except (RuntimeError, ValueError) as error:
            raise StoreError(
                f"the checkpoint is of another network than its key says ({error}): remove it and train again"
            ) from error


def write_checkpoint(store: Store, name: str, checkpoint: Checkpoint) -> None:
    """Replace the checkpoint `name`, relative to the store, whole or not at all."""
    groups = {"network": checkpoint.network, "best": checkpoint.best, "optimiser": checkpoint.optimiser}
    tensors = {
        # A copy each: newest and best weights may be one storage, which the format refuses.
        f"{group}.{name}": tensor.detach().cpu().clone().contiguous()
        for group, named in groups.items()
        for name, tensor in named.items()
    }
    metadata = {"state": json.dumps(checkpoint.state, allow_nan=False)}
    store.write_bytes(name, safetensors.torch.save(tensors, metadata))


def read_checkpoint(store: Store, name: str) -> Checkpoint | None:
    """The checkpoint `name`, relative to the store, None where there is none. Raises StoreError where it is damaged."""
    if not store.exists(name):
        return None
    content = store.read_bytes(name)
    try:
        tensors = safetensors.torch.load(content)
        # The format: 8 bytes with the header's length, then the header, JSON; safetensors' loader drops its metadata.
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        state = json.loads(header["__metadata__"]["state"])
    except (SafetensorError, ValueError, KeyError) as error:
        raise StoreError(
            f"{store.uri_of(name)} is damaged ({error}): remove it, then the same command trains from the start"
        ) from error
    groups: dict[str, dict[str, Tensor]] = {"network": {}, "best": {}, "optimiser": {}}
    for key, tensor in tensors.items():
        group, rest = key.split(".", 1)
        groups[group][rest] = tensor
    return Checkpoint(**groups, state=state)
