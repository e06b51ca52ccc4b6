"""Training whose ranks are killed again and again, beside the same one undisturbed: where do their losses end? Prints a table.

    python tests/benchmarks/killed_ranks.py                                     # a rank every 15 s for 10 minutes
    python tests/benchmarks/killed_ranks.py --stars 100000 --minutes 1 --every 10

Two ranks on a LocalCluster of two workers train the default network on mock stars. First undisturbed, which also tells how many stars
ranks show in a second: the budget is what they show in --minutes. Then again while a rank, chosen at random, is killed (kill -9) or
frozen (SIGSTOP, every fifth time) every --every seconds. The two must show the same stars; the end's validation loss must be within 1 %
of the undisturbed one's spread between its first and last validation, and no process may be left. Exits with 1 otherwise.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from contest import mock_catalogue, mock_config

from gaiadask.cluster.clients import open_workers
from gaiadask.config.sections import ClusterConfig, Config
from gaiadask.stages.engine import run_stages
from gaiadask.store.files import Store
from gaiadask.store.paths import RunPaths
from gaiadask.training.metrics import read_metrics

PROBE_ROWS = 400_000
"""Stars shown to find out how many a second are."""
VALIDATIONS_A_PERIOD = 1
"""Between two kills if nothing had to be started again: of what is in between, checkpoints by time must keep what they can."""
AIM = 0.01
FREEZE_EVERY = 5


def ranks() -> list[psutil.Process]:
    """The training ranks below this process."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "gaiadask.training.process" in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


@dataclass
class Killer:
    """Kills or freezes a rank every so often. count: how many."""

    every_s: float
    count: int = 0
    _end: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """As long as the block."""
        thread = threading.Thread(target=self._kill)
        thread.start()
        try:
            yield
        finally:
            self._end.set()
            thread.join()

    def _kill(self) -> None:
        chance = random.Random(0)
        while not self._end.wait(self.every_s):
            if found := ranks():
                self.count += 1
                os.kill(chance.choice(found).pid, signal.SIGKILL if self.count % FREEZE_EVERY else signal.SIGSTOP)


def config_of(options: argparse.Namespace, name: str, shown: int, every: int) -> Config:
    training = {"rows_seen": shown, "validate_every_rows": every, "validation_rows": 20_000, "patience": 10**6, "ranks": 2}
    config: Config = mock_config(options.folder, options.stars, training=training)
    return config.model_copy(update={"name": name})


def trained(config: Config) -> float:
    """Seconds that the stage took."""
    with open_workers(ClusterConfig(workers=2)) as workers:
        run_stages(config, ["statistics"], workers=workers)
        started = time.monotonic()
        run_stages(config, ["train"], workers=workers)
        return time.monotonic() - started


def losses(config: Config) -> tuple[float, float, int, int]:
    """First and last validation loss, stars shown, and how many tries left a validation."""
    records = read_metrics(Store(config.store), RunPaths(config.name))
    shown = [record.rows_seen for record in records]
    assert shown == sorted(set(shown)), "a validation is there twice"
    return records[0].validation_loss, records[-1].validation_loss, shown[-1], len({record.attempt for record in records})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stars", type=int, default=1_000_000)
    parser.add_argument("--minutes", type=float, default=10.0, help="of undisturbed training, which sets the budget")
    parser.add_argument("--every", type=float, default=15.0, help="seconds between two kills")
    parser.add_argument("--folder", type=Path, help="of the catalogue, kept; without: a temporary one")
    options = parser.parse_args()
    temporary = None if options.folder else tempfile.mkdtemp()
    options.folder = folder = options.folder or Path(temporary or "")
    try:
        mock_catalogue(folder, options.stars)
        probe = config_of(options, "probe", PROBE_ROWS, PROBE_ROWS)
        trained(probe)
        seconds = read_metrics(Store(str(folder)), RunPaths("probe"))[-1].seconds
        a_second = PROBE_ROWS / seconds
        shown, every = int(60 * options.minutes * a_second), int(options.every * a_second / VALIDATIONS_A_PERIOD)
        table = [
            "| | seconds | ranks killed or frozen | tries | stars shown | loss at first | loss at the end |",
            "|" + " --- |" * 7,
        ]
        ends: dict[str, tuple[float, float, int, int]] = {}
        killer = Killer(options.every)
        for name in ("undisturbed", "disturbed"):
            config = config_of(options, name, shown, every)
            with killer.at_work() if name == "disturbed" else threading.Lock():
                took = trained(config)
            ends[name] = first, last, rows, tries = losses(config)
            count = killer.count if name == "disturbed" else 0
            table.append(f"| {name} | {took:.0f} | {count} | {tries} | {rows:,} | {first:.4f} | {last:.4f} |")
        print("\n".join(table))
        return _judge(ends)
    finally:
        if temporary:
            shutil.rmtree(temporary)


def _judge(ends: dict[str, tuple[float, float, int, int]]) -> int:
    (first, alone, rows, _), (_, disturbed, rows_disturbed, _) = ends["undisturbed"], ends["disturbed"]
    apart = abs(disturbed - alone) / abs(first - alone)
    print(f"\nThe losses end {100 * apart:.2f} % apart, of what training gains (aim: {100 * AIM:.0f} %).")
    left = ranks()
    if left:
        print(f"Left behind: {left}")
    return int(apart > AIM or rows != rows_disturbed or bool(left))


if __name__ == "__main__":
    sys.exit(main())
