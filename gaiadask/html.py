"""Tables as notebooks show them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


def html_table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table with a title above it; every text is escaped."""
    lines = [_row("th", head), *(_row("td", row) for row in rows)]
    return f"<div>{escape(title)}</div>\n<table>\n" + "\n".join(lines) + "\n</table>"


def _row(cell: str, texts: Sequence[str]) -> str:
    return "<tr>" + "".join(f'<{cell} style="text-align: left">{escape(text)}</{cell}>' for text in texts) + "</tr>"
