"""Networks, losses and the model's files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import fitted, made_up_stars, untrained
from scipy.special import k1e
from scipy.stats import genhyperbolic
from torch.distributions import Normal, kl_divergence

from gaiadask.config.model import ModelConfig
from gaiadask.config.presets import Activation, BatchNorm
from gaiadask.errors import GaiadaskError, KeyMismatchError, StoreError
from gaiadask.inputs.transform import Transform
from gaiadask.model import Autoencoder, StarModel, load_model, save_model
from gaiadask.model.files import load_model_cached, new_network
from gaiadask.model.losses import (
    ReconstructionTerm,
    active_units,
    gaussian_nll,
    hyperbolic_nll,
    kl_to_standard_normal,
    log_scaled_k1,
    negative_elbo,
    noise_scale,
    reconstruction_loss,
    sample_posterior,
)
from gaiadask.model.networks import NetworkShape, Posterior
from gaiadask.store.files import Store
from gaiadask.store.paths import RunPaths

RUN = RunPaths("r")
SIZES = st.fixed_dictionaries(
    {
        "n_values": st.integers(1, 12),
        "n_conditions": st.sampled_from([0, 3]),
        "latents": st.integers(1, 14),
        "hidden": st.lists(st.integers(2, 24), min_size=1, max_size=3).map(tuple),
        "variational": st.booleans(),
    }
)


def stars(n: int, sizes: dict) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n)
    present = torch.rand(n, sizes["n_values"], generator=generator) < 0.8
    values = torch.randn(n, sizes["n_values"], generator=generator) * present
    return values, present, torch.randn(n, sizes["n_conditions"], generator=generator)


def of_scale(scale: float) -> ReconstructionTerm:
    return ReconstructionTerm("hyperbolic", torch.tensor(scale))


# Networks ------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(SIZES)
def test_every_size_of_network(sizes: dict) -> None:
    """Shapes; gradients reach every parameter; train equals eval; a stored copy gives the same numbers."""
    torch.manual_seed(0)
    network = Autoencoder(NetworkShape(**sizes))
    values, present, condition = stars(17, sizes)
    network.start_linear(values, 0.05)
    mean, log_variance, _ = network.encode(values, condition)
    z = sample_posterior(Posterior(mean, log_variance), torch.randn(mean.shape, generator=torch.Generator().manual_seed(0)))
    rebuilt = network.decode(z, condition)
    assert mean.shape == (17, sizes["latents"])
    assert (log_variance is not None) == sizes["variational"]
    assert rebuilt.shape == values.shape

    loss = negative_elbo(values, rebuilt, present, Posterior(mean, log_variance), of_scale(0.05), 1.0)
    loss.total.backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name

    network.eval()
    assert torch.equal(network.encode(values, condition)[0], mean)
    copy = Autoencoder(NetworkShape(**sizes))
    copy.load_state_dict(network.state_dict())
    assert torch.equal(copy.decode(z, condition), rebuilt)


@pytest.mark.parametrize("variational", [True, False])
def test_an_untrained_network_is_pca(variational: bool) -> None:
    random = np.random.default_rng(0)
    x = (random.normal(size=(4_000, 4)) @ random.normal(size=(4, 9)) + random.normal(0, 0.1, (4_000, 9)) + 1.5).astype(np.float32)
    centred = x - x.mean(0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:3]
    by_pca = np.square(centred - centred @ axes.T @ axes).mean()

    network = Autoencoder(NetworkShape(9, 3, 3, (32, 32), variational))
    values, condition = torch.from_numpy(x), torch.zeros(len(x), 3)
    network.start_linear(values, 0.02)
    z = network.encode(values, condition)[0]
    error = (network.decode(z, condition) - values).square().mean().item()
    assert error == pytest.approx(by_pca, rel=0.02)
    torch.testing.assert_close(z.std(0), torch.ones(3), rtol=0.02, atol=0)


@pytest.mark.parametrize("batch_norm", ["none", "running", "batch"])
@pytest.mark.parametrize("activation", ["silu", "relu"])
def test_the_networks_of_2020(activation: Activation, batch_norm: BatchNorm) -> None:
    """No linear path; a sigmoid output lies in 0..1; only batches that are their own moments make a star depend on others."""
    torch.manual_seed(0)
    shape = NetworkShape(5, 1, 2, (8, 6), False, linear_path=False, activation=activation, batch_norm=batch_norm, sigmoid=True)
    network = Autoencoder(shape)
    values, condition = torch.rand(40, 5), torch.rand(40, 1)
    for _ in range(3):
        rebuilt = network.decode(network.encode(values, condition)[0], condition)
    assert ((rebuilt > 0) & (rebuilt < 1)).all()
    rebuilt.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    network.eval()
    whole = network.encode(values, condition)[0]
    part = network.encode(values[:7], condition[:7])[0]
    assert torch.allclose(whole[:7], part, atol=1e-5) == (batch_norm != "batch")
    assert network.encode(values[:1], condition[:1])[0].isfinite().all()


# Losses --------------------------------------------------------------------------------------------------------------
def test_losses_are_those_of_torch_distributions() -> None:
    torch.manual_seed(1)
    values, rebuilt = torch.randn(20, 5), torch.randn(20, 5)
    present = torch.rand(20, 5) < 0.7
    expected = -(Normal(rebuilt, 0.3).log_prob(values) * present).sum(1)
    torch.testing.assert_close(gaussian_nll(values, rebuilt, present, torch.tensor(0.3)), expected)
    scales = torch.rand(20, 5) + 0.1
    expected = -(Normal(rebuilt, scales).log_prob(values) * present).sum(1)
    torch.testing.assert_close(gaussian_nll(values, rebuilt, present, scales), expected)

    # scipy's p = 1, b = 0 is the symmetric hyperbolic distribution: a = (tail / sd)^2, in units of the tail.
    tail = torch.tensor(0.4)
    a = (tail / scales).double().numpy() ** 2
    density = genhyperbolic.logpdf((values - rebuilt).double().numpy(), p=1, a=a, b=0, scale=float(tail))
    expected = -(torch.from_numpy(density) * present).sum(1).float()
    torch.testing.assert_close(hyperbolic_nll(values, rebuilt, present, scales, 0.4), expected, rtol=1e-4, atol=1e-4)
    near, far = (hyperbolic_nll(values, values + off, present, scales, 1e3) for off in (0.01, 100.0))
    torch.testing.assert_close(near, gaussian_nll(values, values + 0.01, present, scales), rtol=1e-4, atol=1e-4)
    assert (far <= gaussian_nll(values, values + 100.0, present, scales)).all()

    mean, log_variance = torch.randn(20, 3), torch.randn(20, 3)
    expected = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(kl_to_standard_normal(mean, log_variance), expected)

    loss = negative_elbo(values, rebuilt, present, Posterior(mean, log_variance), of_scale(0.3), 0.5)
    torch.testing.assert_close(loss.kl_per_latent, expected.mean(0))
    torch.testing.assert_close(loss.total, loss.reconstruction + 0.5 * loss.kl)


@pytest.mark.parametrize(
    ("smallest", "dtype", "error"), [(2.0, torch.float32, 5e-7), (1e-3, torch.float32, 5e-7), (2.0, torch.float64, 1e-14)]
)
def test_the_norm_of_the_hyperbolic_loss_is_scipys(smallest: float, dtype: torch.dtype, error: float) -> None:
    x = torch.logspace(math.log10(smallest), 9, 4_001, dtype=torch.float64).to(dtype).clamp(min=smallest)
    expected = np.log(k1e(x.double().numpy()))
    # Where it is far from 0, float32 itself has no more digits.
    np.testing.assert_allclose(log_scaled_k1(x).double().numpy(), expected, rtol=error / 4, atol=error)


def test_what_is_null_does_not_count() -> None:
    values, rebuilt = torch.zeros(2, 3), torch.zeros(2, 3)
    present = torch.tensor([[True, True, False]] * 2)
    worse = rebuilt.clone()
    worse[:, 2] = 1e6
    scale = torch.tensor(0.1)
    assert torch.equal(gaussian_nll(values, rebuilt, present, scale), gaussian_nll(values, worse, present, scale))


def test_the_scale_is_a_share_of_the_stars_error_above_a_floor() -> None:
    sigma = torch.tensor([[0.0, 0.02, 0.5], [1.0, 0.04, 0.0]])
    expected = torch.tensor([[0.01, 0.01, 0.15], [0.3, 0.012, 0.01]])
    torch.testing.assert_close(noise_scale(sigma, 0.01, 0.3), expected)
    assert noise_scale(torch.empty(2, 0), 0.01, 0.3).tolist() == [[pytest.approx(0.01)]]


def test_far_errors_pull_no_harder_than_those_where_the_tail_begins() -> None:
    """The gradient grows like a Gaussian's up to about tail_from, and hardly from there on; a tiny error still has one."""
    error = torch.tensor([[1e-6], [0.01], [0.3], [3.0], [300.0]], requires_grad=True)
    present, scale = torch.ones(5, 1, dtype=torch.bool), torch.tensor(0.003)
    hyperbolic_nll(torch.zeros(5, 1), error, present, scale, 0.3).sum().backward()
    assert error.grad is not None
    pull = (error.grad * scale**2).flatten().tolist()
    assert pull == pytest.approx([1e-6, 0.01 / math.hypot(1, 1 / 30), 0.3 / math.sqrt(2), 0.3 / math.hypot(1, 0.1), 0.3], rel=1e-4)


def test_an_autoencoder_minimises_the_squared_error() -> None:
    values, present = torch.zeros(3, 2), torch.ones(3, 2, dtype=torch.bool)
    code = torch.zeros(3, 1)
    gaussian = ReconstructionTerm("gaussian", torch.tensor(0.1))
    one, two = (negative_elbo(values, values + off, present, Posterior(code, None), gaussian, 1.0) for off in (0.0, 0.5))
    assert one.kl.item() == two.kl.item() == 0
    assert (two.total - one.total).item() == pytest.approx(2 * 0.5**2 / (2 * 0.1**2), rel=1e-5)


def test_losses_of_2020_are_those_of_torch() -> None:
    torch.manual_seed(2)
    values, rebuilt, present = torch.rand(20, 5), torch.rand(20, 5), torch.ones(20, 5, dtype=torch.bool)
    one = torch.tensor(1.0)
    functional = torch.nn.functional
    torch.testing.assert_close(
        reconstruction_loss(ReconstructionTerm("mse", one), values, rebuilt, present).mean(), functional.mse_loss(rebuilt, values)
    )
    torch.testing.assert_close(
        reconstruction_loss(ReconstructionTerm("bce", one), values, rebuilt, present).mean(),
        functional.binary_cross_entropy(rebuilt, values),
    )
    weights = torch.tensor([1.0, 4.0, 0.25, 1.0, 9.0])
    found = reconstruction_loss(ReconstructionTerm("weighted-mse", weights**-0.5), values, rebuilt, present)
    torch.testing.assert_close(found, (weights * (values - rebuilt) ** 2).mean(1))
    # Far outside 0..1 nothing is infinite, and what is null does not count.
    assert reconstruction_loss(ReconstructionTerm("bce", one), 1e6 * values, torch.ones(20, 5), present).isfinite().all()
    present[:, 2] = False
    rest = [0, 1, 3, 4]
    for kind in ("mse", "bce"):
        masked = reconstruction_loss(ReconstructionTerm(kind, one), values, rebuilt, present)
        torch.testing.assert_close(
            masked, reconstruction_loss(ReconstructionTerm(kind, one), values[:, rest], rebuilt[:, rest], present[:, rest])
        )
    assert reconstruction_loss(ReconstructionTerm("mse", one), values, rebuilt, torch.zeros_like(present)).tolist() == [0.0] * 20


def test_free_bits_are_a_floor_that_pulls_at_nothing() -> None:
    values = rebuilt = torch.zeros(10, 2)
    present = torch.ones(10, 2, dtype=torch.bool)
    mean = torch.tensor([[0.1, 2.0]]).repeat(10, 1).requires_grad_()
    loss = negative_elbo(values, rebuilt, present, Posterior(mean, torch.zeros(10, 2)), of_scale(1.0), 0.5, free_bits=0.25)
    assert loss.kl_per_latent.tolist() == pytest.approx([0.005, 2.0])
    assert (loss.total - loss.reconstruction).item() == pytest.approx(0.5 * (0.25 + 2.0))
    loss.total.backward()
    assert mean.grad is not None
    assert mean.grad[:, 0].abs().max() == 0 < mean.grad[:, 1].abs().min()


def test_a_constant_latent_is_not_active() -> None:
    means = torch.randn(500, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 0.01, 0.5])
    assert active_units(means) == 2


# Files ---------------------------------------------------------------------------------------------------------------
CONFIG = ModelConfig(latents=4, hidden=(8, 8))


@pytest.fixture(scope="module")
def transform() -> Transform:
    return fitted(made_up_stars(2_000, seed=3, nulls=0.2))


@pytest.fixture
def saved(tmp_path: Path, transform: Transform) -> tuple[Store, StarModel]:
    store = Store(str(tmp_path))
    torch.manual_seed(0)
    return store, save_model(store, RUN, new_network(transform, CONFIG), transform, untrained(CONFIG, "k1"))


def test_a_loaded_model_is_the_saved_one(saved: tuple[Store, StarModel], transform: Transform) -> None:
    store, model = saved
    loaded = load_model(store, RUN)
    rows = model.network.rows_at_once + 700
    inputs = transform.forward(made_up_stars(rows, seed=4, nulls=0.2))
    z = model.encode(inputs)
    assert z.shape == (rows, 4)
    assert z.dtype == np.float32
    np.testing.assert_array_equal(loaded.encode(inputs), z)
    np.testing.assert_array_equal(loaded.decode(z, inputs.condition), model.decode(z, inputs.condition))
    assert model.decode(z, inputs.condition).shape == inputs.values.shape
    assert loaded.card == model.card
    assert loaded.key == "k1"


def test_no_star_is_a_batch_too(saved: tuple[Store, StarModel], transform: Transform) -> None:
    inputs = transform.forward(made_up_stars(5).slice(0, 0))
    z = saved[1].encode(inputs)
    assert z.shape == (0, 4)
    assert saved[1].decode(z, inputs.condition).shape == (0, 9)


def test_the_card_tells_each_column_and_what_made_it(saved: tuple[Store, StarModel], transform: Transform) -> None:
    card = saved[0].read_json(RUN.card)
    roles = {column["name"]: column["role"] for column in card["columns"]}
    assert list(roles) == list(transform.columns)
    assert roles["ra"] == "position"
    assert roles["parallax"] == "free"
    assert roles["lum_val"] == "derived"
    assert next(c for c in card["columns"] if c["name"] == "parallax")["unit"] == "mas"
    assert card["model"] == json.loads(CONFIG.model_dump_json())
    outcome = untrained(CONFIG, "k1")
    assert card["training"] == outcome.training.to_json()
    assert card["metrics"] == outcome.metrics.model_dump(mode="json", exclude={"latents"})
    assert (card["training"]["rows_seen"], card["metrics"]["validation_loss"]) == (7, 1.5)
    assert card["metadata"] == {"catalogue_id": "c"}
    assert len(card["latents"]) == 4
    assert {"torch", "numpy", "python"} <= set(card["versions"])


def spoil_weights(store: Store) -> None:
    content = bytearray(store.read_bytes(RUN.weights))
    content[-1] ^= 1
    store.write_bytes(RUN.weights, bytes(content))


def spoil_card(**changes: object):
    def spoil(store: Store) -> None:
        store.write_json(RUN.card, store.read_json(RUN.card) | changes)

    return spoil


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (spoil_weights, "weights.safetensors is not the file"),
        (lambda store: store.remove(RUN.weights), "weights.safetensors: no such file"),
        (lambda store: store.remove(RUN.card), "card.json: no such file"),
        (lambda store: store.write_bytes(RUN.card, b"{half"), "card.json is not JSON"),
        (lambda store: store.write_bytes(RUN.card, b"[]"), "format_version 'list'"),
        (spoil_card(format_version=99), "format_version 99, expected 2"),
        (spoil_card(columns=5), "do not describe one model"),
        (spoil_card(transform={}), "do not describe one model"),
        (spoil_card(model=CONFIG.model_dump(mode="json") | {"latents": 5}), "do not describe one model"),
        (spoil_card(model={"width": 5}), "do not describe one model"),
    ],
)
def test_a_pair_that_does_not_belong_together_is_refused(saved: tuple[Store, StarModel], spoil, says: str) -> None:
    spoil(saved[0])
    with pytest.raises(StoreError, match=says):
        load_model(saved[0], RUN)


def test_the_card_is_written_last(saved: tuple[Store, StarModel], transform: Transform) -> None:
    store = saved[0]
    store.remove(RUN.weights)
    Path(store.path(RUN.weights)).mkdir()  # so that the weights cannot be written
    with pytest.raises(GaiadaskError):
        save_model(store, RUN, saved[1].network, transform, untrained(CONFIG, "k2"))
    assert not store.exists(RUN.card)


def test_a_model_of_another_key_is_not_used(saved: tuple[Store, StarModel]) -> None:
    first = load_model_cached(saved[0], RUN, "k1")
    assert load_model_cached(saved[0], RUN, "k1") is first
    with torch.no_grad():
        next(first.network.parameters()).mul_(2)
    save_model(saved[0], RUN, first.network, first.transform, untrained(CONFIG, "k1"))
    assert load_model_cached(saved[0], RUN, "k1") is not first, "trained anew, on another machine, under the same key"
    with pytest.raises(KeyMismatchError, match=r"model of key k1, expected k2"):
        load_model_cached(saved[0], RUN, "k2")
