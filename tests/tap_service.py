"""A TAP service on loopback that counts and gives the stars of a table, as far as its faults allow: what DaCHS is not made to do."""

from __future__ import annotations

import contextlib
import io
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from astropy.io import votable
from astropy.table import Table

from gaiadask.release.column import SOURCE_ID

_CAPABILITIES = """<?xml version="1.0"?>
<vosi:capabilities xmlns:vosi="http://www.ivoa.net/xml/VOSICapabilities/v1.0" xmlns:tr="http://www.ivoa.net/xml/TAPRegExt/v1.0"
 xmlns:vs="http://www.ivoa.net/xml/VODataService/v1.1" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">
<capability standardID="ivo://ivoa.net/std/TAP" xsi:type="tr:TableAccess">
<interface role="std" xsi:type="vs:ParamHTTP"><accessURL use="base">{url}</accessURL></interface>
<language><name>ADQL</name><version ivo-id="ivo://ivoa.net/std/ADQL#v2.0">2.0</version></language>
<outputFormat><mime>application/x-votable+xml</mime></outputFormat>{more}</capability></vosi:capabilities>"""
_JOB = """<?xml version="1.0"?><uws:job xmlns:uws="http://www.ivoa.net/xml/UWS/v1.0" xmlns:xlink="http://www.w3.org/1999/xlink">
<uws:jobId>{number}</uws:jobId><uws:phase>{phase}</uws:phase><uws:executionDuration>60</uws:executionDuration>
<uws:results><uws:result id="result" xlink:href="{url}/async/{number}/results/result"/></uws:results></uws:job>"""


@dataclass
class FakeService:
    """What a service has, and what it does wrong.

    stars: its table. counted_too_many: of each count. cuts: whether it cuts an answer at MAXREC; says_so: and says OVERFLOW then.
    parquet: how it says in its capabilities that it gives that too; "" where it does not.
    limits, forms: the MAXREC and the FORMAT of each job that it was given.
    """

    stars: pa.Table
    counted_too_many: int = 0
    cuts: bool = True
    says_so: bool = True
    parquet: str = ""
    limits: list[int] = field(default_factory=list)
    forms: list[str] = field(default_factory=list)
    url: str = ""
    jobs: list[bytes | None] = field(default_factory=list)
    """The answer of each job; None once it is deleted."""

    def answer(self, query: str, most: int) -> bytes:
        """The VOTable of a count, or of rows."""
        found = self._found(query)
        if "COUNT" in query:
            return counted(len(found) + self.counted_too_many)
        given = self._given(query, found, most)
        table = Table({name: np.asarray(given[name]) for name in given.column_names})
        return _votable(table, "OVERFLOW" if self.says_so and len(given) < len(found) else "OK")

    def answer_in_parquet(self, query: str, most: int) -> bytes:
        """The rows; it cannot say that there are more."""
        sink = io.BytesIO()
        pq.write_table(self._given(query, self._found(query), most), sink)
        return sink.getvalue()

    def _found(self, query: str) -> pa.Table:
        ids = self.stars[SOURCE_ID].to_numpy()
        bounds = re.search(r"source_id >= (\d+) AND source_id < (\d+)", query)
        first, stop = map(int, bounds.groups()) if bounds else (0, 2**63 - 1)
        return self.stars.filter(pa.array((ids >= first) & (ids < stop)))

    def _given(self, query: str, found: pa.Table, most: int) -> pa.Table:
        names = [name.strip() for name in query.removeprefix("SELECT ").split(" FROM ")[0].split(",")]
        return (found.slice(0, most) if self.cuts else found).select(names)


def counted(rows: int) -> bytes:
    """The answer to a count."""
    return _votable(Table({"n_stars": [rows]}), "OK")


def _votable(table: Table, status: str) -> bytes:
    buffer = io.BytesIO()
    votable.from_table(table).to_xml(buffer, tabledata_format="binary2")
    info = f'<INFO name="QUERY_STATUS" value="{status}"/>'
    return buffer.getvalue().replace(b'<RESOURCE type="results">', f'<RESOURCE type="results">{info}'.encode())


class _Handler(BaseHTTPRequestHandler):
    service: FakeService

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        service, path = self.service, self.path.split("?")[0].removeprefix("/tap")
        if path == "/capabilities":
            self._answer(_CAPABILITIES.format(url=service.url, more=service.parquet).encode())
        elif not path.startswith("/async/") or (body := service.jobs[number := int(path.split("/")[2])]) is None:
            self._answer(b"", 404)
        elif path.endswith("/results/result"):
            self._answer(body)
        else:
            self._answer(_JOB.format(number=number, phase="COMPLETED", url=service.url).encode())

    def do_POST(self) -> None:
        given = {k.upper(): v[0] for k, v in parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode()).items()}
        service, path = self.service, self.path.removeprefix("/tap")
        if path == "/sync":
            self._answer(service.answer(given["QUERY"], int(given["MAXREC"])))
        elif path == "/async":
            service.limits.append(int(given["MAXREC"]))
            service.forms.append(given.get("FORMAT", ""))
            answer = service.answer_in_parquet if "parquet" in service.forms[-1] else service.answer
            service.jobs.append(answer(given["QUERY"], int(given["MAXREC"])))
            self._answer(b"", 303, f"{service.url}/async/{len(service.jobs) - 1}")
        else:
            self._answer(b"", 404)

    def do_DELETE(self) -> None:
        self.service.jobs[int(self.path.split("/")[-1])] = None
        self._answer(b"")

    def _answer(self, body: bytes, status: int = 200, location: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/xml")
        self.send_header("Content-Length", str(len(body)))
        if location:
            self.send_header("Location", location)
        self.end_headers()
        self.wfile.write(body)


@contextlib.contextmanager
def served(service: FakeService) -> Iterator[FakeService]:
    """The service, at its `url` meanwhile."""
    handler = type("Handler", (_Handler,), {"service": service})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    service.url = f"http://127.0.0.1:{server.server_port}/tap"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
