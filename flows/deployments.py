"""Registering the deployments of the flow `gaia` with a Prefect server; deploy/prefect.yaml registers the same ones."""

from __future__ import annotations

from typing import Any

import httpx
from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentUpdate, WorkPoolCreate
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL
from prefect.utilities.callables import parameter_schema

from flows import gaia
from gaiadask.config.sections import Config
from gaiadask.config.toml import only_given
from gaiadask.errors import GaiadaskError
from gaiadask.records import JsonObject
from gaiadask.stages.table import STAGES

DEPLOYED: dict[str, Flow[..., Any]] = {"train": gaia.train, **{s.name: getattr(gaia, s.name) for s in STAGES if s.deployed}}
POOL = "gaia"
TAGS = ["gaiadask"]

_REMEDY = "start one with `prefect server start`, and name it with `prefect config set PREFECT_API_URL=http://127.0.0.1:4200/api`"


def register(config: Config, pool: str = POOL) -> list[str]:
    """Register every deployment with `config` as its parameters' defaults, and make the work pool where there is none.

    Returns the deployments' names, as gaia/train. Raises GaiadaskError where no Prefect server is named, or it does not
    answer or refuses.
    """
    url = PREFECT_API_URL.value()
    if not url:  # Prefect would start a server of its own for this one call
        raise GaiadaskError(f"no Prefect server is named (PREFECT_API_URL is not set): {_REMEDY}")
    try:
        with get_client(sync_client=True) as client:
            _ensure_pool(client, pool)
            return [_register(client, flow, name, config, pool) for name, flow in DEPLOYED.items()]
    except httpx.TransportError as error:
        raise GaiadaskError(f"no Prefect server answers at {url} ({error}): {_REMEDY}") from error
    except PrefectHTTPStatusError as error:
        raise GaiadaskError(f"the Prefect server at {url} refused: {error}") from error


def _ensure_pool(client: SyncPrefectClient, pool: str) -> None:
    try:
        client.read_work_pool(pool)
    except ObjectNotFound:
        client.create_work_pool(WorkPoolCreate(name=pool, type="process"))


def parameters_of(config: Config) -> JsonObject:
    """The configuration as a deployment's parameters. Of [model], [training] and [latent] only what it says: what it leaves to the preset
    follows the preset that `--param model=…` names."""
    given = only_given(config)
    return config.to_json() | {section: given.get(section, {}) for section in ("model", "latent", "training")}


def _register(client: SyncPrefectClient, flow: Flow[..., Any], name: str, config: Config, pool: str) -> str:
    """Make a deployment; of one that is there change what comes from gaiadask and its configuration, and nothing that a user may have
    set: schedules, tags, limits, job variables."""
    made: JsonObject = {
        "version": flow.version,
        "description": flow.description,
        "entrypoint": f"{flow.__module__}.{name}",
        "work_pool_name": pool,
        "parameters": parameters_of(config),
        "parameter_openapi_schema": parameter_schema(flow).model_dump_for_openapi(),
        "enforce_parameter_schema": True,
        "pull_steps": [],
    }
    full_name = f"{flow.name}/{name}"
    try:
        present = client.read_deployment_by_name(full_name)
    except ObjectNotFound:
        client.create_deployment(flow_id=client.create_flow(flow), name=name, tags=TAGS, **made)  # type: ignore[arg-type]
    else:
        client.update_deployment(present.id, DeploymentUpdate.model_validate(made))
    return full_name
