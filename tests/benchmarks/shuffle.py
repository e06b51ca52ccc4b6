"""How much a small shuffle buffer costs in loss, and what holding stars as 16-bit codes does:

    python tests/benchmarks/shuffle.py                         # 10 M mock stars, 30 M stars shown: an hour or two
    python tests/benchmarks/shuffle.py --stars 2000000 --shown 1500000 --store /path/to/a/store/with/a/catalogue

The same network is trained on the same stars, by a full shuffle of each pass, by streams that are mixed in a buffer of 1/2, 1/10 and
1/50 of the train stars, and by a full shuffle of float32 numbers instead of codes; with several seeds, for they differ too. Told are
the best validation loss, nats a star, and the mean over the network's values of the median error of validation stars, in standard
deviations.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from contest import mock_config

from gaiadask.cluster.here import Here
from gaiadask.inputs.transform import NetworkInputs
from gaiadask.model.star_model import StarModel
from gaiadask.split import TRAIN_SHARE
from gaiadask.stages.context import Context
from gaiadask.stages.engine import run_stages
from gaiadask.stages.statistics import read_statistics
from gaiadask.stages.train import assignment, write_validation_stars
from gaiadask.training import loop
from gaiadask.training.assignment import Assignment
from gaiadask.training.codes import Batch, Codec, Codes
from gaiadask.training.loop import train


class Plain(NamedTuple):
    """Keeps stars as they are, float32, each number in the place of two codes."""

    sigmas: int
    width: int
    n_values: int
    n_conditions: int

    @classmethod
    def model_validate(cls, record: object) -> Plain:
        codec = Codec.model_validate(record)
        conditions = len(codec.unit) - codec.n_values + codec.null_bits
        return cls(codec.sigmas, 2 * (codec.n_values + conditions + codec.sigmas), codec.n_values, conditions)

    def encode(self, inputs: NetworkInputs, sigma: np.ndarray) -> Codes:
        values = np.where(inputs.present, inputs.values, np.float32(np.nan))
        return np.concatenate([values, inputs.condition, sigma], axis=1, dtype=np.float32).view(np.int16)

    def decoder(self, device: torch.device) -> Plain:
        return self

    def __call__(self, codes: torch.Tensor) -> Batch:
        values, condition, sigma = codes.view(torch.float32).split([self.n_values, self.n_conditions, self.sigmas], dim=1)
        return Batch(values.nan_to_num(), ~values.isnan(), condition, sigma)


class Way(NamedTuple):
    """How stars are shown. share: of the train stars that the buffer holds. plain: not as codes."""

    name: str
    share: float
    plain: bool = False


WAYS = (
    Way("full shuffle", 1.01),
    Way("buffer of 1/2", 0.5),
    Way("buffer of 1/10", 0.1),
    Way("buffer of 1/50", 0.02),
    Way("full shuffle, float32", 1.01, plain=True),
)


def prepared(folder: Path, stars: int, shown: int) -> tuple[Assignment, int]:
    """An assignment, and how many train stars there are."""
    training = {"rows_seen": shown, "validate_every_rows": max(1, shown // 4), "validation_rows": 50_000, "patience": 1_000}
    config = mock_config(folder, stars, training=training)
    run_stages(config, ["ingest", "statistics"], workers=Here())
    context = Context(config, given_workers=Here())
    write_validation_stars(context, context.run.validation, 50_000)
    key = context.key("statistics")
    return assignment(context, read_statistics(context.store, context.run, key), "shuffle"), int(
        TRAIN_SHARE * context.catalogue.rows
    )


@contextmanager
def held(plain: bool) -> Iterator[None]:
    """Stars as codes, or as they are."""
    if plain:
        with patch.object(loop, "Codec", Plain):
            yield
    else:
        yield


def trained(given: Assignment, way: Way, train_stars: int, seed: int) -> StarModel:
    buffer_rows = round(way.share * train_stars)
    changes = {"buffer_rows": buffer_rows, "seed": seed}
    name = f"shuffle/{buffer_rows}-{way.plain}-{seed}"
    with held(way.plain):
        model = train(
            given.model_copy(update={"training": given.training.model_copy(update=changes), "key": name, "run": name}),
            lambda _: None,
        )
    assert model is not None
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stars", type=int, default=10_000_000, help="mock stars of the catalogue")
    parser.add_argument("--shown", type=int, default=30_000_000, help="stars shown to each network")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument(
        "--store", type=Path, default=Path("shuffle-store"), help="folder of the store; its catalogue is made if it has none"
    )
    options = parser.parse_args()
    given, train_stars = prepared(options.store.resolve(), options.stars, options.shown)
    print(f"{train_stars:,} train stars, {options.shown:,} shown, {options.seeds} seeds", flush=True)
    print("| | validation loss | by seed | mean error, σ | by seed |\n| --- | --- | --- | --- | --- |", flush=True)
    for way in WAYS:
        losses, errors = [], []
        for seed in range(options.seeds):
            metrics = trained(given, way, train_stars, seed).card.metrics
            losses.append(metrics.validation_loss)
            errors.append(statistics.mean(metrics.median_error.values()))
        by_seed = [", ".join(f"{value:.4f}" for value in values) for values in (losses, errors)]
        print(
            f"| {way.name} | {statistics.mean(losses):.4f} | {by_seed[0]} | {statistics.mean(errors):.4f} | {by_seed[1]} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
