"""A model that is a flow, trained on as what new stars are drawn from: it is a density of stars already.

Two things differ from the model. Every value may depend on what is null, which comes before all values here: in the model a value does not
see whether it is itself null, so that it can be guessed, and stars that lack a velocity are drawn as bright as others. And noise is a
tenth of that of the model's likelihood, which is as wide as the scatter of colours: drawn with it, fluxes lie off the stellar locus.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gaiadask.config.sections import PriorConfig
from gaiadask.model.flow import Flow
from gaiadask.model.star_model import StarModel
from gaiadask.prior.card import DensityCard
from gaiadask.prior.density_fit import Fit, fit
from gaiadask.prior.flows import one_thread
from gaiadask.training.checkpoint import CheckpointFile
from gaiadask.training.codes import Batch
from gaiadask.training.objective import VALIDATION_SEED, Objective

NOISE_SHARE = 0.1
"""Of the standard deviation of the model's likelihood."""


class Numbers(NamedTuple):
    """What a flow is fitted to, of n stars, as `Transform.forward` gives them: values and present (n, n_values), condition (n, n_conditions)."""

    values: NDArray[np.float32]
    present: NDArray[np.bool_]
    condition: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class FlowDensity:
    """p(values | position, null mask) by a flow of the model's shape. weights: its state, by name."""

    weights: dict[str, NDArray]

    def network(self, model: StarModel) -> Flow:
        """The flow on the model's device. model: from which the density was made."""
        assert isinstance(model.network, Flow)
        return _built(self, model.network)

    def draw(self, model: StarModel, condition: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float64]:
        """Draw transformed values, shape (n, n_values), for each row of a condition, shape (n, n_conditions)."""
        scores = random.standard_normal((len(condition), model.latents), dtype=np.float32)
        flow, device = self.network(model), model.device
        with one_thread(), torch.inference_mode():
            values = flow.decode(torch.from_numpy(scores).to(device), torch.from_numpy(condition).to(device))
        return values.cpu().numpy().astype(np.float64)

    def log_ratio(self, model: StarModel, values: NDArray[np.float32], condition: NDArray[np.float32]) -> NDArray[np.float64]:
        """Logarithm of how much denser each value, given those before it, is here than in the model, shape (n, n_values), nats."""
        assert isinstance(model.network, Flow)
        given = torch.from_numpy(values).to(model.device), torch.from_numpy(condition).to(model.device)
        flow = self.network(model)
        with one_thread(), torch.inference_mode():
            ratio = flow.log_densities(*given) - model.network.log_densities(*given)
        return ratio.cpu().numpy().astype(np.float64)

    def to_arrays(self) -> dict[str, NDArray]:
        """Arrays by name, as the file of weights has them."""
        return self.weights


@lru_cache(maxsize=2)
def _built(density: FlowDensity, network: Flow) -> Flow:
    """The flow of a density; built once, for it takes a fifth of the time of a draw."""
    flow = network.knowing_nulls()
    flow.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in density.weights.items()})
    return flow.eval()


class FittedFlow(NamedTuple):
    """A flow and the record of its fit."""

    density: FlowDensity
    card: DensityCard


def fit_flow(
    model: StarModel,
    parts: tuple[Numbers, Numbers],
    config: PriorConfig,
    report: Callable[[float], None] = lambda share: None,
    checkpoint: CheckpointFile | None = None,
) -> FittedFlow:
    """Train the model's flow on as a density of new stars; the weights of the lowest validation loss are chosen.

    Args:
        model: of preset flow; it stays as it is.
        parts: train stars, and validation stars, which choose the weights and stop the fit.
        config, report, checkpoint: as `fit_density` takes them.

    Raises:
        TrainingError: the loss is not finite.
        StoreError: the checkpoint is damaged or cannot be written.
    """
    assert isinstance(model.network, Flow)
    flow, device = model.network.knowing_nulls(), model.device
    objective = Objective.of(model.card.model, model.transform, device)
    objective = objective._replace(noise_scale=NOISE_SHARE * objective.noise_scale, error_share=0.0)
    train, validation = (_batch(part, device) for part in parts)
    noise = torch.Generator(device=device)

    def loss(stars: Batch, seed: int) -> Tensor:
        noise.manual_seed(seed)
        drawn = torch.randn(stars.values.shape, generator=noise, device=device)
        return objective.of_network(flow, stars, drawn).total

    def of_rows(rows: Tensor, rows_seen: int) -> Tensor:
        flow.train()
        # Noise follows from how many stars were shown: a fit that resumes draws what an unbroken one draws.
        return loss(train.rows(rows.to(device)), int(np.random.SeedSequence([config.seed, rows_seen]).generate_state(1)[0]))

    def of_validation() -> float:
        flow.eval()
        sums = []
        for number, first in enumerate(range(0, len(validation), flow.rows_at_once)):
            part = Batch(*(each[first : first + flow.rows_at_once] for each in validation))
            sums.append(loss(part, VALIDATION_SEED + number).item() * len(part))
        return sum(sums) / len(validation)

    with one_thread():
        done = fit(Fit(flow, len(train), of_rows, of_validation), config, config.seed, report, checkpoint)
    weights = {name: part.detach().cpu().numpy() for name, part in flow.state_dict().items()}
    return FittedFlow(FlowDensity(weights), done.card(features=flow.shape.n_values, context=flow.shape.n_conditions))


def _batch(part: Numbers, device: torch.device) -> Batch:
    values, present, condition = (torch.from_numpy(array).to(device) for array in part)
    return Batch(values, present, condition, values[:, :0])
