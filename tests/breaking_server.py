"""A loopback server of files that cuts, resets and changes its answers as a test asks."""

from __future__ import annotations

import http.server
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate


@dataclass
class Site:
    """What the server holds and how it misbehaves.

    cuts: for each body sent, after how many bytes it ends before its time; "reset" the connection instead of closing it.
    errors: statuses answered before anything else. asked: "method path range" of each request.
    """

    contents: dict[str, bytes] = field(default_factory=dict)
    etags: dict[str, str] = field(default_factory=dict)
    modified_s: float = 1e9
    cuts: list[int] = field(default_factory=list)
    reset: bool = False
    errors: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    knows_ranges: bool = True
    chunked: bool = False
    asked: list[str] = field(default_factory=list)
    sent: int = 0
    url: str = ""


class Handler(http.server.BaseHTTPRequestHandler):
    site: Site
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        site, wanted = self.site, self.headers.get("Range", "")
        site.asked.append(" ".join(filter(None, (self.command, self.path, wanted))))
        assert self.headers["User-Agent"].startswith(("gaiadask/", "Python/")), "a user agent that names the tool"
        if site.errors and wanted + self.command != "HEAD":
            status, headers = site.errors.pop(0)
            self.begin(status, {**headers, "Content-Length": "0"})
            return
        if self.path.endswith("/"):
            self.whole(self.index(), {"Content-Type": "text/html"}, body)
            return
        if self.path not in site.contents:
            self.begin(404, {"Content-Length": "0"})
            return
        content = site.contents[self.path]
        headers = {"Last-Modified": formatdate(site.modified_s, usegmt=True), "Content-Type": "application/gzip"}
        if tag := site.etags.get(self.path):
            headers["ETag"] = tag
        valid = self.headers.get("If-Range") in (None, tag, headers["Last-Modified"])
        if wanted and site.knows_ranges and valid:
            start = int(wanted.removeprefix("bytes=").split("-")[0])
            if start >= len(content):
                self.begin(416, {"Content-Length": "0", "Content-Range": f"bytes */{len(content)}"})
                return
            headers |= {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
            self.whole(content[start:], headers, body, 206)
        else:
            self.whole(content, headers, body)

    def index(self) -> bytes:
        """As Apache lists a folder."""
        names = [name.rpartition("/")[2] for name in self.site.contents if name.startswith(self.path)]
        links = ["?C=N;O=D", "?C=S;O=A", "/", *sorted(names)]
        rows = (f'<tr><td><a href="{link}">{link}</a></td><td align="right">9.1M</td></tr>' for link in links)
        return f"<html><body><h1>Index of {self.path}</h1><table>{''.join(rows)}</table></body></html>".encode()

    def begin(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def whole(self, content: bytes, headers: dict[str, str], body: bool, status: int = 200) -> None:
        chunked = self.site.chunked and body
        self.begin(status, headers | ({"Transfer-Encoding": "chunked"} if chunked else {"Content-Length": str(len(content))}))
        if not body:
            return
        cut = self.site.cuts.pop(0) if self.site.cuts and self.path.endswith(".gz") else len(content)
        self.site.sent += min(cut, len(content))
        sent = content[:cut]
        self.wfile.write(b"%x\r\n%s\r\n" % (len(sent), sent) if chunked and sent else sent)
        if cut < len(content):
            self.close_connection = True
            if self.site.reset:
                self.wfile.flush()
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
        elif chunked:
            self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *args: object) -> None:
        pass


class QuietServer(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A connection that the test reset has nothing to tell."""


@contextmanager
def serving() -> Iterator[Site]:
    site = Site()
    server = QuietServer(("127.0.0.1", 0), type("SiteHandler", (Handler,), {"site": site}))
    thread = threading.Thread(target=server.serve_forever, args=(0.005,), daemon=True)
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield site
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
