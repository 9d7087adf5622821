"""Error rates of two runs, from audits of both: their difference, of all labels and by cluster."""

from __future__ import annotations

import dataclasses
import datetime
import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hf_plr.evaluation.proportions import difference_interval
from hf_plr.refinement.cooccurrence import NOISE
from hf_plr.report.audit import ErrorRate, Marks
from hf_plr.report.names import format_cluster
from hf_plr.report.run_history import RunAudit, RunHistory

Share = tuple[int, int]  # wrong ones, and marked ones


@dataclass(frozen=True)
class RateChange:
    """An error rate of this run against that of an earlier one.

    Attributes:
        since: name of the earlier run.
        before: (wrong, marked) of the earlier run.
        now: (wrong, marked) of this run.
        low, high: bounds of the 95% interval of the difference, in [-1, 1].
    """

    since: str
    before: Share
    now: Share
    low: float
    high: float

    @property
    def difference(self) -> float:
        """Error rate of this run minus that of the earlier one."""
        return self.now[0] / self.now[1] - self.before[0] / self.before[1]


def find_rate_change(history: RunHistory) -> RateChange | None:
    """Compare the error rate of the last run with that of the last earlier run that was audited; None without both."""
    audit = history.runs[-1].audit
    earlier = [run for run in history.runs[:-1] if run.audit is not None]
    if audit is None or not earlier:
        return None
    before = earlier[-1].audit
    assert before is not None
    return _compare(earlier[-1].name, (before.wrong, before.marked), (audit.wrong, audit.marked))


def find_rate_changes_by_cluster(history: RunHistory, names: Mapping[int, str]) -> dict[str, RateChange]:
    """Compare the error rates of clusters that have marks of the random draw in both audits, as `find_rate_change`.

    Clusters of one name count together. A part of a uniform draw that is in a cluster is a uniform draw of it.

    Args:
        history: the runs.
        names: name by cluster.

    Returns:
        The comparison by name, or by number without one; those with the most marks first.
    """
    change = find_rate_change(history)
    if change is None:
        return {}
    audits = [run.audit for run in history.runs if run.audit is not None]
    before, now = (_group_marks(audit, names) for audit in audits[-2:])
    both = sorted(before.keys() & now.keys(), key=lambda key: (-now[key][1] - before[key][1], key))
    return {key: _compare(change.since, before[key], now[key]) for key in both}


def _group_marks(audit: RunAudit, names: Mapping[int, str]) -> dict[str, Share]:
    shared = {name for name in names.values() if list(names.values()).count(name) > 1}
    groups: dict[str, Share] = {}
    for label, (marked, wrong) in sorted(audit.clusters.items()):
        key = names[label] if names.get(label) in shared else format_cluster(label, names)
        key = f"cluster {label}" if label not in names and key in shared else key  # a name may be a number
        before = groups.get(key, (0, 0))
        groups[key] = before[0] + wrong, before[1] + marked
    return groups


def _compare(since: str, before: Share, now: Share) -> RateChange:
    low, high = difference_interval(*now, *before)
    return RateChange(since, before, now, float(low), float(high))


def note_audit(folder: str | os.PathLike[str], marks: Marks, estimate: ErrorRate) -> RunHistory | None:
    """Note an audit of an output folder's own run in its history, in place of an earlier one of the same run.

    Args:
        folder: the output folder.
        marks: the marks.
        estimate: the error rate from them.

    Returns:
        The history; None if the folder has none.

    Raises:
        ValueError: if the history is damaged.
        OSError: if it cannot be written.
    """
    history = RunHistory.read(folder)
    if history is None:
        return None
    drawn = marks.random & (marks.label != NOISE)
    clusters, position = np.unique(marks.label[drawn], return_inverse=True)
    marked = np.bincount(position, minlength=len(clusters)).tolist()
    wrong = np.bincount(position, weights=marks.wrong[drawn], minlength=len(clusters)).astype(np.int64).tolist()
    audit = RunAudit(
        marked=estimate.marked,
        wrong=estimate.wrong,
        low=estimate.low,
        high=estimate.high,
        population=estimate.population,
        written=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        clusters=dict(zip(clusters.tolist(), zip(marked, wrong, strict=True), strict=True)),
    )
    *earlier, own = history.runs
    history = dataclasses.replace(history, runs=(*earlier, dataclasses.replace(own, audit=audit)))
    history.write(folder)
    return history
