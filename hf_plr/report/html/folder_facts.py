"""What a page shows of files beside it that change after a run: names of clusters, and the history over runs."""

from __future__ import annotations

import datetime
import os
from typing import Any

from hf_plr.report.html.run_facts import as_line
from hf_plr.report.names import read_cluster_names
from hf_plr.report.rate_change import find_rate_change
from hf_plr.report.run_history import RunAudit, RunEntry, RunEvents, RunHistory

MAX_RUNS = 20  # the last ones
MAX_CLUSTERS = 200  # with sizes by run, those that were largest in any
MAX_EVENTS = 60  # changes of one run that are listed


def collect_folder_facts(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Collect the names and the history of an output folder, as JSON can hold them.

    Returns:
        "names": name by cluster. "history": None without a `run_history.json`, else "runs", oldest first and up to 20;
        "left_out", the number of older ones; "clusters" with (number, size by run, 0 where a run has no such cluster)
        of up to 200; "of", how many clusters these runs have had; and "change", the error rate of the last audit
        against the one before, or None.

    Raises:
        ValueError: if a file is damaged, naming it.
    """
    names = {str(label): as_line(name) for label, name in read_cluster_names(folder).items()}
    history = RunHistory.read(folder)
    return {"names": names, "history": None if history is None else _describe_history(history)}


def _describe_history(history: RunHistory) -> dict[str, Any]:
    runs = history.runs[-MAX_RUNS:]
    largest: dict[int, float] = {}
    for run in runs:
        for label, size in run.clusters.items():
            largest[label] = max(largest.get(label, 0.0), size / max(run.samples, 1))
    chosen = sorted(largest, key=lambda label: (-largest[label], label))[:MAX_CLUSTERS]
    change = find_rate_change(history)
    return {
        "runs": [_describe_run(run) for run in runs],
        "left_out": len(history.runs) - len(runs),
        "clusters": [[label, [run.clusters.get(label, 0) for run in runs]] for label in chosen],
        "of": len(largest),
        "change": None
        if change is None
        else {"difference": change.difference, "low": change.low, "high": change.high, "since": as_line(change.since)},
    }


def _describe_run(run: RunEntry) -> dict[str, Any]:
    listed = [] if run.events is None else _list_changes(run.events)
    return {
        "name": as_line(run.name),
        "written": _format_time(run.written),
        "samples": run.samples,
        "noise": run.noise,
        "clusters": len(run.clusters),
        "data": None if run.data is None else [run.data.known, run.data.new, run.data.removed],
        "counts": None if run.events is None else run.events.counts(),
        "changes": listed[:MAX_EVENTS],
        "changes_left_out": max(0, len(listed) - MAX_EVENTS),
        "audit": None if run.audit is None else _describe_audit(run.audit),
    }


def _list_changes(events: RunEvents) -> list[list[Any]]:
    """List (kind, previous clusters, current clusters) of all that was not kept, births and deaths first."""
    return [
        *(["born", [], [label]] for label in events.born),
        *(["died", [label], []] for label in events.died),
        *(["split", [before], list(now)] for before, now in events.split),
        *(["merged", list(before), [now]] for before, now in events.merged),
        *(["reshaped", list(before), list(now)] for before, now in events.reshaped),
    ]


def _describe_audit(audit: RunAudit) -> dict[str, Any]:
    return {
        "marked": audit.marked,
        "wrong": audit.wrong,
        "rate": audit.wrong / audit.marked,
        "low": audit.low,
        "high": audit.high,
        "written": _format_time(audit.written),
    }


def _format_time(written: str) -> str:
    """Format a time of ISO 8601 for people, to the minute and in the local zone; another text stays."""
    try:
        time = datetime.datetime.fromisoformat(written.replace("Z", "+00:00"))
    except ValueError:
        return as_line(written)
    return (time.astimezone() if time.tzinfo else time).strftime("%Y-%m-%d %H:%M")
