"""Ingests mock stars again and again while things break, and prints what became of them as a markdown table.

    python tests/benchmarks/fault_sweep.py --repeats 20
    python tests/benchmarks/fault_sweep.py --repeats 20 --minutes 30 --rows killed --record sweep.jsonl

Needs DaCHS on PostgreSQL (.ci/run installs them). Each run is a whole ingest stage of 5,000 stars in three chunks through a
proxy that breaks something, at places and moments drawn at random; a run that does not end well is started once more with
nothing broken. What is recorded is not run again, so that a sweep can be made in pieces. Exits with 1 where a run lost a row
without a word, or was not complete after the second start.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from integration.conftest import lacking_of_dachs, serving
from integration.fault_rows import ROWS, Outcome, Setting
from integration.faults import standing_before

from gaiadask.cluster.clients import open_workers
from gaiadask.config.cluster import ClusterConfig


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20, help="runs of each row (default 20)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no further run after so many")
    parser.add_argument("--rows", default="", help="only rows whose name contains this")
    parser.add_argument("--record", type=Path, help="a file of JSON lines that keeps what came of each run")
    parser.add_argument("--seed", type=int, default=0, help="of the places and moments")
    options = parser.parse_args()
    if lacking := lacking_of_dachs():
        parser.error(f"not installed: {', '.join(lacking)}")
    names = [name for name in ROWS if options.rows in name]
    held = read_record(options.record)

    def keep(name: str, repeat: int, outcome: Outcome) -> None:
        held[name, repeat, options.seed] = outcome
        if options.record:
            with options.record.open("a") as file:
                file.write(json.dumps([name, repeat, options.seed, asdict(outcome)]) + "\n")

    waiting = [(repeat, name) for repeat in range(options.repeats) for name in names if (name, repeat, options.seed) not in held]
    sweep(waiting, options.minutes, options.seed, keep)
    outcomes: defaultdict[str, list[Outcome]] = defaultdict(list)
    for name in names:
        outcomes[name] += [outcome for (held_name, *_), outcome in held.items() if held_name == name]
    print(table(outcomes))
    return int(any(not outcome.right for found in outcomes.values() for outcome in found))


def read_record(path: Path | None) -> dict[tuple[str, int, int], Outcome]:
    """Outcomes of earlier sweeps, by row, repeat and seed."""
    lines = path.read_text().splitlines() if path and path.exists() else []
    return {(name, repeat, seed): Outcome(**outcome) for name, repeat, seed, outcome in map(json.loads, lines)}


def sweep(waiting: list[tuple[int, str]], minutes: float, seed: int, keep: Callable[[str, int, Outcome], None]) -> None:
    """Run what waits, in its order: every row once, then every row again."""
    skipped: set[str] = set()
    folder = Path(tempfile.mkdtemp(prefix="gaiadask-faults-"))
    began = time.monotonic()
    try:
        with (
            serving() as dachs,
            standing_before("127.0.0.1", dachs.port) as proxy,
            open_workers(ClusterConfig(workers=2)) as workers,
        ):
            setting = Setting(dachs, proxy, workers, folder)
            for number, (repeat, name) in enumerate(waiting):
                if time.monotonic() - began > 60 * minutes:
                    return
                if name in skipped:
                    continue
                store = folder / f"run-{number}"
                started = time.monotonic()
                try:
                    outcome = ROWS[name].run(setting, store, random.Random(f"{seed} {repeat} {name}"))
                except PermissionError as error:
                    skipped.add(name)
                    print(f"{name}: skipped, {error}", file=sys.stderr)
                    continue
                keep(name, repeat, outcome)
                shutil.rmtree(store, ignore_errors=True)
                told = "" if outcome.right else f": {outcome}"
                print(f"{repeat + 1} {name}: {time.monotonic() - started:.1f} s{told}", file=sys.stderr, flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def table(outcomes: dict[str, list[Outcome]]) -> str:
    """Markdown: how many runs ended how."""
    head = (
        "fault", "runs", "complete after the first start", "stopped with an error that names the cause, or killed",
        "complete after a second start", "silent losses",
    )  # fmt: skip
    rows = [
        (
            name,
            len(found),
            sum(o.complete for o in found),
            sum(o.named for o in found),
            sum(bool(o.resumed) for o in found),
            sum(o.silent_loss for o in found),
        )
        for name, found in outcomes.items()
    ]
    rows.append(("**all**", *(sum(row[i] for row in rows) for i in range(1, len(head)))))
    lines = [head, ("---", *["---:"] * (len(head) - 1)), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
