"""The header of ECSV, lines of YAML that say of each column its unit and type; astropy writes it into parquet files too."""

from __future__ import annotations

from collections.abc import Sequence

from astropy.table.meta import YamlParseError, get_header_from_yaml

from gaiadask.errors import DataError


def declared_units(lines: Sequence[str], label: str) -> dict[str, str]:
    """Units by column. Raises DataError for a header that is no YAML, for what it declares cannot be looked at."""
    try:
        header = get_header_from_yaml(list(lines))
    except YamlParseError as error:
        reason = " ".join(str(error.__cause__).split())[:200]
        raise DataError(
            f"{label}: its header, which declares units, cannot be read as YAML ({reason}): write the file again"
        ) from error
    columns = header.get("datatype") if isinstance(header, dict) else None
    if not isinstance(columns, list):
        return {}
    described = [column for column in columns if isinstance(column, dict)]
    return {str(column.get("name")): str(column["unit"]) for column in described if column.get("unit") is not None}
