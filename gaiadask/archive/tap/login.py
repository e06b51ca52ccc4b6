"""User and password, out of the environment or a file, and the login that a TAP service expects.

They are read where they are used, on client and workers alike, and are part of no configuration, ledger, log or repr.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from gaiadask.archive.tap.attempts import Interrupted, unreachable
from gaiadask.errors import ArchiveError, ConfigurationError

USER_VARIABLE = "GAIADASK_TAP_USER"
PASSWORD_VARIABLE = "GAIADASK_TAP_PASSWORD"
CREDENTIALS_VARIABLE = "GAIADASK_TAP_CREDENTIALS"


def credentials() -> tuple[str, str] | None:
    """User and password: the two lines of the file that the environment names, else the environment's; None without either.

    Raises ConfigurationError for one without the other and for a file that cannot be read.
    """
    if path := os.environ.get(CREDENTIALS_VARIABLE):
        try:
            lines = Path(path).read_text(encoding="utf-8").split("\n")
        except OSError as error:
            raise ConfigurationError(f"{CREDENTIALS_VARIABLE} names {path}, which cannot be read: {error.strerror}") from error
        if len(lines) < 2 or not lines[0].strip():
            raise ConfigurationError(f"{CREDENTIALS_VARIABLE} names {path}: expected two lines, the user and the password")
        return lines[0].strip(), lines[1].strip()
    user, password = os.environ.get(USER_VARIABLE), os.environ.get(PASSWORD_VARIABLE)
    if (user is None) != (password is None):
        raise ConfigurationError(f"only one of {USER_VARIABLE} and {PASSWORD_VARIABLE} is set: set both, or neither")
    return (user, password) if user is not None and password is not None else None


def origin(url: str) -> tuple[str, str, int | None]:
    """Scheme, host and port of an address: where a login belongs."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or {"https": 443, "http": 80}.get(parts.scheme)


def log_in(session: requests.Session, url: str, user: str, password: str) -> None:
    """Log a session in: at ESA's archives by their login page and cookie, which astroquery knows, else by HTTP's basic
    authentication. Raises ConfigurationError for an address that is not encrypted."""
    host = urlsplit(url).hostname or ""
    if urlsplit(url).scheme != "https" and host not in ("127.0.0.1", "localhost", "::1"):
        raise ConfigurationError(f"archive.url {url} would carry your password unencrypted: use its https address")
    if host.endswith(".esac.esa.int"):
        log_in_by_astroquery(session, url, user, password)
    else:
        session.auth = (user, password)


def log_in_by_astroquery(session: requests.Session, url: str, user: str, password: str) -> None:
    """Log a session in at ESA's login page, whose cookies it then has. Raises ArchiveError where the page refuses."""
    from astroquery.utils.tap import TapPlus

    try:
        TapPlus(url=url, connhandler=AstroqueryConnection(session, url)).login(user=user, password=password)
    except requests.HTTPError as error:
        raise ArchiveError(login_refused(url, str(error))) from error
    except requests.RequestException as error:
        raise Interrupted(unreachable(url, error)) from error


class AstroqueryConnection:
    """The connection that astroquery expects, over a session of requests: with its time-outs, retries and cookies."""

    def __init__(self, session: requests.Session, url: str) -> None:
        self._session, self._url = session, url.rstrip("/")

    def execute_tapget(self, subcontext: str, *, verbose: bool = False) -> Any:
        return self._raw(self._session.get(f"{self._url}/{subcontext}", stream=True))

    def execute_secure(self, subcontext: str, data: str, *, verbose: bool = False) -> Any:
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        return self._raw(
            self._session.post(
                f"{self._url.rsplit('/', 1)[0]}/{subcontext}", data, headers=form, stream=True, allow_redirects=False
            )
        )

    def check_launch_response_status(self, response: Any, debug: bool, expected: int, **_: Any) -> bool:
        if response.status != expected:
            raise requests.HTTPError(f"HTTP {response.status} {response.reason}")
        return False

    def find_all_headers(self, headers: Any, key: str) -> list[str]:
        return list(headers.getlist(key))

    def set_cookie(self, cookie: str) -> None:
        """Nothing to do: the session keeps cookies."""

    @staticmethod
    def _raw(response: requests.Response) -> Any:
        response.raw.decode_content = True
        return response.raw


def login_refused(url: str, answer: str) -> str:
    """Message for a service that refuses access."""
    return f"{url} refused access ({answer}): check {USER_VARIABLE} and {PASSWORD_VARIABLE}, or {CREDENTIALS_VARIABLE}"
