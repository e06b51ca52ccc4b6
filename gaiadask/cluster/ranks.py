"""Training ranks on Dask workers: the thin task that runs one, relays its events and ends it with itself."""

from __future__ import annotations

from typing import Any

from distributed import get_worker
from distributed.comm.addressing import get_address_host

from gaiadask.cluster.rank_process import run_process
from gaiadask.training.assignment import Assignment
from gaiadask.training.events import Done, RankEvent, parse_event

GPU = "GPU"
"""Name of the Dask resource of which a rank takes one."""


def run_rank(assignment: Assignment, topic: str) -> Done:
    """The task: run the rank, relay rank 0's events to `topic`, end it when this task is cancelled or its worker closes.

    Returns:
        The rank's last event.

    Raises:
        GaiadaskError: the rank's own error.
        LostRankError: where it ended without a model and without saying why, or was frozen.
    """
    worker = get_worker()
    key = str(worker.get_current_task())

    def relay(event: RankEvent) -> None:
        if assignment.rank == 0:  # the others say the same
            worker.log_event(topic, {"run": assignment.run, "event": event.model_dump_json()})

    def wanted() -> bool:
        task = worker.state.tasks.get(key)
        return task is not None and task.state not in ("cancelled", "released", "forgotten")

    return run_process(assignment, get_address_host(worker.address), relay, wanted)


def logged_event(message: Any) -> tuple[str, RankEvent]:
    """The run and the event of a message that `run_rank` logged."""
    return message["run"], parse_event(message["event"])
