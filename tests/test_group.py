"""Ranks that train one network: they meet, exchange, and take the steps that one rank takes; real processes, joined by gloo."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest
import torch
from made_up import fitted, made_up_stars
from together import together
from torch.distributed import Store

from gaiadask.config.model import ModelConfig
from gaiadask.config.sections import TrainingConfig
from gaiadask.errors import ClusterError, ConfigurationError
from gaiadask.training import meeting
from gaiadask.training.batches import Share
from gaiadask.training.codes import Batch
from gaiadask.training.group import Group, OneRank
from gaiadask.training.meeting import Place, RankCard, address_of, check_cards, join, listen, meet, reach
from gaiadask.training.objective import Validation, validate
from gaiadask.training.step import new_learner, step

TABLE = made_up_stars(600, nulls=0.1)
TRANSFORM = fitted(TABLE)
MODEL = ModelConfig(latents=4, hidden=(16, 16), free_bits=6.0)
ROWS, STEPS = 200, 30
TRAINING = TrainingConfig(rows_seen=ROWS * STEPS, batch_rows=ROWS, learning_rate=0.01)


class Trained(NamedTuple):
    losses: list[float]
    weights: list[torch.Tensor]
    rating: Validation
    exchanged: list[torch.Tensor]


def owners(world_size: int) -> torch.Tensor:
    """Which rank has which place of a batch: unequal shares; the last rank has none of the first two batches."""
    draws = torch.rand(STEPS, ROWS, generator=torch.Generator().manual_seed(1))
    owner = ((draws**2) * world_size).long()
    owner[:2] = owner[:2].clamp(max=max(0, world_size - 2))
    return owner


def train_together(group: Group) -> Trained:
    """Some steps on batches of which each rank has a share, a validation, and one exchange of each kind."""
    torch.set_num_threads(1)
    inputs = TRANSFORM.forward(TABLE)
    parts = (torch.from_numpy(part) for part in (inputs.values, inputs.present, inputs.condition))
    stars = Batch(*parts, torch.empty(len(inputs.values), 0))
    learner = new_learner(TRANSFORM, MODEL, TRAINING, torch.device("cpu"))
    learner.network.start_linear(stars.values, MODEL.noise_scale)
    random, owner = torch.Generator().manual_seed(2), owners(group.world_size)
    losses = []
    for number in range(STEPS):
        batch = torch.randperm(len(stars), generator=random)[:ROWS]
        places = torch.nonzero(owner[number] == group.rank).flatten()
        loss = step(learner, Share(stars.rows(batch[places]), places), number * ROWS, group)
        losses.append(float(group.all_sum(loss.total)))
    rating = validate(learner.network, stars, learner.objective, 1.0, group)
    own = torch.arange(group.rank * 3, dtype=torch.int64)
    shared = torch.full((2,), float(group.rank))
    group.broadcast([shared])
    return Trained(losses, [w.detach() for w in learner.network.parameters()], rating, [group.gather(own), shared])


@pytest.fixture(scope="module")
def pair() -> list[Trained]:
    return together(2, train_together)


@pytest.mark.slow
def test_two_ranks_come_to_what_one_comes_to(pair: list[Trained]) -> None:
    """Unequal shares, one of them empty at first, free bits that only the whole batch can price."""
    alone = train_together(OneRank())
    first, second = pair
    for one, other in zip(first.weights, second.weights, strict=True):
        assert torch.equal(one, other)
    assert first.losses == pytest.approx(alone.losses, rel=1e-4)
    for one, other in zip(first.weights, alone.weights, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    assert alone.losses[-1] < alone.losses[0]
    assert min(alone.rating.latent_kl) < MODEL.free_bits < max(alone.rating.latent_kl), "or free bits price all, or none"


@pytest.mark.slow
def test_a_rating_does_not_depend_on_the_number_of_ranks(pair: list[Trained]) -> None:
    alone = train_together(OneRank()).rating
    first, second = (each.rating for each in pair)
    assert first == second
    assert first.loss == pytest.approx(alone.loss, rel=1e-3)
    assert first.median_error == pytest.approx(alone.median_error, rel=1e-2)
    assert first.latent_kl == pytest.approx(alone.latent_kl, rel=1e-2)
    assert first.latent_mean == pytest.approx(alone.latent_mean, abs=1e-3)
    assert (first.active_units, len(first.latents)) == (alone.active_units, 4)


@pytest.mark.slow
def test_what_ranks_exchange_is_the_same_on_each(pair: list[Trained]) -> None:
    for gathered, shared in (each.exchanged for each in pair):
        assert gathered.tolist() == [0, 1, 2]
        assert shared.tolist() == [0, 0]


# Meeting -------------------------------------------------------------------------------------------------------------
def card(**changes: str) -> RankCard:
    return RankCard(**({"host": "a", "software": "gaiadask 1, torch 2", "gpu": ""} | changes))


def first(world_size: int) -> tuple[Place, Store]:
    """Rank 0, listening."""
    listening = listen("127.0.0.1")
    place = Place(0, world_size, address_of(listening), listening.detach())
    return place, reach(place)


def test_a_rank_alone_meets_nobody() -> None:
    assert join(Place(0, 1), torch.device("cpu")) == OneRank()


def test_ranks_meet() -> None:
    place, store = first(2)
    other = Place(1, 2, place.meeting)
    with ThreadPoolExecutor() as pool:
        cards = pool.submit(meet, other, reach(other), card(host="b"))
        assert meet(place, store, card()) == cards.result() == [card(), card(host="b")]


def test_nobody_who_is_elsewhere_can_reach_rank_0() -> None:
    """It listens at its worker's address, not at all of its machine."""
    place, _store = first(2)
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.2", int(place.meeting.rpartition(":")[2])), timeout=1).close()


def test_an_address_that_is_not_the_machines_is_named() -> None:
    with pytest.raises(ClusterError, match=r"rank 0 cannot listen at 192\.0\.2\.1, its worker's address.*dask worker --host"):
        listen("192.0.2.1")


@pytest.mark.slow
def test_a_port_that_is_closed_between_ranks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "MEETING_S", 1.0)
    with pytest.raises(ClusterError, match=r"rank 1 of 2 cannot reach the others, which meet at 127\.0\.0\.1:9 .*open the ports"):
        reach(Place(1, 2, "127.0.0.1:9"))


@pytest.mark.slow
def test_ranks_that_do_not_come_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "MEETING_S", 1.0)
    place, store = first(3)
    store.set("card-1", card().model_dump_json())
    with pytest.raises(ClusterError, match=rf"rank\(s\) \[2\] of 3 did not come to {place.meeting} within 1 s"):
        meet(place, store, card())


def test_workers_of_different_versions_are_named() -> None:
    with pytest.raises(ClusterError, match=r"rank 0 on a has gaiadask 1, torch 2, rank 1 on b has gaiadask 1, torch 3"):
        check_cards([card(), card(host="b", software="gaiadask 1, torch 3")])


def test_ranks_on_one_gpu_are_told() -> None:
    check_cards([card(gpu="x"), card(gpu="y"), card(host="b", gpu="x")])
    with pytest.raises(ConfigurationError, match=r"ranks \[0, 2\] are on one GPU of a.*training\.ranks to at most 2"):
        check_cards([card(gpu="x"), card(gpu="y"), card(gpu="x")])
