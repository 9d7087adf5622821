"""Several processes at once: a port that nobody else takes, an end for all, and the output of all on failure."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil
from filelock import FileLock, Timeout

EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
RESERVED = Path(tempfile.gettempdir()) / "hf_plr_test_ports"
FIRST_PORT, MOST_PORTS = 10_000, 20_000  # above those of usual services
GRACE = 60.0  # seconds in which processes notice that another has failed
SHOWN_CHARACTERS = 5_000  # of each output


# ---- ports -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def reserve_port() -> Iterator[int]:
    """Reserve a TCP port for the processes of a test.

    The system hands out ports of the ephemeral range, also as the own end of a connection. A port of that range that is
    free when a test chooses it may be taken seconds later, when its process listens. This port is outside the range.
    Tests that run side by side get different ports.
    """
    RESERVED.mkdir(exist_ok=True)
    ports = list_ports_outside_the_ephemeral_range()
    drawn = random.Random()  # `set_seed` would give all tests the same ports
    for port in drawn.sample(ports, len(ports)):
        lock = FileLock(RESERVED / f"{port}.lock", timeout=0)
        with contextlib.suppress(Timeout), lock:
            if is_free(port):
                yield port
                return
    raise OSError("all ports outside the ephemeral range are in use")


def list_ports_outside_the_ephemeral_range() -> list[int]:
    """List the ports that the system does not hand out by itself."""
    try:
        first, last = map(int, EPHEMERAL.read_text().split())
    except FileNotFoundError:  # another system than Linux
        first, last = 49_152, 65_535
    return [port for port in range(FIRST_PORT, 65_536) if not first <= port <= last][:MOST_PORTS]


def is_free(port: int) -> bool:
    """True if nothing uses this port at any address of this machine."""
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):  # noqa: S104
        try:
            with socket.socket(family, socket.SOCK_STREAM) as tried:
                if family == socket.AF_INET6:
                    tried.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                tried.bind((address, port))
        except OSError:
            if family == socket.AF_INET:
                return False
            # IPv6 may be switched off.
    return True


# ---- processes -------------------------------------------------------------------------------------------------------


class StuckProcesses(AssertionError):
    """Processes have not ended in time; the message has the output of all, with the stacks of those that hung."""


@dataclass
class _Started:
    process: subprocess.Popen[bytes]
    output: IO[bytes]
    errors: IO[bytes]

    def result(self) -> subprocess.CompletedProcess[str]:
        texts = []
        for file in (self.output, self.errors):
            file.seek(0)
            text = file.read().decode(errors="replace")
            texts.append(re.sub(r"(?m)^Extension modules: .*\n?", "", text))  # long, and after every stack
        return subprocess.CompletedProcess(self.process.args, self.process.returncode, *texts)


def run_processes(
    commands: Sequence[Sequence[str]],
    environments: Sequence[Mapping[str, str]],
    cwd: Path,
    timeout: float,
    grace: float = GRACE,
) -> list[subprocess.CompletedProcess[str]]:
    """Run programs side by side until all have ended.

    Once one has failed, the others have `grace` seconds to end too: then they are ended, with all that they started.
    Python programs write the stacks of their threads to standard error before they are ended.

    Args:
        commands: one for each program.
        environments: all variables of each program.
        cwd: folder in which they run.
        timeout: seconds that they may take.
        grace: seconds.

    Returns:
        What each program wrote, and its exit status.

    Raises:
        StuckProcesses: if they take longer; with the output of all.
    """
    with contextlib.ExitStack() as stack:
        started: list[_Started] = []
        stack.callback(lambda: [end_tree(each.process) for each in started if each.process.poll() is None])
        for command, environment in zip(commands, environments, strict=True):
            # Files, because what a killed launcher leaves behind would hold pipes open.
            output, errors = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(2))
            variables = {**environment, "PYTHONFAULTHANDLER": "1"}
            process = subprocess.Popen(command, cwd=cwd, env=variables, stdout=output, stderr=errors)
            started.append(_Started(process, output, errors))
        in_time = _wait(started, timeout, grace)
        results = [each.result() for each in started]
    if not in_time:
        raise StuckProcesses(f"no end after {timeout:.0f} s\n{describe(results)}")
    return results


def _wait(started: list[_Started], timeout: float, grace: float) -> bool:
    """Wait for all; returns False if they took too long and were ended."""
    deadline, has_failed = time.monotonic() + timeout, False
    while True:
        running = [each for each in started if each.process.poll() is None]
        if not running:
            return True
        if not has_failed and any(each.process.returncode for each in started):
            has_failed, deadline = True, min(deadline, time.monotonic() + grace)
        if time.monotonic() > deadline:
            for each in running:
                end_tree(each.process)
            return has_failed
        time.sleep(0.05)


def end_tree(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that descends from it, after they have written the stacks of their threads."""
    with contextlib.suppress(psutil.NoSuchProcess):
        others = psutil.Process(process.pid).children(recursive=True)
        for told in (getattr(signal, "SIGABRT", signal.SIGTERM), getattr(signal, "SIGKILL", signal.SIGTERM)):
            for member in (*reversed(others), process):  # a launcher would end its processes before they have written
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.send_signal(told)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=10)
            _, others = psutil.wait_procs(others, timeout=10)
    process.wait()


def describe(results: Sequence[subprocess.CompletedProcess[str]]) -> str:
    """Describe how processes ended, with the end of the output of each."""
    lines = []
    for number, result in enumerate(results):
        lines.append(f"---- process {number} ended with {result.returncode}: {' '.join(map(str, result.args))}")
        for name, text in (("standard output", result.stdout), ("standard error", result.stderr)):
            if text.strip():
                lines.append(f"-- {name}\n{text[-SHOWN_CHARACTERS:].rstrip()}")
    return os.linesep.join(lines)


def run_group(
    command: Sequence[str],
    environment: Mapping[str, str],
    processes: int,
    cwd: Path,
    timeout: float,
    machines: int = 1,
) -> None:
    """Run one program as the processes of a distributed run, as launchers of several machines do.

    Args:
        command: the program.
        environment: all variables, but for those that connect the processes.
        processes: number of processes.
        cwd: folder in which they run.
        timeout: seconds that they may take.
        machines: number of machines that the processes stand for, which all are this one; a divisor of `processes`.

    Raises:
        AssertionError: if a process fails; with the output of all.
        StuckProcesses: if they take longer.
    """
    per_machine = processes // machines
    with reserve_port() as port:
        shared = {
            **environment,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(per_machine),
        }
        own = [{"RANK": str(rank), "LOCAL_RANK": str(rank % per_machine)} for rank in range(processes)]
        results = run_processes([command] * processes, [{**shared, **each} for each in own], cwd, timeout)
    assert all(result.returncode == 0 for result in results), describe(results)
