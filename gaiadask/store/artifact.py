"""Arrays and the card that describes them, as two files that are written, and read, as one.

The card is written last and names the sha256 of the arrays' file, so a pair that was not written together is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gaiadask.errors import StoreError
from gaiadask.store.files import Store

_SUM = "weights_sha256"


@dataclass(frozen=True)
class Pair:
    """Where the two files lie, the version of what they hold, and what to do where they are not whole."""

    weights: str
    card: str
    format_version: int
    remedy: str

    def save(self, store: Store, content: bytes, card: Mapping[str, Any]) -> dict[str, Any]:
        """Write both; the card as it was written. Raises StoreError where the store cannot be written: the card is then absent."""
        whole = {"format_version": self.format_version, **card, _SUM: hashlib.sha256(content).hexdigest()}
        store.remove(self.card)
        store.write_bytes(self.weights, content)
        store.write_json(self.card, whole)
        return whole

    def identity(self, store: Store) -> str:
        """What tells this pair from any other: the sha256 of its arrays, by the card. Raises StoreError where there is no card."""
        card = store.read_json(self.card)
        return str(card.get(_SUM)) if isinstance(card, dict) else ""

    def load(self, store: Store) -> tuple[bytes, dict[str, Any]]:
        """The arrays' file and the card. Raises StoreError, naming the file and the remedy, where either is missing, damaged,
        of another format version, or not of the other's making."""
        card = store.read_json(self.card)
        if not isinstance(card, dict) or card.get("format_version") != self.format_version:
            found = card.get("format_version") if isinstance(card, dict) else type(card).__name__
            raise StoreError(
                f"{store.uri_of(self.card)}: format_version {found!r}, expected {self.format_version}: read it with the gaiadask "
                f"that wrote it, or {self.remedy}"
            )
        content = store.read_bytes(self.weights)
        if (found := hashlib.sha256(content).hexdigest()) != card.get(_SUM):
            raise StoreError(
                f"{store.uri_of(self.weights)} is not the file that card.json was written for "
                f"(sha256 {found[:12]}…, card says {str(card.get(_SUM))[:12]}…): {self.remedy}"
            )
        return content, card
