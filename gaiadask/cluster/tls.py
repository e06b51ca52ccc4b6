"""TLS of a cluster: the certificates that the configuration names, those of one run, and what is said of plain text."""

from __future__ import annotations

import logging
from pathlib import Path
from urllib.parse import urlsplit

from distributed.security import Security

from gaiadask.config.cluster import ClusterConfig
from gaiadask.errors import ConfigurationError

log = logging.getLogger(__name__)

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def security_of(config: ClusterConfig) -> Security | None:
    """The certificates that the configuration names; None where it names none. Raises ConfigurationError where they cannot be read."""
    if not config.tls_cert:
        return None
    for option in ("tls_ca", "tls_cert", "tls_key"):
        path = Path(getattr(config, option)).expanduser()
        try:
            path.open("rb").close()
        except OSError as error:
            raise ConfigurationError(f"cluster.{option}: {path} cannot be read: {error.strerror}") from error
    return _of_files(config.tls_ca, config.tls_cert, config.tls_key)


def made_security(folder: str) -> Security:
    """A certificate that is made for one run, its files in a folder that none but its owner may read."""
    made = Security.temporary()
    written = []
    for name, text in (("ca", made.tls_ca_file), ("cert", made.tls_client_cert), ("key", made.tls_client_key)):
        path = Path(folder) / f"{name}.pem"
        path.touch(0o600)
        path.write_text(str(text))
        written.append(str(path))
    return _of_files(*written)


def _of_files(authority: str, certificate: str, key: str) -> Security:
    pairs = {f"tls_{role}_{part}": path for role in _ROLES for part, path in (("cert", certificate), ("key", key))}
    return Security(require_encryption=True, tls_ca_file=authority, **pairs)


def warn_of_plain_text(
    address: str, remedy: str = "Give it certificates, and the configuration its tls:// address, tls_ca, tls_cert and tls_key"
) -> None:
    """Warn where a scheduler elsewhere in the network is spoken with in plain text. remedy: what to do, as its kind of cluster has it."""
    parts = urlsplit(address)
    if parts.scheme != "tls" and parts.hostname not in _LOOPBACK:
        log.warning(
            "the Dask scheduler at %s speaks plain text: whoever reaches it over the network can read what is sent, and run code as you. %s",
            address,
            remedy,
        )


_ROLES = ("client", "scheduler", "worker")
