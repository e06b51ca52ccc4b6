"""One file's bytes as a stream, once and to the end: over http(s) a connection that breaks goes on from the byte it reached.

Files on other file systems (local, s3) are opened by fsspec, whose s3 client reads by ranges of one version of an object and
retries them itself. A known checksum is compared at the stream's end, so that no file is read twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import re
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import fsspec
import requests
import urllib3
from fsspec.implementations.local import LocalFileSystem

from gaiadask import __version__
from gaiadask.backoff import LONGEST_WAIT_S, backoff_s
from gaiadask.errors import ArchiveError

logger = logging.getLogger(__name__)

ATTEMPTS = 5
"""How often in a row a file is asked for without PROGRESS_BYTES of progress before it is given up: some ten seconds."""
FIRST_WAIT_S = 0.5
"""Before the second attempt (`backoff_s`)."""
PROGRESS_BYTES = 1 << 20
"""So much shows that the server works: attempts are counted anew."""
READ_BYTES = 1 << 20
"""Read at once where bytes are skipped."""
PIECE_BYTES = 1 << 15
"""Read at once where they are used: below the 128 kB from which the C library maps memory anew for each."""
CONNECT_TIMEOUT_S = 10.0
"""Time for three lost packets, which are sent again after 1, 3 and 7 s."""

_TEMPORARY = {408, 429, 500, 502, 503, 504}
_BROKEN = (requests.RequestException, urllib3.exceptions.HTTPError, OSError)


def file_name(path: str) -> str:
    """The last part of a path or URL; of a URL without its query: in a path, '?' and '#' are letters like others."""
    whole = urlsplit(path).path if path.startswith(("http://", "https://")) else path
    return whole.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class SourceFile:
    """A file of stars.

    path: as its file system names it. label: its URI without credentials, for errors and records. md5: of its bytes, hex; ""
    where it is unknown. timeout_s: seconds without a byte over http before a request is given up.
    """

    filesystem: fsspec.AbstractFileSystem
    path: str
    label: str
    md5: str = ""
    timeout_s: float = 60.0

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, LocalFileSystem)

    @property
    def is_http(self) -> bool:
        return self.path.startswith(("http://", "https://"))

    @property
    def name(self) -> str:
        """The last part of the path or URL, without its query."""
        return file_name(self.path)

    def open(self) -> Any:
        """The file, readable and seekable, as bytes."""
        return self.filesystem.open(self.path, "rb")

    def stream(self) -> Any:
        """The bytes from first to last, for reading once. Reading raises ArchiveError where they are not the file's."""
        if self.is_http:
            headers = dict(getattr(self.filesystem, "kwargs", {}).get("headers", {}))
            source: Any = ResumingStream(self.path, self.label, self.timeout_s, headers)
        else:
            source = self.open()
        return CheckedStream(source, self.label, self.md5) if self.md5 else source


class ReadableStream(io.RawIOBase):
    """A stream whose bytes a subclass gives by `read`."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.read(min(len(buffer), PIECE_BYTES)) or b""
        buffer[: len(data)] = data
        return len(data)


class PassedStream(ReadableStream):
    """A stream over another one, which is closed with it."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def close(self) -> None:
        self._stream.close()
        super().close()


class CheckedStream(PassedStream):
    """Passes a stream on, and compares the MD5 of what passed at its end."""

    def __init__(self, stream: Any, label: str, md5: str) -> None:
        super().__init__(stream)
        self._label, self._expected = label, md5
        self._hash = hashlib.md5(usedforsecurity=False)

    def read(self, size: int = -1) -> bytes:
        """Raises ArchiveError at the end where the bytes were others than the checksum's."""
        # Short pieces: bytes of more than 128 kB are mapped anew each time.
        data = bytes(self._stream.read(min(size, PIECE_BYTES) if size > 0 else size))
        self._hash.update(data)
        if not data and size and (md5 := self._hash.hexdigest()) != self._expected:
            raise ArchiveError(
                f"{self._label}: MD5 {md5}, expected {self._expected} as MD5SUM.txt beside it says: the file was damaged in "
                "transfer or at its source. Fetch it again"
            )
        return data


class ResumingStream(ReadableStream):
    """The body of a URL. A connection that is refused, breaks, stalls or is answered with a temporary error is opened anew.

    The new request asks for the bytes not yet read, of the version begun with (If-Range). Raises ArchiveError where the
    file has changed meanwhile, is not there, or cannot be had after `ATTEMPTS` attempts in a row.
    """

    def __init__(self, url: str, label: str, timeout_s: float, headers: dict[str, str] | None = None) -> None:
        self._url, self._label, self._timeout_s = url, label, timeout_s
        self._session = requests.Session()
        # The bytes as stored: with a transfer encoding they would be others, and another number of them.
        self._session.headers.update({"User-Agent": f"gaiadask/{__version__}", "Accept-Encoding": "identity"} | (headers or {}))
        self._response: requests.Response | None = None
        self._version: dict[str, str] | None = None
        self._size: int | None = None
        self._position = self._last_break = self._failures = 0

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes, b"" at the end. `size` is required: the file may be larger than memory."""
        if size < 0:
            raise ValueError("a stream is read in pieces: give a size")
        while size and self._position != self._size:
            try:
                if self._response is None:
                    self._response = self._opened()
                data = bytes(self._response.raw.read1(size, decode_content=False))
            except _Temporary as error:
                self._wait(str(error), error.wait_s)
                continue
            except _BROKEN as error:
                self._wait(type(error).__name__)
                continue
            self._position += len(data)
            if data:
                return data
            if self._size is None:  # a body without a length ended where its sender ended it
                return b""
            self._wait(f"ended after {self._position} of {self._size} bytes")
        return b""

    def close(self) -> None:
        self._drop()
        self._session.close()
        super().close()

    def _opened(self) -> requests.Response:
        """An answer whose next byte is the one at the position. Raises _Temporary or ArchiveError."""
        headers = {}
        if self._position:
            headers["Range"] = f"bytes={self._position}-"
            if tag := _validator(self._version or {}):
                headers["If-Range"] = tag
        response = self._session.get(self._url, headers=headers, stream=True, timeout=(CONNECT_TIMEOUT_S, self._timeout_s))
        try:
            self._check_status(response)
            self._check_version(response)
            start = _first_byte(response)
            if start is None or start > self._position:
                raise ArchiveError(
                    f"{self._label}: asked for bytes from {self._position}, got {response.headers.get('Content-Range')}"
                )
            self._skip(response, self._position - start)  # a server that knows no ranges starts anew
        except BaseException:
            response.close()
            raise
        return response

    def _check_status(self, response: requests.Response) -> None:
        status, reason = response.status_code, f"HTTP {response.status_code} {response.reason}"
        if status in _TEMPORARY:
            raise _Temporary(reason, _retry_after_s(response))
        if status == 416:
            raise self._changed(f"it ends before byte {self._position} now")
        if status in (404, 410):
            raise ArchiveError(f"{self._label} matches no file ({reason}): check the address")
        if status not in (200, 206):
            raise ArchiveError(f"{self._label} cannot be read: {reason}")

    def _check_version(self, response: requests.Response) -> None:
        version = {key: response.headers[key] for key in ("ETag", "Last-Modified") if key in response.headers}
        size = _whole_size(response)
        if self._version is None:
            self._version, self._size = version, size
        elif size != self._size:
            raise self._changed(f"{self._size} bytes before, {size} now")
        else:
            for key in self._version.keys() & version.keys():
                if self._version[key] != version[key]:
                    raise self._changed(f"{key} {self._version[key]} before, {version[key]} now")

    def _changed(self, how: str) -> ArchiveError:
        return ArchiveError(f"{self._label} has changed while it was read ({how}): run again when it no longer changes")

    def _skip(self, response: requests.Response, count: int) -> None:
        while count:
            skipped = len(response.raw.read(min(count, READ_BYTES), decode_content=False))
            if not skipped:
                raise _Temporary(f"ended before byte {self._position}")
            count -= skipped

    def _wait(self, reason: str, wait_s: float | None = None) -> None:
        """Wait before the next attempt. Raises ArchiveError after the last one."""
        self._drop()
        if self._position >= self._last_break + PROGRESS_BYTES:
            self._failures = 0
        self._last_break = self._position
        self._failures += 1
        of = f" of {self._size}" if self._size else ""
        if self._failures >= ATTEMPTS:
            raise ArchiveError(
                f"{self._label} is not whole: given up at byte {self._position}{of} after {ATTEMPTS} attempts; the last: {reason}. "
                "Run the same command again when the server works"
            )
        wait_s = min(backoff_s(self._failures, FIRST_WAIT_S) if wait_s is None else wait_s, LONGEST_WAIT_S)
        logger.warning("%s: %s at byte %d%s; going on from there in %.1f s", self._label, reason, self._position, of, wait_s)
        time.sleep(wait_s)

    def _drop(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None


class _Temporary(Exception):
    """An answer after which another attempt may succeed. wait_s: the time that the server asks for, None where it names none."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


def _validator(version: dict[str, str]) -> str:
    """A value for If-Range: a strong ETag, else the time of the last change."""
    tag = version.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else version.get("Last-Modified", "")


def _first_byte(response: requests.Response) -> int | None:
    """Number of the answer's first byte within the file."""
    if response.status_code != 206:
        return 0
    match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def _whole_size(response: requests.Response) -> int | None:
    """Bytes of the whole file, None where the answer does not give them."""
    text = response.headers.get("Content-Length", "")
    if response.status_code == 206:
        text = response.headers.get("Content-Range", "").rpartition("/")[2]
    return int(text) if text.isdigit() else None


def _retry_after_s(response: requests.Response) -> float | None:
    with contextlib.suppress(ValueError):
        return float(response.headers.get("Retry-After", ""))
    return None
