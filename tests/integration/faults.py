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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import unquote_plus

Mode = Literal["reset", "lose", "cut", "stall", "busy", "page", "abort", "vanish", "unlimited", "pass"]

PAGE = b"<html><head><title>Maintenance</title></head><body><p>The archive is down for maintenance.</p></body></html>"
FORM = "application/x-www-form-urlencoded"


@dataclass
class Fault:
    """Breaks the exchanges whose "METHOD path body" matches, `times` times.

    reset: the connection is reset before the service hears of the request. lose: after, so that the answer is lost. cut: the
    body ends after `share` of it; mute: without a Content-Length, so that only the document itself tells. stall: the same as
    cut, but the connection stays open and silent. busy: an answer of `status` with Retry-After, where it is given, the service
    hears nothing; page: the same with a page for people. abort, vanish: the job that is asked for is aborted, deleted on the
    service first. unlimited: the service's statement of its row limit is removed. pass: nothing, but for the hook.
    hook: called before, with the path asked for. after: not before this one has fired.
    """

    mode: Mode
    where: str
    times: int = 1
    share: float = 0.5
    mute: bool = False
    status: int = 503
    retry_after: str | None = "1"
    hook: Callable[[str], None] | None = None
    after: Fault | None = None
    fired: int = 0
    over: threading.Event = field(default_factory=threading.Event)

    def fires(self, exchange: str) -> bool:
        hit = (
            self.fired < self.times
            and (self.after is None or self.after.fired > 0)
            and re.search(self.where, exchange, re.DOTALL) is not None
        )
        self.fired += hit
        return hit


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    proxy: Proxy

    def handle_error(self, request: object, client_address: object) -> None:
        """Broken connections are what this server is for."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def _exchange(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.server.proxy.fault(f"{self.command} {self.path} {unquote_plus(body.decode('latin-1'))}")
        job = self.path.split("?")[0].removesuffix("/phase")
        if fault and fault.hook:
            fault.hook(job)
        match fault.mode if fault else "pass":
            case "reset":
                self._reset()
                return
            case "busy" | "page":
                assert fault
                self._refuse(fault)
                return
            case "abort":
                self.server.proxy.ask("POST", f"{job}/phase", b"PHASE=ABORT", {"Content-Type": FORM})
            case "vanish":
                self.server.proxy.ask("DELETE", job)
        kept = ("Content-Type", "Authorization")
        answer = self.server.proxy.ask(self.command, self.path, body, {k: v for k, v in self.headers.items() if k in kept})
        if fault and fault.mode == "lose":
            self._reset()
        elif fault and fault.mode in ("cut", "stall"):
            self._break_off(fault, *answer)
        elif fault and fault.mode == "unlimited":
            status, headers, content = answer
            self._answer(status, headers, re.sub(rb"<outputLimit>.*?</outputLimit>", b"", content, flags=re.DOTALL))
        else:
            self._answer(*answer)

    do_GET = do_POST = do_DELETE = _exchange

    def _reset(self) -> None:
        # Without lingering, closing sends RST instead of FIN.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def _refuse(self, fault: Fault) -> None:
        headers = {"Retry-After": fault.retry_after} if fault.retry_after is not None else {}
        page = fault.mode == "page"
        self._answer(fault.status, headers | ({"Content-Type": "text/html"} if page else {}), PAGE if page else b"busy")

    def _break_off(self, fault: Fault, status: int, headers: dict[str, str], content: bytes) -> None:
        self.close_connection = True
        sent = content[: int(fault.share * len(content))]
        self._answer(status, headers, sent, None if fault.mute else len(content))
        if fault.mode == "stall":
            self.wfile.flush()
            fault.over.wait(60)

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


class Proxy:
    """Stands before the service at host:port.

    jobs: paths of the jobs created through it and not deleted yet. created: how many there were. most_jobs: at a time.
    """

    def __init__(self, host: str, port: int) -> None:
        self.upstream = (host, port)
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        self._lock = threading.Lock()
        self._faults: Sequence[Fault] = ()
        self.forget()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def forget(self) -> None:
        self.jobs: set[str] = set()
        self.created = self.most_jobs = 0

    @contextlib.contextmanager
    def broken(self, *faults: Fault) -> Iterator[None]:
        """Has these faults while the block runs; one at a time fires."""
        self._faults = faults
        try:
            yield
        finally:
            self._faults = ()
            for fault in faults:
                fault.over.set()

    def fault(self, exchange: str) -> Fault | None:
        with self._lock:
            return next((fault for fault in self._faults if fault.fires(exchange)), None)

    def ask(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """What the service answers, with its address replaced by ours."""
        connection = http.client.HTTPConnection(*self.upstream, timeout=60)
        own, theirs = (f"127.0.0.1:{port}" for port in (self._server.server_port, self.upstream[1]))
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            content = response.read().replace(theirs.encode(), own.encode())
            told = {name: value.replace(theirs, own) for name, value in response.getheaders()}
        finally:
            connection.close()
        self._count(method, path, response.status, told)
        return response.status, told, content

    def _count(self, method: str, path: str, status: int, headers: dict[str, str]) -> None:
        with self._lock:
            if method == "POST" and path.endswith("/async") and status == 303:
                self.jobs.add(headers["Location"].rpartition("/")[2])
                self.created += 1
                self.most_jobs = max(self.most_jobs, len(self.jobs))
            elif method == "DELETE" and status < 400:
                self.jobs.discard(path.rpartition("/")[2])

    def serve(self) -> None:
        self._server.serve_forever(0.05)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextlib.contextmanager
def standing_before(host: str, port: int) -> Iterator[Proxy]:
    """A proxy to the service that runs as long as the block."""
    proxy = Proxy(host, port)
    thread = threading.Thread(target=proxy.serve, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.close()
        thread.join()


@contextlib.contextmanager
def broken_service(host: str, port: int, *faults: Fault) -> Iterator[str]:
    """Address (http://127.0.0.1:PORT) of a proxy to the service that has these faults."""
    with standing_before(host, port) as proxy, proxy.broken(*faults):
        yield proxy.address
