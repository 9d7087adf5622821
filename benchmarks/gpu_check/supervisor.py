"""Run checks in a process of their own, and start another one for those that are left where it ends before its time.

An error of CUDA that nothing recovers from, a signal, or a check that hangs then costs the check that it happened in,
and no other one. The JSON file is what both processes know: it is written anew, in one step, after each check.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_check.findings import Bench, Check, carry_out, entry
from benchmarks.gpu_check.launching import end_tree

CLEAN_START = 75  # exit status of a process that asks for another one
PATIENCE = 3.0  # times what a check is expected to take, on slower machines
LEAST_PATIENCE = {"cuda": 240.0, "cpu": 600.0}  # seconds that every check gets; a dry run may share its cores
GRACE = 60.0  # seconds beyond the budget, for the check that is running


class Record:
    """The JSON file of a run.

    Args:
        path: the file; None for none.
        facts: what is known of the run beside its checks.
    """

    def __init__(self, path: Path | None, facts: dict[str, Any] | None = None):
        self.path = path
        self.content: dict[str, Any] = {**(facts or {}), "checks": []}

    @classmethod
    def read(cls, path: Path) -> Record:
        """Read a file."""
        record = cls(path)
        record.content = json.loads(path.read_text())
        return record

    @property
    def names(self) -> list[str]:
        """Checks that have been carried out or skipped."""
        return [each["name"] for each in self.content["checks"]]

    def begin(self, name: str, now: float) -> None:
        """Note which check is running, and since when."""
        self.content["running"] = {"name": name, "since": now}
        self.write()

    def add(self, found: dict[str, Any]) -> None:
        """Add a check's entry, in place of one that it had."""
        self.content.pop("running", None)
        self.content["checks"] = [each for each in self.content["checks"] if each["name"] != found["name"]] + [found]
        self.write()

    def forget(self, names: Sequence[str]) -> None:
        """Leave out the entries of checks that are to be carried out again."""
        self.content["checks"] = [each for each in self.content["checks"] if each["name"] not in names]

    def write(self) -> None:
        """Write the file in one step, with the numbers of checks by outcome."""
        outcomes = [each["passed"] for each in self.content["checks"]]
        self.content |= {
            "passed": outcomes.count(True),
            "failed": outcomes.count(False),
            "skipped": outcomes.count(None),
            "seconds": round(sum(each["seconds"] for each in self.content["checks"]), 1),
        }
        if self.path is not None:
            unfinished = self.path.with_name(f"{self.path.name}.tmp")
            unfinished.write_text(json.dumps(self.content, indent=1))
            os.replace(unfinished, self.path)


def run_checks(
    checks: Sequence[Check],
    bench: Bench,
    record: Record,
    deadline: float,
    show: Callable[[dict[str, Any]], None] = lambda found: None,
    is_usable: Callable[[Bench], bool] = lambda bench: True,
) -> bool:
    """Carry out checks in their order, and record each; returns False if the device is of no use any more.

    Args:
        checks: the checks.
        bench: where they run.
        record: gets an entry of each.
        deadline: `time.time()` at which all must be over; a check that is expected to take longer is skipped.
        show: is called with every entry.
        is_usable: asked after every check that has failed.
    """
    for check in checks:
        expected, left = check.expected_seconds(bench.is_quick), deadline - time.time()
        if expected > left:
            note = f"skipped: it takes about {expected} s, and {max(left, 0):.0f} s of the budget are left"
            found = entry(check.name, None, 0.0, note)
        else:
            record.begin(check.name, time.time())
            found = carry_out(check, bench)
        record.add(found)
        show(found)
        if found["passed"] is False and not is_usable(bench):
            return False
    return True


def supervise(
    command: Sequence[str],
    checks: Sequence[Check],
    path: Path,
    is_quick: bool,
    deadline: float,
    least_patience: float,
    show: Callable[[dict[str, Any]], None] = lambda found: None,
) -> Record:
    """Run a command that carries out the checks which the file lacks, again and again until it has all of them.

    Args:
        command: the command, which writes the file.
        checks: the checks.
        path: the file, which exists.
        is_quick: what checks are expected to take is that of small sizes.
        deadline: as for `run_checks`; a check that is still running then is ended soon.
        least_patience: seconds that every check gets, however little it is expected to take.
        show: is called with the entries that are written here, for checks whose process did not live to write them.
    """
    expected = {check.name: check.expected_seconds(is_quick) for check in checks}
    while missing := set(expected) - set(Record.read(path).names):
        process = subprocess.Popen(command)
        try:
            late = _wait(process, path, expected, least_patience, deadline)
        finally:
            end_tree(process.pid)
            process.wait()
        record = Record.read(path)
        running = record.content.get("running")
        if running is not None:
            reason = late or f"its process was ended by {_describe_status(process.returncode)}"
            found = entry(running["name"], False, time.time() - running["since"], reason)
        elif set(record.names) & missing:  # it got on
            continue
        else:
            name = next(check.name for check in checks if check.name in missing)
            status = _describe_status(process.returncode)
            found = entry(name, False, 0.0, f"its process ended by {status} before it began")
        record.add(found)
        show(found)
    return Record.read(path)


def _wait(
    process: subprocess.Popen[bytes], path: Path, expected: dict[str, int], least_patience: float, deadline: float
) -> str | None:
    """Wait for the process; returns why it is to be ended, None if it has ended itself."""
    while process.poll() is None:
        running = Record.read(path).content.get("running")
        if running is not None:
            limit = max(least_patience, PATIENCE * expected.get(running["name"], 0))
            if time.time() - running["since"] > limit:
                return f"no end after {limit:.0f} s"
            if time.time() > deadline + GRACE:
                return "no end when the budget was used up"
        time.sleep(0.2)
    return None


def _describe_status(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"status {status}"


def is_cuda_usable(bench: Bench) -> bool:
    """True if the device still computes: some errors of CUDA stay for the rest of a process."""
    if not bench.is_gpu:
        return True
    try:
        return bool((torch.ones(1, device=bench.device) + 1).item() == 2)
    except RuntimeError:
        return False


def python_module(*arguments: str) -> list[str]:
    """A command that runs this package."""
    return [sys.executable, "-m", "benchmarks.gpu_check", *arguments]
