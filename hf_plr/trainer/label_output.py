"""What a `PLRTrainer` leaves of its labels: the files beside the backbone, and what the summary tells of them."""

from __future__ import annotations

import dataclasses
import logging
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hf_plr.pseudo_labels.data_digest import record_data
from hf_plr.pseudo_labels.label_files import PSEUDO_LABELS_FILE
from hf_plr.refinement.cluster_tree import ClusterTree, Level, make_levels, make_tree
from hf_plr.report.cluster_files import CLUSTER_FILES, write_cluster_files
from hf_plr.report.label_results import collect_columns, describe_labels
from hf_plr.report.label_table import write_pseudo_labels
from hf_plr.report.names import NAMES_FILE, carry_names, write_cluster_names
from hf_plr.report.run_history import HISTORY_FILE, RunHistory
from hf_plr.report.summary import RunSummary
from hf_plr.report.tree_file import TREE_FILE, write_tree
from hf_plr.trainer.cluster_tree import compare_last_clusters
from hf_plr.trainer.continuation import digest_own, make_history
from hf_plr.utils.files import refuse_file
from hf_plr.utils.words import count_noun

if TYPE_CHECKING:
    from hf_plr.trainer.plr_trainer import PLRTrainer

CUTS = (100, 30, 10, 5, 2)  # clusters of a cut that is suggested: the first below their number
MOST_CLUSTERS = 20_000  # of a tree, whose distances are a matrix of 3 GiB then

logger = logging.getLogger(__name__)


def write_label_files(trainer: PLRTrainer, directory: str | os.PathLike[str], rows: np.ndarray | None) -> None:
    """Write labels, clusters, their tree, and last of all the history of the run; called on every process.

    Args:
        trainer: the trainer.
        directory: where to, made if it is missing.
        rows: as for `PLRTrainer.save_pseudo_labels`.

    Raises:
        FileExistsError: if the directory is a file.
    """
    refuse_file(directory)
    os.makedirs(directory, exist_ok=True)
    labels = trainer.labelings[0].pseudo_labels
    ids, means, features = write_cluster_files(directory, labels, trainer.extract_now(), trainer.holder)
    has_tree = len(ids) <= MOST_CLUSTERS
    distances = compare_last_clusters(trainer, means, features) if has_tree else None
    del features
    history, tree = find_history(trainer), None
    levels: dict[int, Level] = {}
    if distances is not None:  # the same on every process
        runs = [run.clusters for run in history.runs]
        tree = make_tree(ids, means.sizes.cpu().numpy(), distances, runs)
        levels, next_number = find_levels(trainer, tree, history.next_number)
        history = dataclasses.replace(history, next_number=next_number)
    write_label_table(trainer, os.path.join(directory, PSEUDO_LABELS_FILE), rows, levels)
    if not trainer.is_world_process_zero():
        return
    if tree is not None:
        write_tree(directory, tree, levels)
    else:
        logger.warning("%d clusters are too many for a tree: %s is not written.", len(ids), TREE_FILE)
        Path(directory, TREE_FILE).unlink(missing_ok=True)
    if trainer.continuation is not None and not os.path.exists(os.path.join(directory, NAMES_FILE)):
        before = trainer.continuation.predecessor
        names = carry_names(before.names, trainer.continuation.events.renumbered)
        write_cluster_names(directory, names, before.level_names)
    history.keep_audit(directory).write(directory)


def find_levels(trainer: PLRTrainer, tree: ClusterTree, next_number: int) -> tuple[dict[int, Level], int]:
    """Find the levels of the run, numbered as in the run that it continues; `next_number` as for `make_levels`."""
    wanted = trainer.args.levels
    assert not isinstance(wanted, str)
    known = None if trainer.continuation is None else trainer.continuation.known_levels
    levels, next_number = make_levels(tree, wanted, known, next_number)
    missing = [n for n in wanted or () if n not in levels]
    if missing and trainer.is_world_process_zero():
        logger.warning(
            "levels=%s: only %s left, with no level of %s.",
            ",".join(map(str, wanted or ())),
            count_noun(len(tree), "cluster is", "clusters are"),
            " or ".join(map(str, missing)),
        )
    return levels, next_number


def find_history(trainer: PLRTrainer) -> RunHistory:
    """Find the history of the run; called on every process."""
    labeling, continuation, holder = trainer.labelings[0], trainer.continuation, trainer.holder
    labels = labeling.pseudo_labels.labels
    ids, sizes = holder.count(labels)
    if continuation is not None:
        continuation.find_events(labels, holder)
    next_number = labeling.stage.refiner.next_number
    return make_history(trainer.args, ids, sizes, next_number, trainer.from_scratch, continuation)


def write_label_table(
    trainer: PLRTrainer,
    path: str | os.PathLike[str],
    rows: np.ndarray | None,
    levels: Mapping[int, Level] | None = None,
) -> None:
    """Write a row per sample, see `PLRTrainer.save_pseudo_labels`, and a column per level; called on every process."""
    store, holder = trainer.train_dataset, trainer.holder
    part = trainer.extractor.local_slice(store)
    digests = holder.collect(holder.hold(digest_own(store, part, trainer.accelerator)))
    columns = collect_columns(trainer.labelings[0].pseudo_labels, holder)
    if columns is not None and digests is not None and trainer.is_world_process_zero():
        index = store.rows if rows is None else rows[store.rows]
        numbers = np.ascontiguousarray(digests).view(np.uint64)[:, 0]
        data = store.undecoded_column
        is_whole = rows is None or np.array_equal(rows, np.arange(len(data)))  # a part has no record of the whole
        record = record_data(data, trainer.modality.column) if is_whole else None
        write_pseudo_labels(path, index, columns, store.files(), store.segments, numbers, levels, record)


def summarize_labels(trainer: PLRTrainer, summary: RunSummary) -> RunSummary:
    """Add what is known of the labels to the summary of a run."""
    noun, span = trainer.modality.noun, "" if trainer.train_dataset.segments is None else " start, end,"
    files = (
        (
            PSEUDO_LABELS_FILE,
            f"index,{span} label, previous_label, confidence, digest and levels of every training {noun}",
        ),
        *CLUSTER_FILES,
        (TREE_FILE, "tree of the clusters, which hf-plr cut takes"),
        (HISTORY_FILE, "sizes of the clusters, of this run and of those that it continues"),
    )
    plural = trainer.modality.plural
    summary = dataclasses.replace(summary, label_files=files, cluster_members=plural)
    labels = trainer.pseudo_labels
    if labels is None:
        return summary
    of_all = [labeling.pseudo_labels for labeling in trainer.labelings]
    source = None if trainer.given_stage is None else trainer.given_stage.source
    return dataclasses.replace(
        summary,
        last_labels=describe_labels(of_all, plural, summary.stages, source),
        cluster_sizes=labels.sizes,
        next_commands=suggest_commands(str(trainer.args.output_dir), labels.n_clusters, plural),
        continued="" if trainer.continuation is None else trainer.continuation.describe_events(),
    )


def suggest_commands(folder: str, n_clusters: int, plural: str) -> tuple[tuple[str, str], ...]:
    """Suggest what to do with the clusters in an output folder: commands, and what they do."""
    out = shlex.quote(folder)
    fewer = next((n for n in CUTS if n < n_clusters), None)
    table = shlex.quote(f"{folder}/cut.parquet")
    cut = (f"hf-plr cut {out} --clusters {fewer} --output {table}", "fewer, larger clusters")
    return (
        (f"hf-plr name {out} --list", "its clusters, to name them"),
        *(() if fewer is None else (cut,)),
        (
            f"hf-plr assign --model {out} --dataset NEW --output assigned.parquet",
            f"new {plural} by these clusters",
        ),
    )
