"""How long to wait before something that failed is tried again."""

from __future__ import annotations

import random

LONGEST_WAIT_S = 60.0
"""Longer waits would leave a worker idle after a service is back; shorter ones burden a service that is still down."""


def backoff_s(failures: int, first_s: float) -> float:
    """Seconds before the next attempt: `first_s`, doubled with each failure in a row after the first, up to LONGEST_WAIT_S;
    times a random factor of 0.5 to 1.5, so that workers do not ask in step."""
    return min(first_s * 2 ** (failures - 1), LONGEST_WAIT_S) * random.uniform(0.5, 1.5)
