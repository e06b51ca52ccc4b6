"""The unit that a file or a service declares for a column, compared with the column's own."""

from __future__ import annotations

import contextlib
import functools
import logging
import re
from typing import NamedTuple, cast

import astropy.units as u
import numpy as np
import pyarrow as pa

from gaiadask.errors import DataError

logger = logging.getLogger(__name__)

_LOGARITHM = re.compile(r"(?i)(?:log10|log|lg|dex)\s*\((.*)\)|\[(.*)\]")
"""VOUnit and astropy write a function, VizieR brackets."""
_MAGNITUDE = re.compile(r"(?i)mag\s*\((.*)\)")
_DESCRIBED = re.compile(r"[A-Za-z][A-Za-z ]*\[(.+)\]")
"""As the archive once did: Angle[deg]."""
_WORDS_OF_LOGARITHMS = re.compile(r"(?i)log\b|dex$")


class Unit(NamedTuple):
    """What a text says of a unit. function: "log" of a number in `unit`, "mag" of it, or "" for the number itself; unit: None where
    the text spells none."""

    function: str
    unit: u.UnitBase | None


def check_unit(unit: str, column: pa.Field, label: str) -> None:
    """Raises DataError where the declared unit is another than the column's; a text that is no unit passes, with a warning."""
    wanted = (column.metadata or {}).get(b"unit", b"").decode()
    if unit == wanted:
        return
    declared, expected = spelled(unit), spelled(wanted)
    if pa.types.is_string(column.type) or not unit.strip():
        return
    if not declared.function and declared.unit is None:
        if wanted and unit.strip("'\" -"):
            _warn_unknown(label, column.name, unit, wanted)
        return
    if not _same(declared, expected, bool(wanted)):
        raise DataError(
            f"{label}: column {column.name} is in {unit!r}: expected {wanted!r}, the unit of gaia_source. "
            "Convert the column and write the file again (gaiadask does not convert units)"
        )


def _same(declared: Unit, expected: Unit, has_unit: bool) -> bool:
    if declared.function != expected.function:
        return False
    if declared.unit is None or (expected.unit is None and has_unit):
        return True
    unit = u.dimensionless_unscaled if expected.unit is None else expected.unit
    if not declared.unit.is_equivalent(unit):
        return not has_unit  # a count of electrons is a number all the same; a percentage is another one
    return bool(np.isclose(declared.unit.to(unit), 1.0, rtol=1e-9))


@functools.lru_cache(maxsize=4096)
def spelled(text: str) -> Unit:
    """What a text says, in any of the spellings archives use.

    >>> spelled("[solLum]") == spelled("log(solLum)") == spelled("dex(Lsun)"), spelled("Angle[mas]").unit
    (True, Unit("mas"))
    """
    plain = text.replace("'", "").replace('"', "").strip()
    if match := _LOGARITHM.fullmatch(plain):
        return Unit("log", _unit(match[1] or match[2] or ""))
    if match := _MAGNITUDE.fullmatch(plain):
        return Unit("mag", _unit(match[1]))
    if match := _DESCRIBED.fullmatch(plain):
        return spelled(match[1])
    return Unit("log", None) if _WORDS_OF_LOGARITHMS.match(plain) else Unit("", _unit(plain))


def _unit(plain: str) -> u.UnitBase | None:
    lower = plain.lower()
    # FITS first: of a word that VOUnit does not know (electron), astropy makes a unit of its own when threads parse at once.
    for text in dict.fromkeys((plain, lower, re.sub(r"([a-z]{3,})s\b", r"\1", lower))) if plain else ():
        for spelling in ("fits", "generic", "vounit"):
            with contextlib.suppress(ValueError, TypeError):
                unit = u.Unit(text, format=spelling)
                if isinstance(unit, u.UnitBase):
                    return cast(u.UnitBase, unit)
    return None


@functools.lru_cache(maxsize=4096)  # so that each is said once
def _warn_unknown(label: str, name: str, unit: str, wanted: str) -> None:
    logger.warning("%s: the unit %r of column %s is unknown to gaiadask: taken for %r", label, unit, name, wanted)
