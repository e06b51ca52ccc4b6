"""Something fitted, in a store: arrays and the card that describes them, two files that are written, and read, as one.

The card is written last and names the sha256 of the arrays' file, so two files that were not written together are refused.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from gaiadask.errors import DamagedFileError, MissingFileError, StoreError
from gaiadask.records import JsonObject
from gaiadask.store.files import Store

_SUM = "weights_sha256"


@dataclass(frozen=True)
class Artifact:
    """Where the two files of an artifact lie in a store.

    weights, card: names of the arrays' file and of the card, relative to the store. format_version: of both. remedy: what a
    user can do where they cannot be read; ends error messages.
    """

    weights: str
    card: str
    format_version: int
    remedy: str

    def save(self, store: Store, content: bytes, card: JsonObject) -> JsonObject:
        """Write the arrays' file and then the card, with `format_version` before and the arrays' sha256 after what it has.

        Returns:
            The card as it was written.

        Raises:
            StoreError: where the store cannot be written; the card is then absent.
        """
        whole: JsonObject = {"format_version": self.format_version, **card, _SUM: hashlib.sha256(content).hexdigest()}
        store.remove(self.card)
        store.write_bytes(self.weights, content)
        store.write_json(self.card, whole)
        return whole

    def identity(self, store: Store) -> str:
        """The sha256 of the arrays, by the card: differs where the weights differ. Raises StoreError where there is no card."""
        card = store.read_json(self.card)
        return str(card.get(_SUM)) if isinstance(card, dict) else ""

    def is_whole(self, store: Store, key: str) -> bool:
        """Whether both files are there, belong together, and have this key. Raises StoreError where the store cannot tell."""
        try:
            return self.load(store)[1].get("key") == key
        except (MissingFileError, DamagedFileError):
            return False

    def load(self, store: Store) -> tuple[bytes, JsonObject]:
        """The arrays' file and the card.

        Raises:
            StoreError: naming the file and the remedy, where either is missing, damaged, of another format version, or was not
                written together with the other.
        """
        card = store.read_json(self.card)
        if not isinstance(card, dict) or card.get("format_version") != self.format_version:
            version = card.get("format_version") if isinstance(card, dict) else type(card).__name__
            raise StoreError(
                f"{store.uri_of(self.card)}: format_version {version!r}, expected {self.format_version}: read it with the gaiadask "
                f"that wrote it, or {self.remedy}"
            )
        content = store.read_bytes(self.weights)
        if (checksum := hashlib.sha256(content).hexdigest()) != card.get(_SUM):
            raise DamagedFileError(
                f"{store.uri_of(self.weights)} is not the file that card.json was written for "
                f"(sha256 {checksum[:12]}…, card says {str(card.get(_SUM))[:12]}…): {self.remedy}"
            )
        return content, card
