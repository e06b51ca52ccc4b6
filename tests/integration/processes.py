"""What the services of the integration tests have in common: free ports, and processes that end with all that they started."""

from __future__ import annotations

import socket
import subprocess

import psutil


def free_ports(n: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on."""
    sockets = [socket.socket() for _ in range(n)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all its descendants (a worker's flow runs have sessions of their own), gently at first."""
    family = [] if process.poll() is not None else psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)
    _, alive = psutil.wait_procs(family, timeout=20)
    for each in alive:
        each.kill()
    _, immortal = psutil.wait_procs(alive, timeout=10)
    assert not immortal, f"still running: {immortal}"
