"""A little HTML: every text that comes from outside goes through `escape`, every number through `number`."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


def escape(value: object) -> str:
    """Text for an element or a quoted attribute."""
    return html.escape(str(value), quote=True)


def number(value: float | None, digits: int = 2) -> str:
    """A number with so many significant digits, thin and readable; an en dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    if abs(value) >= 1e5 or abs(value) < 1e-4:
        mantissa, exponent = f"{value:.{max(digits - 1, 1)}e}".split("e")
        return f"{mantissa}·10<sup>{int(exponent)}</sup>"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}".replace(",", "\u202f")


def count(value: float | None) -> str:
    """A whole number, its thousands apart: 1 692 919 135."""
    return "–" if value is None else f"{round(value):,}".replace(",", "\u202f")


def share(value: float | None, digits: int = 1) -> str:
    """A share as per cent."""
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.{digits}f}\u202f%"


def figure(uri: str, alt: str, caption: str = "", classes: str = "") -> str:
    """A picture with its description; `caption` is HTML."""
    legend = f"<figcaption>{caption}</figcaption>" if caption else ""
    kind = f' class="{classes}"' if classes else ""
    return f'<figure{kind}><img src="{uri}" alt="{escape(alt)}">{legend}</figure>'


def multiples(figures: Iterable[str]) -> str:
    """Small pictures side by side, as many as fit."""
    return '<div class="multiples">' + "".join(figures) + "</div>"


def absent(why: str) -> str:
    """In the place of a picture or table that could not be made; `why` is HTML."""
    return f'<p class="absent">{why}</p>'


def section(anchor: str, title: str, *content: str) -> str:
    return f'<section aria-labelledby="{anchor}"><h2 id="{anchor}">{escape(title)}</h2>' + "".join(content) + "</section>"


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell: HTML, and classes."""

    html: str
    classes: str = ""

    def td(self) -> str:
        return f'<td class="{self.classes}">{self.html}</td>' if self.classes else f"<td>{self.html}</td>"


@dataclass(frozen=True, slots=True)
class Row:
    """A table's row: its head (HTML), its cells, and classes."""

    head: str
    cells: Sequence[Cell]
    classes: str = ""

    def tr(self) -> str:
        kind = f' class="{self.classes}"' if self.classes else ""
        return f'<tr{kind}><th scope="row">{self.head}</th>' + "".join(c.td() for c in self.cells) + "</tr>"


def table(heads: str, rows: Iterable[Row]) -> str:
    """A table that scrolls sideways where it is too wide; `heads`: the <tr> elements of its head."""
    return f'<div class="scroll"><table><thead>{heads}</thead><tbody>' + "".join(r.tr() for r in rows) + "</tbody></table></div>"


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Name and value (HTML), one pair a row."""
    rows = "".join(f'<tr><th scope="row">{escape(name)}</th><td>{value}</td></tr>' for name, value in pairs)
    return f'<div class="scroll"><table class="facts"><tbody>{rows}</tbody></table></div>'
