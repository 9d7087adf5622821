"""Give clusters names, which follow their numbers into the report, the model card, audits and later runs.

  hf-plr name out --names names.csv
  hf-plr name out --labels few.csv
  hf-plr name out --rename 7=dent --rename "crak=crack"
  hf-plr name out --list
  hf-plr name out --level 8 --rename 7=metal

`out` is a run's output folder. names.csv has the columns cluster and name; clusters that it does not list keep the
names they have, and an empty name takes one away. Several clusters may have the same name.

--rename 7=dent names cluster 7; --rename "crak=crack" gives all clusters that are called crak the name crack. Nothing
after the = takes the name away. It can be given several times, without a table.

--level 8 names the clusters of the run's level of 8 (its column level_8) in place of the run's own, by any of these.
Such a cluster has its own name, or else those of the run's clusters in it.

few.csv has labels of a few samples: the column label, and index (row of the data set) or file, both as in
pseudo_labels.parquet. A cluster gets the label of more than half of its labelled members. Others are contested or
unlabelled: they are listed, and stay as they are. In a run of segments of recordings, a column start says at which
second the labelled segment begins; without it a label is of all segments of the recording.

Names are in cluster_names.json. report.html and README.md are written again, without the data.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from hf_plr.cli.pages import write_pages
from hf_plr.refinement import NOISE
from hf_plr.refinement.cluster_tree import Level
from hf_plr.report.marks import read_labels
from hf_plr.report.names import NAMES_FILE, format_cluster, read_cluster_names, read_level_names, write_cluster_names
from hf_plr.report.naming import FewLabels, Vote, count_votes, parse_renames, read_few_labels, read_names_table
from hf_plr.report.run_history import RunHistory
from hf_plr.report.tree_file import read_levels
from hf_plr.utils.locks import people_write
from hf_plr.utils.words import count_noun

SUMMARY = "give clusters names"
SHOWN = 20  # clusters without a label that are listed
SHOWN_COUNTS = 4  # labels of a contested cluster that are listed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `hf-plr name`."""
    parser.add_argument("folder", metavar="OUT", help="output folder of the run")
    parser.add_argument("--level", type=int, metavar="N", help="name the clusters of the run's level of N")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--names", metavar="FILE", help="names of clusters, a .csv file: cluster,name")
    source.add_argument("--labels", metavar="FILE", help="labels of a few samples, a .csv file: index,label")
    source.add_argument(
        "--rename", action="append", metavar="OLD=NEW", help="a name and what it becomes, or a cluster and its name"
    )
    source.add_argument("--list", action="store_true", help="list the clusters with their names, and change nothing")


def run(args: argparse.Namespace) -> None:
    """Name clusters, or list their names.

    Raises:
        ValueError, TypeError, OSError: if the files do not fit.
    """
    with contextlib.nullcontext() if args.list else people_write(args.folder):
        _name(args)


def _name(args: argparse.Namespace) -> None:
    labels = read_labels(args.folder, "naming clusters")
    clusters = read_cluster_names(args.folder)
    level = None if args.level is None else _find_level(args.folder, args.level)
    pseudo_labels = np.asarray(labels.labels) if level is None else level.apply(labels.labels)
    names, shown = (clusters, clusters) if level is None else (level.own_names, level.names(clusters))
    sizes = _count_members(pseudo_labels)
    if args.list:
        print(describe_names({**names, **shown}, sizes))
        return
    if args.rename is not None:
        alone = clusters if level is None else level.names(clusters, counts_unnamed=False)
        given = parse_renames(args.rename, {**names, **alone}, shown)
        _check_known("--rename", given, names, sizes, args.folder, level is not None)
        changed = {**names, **given}
        lines = []
    elif args.names is not None:
        given = read_names_table(args.names)
        _check_known(args.names, given, names, sizes, args.folder, level is not None)
        changed = {**names, **given}
        lines = [f"{count_noun(sum(name is not None for name in given.values()), 'name')} in {args.names}."]
    else:
        few = read_few_labels(args.labels, labels)
        votes = count_votes(few, pseudo_labels)
        changed = {**names, **{vote.cluster: vote.name for vote in votes if vote.name is not None}}
        lines = [describe_votes(few, votes, pseudo_labels)]
    kept = {label: name for label, name in changed.items() if name is not None}
    lines += _describe_changes(names, kept)
    if args.rename is not None:
        lines = [*_describe_new(names, kept), *lines] or ["Nothing changes: these are the names already."]
    if level is None:
        write_cluster_names(args.folder, kept)
    else:
        write_cluster_names(args.folder, clusters, read_level_names(args.folder) | {len(level): kept})
    folder = Path(args.folder)
    # Before anything is said: a reader that has gone, as `head` does, ends this process.
    written = [folder / NAMES_FILE, *write_pages(folder, "name", "the names are kept")]
    print("\n".join([*lines, ""]))
    print(f"Wrote {', '.join(str(path) for path in written if path.exists())}")


def _find_level(folder: str, n_clusters: int) -> Level:
    levels = read_levels(folder)
    if n_clusters not in levels:
        there = f"it has {', '.join(map(str, levels))}" if levels else "it has none"
        raise ValueError(f"--level {n_clusters}: {folder} has no such level, {there}")
    return levels[n_clusters]


def describe_names(names: Mapping[int, str], sizes: Mapping[int, int]) -> str:
    """List clusters with members and names, the largest first, and names of clusters that the run has no more."""
    width = max((len(str(label)) for label in (*sizes, *names)), default=1)
    lines = [f"{'cluster':>{max(width, 7)}}{'members':>11}  name"]
    gone = sorted(names.keys() - sizes.keys())
    for label in [*sorted(sizes, key=lambda label: (-sizes[label], label)), *gone]:
        members = f"{sizes[label]:,}" if label in sizes else "gone"
        lines.append(f"{label:>{max(width, 7)}}{members:>11}  {names.get(label, '-')}".rstrip())
    named = len(names.keys() & sizes.keys())
    return "\n".join([*lines, "", f"{named:,} of {count_noun(len(sizes), 'cluster')} named."])


def describe_votes(few: FewLabels, votes: Sequence[Vote], labels: np.ndarray) -> str:
    """Describe what labels of a few samples say of each cluster.

    Args:
        few: the labels.
        votes: the votes of the clusters.
        labels: pseudo-label of every sample, -1 = in no cluster, shape (N,).
    """
    inside = sum(vote.labelled for vote in votes)
    named, contested = ([vote for vote in votes if (vote.name is None) is none] for none in (False, True))
    lines = [
        f"{count_noun(len(few.label), 'labelled sample')}, {inside:,} of them in {count_noun(len(votes), 'cluster')}: "
        f"{len(named):,} named, {len(contested):,} contested."
    ]
    if named:
        lines += ["", f"{'cluster':>8}{'members':>11}{'agreement':>18}  name"]
    for vote in named:
        agreement = f"{vote.counts[0][1]:,} of {vote.labelled:,}"
        lines.append(f"{vote.cluster:>8}{vote.members:>11,}{agreement:>18}  {vote.name}")
    if contested:
        lines += [
            "",
            "Contested, left as they are: no label has more than half.",
            f"{'cluster':>8}{'members':>11}  labels",
        ]
    for vote in contested:
        counts = ", ".join(f"{label} {count:,}" for label, count in vote.counts[:SHOWN_COUNTS])
        more = ", ..." if len(vote.counts) > SHOWN_COUNTS else ""
        lines.append(f"{vote.cluster:>8}{vote.members:>11,}  {counts}{more}")
    sizes = _count_members(labels)
    silent = sorted(sizes.keys() - {vote.cluster for vote in votes}, key=lambda label: (-sizes[label], label))
    if silent:
        share = count_noun(sum(sizes[label] for label in silent), "sample")
        listed = ", ".join(map(str, silent[:SHOWN]))
        listed += f" and {len(silent) - SHOWN:,} more" if len(silent) > SHOWN else ""
        lines += ["", f"Without a labelled sample: {count_noun(len(silent), 'cluster')} of {share}: {listed}."]
    return "\n".join(lines)


def _describe_changes(before: Mapping[int, str], now: Mapping[int, str]) -> list[str]:
    other = [label for label in sorted(before) if label in now and now[label] != before[label]]
    lines = [f"Renamed: {format_cluster(label, before)} is now {now[label]}." for label in other]
    gone = ", ".join(format_cluster(label, before) for label in sorted(before.keys() - now.keys()))
    return [*lines, f"Names taken away: {gone}."] if gone else lines


def _describe_new(before: Mapping[int, str], now: Mapping[int, str]) -> list[str]:
    return [f"Named: {label} is now {now[label]}." for label in sorted(now.keys() - before.keys())]


def _check_known(
    path: str,
    given: Mapping[int, str | None],
    names: Mapping[int, str],
    sizes: Mapping[int, int],
    folder: str,
    is_of_level: bool,
) -> None:
    """Reject names of clusters that neither this run nor an earlier one of its line has had."""
    history = None if is_of_level else RunHistory.read(folder)
    earlier = {label for run in history.runs for label in run.clusters} if history is not None else set()
    unknown = [label for label in given if label not in sizes and label not in earlier and label not in names]
    if unknown:
        others = f" and {len(unknown) - 1} more are" if len(unknown) > 1 else " is"
        raise ValueError(f"{path}: cluster {unknown[0]}{others} not in {folder}: hf-plr name {folder} --list lists all")


def _count_members(labels: np.ndarray) -> dict[int, int]:
    clusters, sizes = np.unique(labels[labels != NOISE], return_counts=True)
    return dict(zip(clusters.tolist(), sizes.tolist(), strict=True))
