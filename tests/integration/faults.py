"""A loopback HTTP proxy in front of the TAP service that breaks chosen exchanges on purpose.

The service's own address in its answers is replaced by the proxy's, so that job URLs lead through it too.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

Mode = Literal["reset", "cut", "stall", "busy", "abort", "mute"]


@dataclass
class Fault:
    """Breaks the exchanges whose "METHOD path" matches, `times` times.

    reset: the connection is reset before the service hears of the request. cut: the body ends after `share` of it. mute: the
    same without a Content-Length, so that only the document itself tells. stall: the same, but the connection stays open and
    silent. busy: 503 with Retry-After, the service hears nothing. abort: the job that is polled is aborted on the service.
    """

    mode: Mode
    where: str
    times: int = 1
    share: float = 0.5
    fired: int = 0

    def fires(self, exchange: str) -> bool:
        hit = self.fired < self.times and re.search(self.where, exchange) is not None
        self.fired += hit
        return hit


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    faults: tuple[Fault, ...]
    upstream: tuple[str, int]
    closing: threading.Event

    def handle_error(self, request: object, client_address: object) -> None:
        """Broken connections are what this server is for."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def _exchange(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = next((fault for fault in self.server.faults if fault.fires(f"{self.command} {self.path}")), None)
        mode = fault.mode if fault else None
        if mode == "reset":
            self._reset()
        elif mode == "busy":
            self._answer(503, {"Retry-After": "1"}, b"busy")
        else:
            if mode == "abort":
                self._upstream("POST", f"{self.path.split('?')[0]}/phase", b"PHASE=ABORT", "application/x-www-form-urlencoded")
            answer = self._upstream(self.command, self.path, body, self.headers.get("Content-Type", ""))
            if fault and mode in ("cut", "mute", "stall"):
                self._break_off(fault, *answer)
            else:
                self._answer(*answer)

    do_GET = do_POST = do_DELETE = _exchange

    def _reset(self) -> None:
        # Without lingering, closing sends RST instead of FIN.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def _break_off(self, fault: Fault, status: int, headers: dict[str, str], content: bytes) -> None:
        self.close_connection = True
        sent = content[: int(fault.share * len(content))]
        self._answer(status, headers, sent, None if fault.mode == "mute" else len(content))
        if fault.mode == "stall":
            self.wfile.flush()
            self.server.closing.wait(60)

    def _upstream(self, method: str, path: str, body: bytes, content_type: str) -> tuple[int, dict[str, str], bytes]:
        """What the service answers, with its address replaced by ours."""
        connection = http.client.HTTPConnection(*self.server.upstream, timeout=60)
        own, theirs = (f"127.0.0.1:{port}".encode() for port in (self.server.server_port, self.server.upstream[1]))
        try:
            connection.request(method, path, body, {"Content-Type": content_type} if content_type else {})
            response = connection.getresponse()
            content = response.read().replace(theirs, own)
            headers = {name: value.replace(theirs.decode(), own.decode()) for name, value in response.getheaders()}
            return response.status, headers, content
        finally:
            connection.close()

    def _answer(self, status: int, headers: dict[str, str], content: bytes, length: int | None = -1) -> None:
        """Send it; `length` as Content-Length, -1: the true one, None: none."""
        self.send_response(status)
        for name in ("Content-Type", "Location", "Retry-After", "WWW-Authenticate"):
            if name in headers:
                self.send_header(name, headers[name])
        if length is None:
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(len(content) if length < 0 else length))
        self.end_headers()
        self.wfile.write(content)


@contextlib.contextmanager
def broken_service(host: str, port: int, *faults: Fault) -> Iterator[str]:
    """Address (http://127.0.0.1:PORT) of a proxy to the service that has these faults; one at a time fires."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.faults, server.upstream, server.closing = faults, (host, port), threading.Event()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
