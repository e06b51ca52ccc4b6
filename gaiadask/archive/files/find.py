"""Finding files: what a path, a URI or a glob names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qsl, urlencode, urljoin, urlsplit, urlunsplit

import fsspec

from gaiadask.archive.chunks import ChunkFile
from gaiadask.archive.files.formats import transport_errors
from gaiadask.archive.files.transfer import SourceFile
from gaiadask.errors import ArchiveError

CHECKSUMS = "MD5SUM.txt"


_BULK_NAME = re.compile(r"GaiaSource_(\d+)_(\d+)\.csv\.gz$")


_CHECKSUM_LINE = re.compile(rb"^\\?([0-9a-fA-F]{32})\s+\*?(?:\./)?(\S.*?)\s*$", re.MULTILINE)


_SECRET = re.compile(r"(?i)^x-(amz|goog|ms)-|signature|token|secret|password|credential|key|^sig$|^auth|^expires$")


_GLOB = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class FoundFile:
    """A file that a URI names: `facts` (its MD5, else size and time as far as the file system tells) change when it does.

    size: bytes, 0 where that is not known yet.
    """

    file: SourceFile
    facts: dict[str, str | int]
    size: int

    @property
    def uri(self) -> str:
        return self.file.label

    @property
    def bulk_range(self) -> tuple[int, int] | None:
        """Half-open range of source_id told by a bulk file's name."""
        return bulk_range(self.uri)

    @property
    def chunk_file(self) -> ChunkFile:
        return ChunkFile(self.uri, self.size, self.file.md5)


def bulk_range(uri: str) -> tuple[int, int] | None:
    """Half-open range of source_id told by the name of a file of the bulk download, None for other names."""
    match = _BULK_NAME.search(uri)
    return (int(match[1]), int(match[2]) + 1) if match else None


# Finding files --------------------------------------------------------------------------------------------------------
def public_uri(uri: str) -> str:
    """The URI without user, password and signature."""
    if "://" not in uri:
        return uri
    parts = urlsplit(uri)
    kept = [(name, value) for name, value in parse_qsl(parts.query, keep_blank_values=True) if not _SECRET.search(name)]
    query = parts.query if len(kept) == len(parse_qsl(parts.query, keep_blank_values=True)) else urlencode(kept)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=query))


def _find(uri: str, timeout_s: float, *, literal: bool = False) -> list[FoundFile]:
    """The file at a URI, else (unless literal) the files that match it as a glob. Raises ArchiveError where there are none.

    literal: of a file that was found before; its checksum is not looked up.
    """
    shown = public_uri(uri)
    try:
        filesystem, path = fsspec.core.url_to_fs(uri)
        filesystem.invalidate_cache()
        paths = [path]
        if not literal and _GLOB.search(path) and ("*" in path or not filesystem.exists(path)):
            paths = sorted(str(name) for name in filesystem.glob(path))
        files = [SourceFile(filesystem, name, public_uri(_full_uri(filesystem, name)), timeout_s=timeout_s) for name in paths]
        if not literal:
            files = _with_checksums(files)
        with ThreadPoolExecutor(16) as threads:  # over http each file is a request
            found = list(threads.map(_look_at, files))
    except FileNotFoundError as error:
        cause = f" ({_without_secrets(str(error.__cause__), uri)})" if error.__cause__ else ""
        raise ArchiveError(f"archive.uris: {shown} matches no file{cause}: check the path, or the address") from error
    except (ImportError, ValueError) as error:
        raise ArchiveError(f"archive.uris: {shown} cannot be opened: {error}. Is the protocol's package installed?") from error
    except transport_errors() as error:
        raise ArchiveError(f"archive.uris: {shown} cannot be reached: {_without_secrets(str(error), uri)}") from error
    if not any(found):
        hint = "it is a folder: name its files, as in" if len(paths) == 1 else "check the path; a glob looks like"
        raise ArchiveError(f"archive.uris: {shown} matches no file: {hint} {shown.split('*')[0].rstrip('/')}/*.parquet")
    return [file for file in found if file]


def _look_at(file: SourceFile) -> FoundFile | None:
    """None for a folder. Nothing is asked of a server for a file that its checksum identifies: there may be 61,234 of them."""
    if file.is_http and file.md5:
        return FoundFile(file, {"md5": file.md5}, 0)
    detail = file.filesystem.info(file.path)
    if detail["type"] != "file":
        return None
    facts = _facts(detail)
    return FoundFile(file, {"md5": file.md5} if file.md5 else facts, int(facts.get("size", 0)))


def _with_checksums(files: Sequence[SourceFile]) -> list[SourceFile]:
    """The files, with the MD5 that the list beside them tells of CSV files: those are streamed, so the check costs no reading."""
    told: dict[str, dict[str, str]] = {}

    def md5(file: SourceFile) -> str:
        if not _is_csv(file.name) or urlsplit(file.path).query:
            return ""
        beside = urljoin(file.path, CHECKSUMS) if file.is_http else f"{file.path.rpartition('/')[0]}/{CHECKSUMS}"
        if beside not in told:
            told[beside] = _read_checksums(file.filesystem, beside)
        return told[beside].get(file.name, "")

    return [replace(file, md5=md5(file)) for file in files]


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


def _without_secrets(text: str, uri: str) -> str:
    return text.replace(uri, public_uri(uri))


def _facts(detail: dict[str, Any]) -> dict[str, str | int]:
    """What tells one state of a file from another."""
    kept = ("size", "mtime", "ETag", "etag", "LastModified", "Last-Modified", "Content-MD5", "Digest")
    found = {key: detail[key] for key in kept if detail.get(key) is not None}
    return {key: value if isinstance(value, int) else str(value) for key, value in found.items()}
