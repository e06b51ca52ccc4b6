"""The archive's login out of a Prefect block, for a flow run whose worker has it neither in its environment nor in a file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from prefect.blocks.system import Secret

from gaiadask.archive.tap.login import PASSWORD_VARIABLE, USER_VARIABLE
from gaiadask.config.sections import Config
from gaiadask.errors import ConfigurationError

BLOCK_VARIABLE = "GAIADASK_TAP_BLOCK"


@contextmanager
def login_from_block(config: Config) -> Iterator[None]:
    """Within this context, this process and its LocalCluster log in with the Secret block that the environment's
    GAIADASK_TAP_BLOCK names; nothing is changed where it names none.

    Raises ConfigurationError where there is no such block, where it holds anything but {"user": …, "password": …}, and for
    a cluster of another's, whose workers have environments of their own.
    """
    name = os.environ.get(BLOCK_VARIABLE)
    if not name or config.archive.kind != "tap":
        yield
        return
    if config.cluster.where != "local":
        raise ConfigurationError(
            f"{BLOCK_VARIABLE} is for a LocalCluster: the workers of kind {config.cluster.where!r} log in with "
            f"{USER_VARIABLE} and {PASSWORD_VARIABLE} of their own environment"
        )
    user, password = _read(name)
    before = {variable: os.environ.get(variable) for variable in (USER_VARIABLE, PASSWORD_VARIABLE)}
    os.environ |= {USER_VARIABLE: user, PASSWORD_VARIABLE: password}
    try:
        yield
    finally:
        for variable, value in before.items():
            if value is None:
                os.environ.pop(variable, None)
            else:
                os.environ[variable] = value


def _read(name: str) -> tuple[str, str]:
    try:
        login = cast("Secret[Any]", Secret.load(name)).get()
    except ValueError as error:
        raise ConfigurationError(f"{BLOCK_VARIABLE} names {name!r}, but Prefect has no Secret block of that name") from error
    if not isinstance(login, dict) or set(login) != {"user", "password"}:
        raise ConfigurationError(
            f'the Secret block {name!r} does not hold a login: expected the JSON object {{"user": …, "password": …}}'
        )
    return str(login["user"]), str(login["password"])
