"""One operation of a store: tried again while its failure may pass; what it raises in the end is a StoreError.

A store is reached through fsspec, its clients (botocore, aiohttp and others, each with errors of its own), pyarrow, hats and the
operating system. Whatever they raise is caught here and nowhere else.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from gaiadask.backoff import backoff_s
from gaiadask.errors import GaiadaskError, MissingFileError, StoreError

log = logging.getLogger(__name__)

R = TypeVar("R")

PATIENCE_S = 60.0
"""How long an operation is tried again: services restart within a minute, and a command that waits longer seems to hang."""
_FIRST_WAIT_S = 0.5

# Errors of the operating system, and of clients that use its numbers, after which the same operation may go well. A stale file
# handle is one of them: the file is there, its server has moved it.
_PASSING_NUMBERS = frozenset(
    number
    for name in (
        "EAGAIN", "EBUSY", "ECONNABORTED", "ECONNREFUSED", "ECONNRESET", "EHOSTDOWN", "EHOSTUNREACH", "EINTR", "EIO", "ENETDOWN",
        "ENETRESET", "ENETUNREACH", "ENOLCK", "ENOTCONN", "EPIPE", "EREMOTEIO", "ESHUTDOWN", "ESTALE", "ETIMEDOUT",
    )
    if (number := getattr(errno, name, None)) is not None
)  # fmt: skip
_PASSING_STATUSES = frozenset((408, 425, 429, 500, 502, 503, 504))
# By name, for their packages are installed only where a store of their kind is used: connections that were refused, cut or timed
# out (botocore, aiohttp, azure, google, requests and urllib3).
_PASSING_NAMES = frozenset(
    (
        "HTTPClientError", "ConnectionError", "ConnectionClosedError", "ReadTimeoutError", "ConnectTimeoutError",
        "ResponseStreamingError", "IncompleteReadError", "IncompleteRead", "ClientConnectionError", "ClientPayloadError",
        "ServiceRequestError", "ServiceResponseError", "TransportError", "RetryError", "Timeout", "HTTPError",
    )
)  # fmt: skip
_NO_BUCKET = ("NoSuchBucket", "bucket does not exist")
_REASON_CHARACTERS = 400


class Operation(NamedTuple):
    """What is done to which file.

    Attributes:
        kind: read, look (whether it is there, how large or old it is), list, write, create (only where there is none), remove,
            folder (make those above it) or sync (the name in its folder).
        where: URI of the file or folder.
        source: the local file that is written, of `write` and `create`.
    """

    kind: Literal["read", "look", "list", "write", "create", "remove", "folder", "sync"]
    where: str
    source: Path | None = None

    @property
    def failed(self) -> str:
        """Words for what could not be done."""
        done = {"read": "read", "look": "looked at", "list": "listed", "remove": "removed"}
        return f"{self.where} cannot be {done.get(self.kind, 'written')}"

    @property
    def remedy(self) -> str:
        """What a user can do."""
        if self.kind in ("read", "look", "list"):
            return "Make sure that the store can be reached and read, then run the same command again"
        return (
            "What is there is whole, as it was or as it was to be; make room, check the permissions, make sure that the store can "
            "be reached, then run the same command again"
        )


def attempt(operation: Operation, call: Callable[[], R], patience_s: float = PATIENCE_S) -> R:
    """Do an operation; where its failure may pass, try again with growing waits.

    Args:
        operation: what is done, for the error.
        call: does it; must be fit to be called again after a failure, also one that came after the operation took effect.
        patience_s: for how long it is tried again.

    Returns:
        What `call` returns.

    Raises:
        MissingFileError: the file that is read, looked at, listed or removed is not there.
        StoreError: whatever else the store, its client or a library that reads it has raised.
    """
    began, failures = clock(), 0
    while True:
        try:
            return perform(operation, call)
        except Exception as error:
            if not _is_of_store(error):
                raise
            if _is_absence(error) and operation.kind in ("read", "look", "list", "remove"):
                raise MissingFileError(f"{operation.where}: no such file") from error
            failures += 1
            left_s = began + patience_s - clock()
            if not may_pass(error) or left_s <= 0:
                tried = f" ({failures} attempts in {clock() - began:.0f} s)" if failures > 1 else ""
                raise StoreError(f"{operation.failed}: {reason(error)}{tried}. {operation.remedy}") from error
            wait_s = min(backoff_s(failures, _FIRST_WAIT_S), left_s)
            log.warning("%s: %s; trying again in %.1f s", operation.failed, reason(error), wait_s)
            sleep(wait_s)


def perform(operation: Operation, call: Callable[[], R]) -> R:
    """The one place through which every operation on a store passes."""
    return call()


# For tests: waits that take no time.
clock, sleep = time.monotonic, time.sleep


def may_pass(error: BaseException) -> bool:
    """Whether the same operation may go well a little later: nobody answered, or the service was busy or broken."""
    return any(_passes(each) for each in _chain(error))


def _passes(error: BaseException) -> bool:
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    if isinstance(error, OSError) and error.errno in _PASSING_NUMBERS:
        return True
    status = _status(error)
    if status is not None:
        return status in _PASSING_STATUSES
    return any(kind.__name__ in _PASSING_NAMES for kind in type(error).__mro__)


def _status(error: BaseException) -> int | None:
    """The HTTP status that a client's error carries, by whatever name it does."""
    response: Any = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        value = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        value = next((v for name in ("status", "status_code", "code") if isinstance(v := getattr(error, name, None), int)), None)
    return value if isinstance(value, int) and value >= 100 else None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, and those that it was raised from."""
    seen: BaseException | None = error
    for _ in range(10):
        if seen is None:
            return
        yield seen
        seen = seen.__cause__


def _is_of_store(error: Exception) -> bool:
    """Whether a store, a client or a library has raised it; other errors, of Python's own types or ours, pass as they are, and so does a
    lack of memory, also arrow's."""
    if isinstance(error, GaiadaskError | MemoryError):
        return False
    return isinstance(error, OSError | EOFError) or type(error).__module__ != "builtins"


def _is_absence(error: Exception) -> bool:
    """Whether the file, or a folder on its way, is not there. A missing bucket is no absence: nothing is known of what was in it."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        return False
    context = error.__cause__ or error.__context__
    return not any(word in f"{error} {context}" for word in _NO_BUCKET)


def reason(error: Exception) -> str:
    """The error in its own words, on one line; with its type, where the words do not say what it is."""
    text = " ".join(str(error).split())
    if len(text) > _REASON_CHARACTERS:
        text = f"{text[:_REASON_CHARACTERS]}…"
    return text if isinstance(error, OSError) and text else f"{type(error).__name__}: {text}" if text else type(error).__name__
