"""SLURM on loopback: munge, slurmctld and slurmd of the machine's packages, with keys, ports and folders of their own."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from .processes import end, free_ports

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol")
CORES = 4
"""Of the node, whatever the machine has: jobs wait for nothing but what a test has them wait for."""
_CONF = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
KillWait=2
SchedulerParameters=sched_interval=1,batch_sched_delay=0,sched_min_interval=100000
NodeName=node NodeHostName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory=16000 State=UNKNOWN
PartitionName=stars Nodes=node Default=YES MaxTime=01:00:00 State=UP
"""


def lacking() -> list[str]:
    """Programs of SLURM that this machine does not have."""
    return [program for program in PROGRAMS if not _program(program)]


@dataclass(frozen=True)
class Slurm:
    """A running SLURM of one node, with the queue "stars". environment: of the programs that speak with it."""

    folder: Path
    environment: dict[str, str]

    def command(self, *words: str) -> str:
        """What a program of SLURM answers."""
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def jobs(self, state: str = "") -> list[str]:
        """Ids of the jobs in the queue, of one state (R: running, PD: pending) where it is named."""
        chosen = ["--states", state] if state else []
        return self.command("squeue", "--noheader", "--format", "%i", *chosen).split()


@contextmanager
def serving() -> Iterator[Slurm]:
    """A SLURM that runs as long as the block."""
    # Not pytest's own folder: a socket's path has at most 108 characters.
    folder = Path(tempfile.mkdtemp(prefix="gaiadask-slurm-"))
    environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
    try:
        with ExitStack() as running:
            _write(folder)
            munge = (
                "--foreground", "--force", f"--socket={folder}/munge.socket", f"--key-file={folder}/munge.key",
                f"--log-file={folder}/munged.log", f"--pid-file={folder}/munged.pid", f"--seed-file={folder}/munge.seed",
                "--num-threads=2",
            )  # fmt: skip
            running.enter_context(_running(folder, environment, "munged", *munge))
            _until(lambda: (folder / "munge.socket").exists(), folder, "munged")
            running.enter_context(_running(folder, environment, "slurmctld", "-D", "-i"))
            running.enter_context(_running(folder, environment, "slurmd", "-D", "-N", "node"))
            slurm = Slurm(folder, environment)
            _until(lambda: "idle" in _state(environment), folder, "slurmctld", "slurmd")
            yield slurm
            slurm.command("scancel", "--user", _user())
            _until(lambda: not slurm.jobs(), folder, "slurmctld", "slurmd")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write(folder: Path) -> None:
    folder.chmod(0o755)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.touch(0o600)
    key.write_bytes(secrets.token_bytes(256))
    ports = free_ports(2)
    text = _CONF.format(
        folder=folder, host=socket.gethostname(), user=_user(), cores=CORES, controller_port=ports[0], node_port=ports[1]
    )
    (folder / "slurm.conf").write_text(text)


@contextmanager
def _running(folder: Path, environment: dict[str, str], name: str, *options: str) -> Iterator[None]:
    program = _program(name)
    assert program
    with (folder / f"{name}.out").open("w") as output:
        process = subprocess.Popen([program, *options], env=environment, stdout=output, stderr=output, start_new_session=True)
    try:
        yield
    finally:
        end(process)


def _until(ready, folder: Path, *names: str) -> None:
    deadline = time.monotonic() + 30
    while not ready():
        if time.monotonic() > deadline:
            logs = [path for name in names for path in (folder / f"{name}.out", folder / f"{name}.log") if path.exists()]
            raise RuntimeError("SLURM did not start:\n" + "\n".join(f"{p.name}: {p.read_text()[-1500:]}" for p in logs))
        time.sleep(0.1)


def _state(environment: dict[str, str]) -> str:
    done = subprocess.run(["sinfo", "-h", "-o", "%T"], env=environment, capture_output=True, text=True, timeout=30, check=False)
    return done.stdout


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def _user() -> str:
    return pwd.getpwuid(os.getuid()).pw_name
