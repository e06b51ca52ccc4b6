"""Latents as integers: how many bits each gets, what training knows of rounding, what files hold and readers make of it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from made_up import fitted, made_up_stars, untrained

from gaiadask.catalogue import write_pieces
from gaiadask.config.model import ModelConfig
from gaiadask.decode import decode
from gaiadask.encode import encode, encode_as_stored, latents_of_stored
from gaiadask.errors import DataError
from gaiadask.inputs.transform import Transform
from gaiadask.model import StarModel
from gaiadask.model.files import load_model, new_network, save_model
from gaiadask.model.losses import kl_to_prior, sample_posterior
from gaiadask.model.networks import Autoencoder, NetworkShape, Posterior
from gaiadask.model.rounding import LatentCode
from gaiadask.store.files import Store
from gaiadask.store.paths import RunPaths
from gaiadask.training.codes import Batch
from gaiadask.training.group import OneRank
from gaiadask.training.objective import Objective
from gaiadask.training.rounding import allocated_bits, latent_precisions, reallocate

CONFIG, BITS = ModelConfig(latents=4, hidden=(16,)), (3, 0, 8, 11)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def transform() -> Transform:
    return fitted(made_up_stars(2_000, seed=3, nulls=0.2))


@pytest.fixture(scope="module")
def model(transform: Transform, tmp_path_factory: pytest.TempPathFactory) -> StarModel:
    """At the principal components, with a latent that has no bits."""
    torch.manual_seed(0)
    network = new_network(transform, CONFIG, sum(BITS))
    network.start_linear(torch.from_numpy(transform.forward(made_up_stars(2_000, seed=3)).values), CONFIG.noise_scale)
    network.bits.copy_(torch.tensor(BITS))
    store, outcome = Store(str(tmp_path_factory.mktemp("rounded"))), untrained(CONFIG, "k")
    save_model(store, RunPaths("r"), network, transform, outcome.model_copy(update={"precisions": (0.1, 9.0, 0.01, 0.001)}))
    return load_model(store, RunPaths("r"))


@pytest.fixture(scope="module")
def stars() -> pa.Table:
    return made_up_stars(3_000, seed=4, nulls=0.2)


def stored(stars: pa.Table, model: StarModel) -> pa.Table:
    """Their latents in the form of the files."""
    return encode_as_stored(stars, model)


# Bits ----------------------------------------------------------------------------------------------------------------
def test_each_bit_goes_where_a_step_is_largest_beside_the_precision() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        precisions = 2.0 ** random.uniform(-6, 2, 7)
        budget = int(random.integers(7, 60))
        bits = allocated_bits(precisions.tolist(), budget)
        assert sum(bits) == budget
        steps = 2.0 ** (1 - np.array(bits)) / precisions
        held = steps[np.array(bits) > 0]
        # No step of a latent with bits was twice as large as another latent's is now: a bit would have gone there.
        assert held.max() <= 2 * steps[np.array(bits) > 0].min() * (1 + 1e-9)
        assert steps[np.array(bits) == 0].max(initial=0) <= 2 * held.min() * (1 + 1e-9)
    assert allocated_bits([1e-9, 1.0], 20) == [16, 4]
    assert allocated_bits([0.001, 1e6], 9) == [9, 0]


def test_a_latent_moved_by_its_precision_moves_columns_by_their_iqr(transform: Transform, model: StarModel) -> None:
    table = made_up_stars(500, seed=5)
    values, present, condition = (torch.from_numpy(part) for part in transform.forward(table))
    stars = Batch(values, present, condition, torch.empty(500, 0))
    z, sky = model.network.encode(values, condition).mean.detach().numpy(), (table["ra"].to_numpy(), table["dec"].to_numpy())
    rebuilt = transform.inverse(model.decode(z, condition.numpy()), *sky)
    for latent, precision in enumerate(latent_precisions(model.network, stars, transform)):
        moved = z.copy()
        moved[:, latent] += precision / 100  # in proportion, as far as the decoder is linear
        columns = transform.inverse(model.decode(moved, condition.numpy()), *sky)
        change = [
            np.median(np.abs(columns[name] - rebuilt[name])) / np.diff(np.quantile(rebuilt[name], [0.25, 0.75]))
            for name in transform.columns
            if name not in ("ra", "dec")
        ]
        assert 100 * np.linalg.norm(change) == pytest.approx(1, rel=0.25)


def test_a_latent_that_changes_nothing_has_no_bits(transform: Transform, model: StarModel) -> None:
    values, present, condition = (torch.from_numpy(part) for part in transform.forward(made_up_stars(300, seed=5, nulls=0.3)))
    network = new_network(transform, CONFIG, 24)
    network.load_state_dict(model.network.state_dict())
    with torch.no_grad():
        network.decoder[0].weight[:, 1] = 0
        network.decoder_skip.weight[:, 1] = 0
    reallocate(network, Batch(values, present, condition, torch.empty(300, 0)), transform, OneRank())
    assert network.latent_bits[1] == 0 and sum(network.latent_bits) == 24 and network.steps[1] == 2


# Training ------------------------------------------------------------------------------------------------------------
def test_the_noise_of_training_is_as_wide_as_a_step_and_stays_in_range() -> None:
    steps = torch.tensor([2.0 ** (1 - b) for b in BITS])
    mean = torch.tanh(torch.randn(20_000, 4, generator=torch.Generator().manual_seed(0)))
    drawn = sample_posterior(Posterior(mean, None, steps), torch.randn(20_000, 4, generator=torch.Generator().manual_seed(1)))
    assert ((drawn - mean).abs()[:, [2, 3]] <= steps[[2, 3]] / 2 + 1e-6).all()
    assert (drawn.abs() <= 1 - steps / 2 + 1e-6).all() and (drawn[:, 1] == 0).all()
    inside = mean[:, 2].abs() < 0.9
    assert (drawn - mean)[inside, 2].std().item() == pytest.approx(steps[2].item() / math.sqrt(12), rel=0.02)


def test_the_kl_of_rounded_latents_is_their_bits() -> None:
    steps, mean = torch.tensor([2.0 ** (1 - b) for b in BITS]), torch.zeros(5, 4)
    nats = torch.tensor(BITS) * math.log(2)
    torch.testing.assert_close(kl_to_prior(Posterior(mean, None, steps)), nats.expand(5, 4))
    of_batch = (torch.zeros(5, 3), torch.zeros(5, 3), torch.ones(5, 3, dtype=torch.bool))
    objective = Objective.of(CONFIG.model_copy(update={"error_share": 0.0}), fitted(made_up_stars(50)), CPU)
    loss = objective(Batch(*of_batch, torch.empty(5, 0)), of_batch[0], Posterior(mean, None, steps), 1.0)
    assert (loss.total - loss.reconstruction).item() == pytest.approx(22 * math.log(2), rel=1e-5)


def test_gradients_pass_through_the_noise() -> None:
    torch.manual_seed(0)
    network = Autoencoder(NetworkShape(5, 2, 3, (8,), variational=False, bits=24))
    values, condition = torch.randn(50, 5), torch.randn(50, 2)
    drawn = sample_posterior(network.encode(values, condition), torch.randn(50, 3))
    (network.decode(drawn, condition) - values).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in network.parameters())
    assert network.latent_bits == [8, 8, 8] and "bits" in network.state_dict()


# Files ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("bits", [1, 2, 8, 9, 16])
def test_integers_and_latents_are_one_to_one(bits: int) -> None:
    code = LatentCode.of("z00", bits, 0.1)
    integers = np.arange(code.smallest, code.largest + 1)
    z = code.latents(pa.chunked_array([integers]), "test")
    assert np.array_equal(code.integers(z), integers) and np.abs(z).max() == 1 - code.scale / 2
    anywhere = np.linspace(-1, 1, 1001)
    assert np.abs(code.latents(pa.chunked_array([code.integers(anywhere)]), "test") - anywhere).max() <= code.scale / 2 + 1e-7
    assert code.field.type == (pa.uint8() if bits <= 8 else pa.int16())
    assert {name.decode(): float(text) for name, text in code.field.metadata.items() if name != b"description"} == {
        "bits": bits, "scale": code.scale, "offset": code.offset,
    }  # fmt: skip


def test_encode_gives_what_files_hold(model: StarModel, stars: pa.Table) -> None:
    latents = encode(stars, model)
    assert model.latent_columns == ["z00", "z02", "z03"] == latents.column_names[-3:]
    assert (model.latents, model.latent_bytes) == (4, 1 + 1 + 2)
    files = stored(stars, model)
    assert [str(files.schema.field(name).type) for name in model.latent_columns] == ["uint8", "uint8", "int16"]
    assert latents_of_stored(files, model).equals(latents)
    z = model.latents_of(files, "test")
    assert np.array_equal(z, model.latents_of(latents, "test")) and (z[:, 1] == 0).all()
    assert [len(np.unique(column)) <= 2**bits for column, bits in zip(z.T, BITS, strict=True)] == [True] * 4


def test_either_form_is_decoded(model: StarModel, stars: pa.Table) -> None:
    latents = encode(stars, model)
    wanted = decode(latents, model)
    files = stored(stars, model)
    assert decode(files, model).equals(wanted)
    assert decode(files.to_pandas(), model).equals(wanted)
    assert decode({name: files[name].to_numpy() for name in files.column_names}, model).equals(wanted)
    mixed = files.set_column(files.schema.get_field_index("z02"), latents.schema.field("z02"), latents["z02"])
    assert decode(mixed, model).equals(wanted)
    # All latents beside each other, the one without bits too.
    whole = latents.append_column("z01", pa.array(np.zeros(len(latents), np.float32)))
    assert decode(whole, model).equals(wanted)


@pytest.mark.parametrize(
    ("name", "change", "found"),
    [
        ("z02", lambda stored: stored["z02"].cast(pa.float64()), r"\d+ to \d+, expected -1 to 1 of floating-point numbers"),
        ("z00", lambda stored: pa.array(np.full(len(stored), 8)), "8 to 8, expected 0 to 7 of integers"),
    ],
)
def test_numbers_that_a_latent_does_not_have_are_refused(
    model: StarModel, stars: pa.Table, name: str, change: object, found: str
) -> None:
    files = stored(stars, model)
    assert callable(change)
    wrong = files.set_column(files.schema.get_field_index(name), name, change(files))
    with pytest.raises(
        DataError, match=rf"cannot decode: {name} is from {found}: the latents are of another model, or the integers"
    ):
        decode(wrong, model)


def test_a_latent_takes_its_bits_on_disk(tmp_path: Path) -> None:
    """Whatever parquet makes of a byte by itself (32 bits a number, and zstd's luck)."""
    random, rows = np.random.default_rng(0), 131_072
    codes = [LatentCode.of(f"z{i:02d}", bits, 0.1) for i, bits in enumerate((3, 8, 12))]
    columns = [pa.array(random.integers(c.smallest, c.largest + 1, rows)).cast(c.field.type) for c in codes]
    path = tmp_path / "latents.parquet"
    write_pieces([pa.table(columns, schema=pa.schema([c.field for c in codes]))], path, {})
    group = pq.ParquetFile(path).metadata.row_group(0)
    for number, code in enumerate(codes):
        assert group.column(number).total_compressed_size * 8 / rows == pytest.approx(code.bits, rel=0.08)


# New stars -----------------------------------------------------------------------------------------------------------
def test_a_density_sees_latents_spread_over_their_steps(model: StarModel, stars: pa.Table) -> None:
    z = model.latents_of(encode(stars, model), "test")
    spread = model.continuous(z, np.random.default_rng(0))
    assert len(np.unique(spread[:, 0])) > 2_000 > 2 ** BITS[0]
    assert np.array_equal(model.latents_from(spread), z)
    drawn = model.latents_without_star(20_000, np.random.default_rng(0))
    assert np.abs(drawn).max() < 1 and (drawn[:, 1] == 0).all()
    assert np.unique(drawn[:, 0], return_counts=True)[1] / 20_000 == pytest.approx(np.full(8, 1 / 8), abs=0.01)
