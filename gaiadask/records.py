"""The base of records that are files or cross processes: frozen, each field with a description."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

JsonObject = dict[str, JsonValue]
"""An object of JSON, for where a file is parsed or written; everywhere else the code uses records."""


class Record(BaseModel):
    """A frozen record that refuses unknown fields, and numbers that JSON cannot represent."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def to_json(self) -> JsonObject:
        """As JSON, fields in their order."""
        return self.model_dump(mode="json")


def first_problem(error: ValidationError) -> str:
    """The first field that was refused, and why."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'the whole file'}: {first['msg']}"
