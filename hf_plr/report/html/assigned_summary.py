"""What the terminal says of an assigned data set."""

from __future__ import annotations

from typing import Any

from hf_plr.report.assigned import SAME
from hf_plr.report.names import format_cluster

MAX_CLUSTERS = 5  # whose share has changed, and that are named


def summarize(report: dict[str, Any]) -> list[str]:
    """Summarize the output of `assigned_report` in a few lines.

    Args:
        report: what the page shows.
    """
    run, new = report["run"], report["new"]
    names = {int(label): name for label, name in report["names"].items()}
    plural, total = run["plural"], run["samples"]
    lines = [
        f"{total - new['count']:,} of {total:,} {plural} are in {report['clusters_of']:,} known clusters, "
        f"{new['count']:,} are new: {new['share']:.1%}, 95% interval {new['low']:.1%} to {new['high']:.1%}.",
        f"Of {plural} like those of training, {report['false_alarms']:.2%} of them would be taken for new: about "
        f"{new['expected']:,.0f}, rarely more than {new['usual']:,}.",
    ]
    if new["count"]:
        sizes = ", ".join(f"{pattern['size']:,}" for pattern in report["patterns"][:MAX_CLUSTERS])
        more = ", ..." if report["patterns_of"] > MAX_CLUSTERS else ""
        patterns = f"{report['patterns_of']} (of {sizes}{more})" if report["patterns_of"] else "none"
        lines.append(f"New patterns that are proposed: {patterns}; {report['lone']['size']:,} new {plural} in none.")
    changed = [cluster for cluster in report["clusters"] if cluster["verdict"] != SAME]
    if changed:
        shown = ", ".join(
            f"{format_cluster(cluster['id'], names)} {cluster['training']:.1%} -> {cluster['here']:.1%}"
            for cluster in changed[:MAX_CLUSTERS]
        )
        more = ", ..." if len(changed) > MAX_CLUSTERS else ""
        lines.append(f"Known clusters whose share differs from that in training: {len(changed)} ({shown}{more}).")
    if run["unreadable"]:
        lines.append(f"{run['unreadable']:,} rows could not be read and were left out.")
    return lines
