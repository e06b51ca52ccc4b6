"""The autoencoder of 2020 in Keras and as our preset keras-2020, on the same mock stars with the same budget.

    pip install 'gaiadask[benchmark]'
    python tests/benchmarks/keras_parity.py

Prints a markdown table: for each seed of each the binary cross-entropy of validation stars, and of test stars the median
|error| over the IQR (mean and worst of the 16 columns) and the Kolmogorov-Smirnov distance (mean). Exits with 1 where the
means differ by more than the seeds do (three standard deviations of their difference). A few minutes on one core.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from gaiadask.release.dr2 import DR2

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ["KERAS_BACKEND"] = "torch"

from made_up import write_partitions
from small_run import fetched

from gaiadask.config.sections import Config
from gaiadask.config.toml import parse_config
from gaiadask.inputs.statistics import Statistics
from gaiadask.inputs.transform import Transform
from gaiadask.model.losses import bernoulli_cross_entropy
from gaiadask.quality.reconstruction import rate_columns, summarise
from gaiadask.release.dr2 import SEED16
from gaiadask.split import Part, part_of
from gaiadask.store.files import Store
from gaiadask.training.assignment import Assignment
from gaiadask.training.loop import train
from gaiadask.training.schedule import learning_rate_factor

Values = NDArray[np.float32]


class Stars(NamedTuple):
    """One table and what networks see of its parts, shape (n, 16) each."""

    table: pa.Table
    transform: Transform
    train: Values
    validation: Values
    test: Values


class Outcome(NamedTuple):
    """Binary cross-entropy of validation stars; errors and KS of test stars; seconds of training."""

    loss: float
    error_mean: float
    error_worst: float
    ks_mean: float
    seconds: float


def made_up(config: Config) -> Stars:
    table = fetched(config)
    model = config.model
    transform = Transform.fit(SEED16, Statistics.from_table(table, DR2).train, DR2, model.position, model.scaling, model.derive)
    part = part_of(table["source_id"].to_numpy())
    parts = (transform.forward(table.filter(pa.array(part == p))).values for p in (Part.TRAIN, Part.VALIDATION, Part.TEST))
    return Stars(table, transform, *parts)


def rate(stars: Stars, validation: Values, test: Values, seconds: float) -> Outcome:
    """validation, test: the rebuilt values."""
    loss = bernoulli_cross_entropy(torch.from_numpy(stars.validation), torch.from_numpy(validation)).mean().item()
    real = stars.table.filter(pa.array(part_of(stars.table["source_id"].to_numpy()) == Part.TEST))
    rebuilt = pa.table({name: values for name, values in stars.transform.inverse(test).items() if name in SEED16})
    summaries = summarise(rate_columns(real, rebuilt, SEED16, DR2)).all_columns
    return Outcome(loss, summaries.median.mean, summaries.median.worst, summaries.ks.mean, seconds)


def ours(config: Config, stars: Stars, seed: int) -> Outcome:
    """By `gaiadask.training`, validated at the end alone, so that the last weights are kept, as Keras keeps them."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        names = write_partitions(store, stars.table, row_group_rows=20_000)
        training = config.training.model_copy(update={"seed": seed})
        told = Assignment(
            store=folder, run="parity", partitions=tuple(names), transform=stars.transform.to_json(), model=config.model,
            training=training, key=str(seed),
        )  # fmt: skip
        model = train(told, lambda _: None)
    inputs = stars.transform.forward(stars.table)
    part = part_of(stars.table["source_id"].to_numpy())
    rebuilt = model.decode(model.encode(inputs), inputs.condition)
    return rate(stars, rebuilt[part == Part.VALIDATION], rebuilt[part == Part.TEST], model.card.training.seconds)


def keras_network(config: Config, seed: int) -> Any:
    """As it was written in 2020: layers, compile."""
    import keras

    keras.utils.set_random_seed(seed)
    widths = config.model.hidden
    layers = [keras.Input((16,))]
    layers += [keras.layers.Dense(width, activation="relu") for width in widths]
    layers += [keras.layers.Dense(config.model.latents)]
    layers += [keras.layers.Dense(width, activation="relu") for width in reversed(widths)]
    layers += [keras.layers.Dense(16, activation="sigmoid")]
    model = keras.Sequential(layers)
    model.compile(keras.optimizers.Adam(config.training.learning_rate), loss="binary_crossentropy")
    return model


def scheduled(config: Config, epochs: int) -> Any:
    """The configuration's learning rate as a callback of Keras."""
    import keras

    training = config.training
    return keras.callbacks.LearningRateScheduler(
        lambda epoch: training.learning_rate * learning_rate_factor(epoch / epochs, training)
    )


def in_keras(config: Config, stars: Stars, seed: int) -> Outcome:
    model, training = keras_network(config, seed), config.training
    epochs = max(1, round(training.rows_seen / len(stars.train)))
    began = time.monotonic()
    model.fit(
        stars.train, stars.train, batch_size=training.batch_rows, epochs=epochs, callbacks=[scheduled(config, epochs)], verbose=0
    )
    seconds = time.monotonic() - began
    validation, test = (model.predict(x, batch_size=16_384, verbose=0) for x in (stars.validation, stars.test))
    return rate(stars, validation, test, seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stars", type=int, default=120_000, help="mock stars asked for; those with all columns are used")
    parser.add_argument("--rows-seen", type=int, default=2_000_000, help="budget of each training (default 2000000)")
    parser.add_argument("--batch-rows", type=int, default=512)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = parse_config(
        {
            "archive": {"kind": "mock", "mock_stars": options.stars},
            "model": {"preset": "keras-2020"},
            "training": {
                "rows_seen": options.rows_seen, "validate_every_rows": options.rows_seen, "batch_rows": options.batch_rows,
                "validation_rows": 5_000,
            },
        }
    )  # fmt: skip
    stars = made_up(config)
    print(f"{stars.table.num_rows} mock stars, {options.rows_seen} shown in batches of {options.batch_rows}\n")
    print("| | seed | loss | error / IQR, mean | worst | KS, mean | seconds |\n| --- | --- | --- | --- | --- | --- | --- |")
    found: dict[str, list[Outcome]] = {"Keras": [], "keras-2020": []}
    for seed in range(options.seeds):
        for name, fit in (("Keras", in_keras), ("keras-2020", ours)):
            outcome = fit(config, stars, seed)
            found[name].append(outcome)
            print(
                f"| {name} | {seed} | {outcome.loss:.5f} | {' | '.join(f'{x:.3f}' for x in outcome[1:4])} | {outcome.seconds:.0f} |"
            )
    return int(not all(alike(found, measure) for measure in ("loss", "error_mean", "ks_mean")))


def alike(found: dict[str, list[Outcome]], measure: str) -> bool:
    """Whether the two means of a measure differ by less than three standard deviations of their difference; prints it."""
    one, other = (np.array([getattr(outcome, measure) for outcome in outcomes]) for outcomes in found.values())
    apart = abs(one.mean() - other.mean())
    spread = np.sqrt((one.var(ddof=1) + other.var(ddof=1)) / len(one)) if len(one) > 1 else np.inf
    print(
        f"\n{measure}: {one.mean():.5f} and {other.mean():.5f}, apart by {apart / spread:.1f} standard deviations of their difference"
    )
    return bool(apart < 3 * spread)


if __name__ == "__main__":
    sys.exit(main())
