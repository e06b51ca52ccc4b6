"""Requests to a TAP service: one session with time-outs and retries, login, metadata, and jobs that fail where rows are lost.

Jobs are run by pyvo, not by astroquery: astroquery's TapPlus does not look at the query's status, so a table that the
service cut at its row limit reads as complete (it also adds TOP 2000 to synchronous queries, saves a server's error page as
the table and accepts a body that ends early), and its asynchronous jobs hang on services other than ESA's. astroquery is
used for the login of ESA's archives and for the metadata of their tables.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import time
import warnings
import xml.sax
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple
from xml.parsers.expat import ExpatError

import requests
import urllib3
from numpy.typing import NDArray
from pyvo.dal import TAPService
from pyvo.dal.exceptions import DALFormatError, DALQueryError, DALServiceError
from pyvo.dal.tap import AsyncTAPJob
from pyvo.io.uws.tree import JobSummary
from pyvo.io.vosi import parse_capabilities

from gaiadask.archive.tap.adql import columns_query
from gaiadask.archive.tap.answers import save, small_answer, temporary
from gaiadask.archive.tap.attempts import (
    Damaged,
    Interrupted,
    JobLost,
    NotATapServiceError,
    QueryRefusedError,
    in_words,
    reason,
    unreachable,
)
from gaiadask.archive.tap.login import AstroqueryConnection, credentials, log_in, login_refused
from gaiadask.archive.tap.session import Session
from gaiadask.errors import ArchiveError, ChunkTooLargeError

logger = logging.getLogger(__name__)

FIRST_POLL_S, LONGEST_POLL_S = 0.2, 20.0
"""Between two looks at a job: short ones end in less than a second, long ones should not burden the service."""
JOB_LIMIT_S = 4 * 3600.0
"""A job that has not ended by then (ESA's end after 90 minutes) is given up; the time in its service's queue counts."""
FOUND_JOB_TIMEOUTS = 10
"""A resumed job that still executes after so many `timeout_s` is given up: a service that was killed may show its job as
executing for ever. A new job for the same query has all its time."""

_BINARY2, _PARQUET = "serialization=BINARY2", "application/vnd.apache.parquet"
# Words of services about a query that is too much for them, and about one that is wrong and would fail again.
_TOO_MUCH = re.compile(
    r"(?i)time[ds]?[ -]?out|too long|time limit|statement timeout|execution ?(time|duration)|memory|too large|too many rows"
)
_WRONG = re.compile(
    r"(?i)\bpars|syntax|adql|no such|unknown|unresolved|not locate|not exist|not found|undefined|ambiguous|not allowed|denied|"
    r"mismatch|no (function|operator)|invalid|incorrect|by zero|out of range"
)
_WAITING = {"PENDING", "QUEUED", "EXECUTING", "HELD", "SUSPENDED", "UNKNOWN"}
_ENDED_BADLY = {"ABORTED", "ERROR", "ARCHIVED"}
# Errors of pyvo's and astropy's parsers for a document that ends early or is something else; VOTable errors are SyntaxErrors.
_DAMAGE = (
    zlib.error,
    ExpatError,
    SyntaxError,
    ValueError,
    LookupError,
    EOFError,
    TypeError,
    AttributeError,
    OSError,
    DALFormatError,
)


class ColumnMetadata(NamedTuple):
    """A service's metadata of a column; unit and type in its own spelling, empty where it gives none."""

    name: str
    unit: str
    dtype: str


@dataclass(frozen=True)
class Service:
    """One TAP service. Cheap to make; nothing is asked of it before it is needed.

    timeout_s: seconds without a byte before a request is given up. most_bytes: of one answer.
    """

    url: str
    timeout_s: float
    most_bytes: int = 2**31

    @cached_property
    def session(self) -> requests.Session:
        """Logged in where the environment has credentials. Raises ArchiveError where the login is refused."""
        session = Session(self.url, self.timeout_s)
        if login := credentials():
            log_in(session, self.url, *login)
        return session

    @cached_property
    def _capability(self) -> Any:
        """The TAP capability that the service states. Raises Interrupted where it cannot be reached, ArchiveError else."""
        address = f"{self.url.rstrip('/')}/capabilities"
        with self._errors():
            response = self.session.get(address)
        if response.status_code in (401, 403):
            raise ArchiveError(login_refused(self.url, f"HTTP {response.status_code}"))
        if response.status_code >= 500 or response.status_code == 429:
            raise Interrupted(f"{self.url} answered HTTP {response.status_code} {response.reason}: {in_words(response.text)}")
        answer = f"HTTP {response.status_code}, {response.headers.get('Content-Type', 'no content type')}"
        if response.ok:
            with contextlib.suppress(*_DAMAGE), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for capability in parse_capabilities(io.BytesIO(response.content).read):
                    if str(capability.standardid).lower().startswith("ivo://ivoa.net/std/tap"):
                        return capability
                answer = "capabilities of something else"
        raise NotATapServiceError(
            f"archive.url {self.url} is not a TAP service: expected its capabilities at {address}, found {answer}. "
            "A TAP address ends before /sync and /async, as in https://gea.esac.esa.int/tap-server/tap"
        )

    @cached_property
    def row_limit(self) -> int | None:
        """The most rows that the service gives in one answer, None where it states no limit."""
        with contextlib.suppress(AttributeError, TypeError, ValueError):
            limit = self._capability.outputlimit.hard
            return (int(limit.content) or None) if limit.unit == "row" else None
        return None

    @cached_property
    def _votable(self) -> dict[str, str]:
        """BINARY2 where the service knows it: it says null for every type and writes numbers as they are."""
        known = [str(form.mime) for form in self._capability.outputformats if _BINARY2 in str(form.mime)]
        return {"FORMAT": known[0]} if known else {}

    @cached_property
    def _parquet(self) -> dict[str, str]:
        """Parquet where the service offers it: it is the shortest, and read as it is."""
        for form in self._capability.outputformats:
            if str(form.mime).partition(";")[0].strip() == _PARQUET or "parquet" in map(str.lower, form.aliases):
                return {"FORMAT": str(form.mime)}
        return {}

    @property
    def rows_form(self) -> str:
        """What a job is asked to give rows as, in words."""
        if self._parquet:
            return f"parquet ({self._parquet['FORMAT']})"
        serialisation = self._votable.get("FORMAT", "the service's own serialisation")
        return f"a VOTable ({serialisation}), for it offers no parquet"

    @property
    def _tap(self) -> TAPService:
        return TAPService(self.url, session=self.session)

    def columns(self, table: str) -> list[ColumnMetadata]:
        """The service's metadata of a table's columns; empty where it does not know the table."""
        return columns_by_astroquery(self.session, self.url, table) or self._columns_by_pyvo(table)

    def _columns_by_pyvo(self, table: str) -> list[ColumnMetadata]:
        """From TAP_SCHEMA, which every TAP service has; astroquery reads only what ESA's own extension describes."""
        answer = self.ask(columns_query(table), 1_999, quick=True)
        rows = zip(answer["column_name"], answer["unit"], answer["datatype"], strict=True)
        return [ColumnMetadata(*map(str, row)) for row in rows]

    def ask(self, query: str, maxrec: int, *, quick: bool = False) -> dict[str, NDArray]:
        """A small answer's columns by name, whole or ArchiveError; without a job where it is `quick` to make."""
        if quick:
            try:
                return self._ask_at_once(query, maxrec)
            except QueryRefusedError:
                raise
            except (Interrupted, ArchiveError) as error:
                # Services end synchronous queries after a minute or 2,000 rows.
                logger.info("%s: no answer at once (%s), asking by a job", self.url, error)
        with self.answer(query, maxrec) as path, self._errors():
            return small_answer(path)

    def count(self, query: str) -> int:
        """The number that a COUNT query (`StarQuery.count`) gives."""
        return int(self.ask(query, 2, quick=True)["n_stars"][0])

    def _ask_at_once(self, query: str, maxrec: int) -> dict[str, NDArray]:
        with self._errors(), temporary() as folder:
            response = self._tap.create_query(query, mode="sync", maxrec=maxrec, **self._votable).submit()
            return small_answer(save(response, folder, self.most_bytes))

    def find_job(self, url: str, query: str) -> AsyncTAPJob | None:
        """The job of an earlier attempt, where it is this query's and may still give its answer. Raises Interrupted."""
        try:
            with self._errors():
                job = AsyncTAPJob(url, session=self.session)
                summary = job.job
        except JobLost:
            return None
        queries = [parameter.content for parameter in summary.parameters or () if str(parameter.id_).lower() == "query"]
        if queries and " ".join(str(queries[0]).split()) != " ".join(query.split()):
            logger.warning("job %s is of another query than it was noted for: left alone", url)
            return None
        if summary.phase in _ENDED_BADLY:
            _delete(job)
            return None
        return job

    @contextlib.contextmanager
    def answer(
        self,
        query: str,
        maxrec: int,
        started: Callable[[str], None] | None = None,
        job: AsyncTAPJob | None = None,
        *,
        parquet: bool = False,
    ) -> Iterator[Path]:
        """What an asynchronous job makes of a query, in a file that lives as long as the context: a VOTable, or parquet.

        started: called with the job's URL before the job is run. job: a job from `find_job`, to resume. parquet: whether to ask
        for that where the service offers it: its name ends so, whatever the service gives.
        The job is deleted in the end, unless `started` has its URL and another attempt may resume it: after an Interrupted
        of the connection, and once after an answer that was damaged. Raises Interrupted, ChunkTooLargeError, or ArchiveError
        with the server's own words where the query is at fault.
        """
        resumed = job is not None
        if job is None:
            with self._errors():
                job = self._new_job(query, maxrec, (parquet and self._parquet) or self._votable)
        keep = False
        try:
            with temporary() as folder:
                with self._errors():
                    if started and not resumed:
                        started(job.url)
                    path = self._finish(job, folder, resumed)
                yield path
        except Interrupted as error:
            keep = started is not None and not isinstance(error, JobLost) and not (resumed and isinstance(error, Damaged))
            raise
        finally:
            if not keep:
                _delete(job)

    def _new_job(self, query: str, maxrec: int, form: Mapping[str, str]) -> AsyncTAPJob:
        """As pyvo's submit_job, but a job that cannot be read after it was made is not left behind."""
        with self._tap.create_query(query, mode="async", maxrec=maxrec, **form).submit() as response:
            readable = False
            try:
                response.raise_for_status()
                job = AsyncTAPJob(response.url, session=self.session)
                _phase(job)
                readable = True
            except requests.HTTPError as error:
                raise DALServiceError.from_except(error, response.url) from error
            finally:
                if not readable and response.history:  # without a redirection it is no job that answered
                    self.delete_job(response.url)
        return job

    def delete_job(self, url: str) -> None:
        """Delete a job that was kept for another attempt, if it can be."""
        try:
            self.session.delete(url, allow_redirects=False)
        except (requests.RequestException, ArchiveError, Interrupted) as error:
            logger.warning("job %s could not be deleted (%s): it expires by itself", url, reason(error))

    def _finish(self, job: AsyncTAPJob, folder: Path, resumed: bool) -> Path:
        """Run it, unless it runs, wait until it has completed, and save its result."""
        if (phase := _phase(job)) == "PENDING":
            _start(job)
        left_executing = resumed and phase == "EXECUTING"
        self._wait(job, FOUND_JOB_TIMEOUTS * self.timeout_s if left_executing else None)
        address = job.result_uri
        if not address:
            raise JobLost(f"job {job.url} completed without a result")
        return save(self.session.get(address, stream=True), folder, self.most_bytes)

    def _wait(self, job: AsyncTAPJob, dead_after_s: float | None) -> None:
        """Until the job has completed."""
        began, poll_s = time.monotonic(), FIRST_POLL_S
        while (phase := _phase(job)) in _WAITING:
            waited_s = time.monotonic() - began
            if dead_after_s is not None and waited_s > dead_after_s:
                raise JobLost(
                    f"job {job.url}, executing already, did not end in {waited_s:.0f} s: its service may have been killed"
                )
            if waited_s > JOB_LIMIT_S:
                late = f"job {job.url} was still {phase} after {JOB_LIMIT_S / 3600:.0f} h"
                raise ChunkTooLargeError(late) if phase == "EXECUTING" else JobLost(late)
            time.sleep(poll_s)
            poll_s = min(1.2 * poll_s, LONGEST_POLL_S)
        if phase == "COMPLETED":
            return
        summary = job.job
        if _ran_out_of_time(summary):
            raise ChunkTooLargeError(f"{self.url} ended job {job.url} at its time limit ({summary.executionduration.sec:.0f} s)")
        words = in_words(summary.errorsummary.message.content) if summary.errorsummary else f"its phase is {phase}"
        if phase == "ERROR" and getattr(summary.errorsummary, "type_", None) != "transient":
            self._judge(words)
        raise JobLost(f"job {job.url} failed: {words}")

    def _judge(self, words: str) -> None:
        """Raises the error that a service's words about a failed query mean; none where they leave it open."""
        if _TOO_MUCH.search(words):
            raise ChunkTooLargeError(f"{self.url} ended the query: {words}")
        if _WRONG.search(words):
            raise QueryRefusedError(f"{self.url} refused the query: {words.removeprefix('Query Error: ')}")

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Sorts the errors of pyvo, requests and the parsers into Interrupted, ChunkTooLargeError and ArchiveError."""
        try:
            yield
        except DALQueryError as error:
            words = in_words(error.reason)
            self._judge(words)
            raise Interrupted(f"{self.url}: the query failed: {words}") from error
        except DALServiceError as error:
            raise self._service_error(error) from error
        except (requests.ConnectionError, requests.Timeout) as error:
            raise Interrupted(unreachable(self.url, error)) from error
        except (requests.RequestException, urllib3.exceptions.HTTPError, *_DAMAGE) as error:
            raise Damaged(f"{self.url}: the answer is damaged: {reason(error)}") from error

    def _service_error(self, error: DALServiceError) -> Exception:
        code = error.code or 0
        if code in (401, 403):
            return ArchiveError(login_refused(self.url, f"HTTP {code}"))
        if code in (404, 410):
            return JobLost(f"{self.url}: {reason(error.cause or error)}")
        # Another 4xx is about this request and would come again.
        if 400 <= code < 500 and code not in (408, 429):
            return ArchiveError(f"{self.url} refused the request: {in_words(_response_text(error) or error.reason)}")
        return Interrupted(f"{self.url}: {reason(error.cause or error)}")


# Jobs ------------------------------------------------------------------------------------------------------------------
def _delete(job: AsyncTAPJob) -> None:
    address = job.url
    try:
        job.delete()
    except (DALServiceError, requests.RequestException) as error:
        if getattr(error, "code", None) not in (404, 410):
            logger.warning("job %s could not be deleted (%s): it expires by itself", address, reason(error))


def _phase(job: AsyncTAPJob) -> str:
    """The job's phase at this moment. Raises Damaged where the answer describes no job, as a web page does."""
    phase = str(job.phase)
    if phase not in _WAITING | _ENDED_BADLY | {"COMPLETED"}:
        raise Damaged(f"{job.url} answers with something that describes no job")
    return phase


def _start(job: AsyncTAPJob) -> None:
    try:
        job.run()
    except DALServiceError:
        # The service may have heard of an earlier try whose answer was lost.
        if job.phase == "PENDING":
            raise


def _ran_out_of_time(job: JobSummary) -> bool:
    """Whether an aborted job had run as long as its service allows."""
    limit, began, ended = job.executionduration, job.starttime, job.endtime
    if job.phase != "ABORTED" or limit is None or began is None or ended is None or limit.sec <= 0:
        return False
    return bool((ended - began).sec >= limit.sec - 1)


def _response_text(error: DALServiceError) -> str:
    response = getattr(error.cause, "response", None)
    return "" if response is None else str(response.text)


# Metadata --------------------------------------------------------------------------------------------------------------
def columns_by_astroquery(session: requests.Session, url: str, table: str) -> list[ColumnMetadata]:
    """By ESA's extension of the table metadata, one table at a time; empty where the service does not speak it."""
    from astroquery.utils.tap import TapPlus

    try:
        metadata = TapPlus(url=url, connhandler=AstroqueryConnection(session, url)).load_table(table)
    except (requests.RequestException, urllib3.exceptions.HTTPError, xml.sax.SAXException, KeyError, ValueError) as error:
        logger.info("%s: astroquery cannot read its table metadata (%s), asking TAP_SCHEMA", url, reason(error))
        return []
    if metadata is None or metadata.name.lower() not in (table.lower(), table.lower().rpartition(".")[2]):
        return []
    return [ColumnMetadata(column.name, column.unit or "", column.data_type or "") for column in metadata.columns]
