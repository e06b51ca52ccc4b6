"""Clusters of each kind: opened, refused, waited for, and what is said of them."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import dask
import jsonschema
import pytest
import yaml
from dask_kubernetes.operator.validation import validate_cluster_name
from distributed import Client, LocalCluster
from distributed.security import Security

from gaiadask import __version__ as VERSION
from gaiadask.cluster import clients, dask_workers, extras, futures, rank_process
from gaiadask.cluster.clients import open_workers
from gaiadask.cluster.dask_workers import DaskWorkers
from gaiadask.cluster.pods import cluster_spec
from gaiadask.cluster.supply import Fixed
from gaiadask.cluster.tls import warn_of_plain_text
from gaiadask.cluster.workers import Task
from gaiadask.config.cluster import ClusterConfig
from gaiadask.config.toml import load_config
from gaiadask.errors import ClusterError, ConfigurationError, GaiadaskError
from gaiadask.store.files import Store

pytestmark = pytest.mark.slow


def test_an_interrupt_is_one_after_jobs_are_imported() -> None:
    """dask_jobqueue makes Ctrl-C an exit with code 0."""
    code = (
        "import signal; before = signal.getsignal(signal.SIGINT); from gaiadask.cluster.extras import imported;"
        "imported('gaiadask.cluster.jobs', 'dask_jobqueue'); assert signal.getsignal(signal.SIGINT) is before"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr


# Clients -------------------------------------------------------------------------------------------------------------
def test_a_scheduler_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "_ANSWER_S", "1s")
    with (
        pytest.raises(GaiadaskError, match=r"no Dask scheduler answers at cluster\.address 'tcp://127\.0\.0\.1:9'"),
        open_workers(ClusterConfig(address="tcp://127.0.0.1:9")),
    ):
        pass


def test_workers_that_do_not_start_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(*_: object, **__: object) -> None:
        raise TimeoutError("only 0/1 workers arrived")

    monkeypatch.setattr(Client, "wait_for_workers", late)
    with (
        pytest.raises(GaiadaskError, match=r"the 1 workers of this machine did not start in 120 s"),
        open_workers(ClusterConfig(workers=1)),
    ):
        pass


def test_an_address_that_is_none_is_named() -> None:
    with (
        pytest.raises(GaiadaskError, match=r"cluster\.address 'nonsense://x'"),
        open_workers(ClusterConfig(address="nonsense://x")),
    ):
        pass


@contextmanager
def scheduler_process(options: str = "") -> Iterator[str]:
    """A scheduler of its own, without workers."""
    code = (
        "import asyncio\nfrom distributed import Scheduler\nfrom distributed.security import Security\n"
        "async def main():\n"
        f"    async with Scheduler(host='127.0.0.1', dashboard=False, {options}) as s:\n"
        "        print(s.address, flush=True)\n        await s.finished()\n"
        "asyncio.run(main())"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        yield process.stdout.readline().strip()
        process.kill()


def test_a_scheduler_without_workers_is_told() -> None:
    with (
        scheduler_process() as address,
        pytest.raises(GaiadaskError, match=r"has no workers: start some"),
        open_workers(ClusterConfig(address=address)),
    ):
        pass


@pytest.fixture
def certificates(tmp_path: Path) -> dict[str, str]:
    """The options of [cluster] that name an authority, a certificate and its key, of files that are there."""
    made = Security.temporary()
    parts = {"tls_ca": made.tls_ca_file, "tls_cert": made.tls_client_cert, "tls_key": made.tls_client_key}
    for option, text in parts.items():
        (tmp_path / option).write_text(str(text))
    return {option: str(tmp_path / option) for option in parts}


def test_tls_speaks_with_whoever_has_the_authority(certificates: dict[str, str], tmp_path: Path) -> None:
    of_scheduler = f"tls_scheduler_cert={certificates['tls_cert']!r}, tls_scheduler_key={certificates['tls_key']!r}"
    security = (
        f"protocol='tls://', security=Security(tls_ca_file={certificates['tls_ca']!r}, {of_scheduler}, require_encryption=True)"
    )
    with scheduler_process(security) as address:
        assert address.startswith("tls://")
        with pytest.raises(GaiadaskError, match="has no workers"), open_workers(ClusterConfig(address=address, **certificates)):
            pass
        Path(certificates["tls_ca"]).unlink()
        with pytest.raises(GaiadaskError, match=r"cluster\.tls_ca: .* cannot be read: No such file"):
            open_workers(ClusterConfig(address=address, **certificates)).__enter__()


def test_a_cluster_of_this_machine_can_speak_tls(certificates: dict[str, str]) -> None:
    with open_workers(ClusterConfig(workers=1, dashboard=False, **certificates)) as workers:
        assert workers.client.scheduler.address.startswith("tls://127.0.0.1:")  # type: ignore[union-attr]
        assert workers.map(abs, [-5], Task("encrypted")) == [5]


@pytest.mark.parametrize(
    ("address", "told"), [("tcp://10.1.2.3:8786", True), ("tls://10.1.2.3:8786", False), ("tcp://127.0.0.1:1", False)]
)
def test_plain_text_over_a_network_is_warned_of(address: str, told: bool, caplog: pytest.LogCaptureFixture) -> None:
    warn_of_plain_text(address)
    assert ("plain text" in caplog.text and address in caplog.text) is told


def test_any_scheduler_will_do(workers: DaskWorkers) -> None:
    address = workers.client.scheduler.address  # type: ignore[union-attr]
    with open_workers(ClusterConfig(address=address)) as other:
        assert other.map(abs, [-5], Task("remote")) == [5]
    assert workers.map(abs, [-6], Task("still there")) == [6]


def test_workers_of_another_version_are_refused_by_name(
    workers: DaskWorkers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the first word with them, and by each piece of work, as others may come later."""
    worker = next(iter(workers.client.nthreads()))
    for module in (dask_workers, futures):
        monkeypatch.setattr(module, "__version__", "9.9")
    with pytest.raises(ClusterError, match=r"2 of 2 workers have another gaiadask") as caught:
        workers.probe(Store(str(tmp_path)))
    assert f"  {worker}: gaiadask {VERSION} is there" in str(caught.value)
    with pytest.raises(ClusterError, match=rf"worker tcp://127\.0\.0\.1:\d+: gaiadask {VERSION} is there, 9\.9 on the client"):
        workers.map(abs, [1], Task("absolute"))


def test_a_rank_of_another_version_than_its_worker_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_process, "version", lambda _: "9.9")
    with pytest.raises(ClusterError, match=rf"gaiadask 9\.9 was installed on here while a worker with {VERSION} runs"):
        rank_process.run_process(None, "here", print, lambda: True)  # type: ignore[arg-type]


_THREE = threading.Barrier(3)


def meet(_: int) -> int:
    """Ends only when it runs on three threads at once."""
    return _THREE.wait(20)


def test_workers_that_come_later_get_work_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where nothing ends meanwhile; and a training waits for those that are sure to come."""
    for module, name in ((dask_workers, "_COUNT_S"), (futures, "_LOOK_S")):
        monkeypatch.setattr(module, name, 0.1)
    options: dict[str, Any] = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with LocalCluster(**options) as cluster, Client(cluster, set_as_default=False) as client:
        workers = DaskWorkers(client, Fixed(3))
        threading.Timer(0.5, lambda: cluster.scale(3)).start()
        assert sorted(workers.map(meet, [0] * 6, Task("meet"))) == [0, 0, 1, 1, 2, 2]
        _THREE.abort()  # a result that is not forgotten yet is made again when its worker retires: alone
        cluster.scale(2)
        while len(client.nthreads()) > 2:  # a worker that retires is still there for a while
            time.sleep(0.1)
        with workers.supply.holding(0) as coming:
            threading.Timer(0.5, lambda: cluster.scale(3)).start()
            dask_workers._gather(workers._futures(), coming, sure=True)
        assert len(client.nthreads()) == 3


# Clusters that are started ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["slurm", "kubernetes"])
def test_an_extra_that_is_not_installed_is_named(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package = {extra: package for package, extra in extras.EXTRAS.items()}[kind]
    for name in [*(name for name in sys.modules if name.startswith(package)), "gaiadask.cluster.jobs", "gaiadask.cluster.pods"]:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    config = ClusterConfig(kind=kind, workers=1, image="gaiadask")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=rf"needs {package}, which is not installed: pip install 'gaiadask\[{kind}\]'"):
        open_workers(config).__enter__()


DESCRIBED = """
cluster_class: distributed.LocalCluster
cluster_kwargs:
  processes: false
  threads_per_worker: 1
  dashboard_address:
{more}
"""


@pytest.mark.parametrize(
    "more", ["adapt_kwargs:\n  minimum: 2\n  maximum: 2", "  n_workers: 2", "adapt_kwargs: {minimum: 1, maximum: 2}"]
)
def test_a_cluster_is_what_a_file_describes(more: str, tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text(DESCRIBED.format(more=more))
    (tmp_path / "gaia.toml").write_text('[cluster]\nfile = "cluster.yaml"\n')
    config = load_config(tmp_path / "gaia.toml").cluster
    assert (config.where, config.file) == ("file", str(tmp_path / "cluster.yaml"))
    with open_workers(config) as workers:
        assert workers.map(abs, [1, -2, 4], Task("absolute")) == [1, 2, 4]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("cluster_class: [", "is not YAML"),
        ("- a list", "expected cluster_class, cluster_kwargs and adapt_kwargs"),
        ("cluster_kwargs: {}", "cluster_class: Field required"),
        (
            "cluster_class: a.B\ncluster_args: {}",
            r"cluster_args: unknown option; did you mean cluster_kwargs\? There are cluster_class, cluster_kwargs, adapt_kwargs",
        ),
        ("cluster_class: nowhere.Cluster", "names nowhere.Cluster: No module named 'nowhere'; install"),
        ("cluster_class: distributed.Client", "is no class of Dask clusters"),
        ("cluster_class: LocalCluster", "is no class of Dask clusters"),
        ("cluster_class: distributed.LocalCluster", "does not say how many workers"),
        (
            "cluster_class: distributed.LocalCluster\ncluster_kwargs: {processes: false, interface: nowhere, n_workers: 1}",
            "did not start: .*nowhere",
        ),
    ],
)
def test_a_file_that_describes_no_cluster_is_told(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text(text)
    with pytest.raises(GaiadaskError, match=told) as caught:
        open_workers(ClusterConfig(file=str(tmp_path / "cluster.yaml"))).__enter__()
    assert str(tmp_path / "cluster.yaml") in str(caught.value)


def test_a_file_that_is_not_there_is_told() -> None:
    with pytest.raises(ConfigurationError, match=r"cluster\.file: /nowhere/cluster\.yaml cannot be read: No such file"):
        open_workers(ClusterConfig(file="/nowhere/cluster.yaml")).__enter__()


def test_a_machine_without_slurm_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ClusterError, match="this machine has no command `sbatch`: run gaiadask on a login node"):
        open_workers(ClusterConfig(kind="slurm", workers=1)).__enter__()


@pytest.mark.parametrize("gpus", [0, 1])
def test_a_job_asks_for_what_the_options_say(gpus: int, tmp_path: Path) -> None:
    given = {
        "workers": 2,
        "cores": 3,
        "memory": "6GB",
        "gpus": gpus,
        "queue": "stars",
        "account": "gaia",
        "walltime": "1-02:00:00",
    }
    config = ClusterConfig(kind="slurm", directives=["--constraint=x"], prologue=["module load y"], **given)  # type: ignore[arg-type]
    options = extras.imported("gaiadask.cluster.jobs", "dask_jobqueue").slurm_options(config, tmp_path, str(tmp_path))
    jobqueue = extras.imported("dask_jobqueue.slurm", "dask_jobqueue")
    script = jobqueue.SLURMJob("tls://here:1", name="w", **_without(options, "scheduler_options", "silence_logs")).job_script()
    assert f"--tls-key {tmp_path}/key.pem" in script and (tmp_path / "key.pem").stat().st_mode & 0o777 == 0o600
    for line in (
        "-p stars",
        "-A gaia",
        "--cpus-per-task=3",
        "--mem=6G",
        "-t 1-02:00:00",
        "--constraint=x",
        f"-o {tmp_path}/gaiadask-%J.out",
    ):
        assert f"#SBATCH {line}\n" in script
    assert ("#SBATCH --gres=gpu:1\n" in script, "--resources GPU=1" in script) == (bool(gpus), bool(gpus))
    command = script.splitlines()[-1]
    assert script.index("MALLOC_TRIM_THRESHOLD_=67108864") < script.index("module load y") < script.index(command)
    assert "--nthreads 3" in command and f"{sys.executable} -m distributed.cli.dask_worker tls://here:1" in command


def test_a_file_of_jobs_gets_folders_where_it_names_none(tmp_path: Path) -> None:
    jobs = extras.imported("gaiadask.cluster.jobs", "dask_jobqueue")
    kind, logs = extras.imported("dask_jobqueue.slurm", "dask_jobqueue").SLURMCluster, str(tmp_path / "logs")
    assert jobs.with_folders(kind, {"cores": 1}, logs) == {"cores": 1, "log_directory": logs, "shared_temp_directory": logs}
    assert (tmp_path / "logs").is_dir()
    assert jobs.with_folders(kind, {"log_directory": "/own"}, logs) == {"log_directory": "/own", "shared_temp_directory": logs}
    with dask.config.set({"jobqueue.slurm.log-directory": "/site", "jobqueue.slurm.shared-temp-directory": "/home"}):
        assert jobs.with_folders(kind, {}, logs) == {}


def _without(options: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in names}


@pytest.mark.parametrize(
    "changes", [{"workers": 3}, {"min_workers": 2, "max_workers": 8, "gpus": 1, "cores": 4, "memory": "16 GiB"}]
)
def test_a_manifest_of_pods_is_what_the_operator_takes(changes: dict[str, Any]) -> None:
    """The definition is that of the operator of the version that is installed."""
    spec: Any = cluster_spec(ClusterConfig(kind="kubernetes", image="registry/gaiadask:1", **changes), "gaiadask-1")
    resources = files("dask_kubernetes.operator") / "deployment/helm/dask-kubernetes-operator/crds/daskcluster.yaml"
    (version,) = yaml.safe_load(resources.read_text())["spec"]["versions"]
    jsonschema.validate(spec, version["schema"]["openAPIV3Schema"])
    worker = spec["spec"]["worker"]
    (container,) = worker["spec"]["containers"]
    assert (worker["replicas"], container["image"]) == (changes.get("workers", 2), "registry/gaiadask:1")
    given = (container["resources"]["limits"], " ".join(container["args"]))
    if "gpus" in changes:
        assert given[0] == {"cpu": "4", "memory": "16Gi", "nvidia.com/gpu": "1"}
        assert "--nthreads 4 --memory-limit 16 GiB --resources GPU=1" in given[1]
    else:
        assert given[0] == {"cpu": "1", "memory": "4GB".rstrip("B")}
    validate_cluster_name(spec["metadata"]["name"])


def test_kubernetes_that_does_not_answer_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ClusterError, match=r"no Dask cluster on Kubernetes \(.*does `kubectl get pods` answer.*the image gaiadask"):
        open_workers(ClusterConfig(kind="kubernetes", workers=1, image="gaiadask", wait_minutes=0.05)).__enter__()
