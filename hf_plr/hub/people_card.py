"""What people found, in a model card: names of clusters and the last audit. It changes after a run, without the run."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from hf_plr.hub.markdown import escape_markdown
from hf_plr.pseudo_labels.label_files import LABEL_COLUMN, PSEUDO_LABELS_FILE
from hf_plr.report.names import NAMES_FILE, read_cluster_names
from hf_plr.report.run_history import RunEntry, RunHistory
from hf_plr.utils.files import write_text
from hf_plr.utils.words import count_noun

CARD_FILE = "README.md"
BEGIN, END = "<!-- hf-plr: what people found -->", "<!-- hf-plr: end of what people found -->"
MAX_NAMES = 50  # in a card
MAX_RUNS = 5  # earlier ones that a card names

logger = logging.getLogger(__name__)


def describe_people(folder: str | os.PathLike[str]) -> str:
    """Describe the last audit and the named clusters of an output folder as Markdown, between two marks.

    Returns:
        The marks alone where there is neither.

    Raises:
        ValueError: if a file is damaged, naming it.
    """
    return "\n".join(part for part in (BEGIN, describe_findings(folder), END) if part)


def describe_findings(folder: str | os.PathLike[str]) -> str:
    """Describe the last audit and the named clusters of an output folder as Markdown; empty where there is neither.

    Raises:
        ValueError: if a file is damaged, naming it.
    """
    return "\n".join([*_describe_audit(RunHistory.read(folder)), *_describe_names(Path(folder))]).rstrip("\n")


def _describe_audit(history: RunHistory | None) -> list[str]:
    audit = None if history is None else history.runs[-1].audit
    if audit is None:
        return []
    return [
        f"An audit found {audit.wrong / audit.marked:.1%} of the labels wrong, 95% interval {audit.low:.1%} to "
        f"{audit.high:.1%} ({audit.wrong:,} of {audit.marked:,} samples that were drawn at random).",
        "",
    ]


def _describe_names(folder: Path) -> list[str]:
    """Tabulate the named clusters, the largest first."""
    path = folder / PSEUDO_LABELS_FILE
    names = read_cluster_names(folder)
    if not names or not path.is_file():
        return []
    try:
        labels = pq.read_table(path, columns=[LABEL_COLUMN])[LABEL_COLUMN].to_numpy()
    except Exception as error:  # pyarrow raises errors of many kinds
        raise ValueError(f"{path} cannot be read as the labels of a run: {error}") from error
    clusters, sizes = np.unique(labels[labels >= 0], return_counts=True)
    members = dict(zip(clusters.tolist(), sizes.tolist(), strict=True))
    named = sorted(names.keys() & members.keys(), key=lambda label: (-members[label], label))
    if not named:
        return []
    lines = [f"People have named {len(named):,} of the {count_noun(len(members), 'cluster')}:", ""]
    lines += ["| name | cluster | members |", "|---|---|---|"]
    lines += [f"| {escape_markdown(names[label])} | {label} | {members[label]:,} |" for label in named[:MAX_NAMES]]
    more = len(named) - MAX_NAMES
    return [*lines, "", f"{more:,} more are in `{NAMES_FILE}`."] if more > 0 else lines


def describe_lineage(folder: str | os.PathLike[str], plural: str) -> list[str]:
    """Describe the runs that an output folder's run continues, in a sentence or two; empty for a first run.

    Args:
        folder: the output folder.
        plural: what samples are called.

    Raises:
        ValueError: if the history is damaged.
    """
    history = RunHistory.read(folder)
    if history is None or len(history.runs) < 2:
        return []
    *earlier, own = history.runs
    names = ", ".join(f"{escape_markdown(run.name)} ({run.samples:,} {plural})" for run in earlier[-MAX_RUNS:])
    older = f"{len(earlier) - MAX_RUNS:,} older runs, " if len(earlier) > MAX_RUNS else ""
    return [f"Continues {older}{names}: a number is the same cluster in all of them", *_describe_change(own, plural)]


def _describe_change(run: RunEntry, plural: str) -> list[str]:
    data, events = run.data, run.events
    parts = [] if data is None else [f"{data.known:,} {plural} known, {data.new:,} new, {data.removed:,} gone"]
    if events is not None:
        counts = {kind: count for kind, count in events.counts().items() if count}
        parts.append(", ".join(f"{n:,} {'cluster' if n == 1 else 'clusters'} {kind}" for kind, n in counts.items()))
    return [f"Since the run before: {'; '.join(part for part in parts if part)}"] if any(parts) else []


def describe_folder(folder: str | os.PathLike[str], plural: str) -> tuple[list[str], str]:
    """Lineage, and what people found, for a new card; a damaged file is a warning, and what it holds is left out."""
    try:
        return describe_lineage(folder, plural), describe_people(folder)
    except ValueError as error:
        logger.warning("%s. The model card is without it.", error)
        return [], f"{BEGIN}\n{END}"


def write_people_into_card(folder: str | os.PathLike[str]) -> Path | None:
    """Write what people found into a folder's model card, in place of what it has; the rest of the card stays.

    Returns:
        The card; None if there is none, or if it has no place for this, as those of older releases.

    Raises:
        ValueError: if a file is damaged, naming it.
        OSError: if the card cannot be written; what was there stays.
    """
    path = Path(folder) / CARD_FILE
    if not path.is_file():
        return None
    before, begin, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        return None
    write_text(path, f"{before}{describe_people(folder)}{after}")
    return path
