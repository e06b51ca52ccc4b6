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


def problems(error: ValidationError, whole: str = "the whole file") -> list[str]:
    """Each field that was refused, and why. whole: what the record is called where no field is at fault."""
    return [f"{'.'.join(map(str, problem['loc'])) or whole}: {problem['msg']}" for problem in error.errors()]
