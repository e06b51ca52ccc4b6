"""Why "KL never worked": trains one small autoencoder by each of several losses and prints what became of it as a table.

    python tests/benchmarks/kl_of_features.py

Mock stars, eight latents for the seed's sixteen columns; a minute on an idle core. The explanation, with the table
that this printed, is docs/kl.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from gaiadask.release.dr2 import DR2

sys.path.insert(0, str(Path(__file__).parents[1]))

from made_up import made_up_stars

from gaiadask.inputs.statistics import Statistics
from gaiadask.inputs.transform import Transform
from gaiadask.model.losses import ReconstructionTerm, active_units, negative_elbo, sample_posterior
from gaiadask.model.networks import Autoencoder, NetworkShape, Posterior
from gaiadask.quality.reconstruction import ks_distance
from gaiadask.release.dr2 import SEED16
from gaiadask.split import Part, part_of

LATENTS, HIDDEN, BATCH_ROWS = 8, (64, 64), 512
EPSILON = 1e-7  # Keras clips by it
FeatureLoss = Callable[[Tensor, Tensor], Tensor]


def squared_error(x: Tensor, rebuilt: Tensor) -> Tensor:
    return ((x - rebuilt) ** 2).mean(1)


def kl_as_keras_has_it(x: Tensor, rebuilt: Tensor) -> Tensor:
    """keras.losses.KLDivergence of two rows of features: sum x log(x / rebuilt), both clipped to 0..1, neither summing to 1."""
    x, rebuilt = x.clamp(EPSILON, 1), rebuilt.clamp(EPSILON, 1)
    return (x * (x / rebuilt).log()).sum(1)


def kl_of_softmax(x: Tensor, rebuilt: Tensor) -> Tensor:
    """torch.nn.functional.kl_div(log_softmax(rebuilt), softmax(x)): distributions over columns, blind to a common shift."""
    p = torch.log_softmax(x, 1)
    return (p.exp() * (p - torch.log_softmax(rebuilt, 1))).sum(1)


class Row(NamedTuple):
    """features: a loss of features against features, of a plain autoencoder; or noise_scale: of an ELBO."""

    name: str
    scaling: str
    features: FeatureLoss | None = None
    noise_scale: float = 0.0


ROWS = (
    Row("squared error, no KL", "min-max", features=squared_error),
    Row("KL(x ‖ x̂) as Keras computes it", "min-max", features=kl_as_keras_has_it),
    Row("KL(softmax x ‖ softmax x̂)", "min-max", features=kl_of_softmax),
    Row("squared error + KL(q(z given x) ‖ p(z)): an ELBO of scale 0.71", "min-max", noise_scale=0.5**0.5),
    Row("the same ELBO, columns mapped to normals", "quantile", noise_scale=0.5**0.5),
    Row("ELBO of scale 0.05", "quantile", noise_scale=0.05),
    Row("ELBO of scale 0.01", "quantile", noise_scale=0.01),
)


class Outcome(NamedTuple):
    """loss: at the end, and of a perfect rebuild (None for an ELBO). error: median |error| / IQR, mean over columns; ks: mean.
    active: latents in use. kl: nats a star."""

    loss: float
    perfect: float | None
    error: float
    ks: float
    active: int
    kl: float | None


def measure(row: Row, table: pa.Table, steps: int, seed: int) -> Outcome:
    """Train on train stars, rate on test stars."""
    transform = Transform.fit(SEED16, Statistics.from_table(table, DR2).train, DR2, "degrees", row.scaling, derive=False)
    part = part_of(table["source_id"].to_numpy())
    train, test = (torch.from_numpy(transform.forward(table.filter(pa.array(part == p))).values) for p in (Part.TRAIN, Part.TEST))
    torch.manual_seed(seed)
    network = Autoencoder(
        NetworkShape(train.shape[1], 0, LATENTS, HIDDEN, row.features is None, linear_path=False, sigmoid=row.scaling == "min-max")
    )
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    noise = torch.Generator().manual_seed(seed)
    for step in range(steps):
        loss = _loss(network, row, train[torch.randint(len(train), (BATCH_ROWS,), generator=noise)], noise, step / steps)[0]
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    with torch.inference_mode():
        last, kl = _loss(network, row, test, noise, 1.0)
        nothing = torch.empty(len(test), 0)
        means = network.encode(test, nothing)[0]
        rebuilt = network.decode(means, nothing)
        perfect = row.features(test, test).mean().item() if row.features else None
    x, y = (np.stack(list(transform.inverse(v.numpy()).values()), axis=1) for v in (test, rebuilt))
    spread = np.subtract(*np.quantile(x, [0.75, 0.25], axis=0))
    error = float(np.mean(np.median(np.abs(x - y), axis=0) / spread))
    ks = float(np.mean([ks_distance(a, b) for a, b in zip(x.T, y.T, strict=True)]))
    return Outcome(last.item(), perfect, error, ks, active_units(means), kl)


def _loss(network: Autoencoder, row: Row, x: Tensor, noise: torch.Generator, share: float) -> tuple[Tensor, float | None]:
    nothing = x[:, :0]
    mean, log_variance, _ = network.encode(x, nothing)
    rebuilt = network.decode(sample_posterior(Posterior(mean, log_variance), torch.randn(mean.shape, generator=noise)), nothing)
    if row.features:
        return row.features(x, rebuilt).mean(), None
    scale = torch.tensor(row.noise_scale)
    present = torch.ones_like(x, dtype=torch.bool)
    weight = min(1.0, share / 0.1)
    loss = negative_elbo(x, rebuilt, present, Posterior(mean, log_variance), ReconstructionTerm("gaussian", scale), weight)
    # In units of the squared scale, as training has it.
    return loss.total * row.noise_scale**2, loss.kl.item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stars", type=int, default=40_000, help="mock stars (default 40000)")
    parser.add_argument("--steps", type=int, default=1_500, help=f"of {BATCH_ROWS} stars (default 1500)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = made_up_stars(options.stars, seed=1)
    print("| loss | columns | loss at the end | loss of a perfect rebuild | error / IQR | KS | latents in use | KL, nats a star |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in ROWS:
        found = measure(row, table, options.steps, options.seed)
        of_features = (f"{found.loss:.4f}", f"{found.perfect:.4f}") if found.perfect is not None else ("", "")
        kl = f"{found.kl:.2f}" if found.kl is not None else ""
        numbers = (*of_features, f"{found.error:.3f}", f"{found.ks:.3f}", f"{found.active} of {LATENTS}", kl)
        print(f"| {row.name} | {row.scaling} | {' | '.join(numbers)} |", flush=True)


if __name__ == "__main__":
    main()
