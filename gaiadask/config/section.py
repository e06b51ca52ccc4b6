"""What a section of the configuration is, and what several sections share: how columns are chosen, what enters no key."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, ConfigDict

from gaiadask.errors import ConfigurationError
from gaiadask.records import JsonObject, Record
from gaiadask.release.release import DEFAULT_RELEASE, release_named
from gaiadask.uris import has_secret, public_uri


def _known(value: str | tuple[str, ...]) -> str | tuple[str, ...]:
    try:
        release_named(DEFAULT_RELEASE).resolve(value)
    except ConfigurationError as error:
        raise ValueError(str(error)) from error
    return value


ColumnChoice = Annotated[str | tuple[str, ...], AfterValidator(_known)]
"""A preset of columns by its name, `all`, or a list of columns: names that the release has."""


def _without_secret(uri: str) -> str:
    if has_secret(uri):
        raise ValueError(
            f"{public_uri(uri)} was given with a password, a token or a signature: leave it out, for this option is written into the "
            "store, the report, flows and logs. Credentials belong into the environment or a file of their own: for s3 "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or ~/.aws/credentials, for tap GAIADASK_TAP_USER and "
            "GAIADASK_TAP_PASSWORD, for all others fsspec's configuration (~/.config/fsspec/conf.json; for https 'headers')"
        )
    return uri


PublicUri = Annotated[str, AfterValidator(_without_secret)]
"""A path or URI that may be written anywhere."""


class _NotInKey:
    """Marks an option that no result depends on, so that it enters no key."""


NOT_IN_KEY = _NotInKey()


class Section(Record):
    """A section of the configuration."""

    model_config = ConfigDict(
        hide_input_in_errors=True
    )  # pydantic's messages, which Prefect shows: a refused URI may hold a secret

    def for_key(self, *leaving_out: str) -> JsonObject:
        """The options that results depend on, but for some, as JSON."""
        fields = type(self).model_fields
        transport = {name for name, field in fields.items() if NOT_IN_KEY in field.metadata}
        return self.model_dump(mode="json", exclude={*transport, *leaving_out})
