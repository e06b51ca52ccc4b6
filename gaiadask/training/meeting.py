"""How the ranks of one training find each other: at a socket of rank 0, whose address they are given."""

from __future__ import annotations

import platform
import socket
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
    """Where a rank stands among the others. meeting: host:port where rank 0 listens. listening: rank 0's socket there, as a file
    descriptor."""

    rank: int
    world_size: int
    meeting: str = ""
    listening: int = -1


class RankCard(Record):
    """What a rank tells the others of itself when they meet."""

    host: str = Field(description="name of its machine")
    software: str = Field(description="versions that must be equal")
    gpu: str = Field(description="the GPU's identity; empty: it computes on a CPU")


def card_of(device: torch.device) -> RankCard:
    """This process's card."""
    gpu = str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else ""
    return RankCard(host=platform.node(), software=f"gaiadask {version('gaiadask')}, torch {version('torch')}", gpu=gpu)


def join(place: Place, device: torch.device) -> Group:
    """The group of a rank: itself, or those that it has met.

    Args:
        place: of this rank.
        device: that it computes on.

    Raises:
        ClusterError: the ranks cannot reach each other, or their software differs.
        ConfigurationError: two of them are on one GPU.
    """
    if place.world_size == 1:
        return OneRank()
    store = reach(place)
    check_cards(meet(place, store, card_of(device)))
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
        raise _blocked(place, error) from error
    return group


def listen(host: str) -> socket.socket:
    """A socket for rank 0, at one address of its machine. Raises ClusterError where the machine has no such address."""
    try:
        return socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ClusterError(
            f"rank 0 cannot listen at {host}, its worker's address ({error}): the other ranks must reach it there. Start workers with "
            "an address of their machine (dask worker --host or --interface), or set training.ranks to 1"
        ) from error


def address_of(listening: socket.socket) -> str:
    """host:port of a socket."""
    host, port = listening.getsockname()[:2]
    return f"{host}:{port}"


def reach(place: Place) -> Store:
    """The store in which the ranks meet, in rank 0's process. Raises ClusterError where it does not answer."""
    host, _, port = place.meeting.rpartition(":")
    leads = place.rank == 0
    try:
        return TCPStore(
            host, int(port), place.world_size, is_master=leads, timeout=timedelta(seconds=MEETING_S), wait_for_workers=False,
            master_listen_fd=place.listening if leads else None,
        )  # fmt: skip
    except RuntimeError as error:
        raise _blocked(place, error) from error


def meet(place: Place, store: Store, own: RankCard) -> list[RankCard]:
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
            raise _blocked(place, error) from error
        raise ClusterError(
            f"rank(s) {missing} of {place.world_size} did not come to {place.meeting} within {MEETING_S:.0f} s: are their workers busy with "
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


def _blocked(place: Place, error: RuntimeError) -> ClusterError:
    said = " ".join(str(error).split())[:300]
    return ClusterError(
        f"rank {place.rank} of {place.world_size} cannot reach the others, which meet at {place.meeting} ({said}): open the ports between the "
        "workers' machines, or set training.ranks to 1"
    )
