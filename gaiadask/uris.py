"""URIs: absolute ones, those that hold a secret, and the form in which a text about a URI may leave the process."""

from __future__ import annotations

import os
import re
from pathlib import Path

_PASSWORD = re.compile(r"""(?<=://)[^/?#\s'"@]*:[^/?#\s'"]*@""")
# Options of a query that give access: signatures of S3, Google, Azure, tokens of repositories.
_OPTION = (
    r"x-(?:amz|goog|ms)-[\w.-]+|[\w.-]*(?:signature|token|secret|passw(?:or)?d|credential|accesskey)[\w.-]*|"
    r"(?:[\w.-]*[_-])?(?:api[_-]?)?key|sig|pwd|auth(?:orization)?"
)
_SECRET_OPTION = re.compile(rf"""(?i)(?<=[?&])(?:{_OPTION})=[^&\s'"#]*&?""")
_DANGLING = re.compile(r"""[?&](?=$|[\s'"#])""")


def absolute_uri(uri: str, folder: Path | None = None) -> str:
    """The URI; a path of this machine made absolute, for workers may run in another folder. Links are not followed.

    folder: where a relative path starts; None: the working folder.
    """
    return uri if "://" in uri else os.path.abspath(os.path.join(folder or "", os.path.expanduser(uri)))


def public_uri(text: str) -> str:
    """The URI, or a text with URIs in it, without user and password, tokens and signatures.

    >>> public_uri("https://me:secret@host/a.csv?v=3&X-Amz-Signature=secret")
    'https://host/a.csv?v=3'
    """
    if "://" not in text:
        return text
    without = _SECRET_OPTION.sub("", _PASSWORD.sub("", text))
    return text if without == text else _DANGLING.sub("", without)


def has_secret(uri: str) -> bool:
    """Whether a URI names a password, a token or a signature."""
    return public_uri(uri) != uri
