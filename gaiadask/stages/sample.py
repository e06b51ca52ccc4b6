"""Stage sample, on request: new stars from the run's prior, as parquet files in a folder."""

from __future__ import annotations

from pydantic import Field

from gaiadask.cluster.here import Here
from gaiadask.cluster.workers import Task
from gaiadask.errors import counted
from gaiadask.keys import digest
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
    output: str = Field(
        "",
        description="folder (any fsspec URI) of the files; empty: the run's samples/, which the first request has, or more_samples/",
    )

    @property
    def region(self) -> SampleRegion:
        """Which stars. Raises ConfigurationError for a region or a range that is none."""
        return SampleRegion.of(self.cone, None, self.magnitude)

    @property
    def folder(self) -> str:
        """The output folder, absolute; empty: the run's."""
        return absolute_uri(self.output) if self.output else ""

    @property
    def label(self) -> str:
        """Of a request: the name of a folder."""
        region = self.region.to_json()
        return f"{self.stars}-seed{self.seed}" + (f"-{digest(region)[:8]}" if any(region.values()) else "")


class SampleResult(StageResult):
    """Result of the stage sample."""

    rows: int = Field(description="new stars")
    files: int = Field(description="parquet files")
    uri: str = Field(description="of their folder")

    def summary(self) -> str:
        return f"{counted(self.rows, 'new star')} in {counted(self.files, 'file')}: {self.uri}"


def _request(context: Context) -> SampleRequest:
    options = context.requested(SampleOptions)
    return SampleRequest.of(context.store, context.manifest, context.config.release, options.stars, options.seed, options.region)


def _inputs(context: Context) -> JsonObject:
    return _request(context).to_json()


def _place(context: Context) -> str:
    """Where the stars of a request lie: a folder that it names, the run's samples/ (""), or where that has those of another request a
    folder of its own beside it, by its label."""
    options = context.requested(SampleOptions)
    if options.folder:
        return options.folder
    first, asked = context.manifest.entry("sample"), {"stars": options.stars, "seed": options.seed, **options.region.to_json()}
    is_first = first is None or all(first.inputs.get(name) == value for name, value in asked.items())
    return "" if is_first else options.label


def _folder(context: Context, place: str) -> StarFolder:
    own = f"{context.run.more_samples}/{place}" if place else context.run.samples
    store = Store(place if "/" in place else context.store.uri_of(own))
    return StarFolder(store, "new stars", pattern=r"part-\d+\.parquet")


def _make(context: Context, key: str) -> SampleResult:
    request, folder = _request(context), _folder(context, _place(context))
    draw = SampleBlocks(context.store, context.run, request, context.config.cluster.device)
    blocks = range(blocks_of(request.stars))
    # One block takes about as long as a cluster takes to start.
    workers = Here() if len(blocks) == 1 and context.given_workers is None else context.workers
    with folder.writing(request.to_json(), len(blocks)) as output:
        rows = workers.map(draw.writer(output), blocks, Task("sample", unit="blocks"), context.progress)
    return SampleResult(rows=sum(rows), files=len(rows), uri=folder.store.uri)


def _prepare(context: Context) -> None:
    """Raises where the folder is somebody's; that there can be such stars has been seen from the request."""
    _folder(context, _place(context)).check_own()


def _is_present(context: Context) -> bool:
    request = _request(context)
    pieces = [request.piece(block) for block in range(blocks_of(request.stars))]
    return _folder(context, _place(context)).is_complete(request.to_json(), pieces)


def _problems(context: Context, place: str, quick: bool) -> list[Finding]:
    rows = context.manifest.result(f"sample {place}".rstrip(), SampleResult).rows
    folder = _folder(context, place)
    return [Finding(f"new stars in {folder.store.uri}", problem) for problem in folder.problems(rows, quick, context.each_file)]


def _drop(context: Context) -> None:
    """Stars in folders outside the run are removed only where that folder is named: they may be somebody's by now."""
    options = context.request
    if isinstance(options, SampleOptions):
        _folder(context, _place(context)).remove()
    else:
        context.remove(context.run.samples, context.run.more_samples)


WORK = StageWork(
    _inputs,
    _make,
    SampleResult,
    _drop,
    _prepare,
    _is_present,
    place=_place,
    options=SampleOptions,
    problems=_problems,
)
