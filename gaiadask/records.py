"""The base of records that cross seams or are files: frozen, with their fields' meaning told beside them."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, JsonValue

JsonObject = dict[str, JsonValue]
"""An object of JSON, at the edge where a file is parsed or written; within the code a record has its place."""


class Record(BaseModel):
    """A frozen record that refuses fields it does not know, and numbers that JSON cannot hold."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def to_json(self) -> JsonObject:
        """As JSON holds it, fields in their order."""
        return self.model_dump(mode="json")
