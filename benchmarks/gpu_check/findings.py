"""What a check is given, and what it finds: values by name, each with its bound."""

from __future__ import annotations

import gc
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

CHECKOUT = Path(__file__).resolve().parents[2]


class Skipped(Exception):
    """The device cannot do what a check is about."""


class Findings:
    """What a check has found so far; kept where it fails in the middle.

    Attributes:
        values: figures by name.
        bounds: bounds by the same names; figures without one are only reported.
        missed: names of figures outside their bounds.
        notes: what else there is to say.
    """

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.bounds: dict[str, str] = {}
        self.missed: list[str] = []
        self.notes: list[str] = []

    def report(self, name: str, value: Any) -> None:
        """Record a figure that has no bound."""
        self.values[name] = shorten(value)

    def expect(
        self,
        name: str,
        value: float,
        at_least: float | None = None,
        at_most: float | None = None,
        unless: str | None = None,
    ) -> None:
        """Record a figure with its bound, and whether it holds.

        Args:
            name: what it is.
            value: the figure; NaN misses every bound.
            at_least, at_most: the bounds.
            unless: why the bound does not apply here; the figure is then only reported, with this note.
        """
        self.report(name, value)
        if unless is not None:
            self.note(f"{name}: no bound, {unless}")
            return
        bounds = [(">=", at_least), ("<=", at_most)]
        self.bounds[name] = " and ".join(f"{sign} {shorten(bound)}" for sign, bound in bounds if bound is not None)
        holds = (at_least is None or value >= at_least) and (at_most is None or value <= at_most)
        if not holds:
            self.missed.append(name)

    def note(self, text: str) -> None:
        """Record something in words."""
        if text not in self.notes:
            self.notes.append(text)


def shorten(value: Any) -> Any:
    """A number to four digits, as JSON can hold it; anything else as it is."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.4g}") if math.isfinite(value) else str(value)


@dataclass
class Bench:
    """Where the checks run.

    Attributes:
        device: the device that is checked.
        is_quick: small sizes.
        folder: for files that checks share; gone at the end.
    """

    device: torch.device
    is_quick: bool
    folder: Path
    memory: dict[str, Any] = field(default_factory=dict)

    @property
    def is_gpu(self) -> bool:
        """True where CUDA is checked, False in a dry run."""
        return self.device.type == "cuda"

    @cached_property
    def no_rates(self) -> str | None:
        """Why rates have no bound here; None where they have."""
        if not self.is_gpu:
            return "this is a CPU"
        return "sizes are small" if self.is_quick else None

    def size(self, full: Any, quick: Any) -> Any:
        """The first, or the second where sizes are small."""
        return quick if self.is_quick else full

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What several checks share, made when it is first asked for."""
        if name not in self.memory:
            self.memory[name] = make()
        return self.memory[name]

    def new_folder(self, name: str) -> Path:
        """A new folder below `folder`."""
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder))

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.is_gpu:
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], Any], turns: int = 3) -> float:
        """Seconds of the fastest of some turns, after one that is not counted."""
        work()
        times = []
        for _ in range(turns):
            self.synchronize()
            started = time.perf_counter()
            work()
            self.synchronize()
            times.append(time.perf_counter() - started)
        return min(times)


@dataclass(frozen=True)
class Check:
    """A check of the table.

    Attributes:
        name: for `--only`.
        run: measures, and records into the findings.
        seconds: what it takes on one H100.
        quick_seconds: what it takes there with small sizes.
    """

    name: str
    run: Callable[[Bench, Findings], None]
    seconds: int
    quick_seconds: int

    @property
    def summary(self) -> str:
        """First line of what the check's docstring says."""
        return (self.run.__doc__ or "").strip().splitlines()[0]

    def expected_seconds(self, is_quick: bool) -> int:
        """What it takes."""
        return self.quick_seconds if is_quick else self.seconds


def carry_out(check: Check, bench: Bench) -> dict[str, Any]:
    """Run a check; returns its entry of the JSON file. Nothing that it raises gets out, except interrupts."""
    findings = Findings()
    started = time.perf_counter()
    passed: bool | None
    try:
        check.run(bench, findings)
        passed = not findings.missed
    except Skipped as reason:
        passed = False if findings.missed else None
        findings.note(str(reason))
    except (Exception, SystemExit) as error:
        passed = False
        findings.notes.insert(0, f"{type(error).__name__}: {error}")
    if findings.missed:
        findings.notes.insert(0, f"outside its bound: {', '.join(findings.missed)}")
    release_memory(bench)
    seconds = time.perf_counter() - started
    return entry(check.name, passed, seconds, "; ".join(findings.notes), findings.values, findings.bounds)


def entry(
    name: str,
    passed: bool | None,
    seconds: float,
    note: str,
    value: dict[str, Any] | None = None,
    bound: dict[str, str] | None = None,
) -> dict[str, Any]:
    """An entry of the JSON file."""
    return {
        "name": name,
        "passed": passed,
        "value": value or {},
        "bound": bound or {},
        "seconds": round(seconds, 2),
        "note": note,
    }


def release_memory(bench: Bench) -> None:
    """Free what a check has left on the device."""
    gc.collect()
    if bench.is_gpu:
        torch.cuda.empty_cache()
