"""How a flow run tells of itself: the library's logs and progress as lines of the run's log, its results as artifacts."""

from __future__ import annotations

import logging
import math
import re
import shlex
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from typing import cast
from uuid import UUID

import httpx
from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)
from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import PrefectHTTPStatusError
from prefect.logging.handlers import APILogHandler

from gaiadask.codec.compressed import Compressed, CompressedRecord
from gaiadask.quality.files import read_quality
from gaiadask.quality.records import BASELINE, NAN, REBUILT, ColumnRating, Quality
from gaiadask.report.hr_diagram import hr_picture
from gaiadask.report.reading import MEASURES, baseline_name, beside_position, classifier_aucs
from gaiadask.stages.context import Context
from gaiadask.stages.stage import Stage
from gaiadask.training.search import read_search, search_markdown

log = logging.getLogger(__name__)

LEVELS = {"gaiadask": logging.INFO, "flows": logging.INFO, "distributed": logging.WARNING}
LINE_SHARE = 0.1  # ten lines a task
LINE_EVERY_S = 30.0  # a task without a line for longer looks dead
LINE_AT_MOST_EVERY_S = 2.0  # short tasks do not fill the log
LONG_S = 30.0  # a task that takes longer has its progress beside the log too, as an artifact


# Logs ----------------------------------------------------------------------------------------------------------------
@contextmanager
def library_logs() -> Iterator[None]:
    """Send the library's log records to the flow run's log, from any thread.

    Prefect finds the run of a record by the thread's context; Dask's threads have none, so each record is given its run.
    """
    context = FlowRunContext.get()
    run_id = context.flow_run.id if context is not None and context.flow_run is not None else None

    def set_run(record: logging.LogRecord) -> bool:
        record.flow_run_id = run_id
        task = TaskRunContext.get()
        if task is not None:
            record.task_run_id = task.task_run.id
        return run_id is not None

    handler = APILogHandler(logging.INFO)
    handler.addFilter(set_run)
    with ExitStack() as undo:
        for name, level in LEVELS.items():
            logger = logging.getLogger(name)
            undo.callback(logger.setLevel, logger.level)
            undo.callback(logger.removeHandler, handler)
            logger.setLevel(level)
            logger.addHandler(handler)
        yield


class ProgressArtifact:
    """The progress of a task, in percent, as an artifact of the flow run and of the stage that it was told of in."""

    def __init__(self, name: str, task: str) -> None:
        self.key, self.task = artifact_key("progress", f"{name} {task}"), task
        self.context = (
            copy_context()
        )  # Prefect finds a run by the thread's context; Dask's threads, which tell of progress too, have none
        self.id: UUID | None = None

    def show(self, percent: float) -> None:
        """Make the artifact, or change it. A server that does not answer now is told in the log, and has the next one."""
        try:
            if self.id is None:
                # In an event loop it would be a coroutine; no task tells of its progress from one.
                self.id = cast(UUID, self.context.run(create_progress_artifact, percent, self.key, self.task))
            else:
                update_progress_artifact(self.id, percent)
        except (httpx.HTTPError, PrefectHTTPStatusError) as error:
            log.warning("%s: its progress is not shown: %s", self.task, error)


@dataclass
class _Running:
    total: float
    unit: str
    started: float
    artifact: ProgressArtifact
    done: float = 0.0
    reported: float = 0.0
    reported_at: float = 0.0

    @property
    def share(self) -> float:
        return min(1.0, self.done / self.total) if self.total else 1.0


class LogProgress:
    """The library's progress as log lines: one for each 10 %, and one each 30 s where less is done; never a flood. Of tasks that take
    longer than 30 s, as artifacts too.

    artifact: makes one for a task of a name.
    """

    def __init__(self, artifact: Callable[[str], ProgressArtifact], clock: Callable[[], float] = time.monotonic) -> None:
        self.artifact, self.clock = artifact, clock
        self.running: dict[str, _Running] = {}

    def start(self, task: str, total: float, unit: str) -> None:
        now = self.clock()
        self.running[task] = _Running(total, unit, now, self.artifact(task), reported_at=now)

    def advance(self, task: str, amount: float = 1.0, note: str = "") -> None:
        running, now = self.running[task], self.clock()
        running.done += amount
        silent_s = now - running.reported_at
        is_step = running.done - running.reported >= LINE_SHARE * running.total
        if silent_s >= LINE_EVERY_S or (is_step and silent_s >= LINE_AT_MOST_EVERY_S):
            running.reported, running.reported_at = running.done, now
            log.info("%s", _line(task, running, now, note))
            if now - running.started >= LONG_S:
                running.artifact.show(100 * running.share)

    def finish(self, task: str, whole: bool = True) -> None:
        running = self.running.pop(task)
        seconds = self.clock() - running.started
        of = "" if whole else f" of {_count(running.total)}"
        log.info("%s: %s%s %s in %.1f s", task, _count(running.done), of, running.unit, seconds)
        if running.artifact.id is not None:
            running.artifact.show(100.0 if whole else 100 * running.share)


def _line(task: str, running: _Running, now: float, note: str) -> str:
    rate = running.done / max(now - running.started, 1e-9)
    left_s = max(0.0, running.total - running.done) / rate if rate else float("inf")
    parts = [
        f"{task}: {_count(running.done)} of {_count(running.total)} {running.unit} ({running.share:.0%})",
        f"{rate:.3g} {running.unit}/s" if rate < 1000 else f"{rate:,.0f} {running.unit}/s",
        f"{left_s:.0f} s left",
    ]
    return ", ".join([*parts, note] if note else parts)


def _count(value: float) -> str:
    return f"{value:,.0f}"


# Artifacts -----------------------------------------------------------------------------------------------------------
def publish(context: Context, stage: Stage) -> None:
    """The artifacts of a finished stage, where it has any: tables of its result, the report's address."""
    run = context.run
    if stage.name == "evaluate":
        text = quality_markdown(run.name, read_quality(context.store, run, context.key("evaluate")))
        create_markdown_artifact(text, key=artifact_key("quality", run.name), description=f"How good run {run.name} is")
    elif stage.name == "tune":
        text = search_markdown(read_search(context.store, run))
        create_markdown_artifact(text, key=artifact_key("tune", run.name), description=f"What was tried for run {run.name}")
    elif stage.name == "compress":
        text = compressed_markdown(run.name, Compressed(context.store, run.compressed).record)
        create_markdown_artifact(
            text, key=artifact_key("compressed", run.name), description=f"The compressed catalogue of run {run.name}"
        )
    elif stage.name == "report":
        uri, key, description = context.store.uri_of(run.report), artifact_key("report", run.name), f"Report of run {run.name}"
        if context.store.is_local:
            # A browser opens no file of the machine that the run was on by a link.
            create_markdown_artifact(report_markdown(uri, socket.gethostname()), key=key, description=description)
        else:
            create_link_artifact(uri, link_text=uri, key=key, description=description)
        if picture := hr_picture(context.store.read_bytes(run.report).decode()):
            create_image_artifact(picture, key=artifact_key("hr-diagram", run.name), description=f"HR diagram of run {run.name}")


def report_markdown(path: str, host: str) -> str:
    """Where the report lies, and how to look at it, as Markdown."""
    folder = path.rsplit("/", 1)[0]
    return "\n".join(
        [
            f"The report is the file `{path}` on `{host}`: one page that needs nothing beside it. Open it in a browser there, copy it",
            f"(`scp {host}:{shlex.quote(path)} .`), or serve its folder: `python -m http.server --directory {shlex.quote(folder)}`.",
        ]
    )


def compressed_markdown(name: str, record: CompressedRecord) -> str:
    """A compressed catalogue as Markdown: bytes a star, and bits and largest error of each column."""
    rows = [
        f"| {column} | {described.raw_bits} | {described.alone_bits:.2f} | {8 * described.bytes / record.rows:.2f} | {described.worst:.4f} | {described.exceptions} |"
        for column, described in record.columns.items()
    ]
    head = [
        f"# Compressed catalogue of run {name}",
        "",
        f"{record.rows:,} stars in **{record.bytes / record.rows:.2f} bytes** each; bound: {record.bound_sigma:g} of each star's own error.",
        "",
        "| column | raw bits | alone | with the others | largest error / bound | stored as they are |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    return "\n".join([*head, *rows])


def artifact_key(what: str, name: str) -> str:
    """Prefect's keys have small letters, digits and dashes only."""
    return f"{what}-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}"


def quality_markdown(name: str, quality: Quality) -> str:
    """A rating as Markdown: the numbers to quote, every column and the two-sample tests, the model beside PCA of the same width.

    Args:
        name: of the run.
        quality: its rating.
    """
    pca = baseline_name(quality)
    sides = [beside_position(quality, side) for side in (REBUILT, BASELINE)]
    summary: list[tuple[str | float, ...]] = []
    summary += [(label, *(measure(side) if side else NAN for side in sides)) for label, measure in MEASURES.items()]
    comparisons = [quality.comparison(side) for side in (REBUILT, BASELINE)]
    summary.append(("two-sample AUC", *(comparison.auc if comparison else NAN for comparison in comparisons)))
    model, baseline = (rating.columns if (rating := quality.reconstruction.get(side)) else {} for side in (REBUILT, BASELINE))
    columns = [_column(column, rating, baseline.get(column)) for column, rating in model.items()]
    tests = [(result.against, result.classifier, result.auc) for result in classifier_aucs(quality)]
    blocks = [
        f"# Run {name}: {quality.stars:,} test stars, {quality.latents} latents",
        f"{_cell(quality.storage.bytes_a_star if quality.storage else None)} bytes a star, everything counted.",
        _table(("over all columns but ra and dec", "model", pca), summary),
        "Errors are medians of |error| / IQR unless stated otherwise; KS is the distance of the two distributions; "
        "an AUC of 0.5 means that rebuilt stars cannot be told from real ones.",
        _table(("column", "error", pca, "99 % error", pca, "KS", pca, "error / σ"), columns),
        _table(("real stars against", "judged by", "AUC"), tests) if tests else "",
    ]
    return "\n\n".join(filter(None, blocks))


def _column(name: str, model: ColumnRating, baseline: ColumnRating | None) -> tuple[str | float, ...]:
    sides = [(r.error_over_iqr.median, r.error_over_iqr.p99, r.ks) if r else (NAN, NAN, NAN) for r in (model, baseline)]
    sigma = model.error_in_sigma.median if model.error_in_sigma else NAN
    return (name, *(number for pair in zip(*sides, strict=True) for number in pair), sigma)


def _table(head: Sequence[str], rows: Sequence[Sequence[str | float]]) -> str:
    lines = [head, ["---"] * len(head), *([_cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: str | float | None) -> str:
    if isinstance(value, str):
        return value
    return "–" if value is None or not math.isfinite(value) else f"{value:.3g}"
