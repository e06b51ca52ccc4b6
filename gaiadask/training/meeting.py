"""How the ranks of one training find each other: rank 0 listens, tells where, and the others come there."""

from __future__ import annotations

import platform
import socket
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from importlib.metadata import version
from typing import NamedTuple

import torch
import torch.distributed as dist
from pydantic import Field
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]  # torch's stubs do not export them

from gaiadask.errors import ClusterError, ConfigurationError
from gaiadask.records import Record
from gaiadask.training.group import Group, OneRank, Peers

MEETING_S = 180.0
"""All ranks must have come within it: longer than a process takes to import torch from a slow network disk."""
EXCHANGE_S = 1_800.0
"""A rank waits so long for the others in an exchange: one may read its stars from a store that is slow for a while. A rank that is
killed or frozen is noticed long before, by whoever started it."""


class Place(NamedTuple):
    """Where a rank stands among the others. meeting: host:port where rank 0 listens; of rank 0 itself the port is 0."""

    rank: int
    world_size: int
    meeting: str = ""


class RankCard(Record):
    """What a rank tells the others of itself when they meet."""

    host: str = Field(description="name of its machine")
    software: str = Field(description="versions that must be equal")
    gpu: str = Field(description="the GPU's identity; empty: it computes on a CPU")


def card_of(device: torch.device) -> RankCard:
    """This process's card."""
    gpu = str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else ""
    return RankCard(host=platform.node(), software=f"gaiadask {version('gaiadask')}, torch {version('torch')}", gpu=gpu)


def join(place: Place, device: torch.device, tell: Callable[[str], None]) -> Group:
    """The group of a rank: itself, or those that it has met.

    Args:
        place: of this rank.
        device: that it computes on.
        tell: is called by rank 0 with the address where it listens.

    Raises:
        ClusterError: the ranks cannot reach each other, or their software differs.
        ConfigurationError: two of them are on one GPU.
    """
    if place.world_size == 1:
        return OneRank()
    address, store = listen(place, tell) if place.rank == 0 else (place.meeting, reach(place))
    check_cards(meet(place, address, store, card_of(device)))
    own_gpu = None
    if device.type == "cuda":
        torch.cuda.set_device(device)
        own_gpu = torch.device("cuda", torch.cuda.current_device())
    try:
        dist.init_process_group(
            "nccl" if own_gpu else "gloo", store=PrefixStore("first", store), rank=place.rank, world_size=place.world_size,
            timeout=timedelta(seconds=MEETING_S), device_id=own_gpu,
        )  # fmt: skip
        # Made while all are known to be there: what cannot be reached is told in minutes.
        processes = dist.new_group(timeout=timedelta(seconds=EXCHANGE_S))
        group = Peers(place.rank, place.world_size, device, processes)
        group.all_sum(torch.zeros(1))
    except RuntimeError as error:
        raise _blocked(place, address, error) from error
    return group


def listen(place: Place, tell: Callable[[str], None]) -> tuple[str, Store]:
    """Rank 0's store, which the others come to, and its address; told before anybody is there."""
    host = place.meeting.rpartition(":")[0]
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host.strip("[]"), 0), family=family)
        port = listening.getsockname()[1]
        store = TCPStore(
            host.strip("[]"), port, place.world_size, is_master=True, timeout=timedelta(seconds=MEETING_S), wait_for_workers=False,
            master_listen_fd=listening.detach(),
        )  # fmt: skip
    except (OSError, RuntimeError) as error:
        raise ClusterError(
            f"rank 0 cannot listen at {host}, its worker's address ({error}): the other ranks must reach it there. Start workers with "
            "an address of their machine (dask worker --host or --interface), or set training.ranks to 1"
        ) from error
    tell(f"{host}:{port}")
    return f"{host}:{port}", store


def reach(place: Place) -> Store:
    """Rank 0's store, for another rank. Raises ClusterError where it does not answer."""
    host, _, port = place.meeting.rpartition(":")
    try:
        return TCPStore(host.strip("[]"), int(port), place.world_size, is_master=False, timeout=timedelta(seconds=MEETING_S))
    except RuntimeError as error:
        raise _blocked(place, place.meeting, error) from error


def meet(place: Place, address: str, store: Store, own: RankCard) -> list[RankCard]:
    """The cards of all ranks, as soon as all have come. Raises ClusterError where some do not."""
    names = [f"card-{rank}" for rank in range(place.world_size)]
    try:
        store.set(names[place.rank], own.model_dump_json())
        store.wait(names, timedelta(seconds=MEETING_S))
        return [RankCard.model_validate_json(card) for card in store.multi_get(names)]
    except RuntimeError as error:
        missing: list[int] = []
        with suppress(RuntimeError):
            missing = [rank for rank, name in enumerate(names) if not store.check([name])]
        if not missing:
            raise _blocked(place, address, error) from error
        raise ClusterError(
            f"rank(s) {missing} of {place.world_size} did not come to {address} within {MEETING_S:.0f} s: are their workers busy with "
            "other work, or is the port closed between the machines? Free the workers, open the ports between them, or lower "
            "training.ranks"
        ) from error


def check_cards(cards: list[RankCard]) -> None:
    """Raises ClusterError where software differs, ConfigurationError where two ranks are on one GPU."""
    first = cards[0]
    for rank, card in enumerate(cards):
        if card.software != first.software:
            raise ClusterError(
                f"workers have different versions: rank 0 on {first.host} has {first.software}, rank {rank} on {card.host} has "
                f"{card.software}. Give all workers the same, or set training.ranks to 1"
            )
    gpus = [(card.host, card.gpu) for card in cards if card.gpu]
    shared = [rank for rank, card in enumerate(cards) if gpus.count((card.host, card.gpu)) > 1]
    if shared:
        raise ConfigurationError(
            f"ranks {shared} are on one GPU of {cards[shared[0]].host}: give each worker a GPU of its own (CUDA_VISIBLE_DEVICES), or set "
            f"training.ranks to at most {len(set(gpus))}"
        )


def _blocked(place: Place, address: str, error: RuntimeError) -> ClusterError:
    said = " ".join(str(error).split())[:300]
    return ClusterError(
        f"rank {place.rank} of {place.world_size} cannot reach the others, which meet at {address} ({said}): open the ports between the "
        "workers' machines, or set training.ranks to 1"
    )
