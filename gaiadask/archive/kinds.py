"""The kinds of archive: for each value of archive.kind its class, as "module:class", imported when it is opened."""

from __future__ import annotations

ARCHIVES: dict[str, str] = {
    "tap": "gaiadask.archive.tap.archive:TapArchive",
    "files": "gaiadask.archive.files.archive:FileArchive",
    "mock": "gaiadask.archive.mock.archive:MockArchive",
}
