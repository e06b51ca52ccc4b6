"""Containers, compose and Kubernetes: each file is what its schema takes, nothing is root, no secret is in any."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from measures import ROOT

import gaiadask
from flows.deployments import POOL
from gaiadask.cluster.pods import cluster_spec
from gaiadask.cluster.rank_process import ALLOCATOR
from gaiadask.config.cluster import ClusterConfig
from gaiadask.config.toml import load_config

DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
DOCKERFILE = (DEPLOY / "container" / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
MANIFESTS = [
    document
    for name in ("namespace", "postgres", "dask-cluster")
    for document in yaml.safe_load_all((KUBERNETES / f"{name}.yaml").read_text())
]
OURS = [name for name, service in SERVICES.items() if "gaiadask" in service["image"]]


# The image -----------------------------------------------------------------------------------------------------------
def instructions(name: str) -> list[str]:
    """What the Dockerfile says with an instruction, one a line."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE).replace("\\\n", " ")
    return re.findall(rf"^{name} (.*)$", text, re.MULTILINE)


def test_the_image_is_pinned_and_not_root() -> None:
    assert instructions("USER") == ["1000:1000"]
    installs = [command for line in instructions("RUN") for command in line.split("&&") if "pip install" in command]
    assert len(installs) == 2
    assert all("--constraint deploy/constraints.txt" in command for command in installs)
    (base,) = (argument.removeprefix("BASE=") for argument in instructions("ARG") if argument.startswith("BASE="))
    tested = re.findall(r"Python (\d\.\d+)", (DEPLOY / "constraints.txt").read_text().splitlines()[0])[0]
    assert base.startswith(f"python:{tested}-")
    environment = dict(word.split("=", 1) for line in instructions("ENV") for word in line.split() if "=" in word)
    assert {name: environment[name] for name in ALLOCATOR} == ALLOCATOR


def test_what_the_image_is_built_from_is_a_whole_gaiadask() -> None:
    """The sources of each COPY are what .dockerignore lets through, and setuptools packs every file of them."""
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {word for line in instructions("COPY") if "--from" not in line for word in line.split()[:-1]}
    assert copied == let_through
    assert all((ROOT / name).exists() for name in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert {project["project"]["readme"], *project["project"]["license-files"]} <= copied
    packed = [f"gaiadask/{pattern}" for pattern in project["tool"]["setuptools"]["package-data"]["gaiadask"]]
    for file in (path.relative_to(ROOT) for room in ("gaiadask", "flows") for path in (ROOT / room).rglob("*") if path.is_file()):
        if "__pycache__" not in file.parts:
            assert file.suffix == ".py" or any(file.match(pattern) for pattern in packed), file
    extras = project["project"]["optional-dependencies"]
    (wanted,) = re.findall(r"'\.\[(.*)\]'", DOCKERFILE)
    assert set(wanted.split(",")) <= set(extras)


def test_secrets_reach_a_command_as_variables(tmp_path: Path) -> None:
    (tmp_path / "PASS_WORD").write_text("a b'$c\n")
    (tmp_path / "cert.pem").write_text("none")
    script = DEPLOY / "container" / "entrypoint.sh"
    environment = {"PATH": os.environ["PATH"], "SECRETS": str(tmp_path)}
    shown = [sys.executable, "-c", "import os, sys; print(dict(os.environ), sys.argv[1])", "a  b"]
    done = subprocess.run([script, *shown], env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert """'PASS_WORD': "a b'$c\"""" in done.stdout and done.stdout.endswith(" a  b\n")
    assert "cert" not in done.stdout
    none = subprocess.run([script, "true"], env=environment | {"SECRETS": "/nowhere"}, timeout=60, check=False)
    assert none.returncode == 0


# Compose -------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_compose_is_what_its_schema_takes() -> None:
    schema = files("check_jsonschema") / "builtin_schemas/vendor/compose-spec.json"
    jsonschema.validate(COMPOSE, json.loads(schema.read_text()))


def test_what_compose_names_is_there() -> None:
    for name, service in SERVICES.items():
        for other, wanted in service.get("depends_on", {}).items():
            condition = wanted["condition"]
            assert condition == "service_completed_successfully" or "healthcheck" in SERVICES[other], (name, other)
        assert set(service.get("secrets", ())) <= set(COMPOSE["secrets"])
        assert {volume.split(":")[0] for volume in service.get("volumes", ()) if ":" in volume} <= set(COMPOSE["volumes"])
    ignored = (ROOT / ".gitignore").read_text().split()
    assert all(f"/deploy/{Path(secret['file']).parent}/" in ignored for secret in COMPOSE["secrets"].values())
    assert (DEPLOY / COMPOSE["configs"]["gaia"]["file"]).is_file()
    build = SERVICES["prefect-server"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_no_more_rights_than_it_needs(name: str) -> None:
    service = SERVICES[name]
    assert "no-new-privileges:true" in service["security_opt"]
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
    assert service["restart"] == "no" or "healthcheck" in service
    assert not re.search(r":latest$|^[^:]*$", service["image"])
    if name in OURS:
        assert service["read_only"] and service["cap_drop"] == ["ALL"]
        assert service["image"] == f"gaiadask:${{GAIADASK_TAG:-{gaiadask.__version__}}}"
    for variable, value in service.get("environment", {}).items():
        assert variable.endswith("_FILE") or not re.search("PASSWORD|SECRET|KEY|TOKEN", variable), value


def test_the_runs_of_compose_find_dask_and_the_store() -> None:
    config = load_config(DEPLOY / "compose.toml")
    assert config.archive.kind == "mock"
    assert config.cluster.address == SERVICES["dask-worker"]["command"][2]
    assert config.store.startswith("s3://gaia/")
    assert SERVICES["prefect-worker"]["command"][4] == POOL


# Kubernetes ----------------------------------------------------------------------------------------------------------
def pods(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The pods that a manifest describes."""
    spec = manifest.get("spec", {})
    if manifest["kind"] == "DaskCluster":
        yield from (spec[role]["spec"] for role in ("scheduler", "worker"))
    elif "template" in spec:
        yield spec["template"]["spec"]


@pytest.mark.slow
@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda manifest: manifest["kind"])
def test_manifests_are_what_kubernetes_takes(manifest: dict[str, Any]) -> None:
    if manifest["kind"] == "DaskCluster":
        check_dask_cluster(manifest)
    else:
        kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)
    for pod in pods(manifest):
        check_pod(pod)
    assert manifest["kind"] != "Secret"


def check_dask_cluster(manifest: Any) -> None:
    """A manifest is what the operator takes, of the version that is installed."""
    definition = files("dask_kubernetes.operator") / "deployment/helm/dask-kubernetes-operator/crds/daskcluster.yaml"
    (version,) = yaml.load(definition.read_text(), Loader=yaml.CSafeLoader)["spec"]["versions"]
    jsonschema.Draft7Validator(version["schema"]["openAPIV3Schema"]).validate(manifest)


def check_pod(pod: dict[str, Any]) -> None:
    """A pod is one, and as Kubernetes' standard "restricted" wants it."""
    whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": pod}
    kubernetes_validate.validate(whole, kubernetes_validate.latest_version(), strict=True)
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    for container in pod["containers"]:
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert {"cpu", "memory"} <= set(container["resources"]["limits"])
        assert all("valueFrom" in each for each in container.get("env", ()) if re.search("PASSWORD|SECRET|KEY", each["name"]))


@pytest.mark.slow
def test_pods_that_gaiadask_asks_for_are_restricted_and_have_their_secrets() -> None:
    config = load_config(KUBERNETES / "gaia.toml").cluster
    spec: Any = cluster_spec(config, "gaiadask-1")
    check_dask_cluster(spec)
    for pod in pods(spec):
        check_pod(pod)
        assert [source["secretRef"]["name"] for source in pod["containers"][0]["envFrom"]] == ["gaiadask-s3"]
    alone: Any = cluster_spec(ClusterConfig(kind="kubernetes", image="gaiadask", workers=1), "gaiadask-1")
    assert all(pod["containers"][0]["envFrom"] == [] for pod in pods(alone))


def test_there_is_a_probe_for_each_manifest_that_serves() -> None:
    served = [container for manifest in MANIFESTS for pod in pods(manifest) for container in pod["containers"]]
    assert [container["name"] for container in served if "readinessProbe" in container] == ["postgres", "scheduler", "worker"]


@pytest.mark.slow
@pytest.mark.parametrize("chart", ["prefect-server", "prefect-worker"])
def test_values_are_what_prefects_charts_take(chart: str) -> None:
    values = yaml.safe_load((KUBERNETES / f"{chart}.values.yaml").read_text())
    schema = json.loads((ROOT / "tests" / "data" / "prefect-helm" / f"{chart}.schema.json").read_text())
    jsonschema.validate(values, schema)
    assert unknown(values, schema) == []


def unknown(values: Any, schema: Any, where: str = "") -> list[str]:
    """Options that a chart's schema does not name: it takes them, and does nothing with them."""
    known = schema.get("properties") if isinstance(schema, dict) else None
    if not isinstance(values, dict) or not known:
        return []
    return [
        found
        for name, value in values.items()
        for found in (unknown(value, known[name], f"{where}{name}.") if name in known else [f"{where}{name}"])
    ]


def test_values_are_what_dasks_chart_takes() -> None:
    values = yaml.safe_load((KUBERNETES / "dask-operator.values.yaml").read_text())
    chart = files("dask_kubernetes.operator") / "deployment/helm/dask-kubernetes-operator/values.yaml"
    known = yaml.safe_load(chart.read_text())
    assert set(values) <= set(known)
    assert set(values["rbac"]) <= set(known["rbac"])
    check_pod(
        {
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [
                {
                    "name": "operator",
                    "resources": values["resources"],
                    "securityContext": known["securityContext"] | values["securityContext"],
                }
            ],
        }
    )


def test_images_are_of_the_versions_that_were_tested() -> None:
    constraints = dict(line.split("==") for line in (DEPLOY / "constraints.txt").read_text().split() if "==" in line)
    server, worker = (yaml.safe_load((KUBERNETES / f"prefect-{role}.values.yaml").read_text()) for role in ("server", "worker"))
    assert server["global"]["prefect"]["image"]["prefectTag"].startswith(f"{constraints['prefect']}-python3")
    image = f"{worker['worker']['image']['repository']}:{worker['worker']['image']['prefectTag']}"
    assert image == load_config(KUBERNETES / "gaia.toml").cluster.image
    assert image.endswith(f":{gaiadask.__version__}")
    assert {container["image"] for pod in pods(MANIFESTS[-1]) for container in pod["containers"]} == {image}
    assert worker["worker"]["config"]["workPool"] == POOL
    namespaces = {manifest["metadata"].get("namespace", manifest["metadata"]["name"]) for manifest in MANIFESTS}
    assert namespaces == {load_config(KUBERNETES / "gaia.toml").cluster.namespace}
