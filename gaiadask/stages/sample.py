"""Stage sample, on request: new stars from the run's prior, as parquet files in a folder."""

from __future__ import annotations

from pydantic import Field

from gaiadask.cluster.workers import Task
from gaiadask.product import StarFolder
from gaiadask.records import JsonObject, Record, StageResult
from gaiadask.sample import SampleBlocks, SampleRegion, SampleRequest, blocks_of
from gaiadask.stages.context import Context
from gaiadask.stages.stage import StageWork
from gaiadask.store.files import Store
from gaiadask.uris import absolute_uri
from gaiadask.validate import Finding


class SampleOptions(Record):
    """Options of the stage sample."""

    stars: int = Field(1_000_000, ge=1, description="how many new stars")
    seed: int = Field(0, ge=0, description="the same seed gives the same stars")
    cone: tuple[float, float, float] | None = Field(None, description="only stars within a circle: ra, dec, radius, degrees")
    magnitude: tuple[float, float] | None = Field(None, description="only stars with G between these two, the bright end first")
    output: str = Field("", description="folder (any fsspec URI) of the files; empty: the run's samples/")

    @property
    def region(self) -> SampleRegion:
        """Which stars. Raises ConfigurationError for a region or a range that is none."""
        return SampleRegion.of(self.cone, None, self.magnitude)

    @property
    def folder(self) -> str:
        """The output folder, absolute; empty: the run's."""
        return absolute_uri(self.output) if self.output else ""


class SampleResult(StageResult):
    """Result of the stage sample."""

    rows: int = Field(description="new stars")
    files: int = Field(description="parquet files")
    uri: str = Field(description="of their folder")

    def summary(self) -> str:
        return f"{self.rows:,} new stars in {self.files:,} files: {self.uri}"


def _request(context: Context) -> SampleRequest:
    options = context.requested(SampleOptions)
    return SampleRequest.of(context.store, context.manifest, context.config.release, options.stars, options.seed, options.region)


def _inputs(context: Context) -> JsonObject:
    return _request(context).to_json()


def _folder(context: Context, place: str) -> StarFolder:
    store = Store(place or context.store.uri_of(context.run.samples))
    return StarFolder(store, "new stars", pattern=r"part-\d+\.parquet")


def _make(context: Context, key: str) -> SampleResult:
    request, folder = _request(context), _folder(context, context.requested(SampleOptions).folder)
    draw = SampleBlocks(context.store, context.run, request, context.config.cluster.device)
    blocks = range(blocks_of(request.stars))
    with folder.writing(request.to_json(), len(blocks)) as output:
        rows = context.map(draw.writer(output), blocks, Task("sample", unit="blocks"))
    return SampleResult(rows=sum(rows), files=len(rows), uri=folder.store.uri)


def _prepare(context: Context) -> None:
    """Raises where the folder is somebody's; that there can be such stars has been seen from the request."""
    _folder(context, context.requested(SampleOptions).folder).check_own()


def _is_present(context: Context) -> bool:
    request = _request(context)
    pieces = [request.piece(block) for block in range(blocks_of(request.stars))]
    return _folder(context, context.requested(SampleOptions).folder).is_complete(request.to_json(), pieces)


def _problems(context: Context, place: str, quick: bool) -> list[Finding]:
    rows = context.manifest.result(f"sample {place}".rstrip(), SampleResult).rows
    folder = _folder(context, place)
    return [Finding(f"new stars in {folder.store.uri}", problem) for problem in folder.problems(rows, quick)]


def _drop(context: Context) -> None:
    """Stars in folders outside the run are removed only where that folder is named: they may be somebody's by now."""
    options = context.request
    if isinstance(options, SampleOptions):
        _folder(context, options.folder).remove()
    else:
        context.remove(context.run.samples)


WORK = StageWork(
    _inputs,
    _make,
    SampleResult,
    _drop,
    _prepare,
    _is_present,
    place=lambda context: context.requested(SampleOptions).folder,
    options=SampleOptions,
    problems=_problems,
)
