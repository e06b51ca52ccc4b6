"""Finding files: what a path, a URI or a glob names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from threading import Lock
from urllib.parse import unquote, urljoin, urlsplit

import fsspec
from fsspec.implementations.local import LocalFileSystem

from gaiadask.archive.chunks import ChunkFile, FileState
from gaiadask.archive.files.formats import transport_errors
from gaiadask.archive.files.transfer import SourceFile
from gaiadask.errors import ArchiveError
from gaiadask.uris import absolute_uri, public_uri

CHECKSUMS = "MD5SUM.txt"

_BULK_NAME = re.compile(r"GaiaSource_(\d+)_(\d+)\.csv\.gz$")
_CHECKSUM_LINE = re.compile(rb"^\\?([0-9a-fA-F]{32})\s+\*?(?:\./)?(\S.*?)\s*$", re.MULTILINE)
GLOB = re.compile(r"[*?\[]")
_REQUESTS = 16
"""At once, where over http each file is a request: enough to hide their latency, few enough for a server."""
_STATE_KEYS = ("size", "mtime", "ETag", "etag", "LastModified", "Last-Modified", "Content-MD5", "Digest")
"""Keys of fsspec's `info` whose values change when the file does."""


@dataclass(frozen=True)
class FoundFile:
    """A file that a URI names.

    state: its MD5, else size and time as far as the file system gives them; it changes when the file does. size: bytes, 0 where
    that is not known yet.
    """

    file: SourceFile
    state: FileState
    size: int

    @property
    def uri(self) -> str:
        """Its URI without credentials."""
        return self.file.label

    @property
    def facts(self) -> FileState:
        """Its URI and state, as identities and ledgers have them."""
        return {"uri": self.uri, **self.state}

    @property
    def bulk_range(self) -> tuple[int, int] | None:
        """Half-open range of source_id in a bulk file's name."""
        return bulk_range(self.uri)

    @property
    def chunk_file(self) -> ChunkFile:
        """The file as a chunk names it."""
        return ChunkFile(self.uri, self.size, self.file.md5)


def bulk_range(uri: str) -> tuple[int, int] | None:
    """Half-open range of source_id in the name of a file of the bulk download, None for other names."""
    match = _BULK_NAME.search(uri)
    return (int(match[1]), int(match[2]) + 1) if match else None


def find_all(uris: Sequence[str], timeout_s: float) -> Iterator[list[FoundFile]]:
    """The files of each URI, as `find_files` finds them, several URIs at once: over http each is a request."""
    lists = ChecksumLists()
    with ThreadPoolExecutor(_REQUESTS) as threads:
        yield from threads.map(lambda uri: find_files(uri, timeout_s, lists=lists), uris)


def find_files(uri: str, timeout_s: float, *, literal: bool = False, lists: ChecksumLists | None = None) -> list[FoundFile]:
    """The file at a URI, else (unless literal) the files that match it as a glob. Raises ArchiveError where there are none.

    literal: of a file that was found before; its checksum is not looked up. lists: of checksums, which several calls share.
    """
    shown, path, paths = public_uri(uri), "", [""]
    try:
        filesystem, path = _opened(uri)
        filesystem.invalidate_cache()
        paths = [path]
        if not literal and GLOB.search(path) and ("*" in path or not filesystem.exists(path)):
            # A bracket may also be a letter of a folder's name.
            paths = sorted(str(name) for name in filesystem.glob(path) or filesystem.glob(path.replace("[", "[[]")))
        files = [SourceFile(filesystem, name, public_uri(_full_uri(filesystem, name)), timeout_s=timeout_s) for name in paths]
        if not literal:
            lists = lists or ChecksumLists()
            files = [replace(file, md5=lists.md5(file)) for file in files]
        existing = [file for file in _looked_up(files) if file]
    except FileNotFoundError as error:
        # Of a glob, the file that it names and that is not there: a broken link.
        reason = error.__cause__ or (error if paths != [path] else None)
        cause = f" ({public_uri(str(reason))})" if reason else ""
        raise ArchiveError(f"archive.uris: {shown} matches no file{cause}: check the path, or the address") from error
    except (ImportError, ValueError) as error:
        raise ArchiveError(
            f"archive.uris: {shown} cannot be opened: {public_uri(str(error))}. Is the protocol's package installed?"
        ) from error
    except transport_errors() as error:
        raise ArchiveError(f"archive.uris: {shown} cannot be reached: {public_uri(str(error))}") from error
    if not existing:
        hint = "it is a folder: name its files, as in" if len(paths) == 1 else "check the path; a glob looks like"
        raise ArchiveError(f"archive.uris: {shown} matches no file: {hint} {shown.split('*')[0].rstrip('/')}/*.parquet")
    return existing


def _opened(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URI, and its path there. What has no "://" is a local path, whatever letters it has."""
    if "://" not in uri:
        return LocalFileSystem(), absolute_uri(uri)
    filesystem, path = fsspec.core.url_to_fs(uri)
    if uri.startswith("file://") and "%" in path and not filesystem.exists(path):
        path = unquote(path)
    return filesystem, path


def _looked_up(files: Sequence[SourceFile]) -> list[FoundFile | None]:
    if len(files) == 1:
        return [_look_up(files[0])]
    with ThreadPoolExecutor(_REQUESTS) as threads:
        return list(threads.map(_look_up, files))


def _look_up(file: SourceFile) -> FoundFile | None:
    """None for a folder. A server is not asked about a file that its checksum identifies: there may be 61,234 of them."""
    if file.is_http and file.md5:
        return FoundFile(file, {"md5": file.md5}, 0)
    detail = file.filesystem.info(file.path)
    if detail["type"] != "file":
        return None
    state = _state(detail)
    return FoundFile(file, {"md5": file.md5} if file.md5 else state, int(state.get("size", 0)))


class ChecksumLists:
    """MD5 of CSV files by the lists beside them, each read once: they are streamed, so the check costs no reading."""

    def __init__(self) -> None:
        self._lists: dict[str, dict[str, str]] = {}
        self._lock = Lock()

    def md5(self, file: SourceFile) -> str:
        """Of a file, "" where no list has it."""
        if not _is_csv(file.name) or (file.is_http and urlsplit(file.path).query):
            return ""
        beside = urljoin(file.path, CHECKSUMS) if file.is_http else f"{file.path.rpartition('/')[0]}/{CHECKSUMS}"
        with self._lock:
            if beside not in self._lists:
                self._lists[beside] = _read_checksums(file.filesystem, beside)
        return self._lists[beside].get(file.name, "")


def _is_csv(name: str) -> bool:
    return name.lower().endswith((".csv", ".csv.gz"))


def _read_checksums(filesystem: fsspec.AbstractFileSystem, path: str) -> dict[str, str]:
    """MD5 by file name; empty where there is no such list."""
    try:
        content = bytes(filesystem.cat_file(path))
    except (FileNotFoundError, PermissionError):  # s3 refuses what is not there to users who may not list
        return {}
    return {name.decode(errors="replace").rpartition("/")[2]: md5.decode().lower() for md5, name in _CHECKSUM_LINE.findall(content)}


def _full_uri(filesystem: fsspec.AbstractFileSystem, path: str) -> str:
    """Local files by their absolute path, others with their protocol."""
    return path if "file" in filesystem.protocol else str(filesystem.unstrip_protocol(path))


def _state(detail: Mapping[str, object]) -> FileState:
    """A file's state, out of what fsspec gives of it."""
    values = {key: value for key in _STATE_KEYS if (value := detail.get(key)) is not None}
    return {key: value if isinstance(value, int) else str(value) for key, value in values.items()}
