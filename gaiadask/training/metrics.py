"""metrics.jsonl: one record a validation."""

from __future__ import annotations

import json
from typing import Any

from gaiadask.errors import StoreError
from gaiadask.store.files import Store
from gaiadask.store.paths import RunPaths


def read_metrics(store: Store, run_paths: RunPaths) -> list[dict[str, Any]]:
    """The records of metrics.jsonl, in order of rows_seen; none where there is no file."""
    if not store.exists(run_paths.metrics):
        return []
    try:
        return [json.loads(line) for line in store.read_bytes(run_paths.metrics).splitlines()]
    except ValueError as error:
        where = store.uri_of(run_paths.metrics)
        raise StoreError(f"{where} is not JSON lines ({error}): damaged from outside; remove it and run again") from error


def write_metrics(store: Store, run_paths: RunPaths, records: list[dict[str, Any]]) -> None:
    """Replace metrics.jsonl: it has tens of records, and whole files are all that object stores know."""
    lines = [json.dumps(record, allow_nan=False) for record in records]
    store.write_bytes(run_paths.metrics, "".join(line + "\n" for line in lines).encode())
