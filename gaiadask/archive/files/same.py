"""Whether files are those that a store was made from: a time of change alone means nothing, and what was read may be gone."""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Iterable, Mapping

import fsspec

from gaiadask.archive.chunks import FileState
from gaiadask.archive.files.find import GLOB, FoundFile
from gaiadask.archive.files.formats import transport_errors
from gaiadask.errors import ArchiveError
from gaiadask.uris import public_uri

ENDS = "ends"
_TIME = "mtime"
_END_BYTES = 1 << 20
"""Of each end of a file that are hashed: a small file is compared whole, a large one costs a moment."""


def with_ends(file: FoundFile) -> FileState:
    """The file's URI and state and, where only its time of change would tell it from another one, a hash of its two ends."""
    if _TIME not in file.state or file.size <= 0:
        return file.facts
    filesystem, path, end = file.file.filesystem, file.file.path, min(_END_BYTES, file.size)
    try:
        content = (filesystem.cat_file(path, start=0, end=end), filesystem.cat_file(path, start=file.size - end, end=file.size))
    except transport_errors() as error:
        raise ArchiveError(f"{file.uri} cannot be read: {error}") from error
    return {**file.facts, ENDS: hashlib.sha256(b"".join(map(bytes, content))).hexdigest()}


def states_beside(
    recorded: Mapping[str, FileState], found: Mapping[str, FoundFile], read: Mapping[str, FileState]
) -> dict[str, FileState]:
    """State of each file that is there; the recorded one where the file is the one that was recorded.

    Args:
        recorded: states that a store records, by URI.
        found: the files that are there, by URI.
        read: state of each file, with its ends, when its rows were read.
    """
    return {uri: recorded[uri] if _is_same(recorded.get(uri), file, read.get(uri)) else file.facts for uri, file in found.items()}


def _is_same(recorded: FileState | None, file: FoundFile, read: FileState | None) -> bool:
    if recorded is None:
        return False
    if recorded == file.facts:
        return True
    if _without_time(recorded) != _without_time(file.facts):
        return False
    # Its rows have not come yet, so there is nothing to belong to; or its content is the one that was read.
    return read is None or (ENDS in read and read[ENDS] == with_ends(file).get(ENDS))


def _without_time(state: FileState) -> FileState:
    return {name: value for name, value in state.items() if name != _TIME}


class Named:
    """Whether one of some URIs or globs names a file, which need not be there."""

    def __init__(self, uris: Iterable[str]) -> None:
        self._names = {name for uri in uris for name in (public_uri(uri), _full(uri))}
        self._globs = [name for name in self._names if GLOB.search(name)]

    def __contains__(self, name: str) -> bool:
        return name in self._names or any(fnmatch.fnmatchcase(name, glob) for glob in self._globs)


def _full(uri: str) -> str:
    filesystem, path = fsspec.core.url_to_fs(uri)
    return str(path) if "file" in filesystem.protocol else public_uri(str(filesystem.unstrip_protocol(path)))
