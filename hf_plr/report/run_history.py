"""`run_history.json`: the runs that led to an output folder, each continued from the one before, the last its own."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_plr.refinement.correspondence import ClusterEvents
from hf_plr.utils.files import write_text
from hf_plr.utils.run_files import TELLING_OF_EARLIER, find_files

HISTORY_FILE = "run_history.json"
FORMAT = "hf-plr-history-1"
Labels = tuple[int, ...]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataChange:
    """Samples of a continued run against those of the run before.

    Attributes:
        known: samples that both runs have, further copies of one among them.
        new: samples that only this run has.
        removed: samples that only the run before had.
    """

    known: int
    new: int
    removed: int


@dataclass(frozen=True)
class RunEvents:
    """What became of the clusters of the run before, over the samples that both runs have.

    Attributes:
        kept: (number,) per cluster that goes on as one, or (number before, number now) where these differ.
        split: (previous cluster, its current ones) each.
        merged: (previous clusters, the current one) each.
        reshaped: (previous clusters, current ones) each.
        born: current clusters that continue none.
        died: previous clusters that none continues.
    """

    kept: tuple[Labels, ...] = ()
    split: tuple[tuple[int, Labels], ...] = ()
    merged: tuple[tuple[Labels, int], ...] = ()
    reshaped: tuple[tuple[Labels, Labels], ...] = ()
    born: Labels = ()
    died: Labels = ()

    @classmethod
    def from_cluster_events(cls, events: ClusterEvents) -> RunEvents:
        """Convert the events between the labels of two runs, as `find_cluster_events` finds them."""
        return cls(
            kept=tuple(tuple(dict.fromkeys(e.previous + e.current)) for e in events.of_kind("kept")),
            split=tuple((e.previous[0], tuple(e.current)) for e in events.of_kind("split")),
            merged=tuple((tuple(e.previous), e.current[0]) for e in events.of_kind("merged")),
            reshaped=tuple((tuple(e.previous), tuple(e.current)) for e in events.of_kind("reshaped")),
            born=tuple(e.current[0] for e in events.of_kind("born")),
            died=tuple(e.previous[0] for e in events.of_kind("died")),
        )

    @property
    def renumbered(self) -> dict[int, int]:
        """Number now, by number before, of clusters that go on as one under another number."""
        return {pair[0]: pair[1] for pair in self.kept if len(pair) == 2}

    def counts(self) -> dict[str, int]:
        """Number of events by kind."""
        return {field.name: len(getattr(self, field.name)) for field in dataclasses.fields(self)}


@dataclass(frozen=True)
class RunAudit:
    """An audit of a run's labels, of the samples that were drawn at random.

    Attributes:
        marked: marked samples.
        wrong: those of them with a wrong label.
        low, high: bounds of the exact 95% interval of the share of wrong ones, in [0, 1].
        population: samples in clusters, which it is an estimate for.
        written: time of the audit, ISO 8601.
        clusters: (marked, wrong) by cluster, of clusters with a mark.
    """

    marked: int
    wrong: int
    low: float
    high: float
    population: int
    written: str
    clusters: dict[int, tuple[int, int]] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class RunEntry:
    """One run.

    Attributes:
        id: differs between all runs.
        name: base name of its output folder.
        written: time of its end, ISO 8601.
        samples: samples that it was trained on.
        noise: those of them in no cluster at the end.
        clusters: size by cluster, at the end.
        data: its samples against those of the run before; None for a first run.
        events: what became of the clusters of the run before; None for a first run.
        audit: the last audit of its labels; None without one.
    """

    id: str
    name: str
    written: str
    samples: int
    noise: int
    clusters: dict[int, int]
    data: DataChange | None = None
    events: RunEvents | None = None
    audit: RunAudit | None = None


@dataclass(frozen=True)
class RunHistory:
    """The runs up to that of an output folder.

    Attributes:
        next_number: the smallest number that no cluster of these runs has ever had.
        runs: the runs, oldest first, the folder's own last; at least one.
        from_scratch: True if the weights go back to random ones, so that a run that starts from them has the defaults
            of such a start.
    """

    next_number: int
    runs: tuple[RunEntry, ...]
    from_scratch: bool = False

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> RunHistory | None:
        """Read the history in an output folder; None where there is none, as in folders of older releases.

        Raises:
            ValueError: if the file is damaged, naming it and the fault.
        """
        path = Path(folder) / HISTORY_FILE
        try:
            return cls.from_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ValueError(f"{path} {error}") from error

    @classmethod
    def from_json(cls, text: str | bytes) -> RunHistory:
        """Read the output of `to_json`.

        Raises:
            ValueError: if it is damaged, with the fault.
        """
        try:
            content = json.loads(text)
            if not isinstance(content, dict) or content.get("format") != FORMAT:
                raise ValueError(f"its format is not {FORMAT!r}")
            return _history(content)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            reason = f"{str(error)!s} is missing" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"cannot be read as a history of runs: {reason}") from error

    def to_json(self) -> str:
        """Write the history as JSON."""
        content = {"format": FORMAT, **dataclasses.asdict(self)}  # json makes lists of tuples, strings of numbers
        return json.dumps(content, allow_nan=False)

    def keep_audit(self, folder: str | os.PathLike[str]) -> RunHistory:
        """Keep the id and the audit of the run in an output folder, if it is this one.

        A run that is resumed at its end leaves the same clusters once more.
        """
        try:
            there = RunHistory.read(folder)
        except ValueError:  # it is replaced
            return self
        own = self.runs[-1]
        if there is None or there.runs[:-1] != self.runs[:-1] or there.runs[-1].clusters != own.clusters:
            return self
        own = dataclasses.replace(own, id=there.runs[-1].id, audit=there.runs[-1].audit)
        return dataclasses.replace(self, runs=(*self.runs[:-1], own))

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Write the history into an output folder; the file is complete or as it was before.

        Raises:
            OSError: if it cannot be written.
        """
        write_text(Path(folder) / HISTORY_FILE, self.to_json() + "\n")


def remove_earlier_run(folder: str | os.PathLike[str]) -> None:
    """Remove what tells of an earlier run, whose numbers are those of other clusters, with a warning.

    Its weights and labels stay until the new ones replace them.

    Args:
        folder: output folder of a run that begins anew.
    """
    found = find_files(folder, TELLING_OF_EARLIER)
    for path in found:
        path.unlink()
    if found:
        logger.warning("%s of an earlier run removed: this run begins anew.", " and ".join(map(str, found)))


def _history(content: dict[str, Any]) -> RunHistory:
    runs = tuple(_run(run) for run in _list(content["runs"], "runs"))
    if not runs:
        raise ValueError("it holds no run")
    if len({run.id for run in runs}) < len(runs):
        raise ValueError("two of its runs have the same id")
    next_number = _count(content["next_number"], "next_number")
    largest = max((label for run in runs for label in run.clusters), default=-1)
    if largest >= next_number:
        raise ValueError(f"next_number is {next_number}, but a run has a cluster {largest}")
    from_scratch = content.get("from_scratch", False)
    if not isinstance(from_scratch, bool):
        raise ValueError("'from_scratch' is neither true nor false")
    return RunHistory(next_number, runs, from_scratch)


def _run(run: dict[str, Any]) -> RunEntry:
    return RunEntry(
        id=_text(run["id"], "id"),
        name=_text(run["name"], "name"),
        written=_text(run["written"], "written"),
        samples=_count(run["samples"], "samples"),
        noise=_count(run["noise"], "noise"),
        clusters={_label(label): _count(size, "a size") for label, size in run["clusters"].items()},
        data=_optional(run.get("data"), _data),
        events=_optional(run.get("events"), _events),
        audit=_optional(run.get("audit"), _audit),
    )


def _data(data: dict[str, Any]) -> DataChange:
    return DataChange(*(_count(data[name], name) for name in ("known", "new", "removed")))


def _events(events: dict[str, Any]) -> RunEvents:
    return RunEvents(
        kept=tuple(_labels(kept) for kept in _list(events["kept"], "kept")),
        split=tuple((_label(before), _labels(now)) for before, now in _list(events["split"], "split")),
        merged=tuple((_labels(before), _label(now)) for before, now in _list(events["merged"], "merged")),
        reshaped=tuple((_labels(before), _labels(now)) for before, now in _list(events["reshaped"], "reshaped")),
        born=_labels(events["born"]),
        died=_labels(events["died"]),
    )


def _audit(audit: dict[str, Any]) -> RunAudit:
    clusters = {}
    for label, (marked, wrong) in audit.get("clusters", {}).items():
        clusters[_label(label)] = _marked(marked, wrong)
    marked, wrong = _marked(audit["marked"], audit["wrong"])
    return RunAudit(
        marked=marked,
        wrong=wrong,
        low=_fraction(audit["low"], "low"),
        high=_fraction(audit["high"], "high"),
        population=_count(audit["population"], "population"),
        written=_text(audit["written"], "written"),
        clusters=clusters,
    )


def _optional(value: Any, read: Callable[[dict[str, Any]], Any]) -> Any:
    return None if value is None else read(value)


def _marked(marked: Any, wrong: Any) -> tuple[int, int]:
    marked, wrong = _count(marked, "marked"), _count(wrong, "wrong")
    if not 0 <= wrong <= marked or marked == 0:
        raise ValueError(f"an audit has {wrong} wrong of {marked} marked samples")
    return marked, wrong


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{name!r} is not a list")
    return value


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name!r} is not text")
    return value


def _count(value: Any, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{name!r} is not a number of at least 0")
    return value


def _label(value: Any) -> int:
    """A cluster's number; keys of JSON are strings."""
    return _count(int(value) if isinstance(value, str) and value.isdecimal() else value, "a cluster")


def _labels(value: Any) -> Labels:
    return tuple(_label(label) for label in _list(value, "clusters"))


def _fraction(value: Any, name: str) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= 1:
        raise ValueError(f"{name!r} is not between 0 and 1")
    return float(value)
