"""How fast a network trains, by one rank and by two, beside the same step on tensors in memory and the loop of 2020. Prints a table.

    python tests/benchmarks/training_speed.py                                   # 10 M mock stars, some 20 minutes
    python tests/benchmarks/training_speed.py --stars 300000 --shown 1000000 --repeats 1

In turn, each in a fresh process, on the same catalogue (25 columns, three hidden layers of 128, nulls), for each of --batches:

- ceiling: the step of a rank (`training.step`) on batches that are in memory already.
- one rank, two ranks: the stage `train` with that many ranks on this machine, one thread each, joined by gloo: the stars are read,
  shuffled and shown, validations (each 2.5 million stars, as by default) and checkpoints included.
- one rank of one core: the same with its client and all that it starts on one core, beside which two ranks have two.
- loop of 2020: torch's DataLoader over a Dataset that gives one star at a time, as the programs of 2020 did, and the same step.

Rates are of training itself (`seconds` of the stage): the start of processes is not in them. CPU seconds are of everything.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from contest import Part, all_columns_config, bound, cpu_seconds, interleaved, mock_config, on_one_core, table

from gaiadask.cluster.here import Here
from gaiadask.config.sections import Config
from gaiadask.inputs.transform import Transform
from gaiadask.model.device import torch_device
from gaiadask.split import Part as Split
from gaiadask.split import part_of
from gaiadask.stages.context import Context
from gaiadask.stages.engine import run_stages
from gaiadask.stages.statistics import read_statistics
from gaiadask.stages.train import TrainResult
from gaiadask.training.batches import Batch, Share
from gaiadask.training.group import OneRank
from gaiadask.training.step import Learner, new_learner, step

ROWS_IN_MEMORY = 200_000
CONTESTANTS = ("ceiling", "one rank", "one rank of one core", "two ranks", "loop of 2020")
SHOWN_BY_ROWS = 50_000
"""The loop of 2020 is measured on fewer stars: it takes a minute for a million."""


def config_of(options: argparse.Namespace, batch_rows: int, ranks: int) -> Config:
    training = {
        "rows_seen": options.shown, "batch_rows": batch_rows, "threads": 1, "ranks": ranks, "buffer_rows": 10_000_000,
    }  # fmt: skip
    make = all_columns_config if options.all_columns else mock_config
    config: Config = make(options.folder, options.stars, training=training, model={"hidden": (128, 128, 128)})
    return config.model_copy(update={"name": f"speed-{ranks}-{batch_rows}"})


def by_ranks(config: Config, is_on_one_core: bool = False) -> Part:
    """The stage itself."""
    torch.set_num_threads(1)
    if is_on_one_core:
        on_one_core()
    before = cpu_seconds()
    run_stages(config, ["statistics"], workers=Here())
    again = ["train"] if Context(config).manifest.entry("train") else []
    result = run_stages(config, ["train"], workers=Here(), replacing=again)["train"]
    assert isinstance(result, TrainResult)
    return Part(result.rows_seen, result.seconds, cpu_seconds() - before)


def learner_and_stars(config: Config) -> tuple[Learner, Batch]:
    """An untrained network, and train stars in memory."""
    torch.set_num_threads(1)
    context = Context(config, given_workers=Here())
    run_stages(config, ["statistics"], workers=Here())
    statistics = read_statistics(context.store, context.run, context.key("statistics"))
    model = config.model
    transform = Transform.fit(config.model_columns, statistics.train, config.release, model.position, model.scaling, model.derive)
    device = torch_device(config.cluster.device)
    tables, rows = [], 0
    for name in context.store.list("catalogue/dataset", ".parquet"):
        with context.store.open_parquet(name) as file:
            stars = file.read()
        tables.append(stars.filter(pa.array(part_of(stars["source_id"].to_numpy()) == Split.TRAIN)))
        rows += len(tables[-1])
        if rows >= ROWS_IN_MEMORY:
            break
    stars = pa.concat_tables(tables).slice(0, ROWS_IN_MEMORY)
    parts = [*transform.forward(stars), transform.sigma(stars)]
    batch = Batch(*(torch.from_numpy(np.ascontiguousarray(part)).to(device) for part in parts))
    return new_learner(transform, model, config.training, device), batch


def timed(learner: Learner, batches: Iterator[Batch], shown: int) -> Part:
    """Steps on these batches until as many stars have been shown."""
    rows = learner.training.batch_rows
    seen, before, started = 0, cpu_seconds(), time.perf_counter()
    for batch in batches:
        places = torch.arange(rows, device=batch.values.device)
        loss = step(learner, Share(batch, places), seen, OneRank())
        seen += rows
        if seen >= shown:
            break
    assert np.isfinite(loss.total.item())
    return Part(seen, time.perf_counter() - started, cpu_seconds() - before)


def ceiling(config: Config) -> Part:
    """The same step on batches in memory."""
    learner, stars = learner_and_stars(config)
    rows = config.training.batch_rows
    ready = [stars.rows(torch.arange(i, i + rows)) for i in range(0, len(stars) - rows + 1, rows)]

    def again() -> Iterator[Batch]:
        while True:
            yield from ready

    return timed(learner, again(), config.training.rows_seen)


class Rows(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """One star at a time."""

    def __init__(self, stars: Batch) -> None:
        self.stars = stars

    def __len__(self) -> int:
        return len(self.stars)

    def __getitem__(self, number: int) -> tuple[Any, ...]:
        return tuple(part[number] for part in self.stars)


def loop_of_2020(config: Config) -> Part:
    """DataLoader by rows."""
    learner, stars = learner_and_stars(config)
    loader = torch.utils.data.DataLoader(Rows(stars), batch_size=config.training.batch_rows, shuffle=True, drop_last=True)
    return timed(learner, (Batch(*parts) for parts in loader), SHOWN_BY_ROWS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stars", type=int, default=10_000_000)
    parser.add_argument("--shown", type=int, default=5_000_000, help="stars shown to each contestant")
    parser.add_argument("--batches", type=int, nargs="+", default=[2_048, 4_096, 8_192])
    parser.add_argument(
        "--all-columns", action="store_true", help="the release's 94 columns, of which the model has all that it can"
    )
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=CONTESTANTS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("bench-training"), help="of the catalogue, made where it is not there")
    options = parser.parse_args()
    for batch_rows in options.batches:
        of = {ranks: config_of(options, batch_rows, ranks) for ranks in (1, 2)}
        run_stages(of[1], ["ingest"])
        every = {
            "ceiling": bound(ceiling, of[1]),
            "one rank": bound(by_ranks, of[1]),
            "one rank of one core": bound(by_ranks, of[1], True),
            "two ranks": bound(by_ranks, of[2]),
            "loop of 2020": bound(loop_of_2020, of[1]),
        }
        chosen = {name: every[name] for name in options.contestants}
        print(
            f"\nBatches of {batch_rows:,} stars:\n\n{table(interleaved(chosen, options.repeats), options.contestants[0])}",
            flush=True,
        )


if __name__ == "__main__":
    main()
