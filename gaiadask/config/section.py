"""What a section of the configuration is, and what several sections share: how columns are chosen, what enters no key."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

from gaiadask.errors import ConfigurationError
from gaiadask.records import JsonObject, Record
from gaiadask.release.release import DEFAULT_RELEASE, release_named


def _known(value: str | tuple[str, ...]) -> str | tuple[str, ...]:
    try:
        release_named(DEFAULT_RELEASE).resolve(value)
    except ConfigurationError as error:
        raise ValueError(str(error)) from error
    return value


ColumnChoice = Annotated[str | tuple[str, ...], AfterValidator(_known)]
"""A preset of columns by its name, `all`, or a list of columns: names that the release has."""


class _NotInKey:
    """Marks an option that no result depends on, so that it enters no key."""


NOT_IN_KEY = _NotInKey()


class Section(Record):
    """A section of the configuration."""

    def for_key(self, *leaving_out: str) -> JsonObject:
        """The options that results depend on, but for some, as JSON."""
        fields = type(self).model_fields
        transport = {name for name, field in fields.items() if NOT_IN_KEY in field.metadata}
        return self.model_dump(mode="json", exclude={*transport, *leaving_out})
