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


class StageResult(Record):
    """Result of a stage, for the manifest and for people; each stage has its own type."""

    def to_json(self) -> JsonObject:
        """The fields that were set, as JSON."""
        return self.model_dump(mode="json", exclude_unset=True)

    def summary(self) -> str:
        """The result as a person reads it, in one line."""
        return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in self.to_json().items())


def problems(error: ValidationError, whole: str = "the whole file") -> list[str]:
    """Each field that was refused, and why. whole: what the record is called where no field is at fault."""
    return [f"{'.'.join(map(str, problem['loc'])) or whole}: {problem['msg']}" for problem in error.errors()]
