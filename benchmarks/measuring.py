"""Memory of a piece of work, in a process of its own; cores that other processes keep busy."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


class PeakMemory:
    """Watches how far the anonymous memory of this process rises above where it was; Linux only."""

    def __init__(self) -> None:
        self._start = self._highest = anonymous_kib()

    def __enter__(self) -> PeakMemory:
        self._start = self._highest = anonymous_kib()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def peak_mib(self) -> float:
        """The rise so far in MiB."""
        return round((self._highest - self._start) / 1024, 1)

    def lap_mib(self) -> float:
        """The rise since the last lap, or the beginning, above where memory was at the beginning; a new lap begins."""
        rise = self.peak_mib
        self._highest = anonymous_kib()
        return rise

    def _watch(self) -> None:
        while not self._stop.wait(0.001):
            now = anonymous_kib()
            self._highest = max(self._highest, now)


def anonymous_kib() -> int:
    """Anonymous memory of this process in KiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1])
    raise RuntimeError("/proc/self/status has no RssAnon: memory is measured on Linux only")


def in_new_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a fresh process, so that nothing is in memory before it."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


SPIN = """
import os, sys
print("spinning", flush=True)
while os.getppid() == int(sys.argv[1]):  # it ends with its parent, however that ends
    sum(range(1 << 18))
"""


@contextlib.contextmanager
def busy_cores(n_processes: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Keep as many cores busy inside the context, each by a process that spins."""
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(n_processes):
            command = [sys.executable, "-c", SPIN, str(os.getpid())]
            processes.append(subprocess.Popen(command, stdout=subprocess.PIPE))
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()  # it has begun
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


class TreeMemory:
    """Watches the resident memory of a process and of all its descendants, several times a second; Linux only.

    Args:
        pid: the process.

    Attributes:
        peaks: highest MiB so far: `process` and `children` resident, where pages that processes share count in each,
            and `anonymous` of all together, which leaves files out.
    """

    def __init__(self, pid: int):
        self.pid = pid
        self.peaks = {"process": 0.0, "children": 0.0, "anonymous": 0.0}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> TreeMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.2):
            own, children = _memory_kib(self.pid), [_memory_kib(pid) for pid in descendants(self.pid)]
            now = {
                "process": own[0],
                "children": sum(resident for resident, _ in children),
                "anonymous": own[1] + sum(anonymous for _, anonymous in children),
            }
            self.peaks = {name: max(peak, round(now[name] / 1024, 1)) for name, peak in self.peaks.items()}


def descendants(pid: int) -> list[int]:
    """Processes that a process started, and those that they started."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    children = [int(word) for word in text.split()]
    return children + [each for child in children for each in descendants(child)]


def _memory_kib(pid: int) -> tuple[int, int]:
    """Resident and anonymous memory of a process in KiB; zeros if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0, 0
    found = {line.split()[0]: int(line.split()[1]) for line in lines if line.startswith(("VmRSS:", "RssAnon:"))}
    return found.get("VmRSS:", 0), found.get("RssAnon:", 0)
