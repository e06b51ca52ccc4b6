"""What Prefect costs an ingest of many chunks: the same files of one star with gaia/ingest and without Prefect. Prints a markdown table.

    python tests/benchmarks/prefect_chunks.py                       # 10,000 chunks; some 20 minutes on two cores
    python tests/benchmarks/prefect_chunks.py --chunks 500

A Prefect server with a database of its own (SQLite) is started on loopback, as `prefect server start` does. Each ingest runs in a fresh
process, on one worker that has started already. Overhead: seconds by the clock of gaia/ingest above those of the same ingest
without Prefect; imports count in neither. The database's size is that of its files after the run above that before it.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from contest import Part, Timed, bound, cpu_seconds, mock_config, run_once
from many_files import write_files

from gaiadask.cluster.clients import open_workers
from gaiadask.config.sections import ClusterConfig, Config
from gaiadask.ingest import read_catalogue_record
from gaiadask.stages.engine import run_stages
from gaiadask.store.files import Store
from gaiadask.store.paths import LEDGER


def config_of(folder: Path, bulk: Path, address: str) -> Config:
    """An ingest of the files, each a chunk, into large partitions."""
    archive = {"kind": "files", "uris": [str(bulk / "GaiaSource_*.csv.gz")], "chunk_rows": 1}
    config: Config = mock_config(folder, 1, archive=archive, catalogue={"partition_mb": 10_000}, cluster={"address": address})
    return config


def without_prefect(config: Config) -> Part:
    """As `gaiadask ingest` does it."""
    return measured(config, lambda: run_stages(config, ["ingest"]))


def with_prefect(config: Config) -> Part:
    """As a Prefect worker does it, once its process has started."""
    from flows.gaia import ingest  # here: it imports Prefect

    return measured(config, lambda: ingest(**config.to_json()))


def measured(config: Config, work: Any) -> Part:
    started, cpu = time.perf_counter(), cpu_seconds()
    work()
    wall, used = time.perf_counter() - started, cpu_seconds() - cpu
    return Part(read_catalogue_record(Store(config.store)).rows, wall, used)


@contextmanager
def prefect_server(home: Path) -> Iterator[str]:
    """The API's address of a server that runs as long as the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    os.environ |= {
        "PREFECT_HOME": str(home), "PREFECT_API_URL": url, "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1",
    }  # fmt: skip
    command = [Path(sys.executable).with_name("prefect"), "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            while True:
                try:
                    if httpx.get(f"{url}/health", timeout=5).is_success:
                        break
                except httpx.TransportError:
                    assert server.poll() is None, "the Prefect server has ended"
                    time.sleep(0.5)
            yield url
        finally:
            server.terminate()


def count(url: str, what: str) -> int:
    """How many of these the server has: task_runs, flow_runs."""
    return int(httpx.post(f"{url}/{what}/count", json={}, timeout=60).json())


def database_mb(home: Path) -> float:
    return sum(file.stat().st_size for file in home.glob("prefect.db*")) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=10_000)
    chunks = parser.parse_args().chunks
    with tempfile.TemporaryDirectory() as place, open_workers(ClusterConfig(workers=1, dashboard=False)) as workers:
        folder, home = Path(place), Path(place) / "home"
        address = workers.client.scheduler.address
        write_files(folder / "bulk", chunks)
        alone = run_once(bound(without_prefect, config_of(folder / "alone", folder / "bulk", address)))
        with prefect_server(home) as url:
            before = database_mb(home)
            flow = run_once(bound(with_prefect, config_of(folder / "flow", folder / "bulk", address)))
            time.sleep(10)  # events and logs are written a little later
            growth, tasks = database_mb(home) - before, count(url, "task_runs")
        done = len(Store(str(folder / "flow")).list(LEDGER, ".json"))
    print(report(done, alone, flow, tasks, growth))


def report(chunks: int, alone: Timed, flow: Timed, tasks: int, growth_mb: float) -> str:
    lines = [
        f"{chunks:,} chunks, {tasks} task runs, the database has grown by {growth_mb:.1f} MB",
        "",
        "| | seconds | CPU seconds of the process |",
        "| --- | --- | --- |",
        f"| without Prefect | {alone.wall_s:.0f} | {alone.cpu_s:.0f} |",
        f"| gaia/ingest | {flow.wall_s:.0f} | {flow.cpu_s:.0f} |",
        f"| Prefect's overhead | {flow.wall_s - alone.wall_s:.0f} | {flow.cpu_s - alone.cpu_s:.0f} |",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
