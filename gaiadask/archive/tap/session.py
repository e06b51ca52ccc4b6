"""Requests to a TAP service as bytes: time-outs, retries, a login that goes to its origin alone, bodies of bounded size."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import requests
import urllib3

from gaiadask import __version__
from gaiadask.archive.tap.login import origin

REQUEST_RETRIES = 2
"""New tries of one request whose connection is refused or breaks before the answer."""
BUSY_RETRIES = 4
"""New tries of one request that is answered 429, 502, 503 or 504, after the time that the answer names."""
CONNECT_TIMEOUT_S = 6.0
"""Time for two lost packets, which are sent again after 1 and 3 s; the request is tried again then."""
_PIECE_BYTES = 1 << 20
"""Of an inflated body, so much at once."""


class Session(requests.Session):
    """A session that names the tool, has time-outs, repeats requests where that is safe, and shows its login to one origin alone.

    url: of the service. Its jobs may name other hosts, or redirect to them, or to its own without encryption.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        super().__init__()
        self._origin = origin(url)
        self._timeout = (min(CONNECT_TIMEOUT_S, timeout_s), timeout_s)
        self.headers["User-Agent"] = f"gaiadask/{__version__}"
        # A POST may be repeated: a job that was created twice is never run and expires.
        retry = urllib3.Retry(
            total=None,
            connect=REQUEST_RETRIES,
            read=REQUEST_RETRIES,
            status=BUSY_RETRIES,
            other=0,
            allowed_methods=None,
            status_forcelist=(429, 502, 503, 504),
            backoff_factor=0.3,
            raise_on_status=False,
            respect_retry_after_header=True,
            retry_after_max=300,
        )
        for scheme in ("http://", "https://"):
            self.mount(scheme, requests.adapters.HTTPAdapter(max_retries=retry))

    def request(self, *args: Any, **options: Any) -> requests.Response:
        return super().request(*args, **{**options, "timeout": self._timeout})

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        """Every request passes here, the ones after a redirect too."""
        if origin(request.url or "") != self._origin:
            for name in ("Authorization", "Cookie"):
                request.headers.pop(name, None)
        return super().send(request, **options)


def inflated(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The bytes of a body, gzipped or not, in pieces of bounded size. Raises EOFError where the packing is cut."""
    unpacker, first = None, True
    for block in blocks:
        if first and block:
            unpacker, first = zlib.decompressobj(wbits=31) if block.startswith(b"\x1f\x8b") else None, False
        if unpacker is None:
            yield block
            continue
        while block:
            if unpacker.eof:  # another member follows
                unpacker = zlib.decompressobj(wbits=31)
            yield unpacker.decompress(block, _PIECE_BYTES)
            block = unpacker.unconsumed_tail or unpacker.unused_data
    while unpacker is not None and not unpacker.eof:
        if piece := unpacker.decompress(b"", _PIECE_BYTES):  # what did not fit into the last piece
            yield piece
            continue
        raise EOFError("the gzipped body ends early")
