"""Lets every operation of a store fail, in every way, in every stage, and prints what became of it as a markdown table.

    python tests/benchmarks/operation_sweep.py --runs 3000
    python tests/benchmarks/operation_sweep.py --runs 200 --works encode --seed 7
    python tests/benchmarks/operation_sweep.py --runs 300 --store s3

Each run begins with the state that the work needs, lets one operation fail (or all from that one on), and, where the work did not
end well, starts it once more with nothing failing. Which operations is drawn by the seed: the same seed draws the same; --runs 0
takes them all. Exits with 1 where a run was not right (`tests/every_operation.py` says what is), and names it.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from every_operation import WORKS, Bench, Outcome, Work, table
from faulty_store import MODES, drawn


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3_000, help="in all (default 3000); 0: every fault there is")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no further run after so many")
    parser.add_argument("--works", default="", help="only what is done under a name that contains this")
    parser.add_argument("--modes", default="", help="only ways to fail whose name contains this")
    parser.add_argument("--number", type=int, help="only the operation of this number")
    parser.add_argument("--store", choices=("local", "s3"), default="local")
    parser.add_argument("--seed", default="0")
    parser.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 1))
    options = parser.parse_args()
    began = time.monotonic()
    with serving(options.store) as uri:
        shares = [(options, uri, share) for share in range(options.processes)]
        with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
            outcomes = [outcome for found in pool.imap_unordered(run_share, shares) for outcome in found]
    wrong = [outcome for outcome in outcomes if outcome.problem]
    for outcome in wrong:
        print(f"WRONG {outcome.work}, {outcome.mode}, operation {outcome.number}: {outcome.problem}\n", file=sys.stderr)
    print(table(outcomes))
    print(f"\n{len(outcomes)} runs in {(time.monotonic() - began) / 60:.1f} minutes, {len(wrong)} of them not right")
    return int(bool(wrong))


def run_share(given: tuple[argparse.Namespace, str, int]) -> list[Outcome]:
    """Every n-th of the drawn runs, in a process of their own."""
    import torch

    options, uri, share = given
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    began, outcomes = time.monotonic(), []
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="gaiadask-", dir=memory if memory.is_dir() else None) as folder:
        bench = Bench(Path(folder), f"{uri}/{share}" if uri else "local")
        works = [work for work in WORKS if options.works in work.name]
        found = {
            work.name: [fault for fault in bench.faults(work) if options.modes in fault[0] and options.number in (None, fault[1])]
            for work in works
        }
        total = sum(map(len, found.values()))
        runs: list[tuple[Work, str, int]] = []
        for work in works:
            faults = found[work.name]
            count = round(options.runs * len(faults) / total) if options.runs else len(faults)
            runs += [(work, *fault) for fault in drawn(faults, count, f"{options.seed} {work.name}")]
        random.Random(options.seed).shuffle(runs)  # so that a sweep that is cut short has some of all
        for work, mode, number in runs[share :: options.processes]:
            if time.monotonic() - began > 60 * options.minutes:
                break
            outcome = bench.run(work, MODES[mode], number)
            outcomes += [outcome] if outcome.fired else []
    return outcomes


@contextlib.contextmanager
def serving(store: str) -> Iterator[str]:
    """The URI of a bucket of an S3 server that runs as long as the block; nothing for local files."""
    if store == "local":
        yield ""
        return
    import fsspec
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    try:
        host, port = server.get_host_and_port()
        os.environ |= {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }  # fmt: skip
        fsspec.filesystem("s3").mkdir("gaia")
        yield "s3://gaia"
    finally:
        server.stop()


if __name__ == "__main__":
    sys.exit(main())
