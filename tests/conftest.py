"""Fixtures that several test files share."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

REAL_ROWS = "GAIADASK_REAL_ROWS"


@pytest.fixture(scope="session")
def real_rows_path() -> Path:
    """The parquet file of real Gaia DR2 rows; skips where the environment names none."""
    path = os.environ.get(REAL_ROWS)
    if not path:
        pytest.skip(f"needs real Gaia DR2 rows: set {REAL_ROWS} to a parquet file of gaia_source rows (README, Real rows)")
    return Path(path)


@pytest.fixture(scope="session")
def real_rows(real_rows_path: Path) -> pa.Table:
    """Real rows of gaia_source, every column the file has."""
    return pq.read_table(real_rows_path)
