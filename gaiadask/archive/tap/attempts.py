"""What an attempt at an archive's answer can end in, what of it is tried again, and how it is told in one line."""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Callable
from typing import Any, TypeVar

from gaiadask.errors import ArchiveError

logger = logging.getLogger(__name__)

FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0
"""Before the second attempt; doubled before each further one, times a random factor so that workers do not move in step."""

Result = TypeVar("Result")


class Interrupted(Exception):
    """Something that a new attempt may mend: never leaves the archive, `attempted` turns the last one into ArchiveError."""


class Damaged(Interrupted):
    """An answer that is not whole; asked of the same job once more, it may be."""


class JobLost(Interrupted):
    """A job that gives no answer any more: aborted, failed, expired, or of something else than was asked."""


class QueryRefusedError(ArchiveError):
    """A query that is wrong, and would be each time."""


class NotATapServiceError(ArchiveError):
    """Something else answers at the address; a service that was there may be down for maintenance."""


def attempted(name: str, function: Callable[[], Result], attempts: int) -> Result:
    """The function's result; what is interrupted is tried again, `attempts` times in all. Raises ArchiveError."""
    for attempt in range(1, attempts + 1):
        try:
            return function()
        except Interrupted as error:
            if attempt == attempts:
                tried = f"given up after {attempts} attempts; the last: " if attempts > 1 else ""
                raise ArchiveError(f"{name}: {tried}{error}") from error
            wait_s = min(FIRST_WAIT_S * 2 ** (attempt - 1), LONGEST_WAIT_S) * random.uniform(0.5, 1.5)
            logger.warning("%s: %s; attempt %d of %d in %.1f s", name, error, attempt + 1, attempts, wait_s)
            time.sleep(wait_s)
    raise AssertionError("unreachable")


def in_words(text: Any) -> str:
    """A server's words as one line: markup removed, 600 characters at most."""
    return " ".join(re.sub(r"<[^>]*>", " ", str(text)).split())[:600] or "(no words)"


def reason(error: BaseException) -> str:
    """The innermost of what requests and urllib3 wrap around one another."""
    text = in_words(error)
    if system := re.findall(r"\[Errno -?\d+\] ([^'\")(]+)", text):
        return str(system[-1]).strip()
    return text if str(error) else type(error).__name__


def unreachable(url: str, error: Exception) -> str:
    return f"cannot reach {url}: {reason(error)}. Check archive.url, the network and whether the service is up"
