"""The deployments as a user meets them: a Prefect server and a process worker on loopback, every command given in full."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import dask.dataframe as dd
import httpx
import psutil
import pytest

import gaiadask
from gaiadask import decompress
from gaiadask.config.toml import load_config, parse_config
from gaiadask.ingest import read_catalogue_record
from gaiadask.store.files import Store
from gaiadask.store.paths import RunPaths

from .conftest import PrefectServer
from .processes import free_ports

CHECKOUT = Path(__file__).parents[2]
NAMES = ("train", "ingest", "encode", "sample", "compress", "tune")
TINY = """
name = "Tiny.1"
store = "store"

[archive]
kind = "mock"
mock_stars = 20_000
chunk_rows = 10_000

[model]
latents = 6
hidden = [32]

[training]
rows_seen = 50_000
validate_every_rows = 25_000
validation_rows = 1_000

[prior]
rows_seen = 5_000
hidden = [24]

[quality]
rows = 400
two_sample_rows = 100
two_sample_seeds = 1

[cluster]
workers = 1
dashboard = false
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "gaia.toml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def deployed(prefect_server: PrefectServer, config: Path) -> subprocess.CompletedProcess[str]:
    """`gaiadask deploy`, which makes the work pool."""
    return prefect_server.command("gaiadask", "deploy", config)


@pytest.fixture(scope="module")
def worker(prefect_server: PrefectServer, deployed: object, s3: object) -> Iterator[None]:
    with prefect_server.compose.up("prefect-worker"):
        yield


def run(server: PrefectServer, deployment: str, **parameters: Any) -> subprocess.CompletedProcess[str]:
    """`prefect deployment run --watch`."""
    options = [word for name, value in parameters.items() for word in ("--param", f"{name}={json.dumps(value)}")]
    return server.command("prefect", "deployment", "run", f"gaia/{deployment}", "--watch", *options)


def asked_to_run(server: PrefectServer, deployment: str, parameters: dict[str, Any]) -> httpx.Response:
    """The same of the server itself, without waiting: seconds less."""
    number = next(each["id"] for each in server.found("deployments") if each["name"] == deployment)
    return httpx.post(f"{server.url}/deployments/{number}/create_flow_run", json={"parameters": parameters}, timeout=30)


def flow_run_of(server: PrefectServer, output: str) -> dict[str, Any]:
    found = re.search(r"UUID: ([0-9a-f-]{36})", output)
    assert found, output
    return server.found("flow_runs", flow_runs={"id": {"any_": [found[1]]}})[0]


def test_deploy_registers_the_files_values_and_says_how_to_run(
    prefect_server: PrefectServer, deployed: subprocess.CompletedProcess[str], config: Path
) -> None:
    assert deployed.returncode == 0, deployed.stdout
    assert "prefect worker start --pool gaia" in deployed.stdout
    assert "prefect deployment run gaia/train" in deployed.stdout
    found = {each["name"]: each for each in prefect_server.found("deployments")}
    assert set(found) == set(NAMES)
    for each in found.values():
        assert parse_config(each["parameters"]) == load_config(config)
        assert each["work_pool_name"] == "gaia"
        assert each["enforce_parameter_schema"]


def test_a_schedule_makes_flow_runs_and_deploying_again_leaves_it(
    prefect_server: PrefectServer, deployed: object, config: Path
) -> None:
    """Prefect's server says in its log alone that it cannot make them, as with SQLAlchemy 2.1."""
    schedule = ("prefect", "deployment", "schedule")
    day = date.today() + timedelta(days=40)  # so late that nothing runs, and within the hundred days that Prefect looks ahead
    cron = f"0 3 {day.day} {day.month} *"
    done = prefect_server.command(*schedule, "create", "gaia/compress", "--cron", cron)
    assert done.returncode == 0, done.stdout
    again = prefect_server.command("gaiadask", "deploy", str(config))
    assert again.returncode == 0, again.stdout
    (found,) = (each for each in prefect_server.found("deployments") if each["name"] == "compress")
    assert [schedule["schedule"]["cron"] for schedule in found["schedules"]] == [cron]
    assert found["tags"] == ["gaiadask"]
    assert found["version"] == gaiadask.__version__
    waiting = {"state": {"type": {"any_": ["SCHEDULED"]}}, "deployment_id": {"any_": [found["id"]]}}
    come = wait_until(lambda: prefect_server.found("flow_runs", flow_runs=waiting), 60)
    cleared = prefect_server.command(*schedule, "clear", "gaia/compress", "--accept-yes")
    assert cleared.returncode == 0, cleared.stdout
    assert come, (prefect_server.folder / "prefect-server.log").read_text()[-3000:]


def test_train_needs_no_argument_and_leaves_report_and_artifacts(prefect_server: PrefectServer, worker: None, config: Path) -> None:
    done = run(prefect_server, "train")
    flow_run = flow_run_of(prefect_server, done.stdout)
    log = prefect_server.log_of(flow_run["id"])
    assert done.returncode == 0, log
    assert flow_run["state_type"] == "COMPLETED"
    assert flow_run["name"] == f"train {load_config(config).name}"

    settings = load_config(config)
    store, paths = Store(settings.store), RunPaths(settings.name)
    assert b"<html" in store.read_bytes(paths.report)
    latents = dd.read_parquet(f"{store.uri}/{paths.latent}/dataset")
    assert len(latents) == read_catalogue_record(store).rows > 1_000

    tasks = prefect_server.found("task_runs", flow_runs={"id": {"any_": [flow_run["id"]]}})
    assert {task["name"].split("-")[0] for task in tasks} == {
        "ingest", "fetch 1 of 1", "statistics", "train", "encode", "prior", "evaluate", "report",
    }  # fmt: skip
    assert re.search(r"flows.reporting \| fetch: [\d,]+ stars in", log)
    # What the library says, and its progress, is in the run's own log.
    assert "gaiadask.stages.engine | train: Fit the autoencoder" in log
    assert re.search(r"flows.reporting \| train: [\d,]+ stars in", log)

    artifacts = {each["key"]: each for each in prefect_server.found("artifacts") if each["flow_run_id"] == flow_run["id"]}
    assert set(artifacts) - {key for key in artifacts if key.startswith("progress-")} == {
        "quality-tiny-1", "report-tiny-1", "hr-diagram-tiny-1",
    }  # fmt: skip
    assert artifacts["hr-diagram-tiny-1"]["type"] == "image"
    assert artifacts["hr-diagram-tiny-1"]["data"].encode() in store.read_bytes(paths.report)
    assert store.uri_of(paths.report) in artifacts["report-tiny-1"]["data"]
    table = artifacts["quality-tiny-1"]["data"]
    quality = store.read_json(paths.quality)
    for column, rating in quality["reconstruction"]["rebuilt"]["columns"].items():
        assert f"| {column} | {rating['error_over_iqr']['median']:.3g} |" in table
    assert "| PCA-6 |" in table
    assert f"| {quality['two_sample']['comparisons']['rebuilt']['auc']:.3g} |" in table


IN_TIME_S = 10.0
"""So long after a cancel, or a time-out, nothing of a run is left."""
OUT_OF_TIME = """
import signal, sys, time
from pathlib import Path
from threading import Thread

from flows import gaia
from flows.deployments import parameters_of
from gaiadask.config.toml import load_config

metrics, before = Path(sys.argv[2]), Path(sys.argv[2]).read_text()

def end_the_hour():
    while len(metrics.read_text()) <= len(before):
        time.sleep(0.1)
    print("TOLD", time.time(), flush=True)
    signal.setitimer(signal.ITIMER_REAL, 0.01)  # by which Prefect times a flow of the main thread

Thread(target=end_the_hour, daemon=True).start()
train = gaia.train.with_options(timeout_seconds=3600)
state = train(return_state=True, **parameters_of(load_config(sys.argv[1])))
print("TOLD", time.time(), state.name, flush=True)
"""


def left_of(server: PrefectServer) -> list[str]:
    """Command lines of the processes of flow runs: the environment of each names the server."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words, told = " ".join(process.cmdline()), process.environ().get("PREFECT_API_URL")
            if told == server.url and re.search(r"prefect\.engine|multiprocessing|gaiadask\.", words):
                found.append(words)
    return found


def wait_until(moment: Callable[[], object], timeout_s: float) -> bool:
    end = time.monotonic() + timeout_s
    while not (come := moment()) and time.monotonic() < end:
        time.sleep(0.2)
    return bool(come)


def test_a_training_that_is_cancelled_or_out_of_time_ends_and_goes_on(
    prefect_server: PrefectServer, worker: None, config: Path, tmp_path: Path
) -> None:
    endless = tmp_path / "endless.toml"
    text = config.read_text().replace('store = "store"', f'store = "{load_config(config).store}"').replace("Tiny.1", "endless")
    endless.write_text(text.replace("rows_seen = 50_000", "rows_seen = 1_000_000_000"))
    settings = load_config(endless)
    metrics = Path(Store(settings.store).uri_of(RunPaths(settings.name).metrics))

    changed = {"name": "endless", "training": settings.training.model_dump(mode="json", exclude_unset=True)}
    begun = asked_to_run(prefect_server, "train", changed).json()["id"]
    assert wait_until(metrics.exists, 200), prefect_server.log_of(begun)
    has_rank = lambda: any("gaiadask.training.process" in words for words in left_of(prefect_server))  # noqa: E731
    assert wait_until(has_rank, 30), f"{left_of(prefect_server)}\n{prefect_server.log_of(begun)}"
    prefect_server.command("prefect", "flow-run", "cancel", begun)
    assert wait_until(lambda: not left_of(prefect_server), IN_TIME_S), left_of(prefect_server)
    (flow_run,) = prefect_server.found("flow_runs", flow_runs={"id": {"any_": [begun]}})
    assert flow_run["state_type"].startswith("CANCEL")

    first = metrics.read_text().splitlines()[0]
    again = prefect_server.command("python", "-c", OUT_OF_TIME, endless, metrics)
    assert not left_of(prefect_server)
    (asked, _), (ended, state) = re.findall(r"^TOLD (\S+) ?(\S*)$", again.stdout, re.MULTILINE)
    assert state == "TimedOut", again.stdout
    assert float(ended) - float(asked) < IN_TIME_S
    assert metrics.read_text().splitlines()[0] == first  # with its seconds: it went on


def test_new_stars_are_drawn_where_a_prior_is(prefect_server: PrefectServer, worker: None, config: Path) -> None:
    done = run(prefect_server, "sample", stars=700, seed=3, cone=[266.4, -28.9, 30.0])
    assert done.returncode == 0, prefect_server.log_of(flow_run_of(prefect_server, done.stdout)["id"])
    settings = load_config(config)
    folder = f"{settings.store}/{RunPaths(settings.name).samples}"
    assert len(dd.read_parquet(folder)) == 700


def test_a_catalogue_is_compressed_where_one_is(prefect_server: PrefectServer, worker: None, config: Path) -> None:
    done = run(prefect_server, "compress")
    flow_run = flow_run_of(prefect_server, done.stdout)
    assert done.returncode == 0, prefect_server.log_of(flow_run["id"])
    settings = load_config(config)
    folder = f"{settings.store}/{RunPaths(settings.name).compressed}"
    stars = decompress(folder, ["source_id", "parallax"])
    assert len(stars) == read_catalogue_record(Store(settings.store)).rows
    artifacts = {each["key"]: each for each in prefect_server.found("artifacts") if each["flow_run_id"] == flow_run["id"]}
    assert "compressed-tiny-1" in artifacts
    assert "| parallax | 64 |" in artifacts["compressed-tiny-1"]["data"]


def test_a_search_leaves_its_table(prefect_server: PrefectServer, worker: None, config: Path) -> None:
    search = {"training": {"learning_rate": [1e-3, 5e-3]}, "rows_seen": 4_000, "validation_rows": 200}
    done = run(prefect_server, "tune", tune=search)
    flow_run = flow_run_of(prefect_server, done.stdout)
    assert done.returncode == 0, prefect_server.log_of(flow_run["id"])
    artifacts = {each["key"]: each for each in prefect_server.found("artifacts") if each["flow_run_id"] == flow_run["id"]}
    assert "tune-tiny-1" in artifacts
    assert "| 0.001 |" in artifacts["tune-tiny-1"]["data"]


@pytest.mark.parametrize(
    ("option", "parameters"),
    [
        ("rows_sen", {"training": {"rows_sen": 1}}),
        ("training.rows_seen", {"training": {"rows_seen": 0}}),
        ("archive.kind", {"archive": {"kind": "gaia"}}),
    ],
)
def test_a_bad_option_is_refused_before_a_run_exists(
    prefect_server: PrefectServer, deployed: subprocess.CompletedProcess[str], option: str, parameters: dict[str, Any]
) -> None:
    before = len(prefect_server.found("flow_runs"))
    answer = asked_to_run(prefect_server, "train", parameters)
    assert answer.status_code == 409
    assert option in answer.text
    assert len(prefect_server.found("flow_runs")) == before


def test_a_section_that_is_not_there_is_refused_by_name(
    prefect_server: PrefectServer, deployed: subprocess.CompletedProcess[str]
) -> None:
    before = len(prefect_server.found("flow_runs"))
    done = run(prefect_server, "train", trainig={"rows_seen": 1})
    assert done.returncode != 0
    assert "trainig" in done.stdout
    assert len(prefect_server.found("flow_runs")) == before


def test_an_unreachable_archive_fails_with_a_readable_reason(prefect_server: PrefectServer, worker: None, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_ports(1)[0]}/tap"
    done = run(prefect_server, "train", name="closed", store=str(tmp_path / "store"), archive={"kind": "tap", "url": url})
    assert done.returncode == 1
    flow_run = flow_run_of(prefect_server, done.stdout)
    assert flow_run["state_type"] == "FAILED"
    message = flow_run["state"]["message"]
    assert message.startswith("ArchiveError: ")
    assert f"cannot reach {url}" in message
    assert "\n" not in message
    log = prefect_server.log_of(flow_run["id"])
    assert message in log
    assert "Retry 2/2" in log
    assert not (tmp_path / "store" / "catalogue" / "hats.properties").exists()


def test_a_login_comes_from_a_secret_block(prefect_server: PrefectServer) -> None:
    program = """
import os
from prefect.blocks.system import Secret
from flows.login import login_from_block
from gaiadask.archive.tap.login import credentials
from gaiadask.config.toml import parse_config
from gaiadask.errors import ConfigurationError

def tried(**cluster):
    try:
        with login_from_block(parse_config({"cluster": cluster})):
            return credentials()
    except ConfigurationError as error:
        return str(error)

os.environ["GAIADASK_TAP_BLOCK"] = "gaia-login"
print("TOLD", tried())
Secret(value="cecilia").save("gaia-login")
print("TOLD", tried())
Secret(value={"user": "cecilia", "password": "sigma"}).save("gaia-login", overwrite=True)
print("TOLD", tried(), credentials())
print("TOLD", tried(address="tcp://127.0.0.1:9"))
"""
    done = prefect_server.command("python", "-c", program)
    assert done.returncode == 0, done.stdout
    none, wrong, right, remote = (line.removeprefix("TOLD ") for line in done.stdout.splitlines() if line.startswith("TOLD "))
    assert "no Secret block" in none
    assert "does not hold a login" in wrong
    assert right == "('cecilia', 'sigma') None"
    assert "of their own environment" in remote


def test_what_is_shipped_runs_made_up_stars(prefect_server: PrefectServer, worker: None, config: Path) -> None:
    """deploy/prefect.yaml, as it is; only smaller and elsewhere: with the store and the Dask of compose.yaml, of which the worker is.
    Registered last: it takes the place of what was deployed."""
    done = prefect_server.command(
        "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", "deploy/prefect.yaml", cwd=CHECKOUT
    )
    assert done.returncode == 0, done.stdout
    for each in prefect_server.found("deployments"):
        assert each["name"] in NAMES
        parameters = {name: value for name, value in each["parameters"].items() if name != "stars"}
        assert parse_config(parameters).archive.kind == "mock"
        assert each["description"]

    tiny, compose = load_config(config), prefect_server.compose
    shipped = load_config(CHECKOUT / "deploy" / "compose.toml")
    cluster = {"address": compose.here("dask-worker", shipped.cluster.address)}
    store = f"{shipped.store}-of-compose"
    small = {"name": "small", "store": store, "archive": tiny.archive.model_dump(mode="json"), "cluster": cluster}
    with compose.up("dask-scheduler"), compose.up("dask-worker"):
        done = run(prefect_server, "ingest", **small)
    assert done.returncode == 0, done.stdout
    assert read_catalogue_record(Store(store)).rows == read_catalogue_record(Store(tiny.store)).rows


def test_all_that_is_in_postgresql(prefect_server: PrefectServer) -> None:
    """The server that all these tests have used keeps what it knows where deploy/compose.yaml says."""
    if not prefect_server.compose.has_postgres:
        pytest.skip("Prefect was tested on SQLite alone: PostgreSQL 15 is not installed (.ci/run installs postgresql-15)")
    assert prefect_server.compose.rows("flow_run") == len(prefect_server.found("flow_runs"))
    assert not list(prefect_server.folder.rglob("*.db"))
