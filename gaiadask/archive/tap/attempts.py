"""How an attempt at an archive's answer can fail, which failures are tried again, and their messages in one line."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from typing import Any, TypeVar

from gaiadask.backoff import backoff_s
from gaiadask.errors import ArchiveError

logger = logging.getLogger(__name__)

FIRST_WAIT_S = 1.0
"""Before the second attempt (`backoff_s`)."""

Result = TypeVar("Result")


class Interrupted(Exception):
    """A failure after which a new attempt may succeed: never leaves the archive, `attempted` turns the last into ArchiveError."""


class Damaged(Interrupted):
    """An answer that is not whole; the same job, asked once more, may give it whole."""


class JobLost(Interrupted):
    """A job that gives no answer any more: aborted, failed, expired, or of something else than was asked."""


class QueryRefusedError(ArchiveError):
    """A query that is wrong, and would be each time."""


class NotATapServiceError(ArchiveError):
    """Something else answers at the address; a service that was there may be down for maintenance."""


def attempted(name: str, function: Callable[[], Result], attempts: int) -> Result:
    """The function's result. After an Interrupted it is called again, `attempts` times in all. Raises ArchiveError."""
    for attempt in range(1, attempts + 1):
        try:
            return function()
        except Interrupted as error:
            if attempt == attempts:
                tried = f"given up after {attempts} attempts; the last: " if attempts > 1 else ""
                raise ArchiveError(f"{name}: {tried}{error}") from error
            wait_s = backoff_s(attempt, FIRST_WAIT_S)
            logger.warning("%s: %s; attempt %d of %d in %.1f s", name, error, attempt + 1, attempts, wait_s)
            time.sleep(wait_s)
    raise AssertionError("unreachable")


def in_words(text: Any) -> str:
    """A server's message as one line: markup removed, 600 characters at most."""
    return " ".join(re.sub(r"<[^>]*>", " ", str(text)).split())[:600] or "(no words)"


def reason(error: BaseException) -> str:
    """The innermost reason of the errors that requests and urllib3 wrap around one another."""
    text = in_words(error)
    if system := re.findall(r"\[Errno -?\d+\] ([^'\")(]+)", text):
        return str(system[-1]).strip()
    return text if str(error) else type(error).__name__


def unreachable(url: str, error: Exception) -> str:
    return f"cannot reach {url}: {reason(error)}. Check archive.url, the network and whether the service is up"
