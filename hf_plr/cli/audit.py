"""Estimate from an auditor's marks how many pseudo-labels are wrong, and name the clusters to check first.

  hf-plr audit out --marks marks.csv

`out` is a run's output folder. marks.csv comes from its report.html, or is a CSV of your own with two columns. index is
the row of the data set, as in pseudo_labels.parquet; where a recording has several segments, a column start says at
which second the marked one begins. mark is wrong, right, or empty for a sample without a mark.

The error rate comes only from samples that were drawn at random: the report's random sheet, or a file of your own with
--random. Mark every sample of that draw, also the right ones. A draw with only some samples marked may not be fair, and
the command says so. A sample has one mark, wherever the report shows it. The 95% interval is exact (Clopper-Pearson).

The estimate is kept in run_history.json, and shown by report.html and README.md. Where the run continues another one
that was audited too, the error rates are compared: their difference with a 95% interval (Newcombe, 1998, hybrid score),
for all labels and for clusters that have random marks in both audits; clusters of one name count together. Of twenty
such intervals, one misses by chance alone.

All marks rank the clusters: a cluster counts its wrong members, and (w + 2 p) / (m + 2) per member without a mark. Here
w of m marked members are wrong, and p = (W + 1/2) / (M + 1), if W of M marks of all clusters are (of the random ones,
if there are any). This number is for ranking. It is not an estimate, since sheets of doubtful members have more wrong
ones than others.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from hf_plr.cli.pages import write_pages
from hf_plr.pseudo_labels.label_files import check_output
from hf_plr.refinement import NOISE
from hf_plr.report.audit import ErrorRate, Marks, RankedClusters, estimate_error_rate, rank_clusters
from hf_plr.report.marks import read_labels, read_marks
from hf_plr.report.names import read_cluster_names
from hf_plr.report.rate_change import RateChange, find_rate_change, find_rate_changes_by_cluster, note_audit
from hf_plr.report.run_history import HISTORY_FILE, RunHistory
from hf_plr.utils.files import replacing
from hf_plr.utils.locks import people_write

SUMMARY = "estimate the error rate of pseudo-labels from an auditor's marks"
SHOWN_CLUSTERS = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `hf-plr audit`."""
    parser.add_argument("folder", metavar="OUT", help="output folder of the run")
    parser.add_argument("--marks", required=True, metavar="FILE", help="the marks, a .csv file")
    parser.add_argument(
        "--random",
        action="store_true",
        help="the samples of a file without a column sheet were drawn uniformly at random from all",
    )
    parser.add_argument("--output", metavar="FILE", help="where all clusters go, a .csv file (default: nowhere)")
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it exists")


def run(args: argparse.Namespace) -> None:
    """Read labels and marks, print the audit, and write all clusters if --output is given.

    Raises:
        ValueError, TypeError, OSError: if the files do not fit.
    """
    if args.output is not None:
        if not args.output.endswith(".csv"):
            raise ValueError(f"--output {args.output}: clusters are written as .csv; name such a file")
        check_output(args.output, args.overwrite)
    labels = read_labels(args.folder)
    marks = read_marks(args.marks, labels, args.random)
    pseudo_labels, names = np.asarray(labels.labels), read_cluster_names(args.folder)
    clusters, estimate = rank_clusters(marks, pseudo_labels), estimate_error_rate(marks, pseudo_labels)
    print(describe_audit(marks, pseudo_labels, estimate, clusters, names))
    if args.output is not None:
        _write_clusters(args.output, clusters, names)
        print(f"\nWrote {args.output}")
    if estimate is not None:
        with people_write(args.folder):
            _keep_estimate(Path(args.folder), marks, estimate, names)


def _keep_estimate(folder: Path, marks: Marks, estimate: ErrorRate, names: Mapping[int, str]) -> None:
    """Keep the estimate in the history, compare it with the one before, and show both on the page."""
    try:
        history = note_audit(folder, marks, estimate)
    except (OSError, ValueError) as error:  # as in a folder that is read alone: what was printed holds
        print(f"hf-plr audit: the error rate is not kept: {error}", file=sys.stderr)
        return
    if history is None:
        print(f"\nNot kept for later runs: {folder} has no {HISTORY_FILE}, as runs of older releases.")
        return
    shown = write_pages(folder, "audit", "the error rate is kept")
    comparison = describe_changes(history, names)
    print(f"\n{comparison}" if comparison else "")
    print(f"Wrote {', '.join(map(str, (folder / HISTORY_FILE, *shown)))}")


def describe_changes(history: RunHistory, names: Mapping[int, str]) -> str:
    """Describe the error rate of the last run against the last one audited before it; empty for a first run."""
    change = find_rate_change(history)
    if change is None and len(history.runs) > 1:
        return (
            "No error rate to compare with: no earlier run had been audited when this one ended. Audit a run before "
            "the one that continues it.\n"
        )
    if change is None:
        return ""
    lines = [f"Error rate against {change.since}: {_format_change(change)}"]
    changes = find_rate_changes_by_cluster(history, names)
    if changes:
        width = max(7, *(len(key) for key in changes))
        lines += ["", f"{'cluster':<{width}}{'before':>12}{'now':>12}{'difference':>12}  95% interval"]
    for key, each in list(changes.items())[:SHOWN_CLUSTERS]:
        before, now = (f"{wrong:,} of {marked:,}" for wrong, marked in (each.before, each.now))
        interval = f"{100 * each.low:+.1f} to {100 * each.high:+.1f}"
        lines.append(f"{key:<{width}}{before:>12}{now:>12}{100 * each.difference:>+12.1f}  {interval}")
    if len(changes) > SHOWN_CLUSTERS:
        lines.append(f"... and {len(changes) - SHOWN_CLUSTERS:,} more with fewer marks")
    return "\n".join([*lines, ""])


def _format_change(change: RateChange) -> str:
    verdict = "no change can be told from these marks"
    if change.low > 0:
        verdict = "more labels are wrong now"
    elif change.high < 0:
        verdict = "fewer labels are wrong now"
    before, now = (wrong / marked for wrong, marked in (change.before, change.now))
    return (
        f"{before:.1%} then, {now:.1%} now, {100 * change.difference:+.1f} points, 95% interval "
        f"{100 * change.low:+.1f} to {100 * change.high:+.1f}: {verdict}."
    )


def describe_audit(
    marks: Marks,
    labels: np.ndarray,
    estimate: ErrorRate | None,
    clusters: RankedClusters,
    names: Mapping[int, str] | None = None,
) -> str:
    """Describe an audit for people.

    Args:
        marks: the marks.
        labels: pseudo-label of every sample, shape (N,).
        estimate: the estimated error rate, None without one.
        clusters: the ranked clusters.
        names: name by cluster, of those that have one.
    """
    names = {} if names is None else names
    lines = [f"{_format_count(len(marks.index), 'sample')} marked, {marks.wrong.sum():,} of them wrong.", ""]
    if estimate is None:
        lines += [
            "No error rate: no mark is on the sheet of random samples, and the others are not a fair draw of all. "
            "If the samples of a file without a column sheet are one, --random says so."
        ]
    else:
        lines += [
            f"Error rate: {estimate.rate:.1%}, 95% interval {estimate.low:.1%} to {estimate.high:.1%} "
            f"({estimate.wrong:,} of {estimate.marked:,} random samples are wrong).",
            f"Of the {estimate.population:,} samples in clusters about {estimate.in_samples(estimate.rate):,} are "
            f"wrong, between {estimate.in_samples(estimate.low):,} and {estimate.in_samples(estimate.high):,}.",
        ]
        if estimate.unmarked:
            lines += [
                f"{estimate.unmarked:,} of the {estimate.marked + estimate.unmarked:,} random samples have no mark. "
                "Mark them too: the estimate takes the marked ones for a fair draw."
            ]
        if estimate.wrong == estimate.marked:
            lines += ["Every one is marked wrong: were those that are right marked too? They must be."]
    n_noise = int((labels == NOISE).sum())
    if n_noise:
        lines += [
            f"{_format_count(n_noise, 'sample')} in no cluster: without a label, they are neither right nor wrong."
        ]
    lines += ["", "Clusters to check first:", ""]
    heading = f"{'cluster':>8}{'members':>9}{'marked':>8}{'wrong':>7}{'expected wrong':>16}"
    lines += [f"{heading}  name" if names else heading]
    columns = (clusters.label, clusters.members, clusters.marked, clusters.wrong, clusters.expected_wrong)
    for label, members, marked, wrong, expected in list(zip(*columns, strict=True))[:SHOWN_CLUSTERS]:
        line = f"{label:>8}{members:>9,}{marked:>8,}{wrong:>7,}{expected:>16,.1f}  {names.get(label, '')}"
        lines.append(line.rstrip())
    if len(clusters.label) > SHOWN_CLUSTERS:
        lines.append(f"... and {len(clusters.label) - SHOWN_CLUSTERS:,} more; --output FILE.csv takes all")
    return "\n".join(lines)


def _write_clusters(path: str, clusters: RankedClusters, names: Mapping[int, str]) -> None:
    frame = pd.DataFrame(
        {
            "cluster": clusters.label,
            **({"name": [names.get(label, "") for label in clusters.label.tolist()]} if names else {}),
            "members": clusters.members,
            "marked": clusters.marked,
            "wrong": clusters.wrong,
            "expected_wrong": clusters.expected_wrong.round(2),
        }
    )
    with replacing(path) as temporary:
        frame.to_csv(temporary, index=False)


def _format_count(number: int, noun: str) -> str:
    return f"{number:,} {noun} is" if number == 1 else f"{number:,} {noun}s are"
