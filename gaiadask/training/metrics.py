"""metrics.jsonl: one record for each validation."""

from __future__ import annotations

import json
from collections.abc import Sequence

from gaiadask.errors import StoreError
from gaiadask.model.card import MetricsRecord
from gaiadask.store.files import Store
from gaiadask.store.paths import RunPaths


def read_metrics(store: Store, run_paths: RunPaths) -> list[MetricsRecord]:
    """Read metrics.jsonl.

    Returns:
        The records in order of rows_seen; none where there is no file.

    Raises:
        StoreError: a line is not such a record.
    """
    content = store.read_bytes_if_there(run_paths.metrics) or b""
    try:
        return [MetricsRecord.model_validate_json(line) for line in content.splitlines()]
    except ValueError as error:
        where = store.uri_of(run_paths.metrics)
        raise StoreError(
            f"{where} is not JSON lines of validations ({error}): damaged from outside; remove it and run again"
        ) from error


def write_metrics(store: Store, run_paths: RunPaths, records: Sequence[MetricsRecord]) -> None:
    """Replace metrics.jsonl: it has tens of records, and object stores can only write whole files."""
    lines = [json.dumps(record.to_json(), allow_nan=False) for record in records]
    store.write_bytes(run_paths.metrics, "".join(line + "\n" for line in lines).encode())
