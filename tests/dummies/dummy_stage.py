"""A stage on request that counts the latents of a run: all that a stage is."""

from __future__ import annotations

from pydantic import Field

from gaiadask.records import JsonObject, Record, StageResult
from gaiadask.stages.context import Context
from gaiadask.stages.stage import StageWork


class CountOptions(Record):
    """What is asked for."""

    times: int = Field(1, ge=1, description="how often each star is counted")


class CountResult(StageResult):
    """What counting reports."""

    stars: int = Field(description="stars counted")


def _name(context: Context) -> str:
    return f"{context.run.root}/count.json"


def _inputs(context: Context) -> JsonObject:
    return {"encode": context.key("encode"), "times": context.requested(CountOptions).times}


def _make(context: Context, key: str) -> CountResult:
    stars = context.requested(CountOptions).times * sum(partition.rows for partition in context.catalogue.partitions)
    context.store.write_json(_name(context), {"key": key, "stars": stars})
    return CountResult(stars=stars)


WORK = StageWork(_inputs, _make, CountResult, lambda context: context.remove(_name(context)), options=CountOptions)
