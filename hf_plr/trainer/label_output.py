"""What a `PLRTrainer` leaves of its labels: the files beside the backbone, and what the summary tells of them."""

from __future__ import annotations

import dataclasses
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hf_plr.refinement.hierarchy import make_tree
from hf_plr.report.cluster_files import CLUSTER_FILES, write_cluster_files
from hf_plr.report.label_results import collect_columns, describe_labels
from hf_plr.report.names import NAMES_FILE, write_cluster_names
from hf_plr.report.outputs import PSEUDO_LABELS_FILE, write_pseudo_labels
from hf_plr.report.run_history import HISTORY_FILE, RunHistory
from hf_plr.report.summary import RunSummary
from hf_plr.report.tree_file import TREE_FILE, write_tree
from hf_plr.trainer.cluster_tree import compare_last_clusters
from hf_plr.trainer.continuation import digest_own, make_history

if TYPE_CHECKING:
    from hf_plr.trainer.plr_trainer import PLRTrainer

MOST_CLUSTERS = 20_000  # of a tree, whose distances are a matrix of 3 GiB then

logger = logging.getLogger(__name__)


def write_label_files(trainer: PLRTrainer, directory: str | os.PathLike[str], rows: np.ndarray | None) -> None:
    """Write labels, clusters, their tree, and last of all the history of the run; called on every process.

    Args:
        trainer: the trainer.
        directory: where to, made if it is missing.
        rows: as for `PLRTrainer.save_pseudo_labels`.
    """
    os.makedirs(directory, exist_ok=True)
    trainer.save_pseudo_labels(os.path.join(directory, PSEUDO_LABELS_FILE), rows)
    labels = trainer.labelings[0].pseudo_labels
    ids, means, features = write_cluster_files(directory, labels, trainer._extract_now(), trainer._holder)
    has_tree = len(ids) <= MOST_CLUSTERS
    distances = compare_last_clusters(trainer, means, features) if has_tree else None
    del features
    history = find_history(trainer)
    if not trainer.is_world_process_zero():
        return
    if distances is not None:
        runs = [run.clusters for run in history.runs]
        write_tree(directory, make_tree(ids, means.sizes.cpu().numpy(), distances, runs))
    else:
        logger.warning("%d clusters are too many for a tree: %s is not written.", len(ids), TREE_FILE)
        Path(directory, TREE_FILE).unlink(missing_ok=True)
    if trainer.continuation is not None and not os.path.exists(os.path.join(directory, NAMES_FILE)):
        write_cluster_names(directory, trainer.continuation.predecessor.names)
    history.keep_audit(directory).write(directory)


def find_history(trainer: PLRTrainer) -> RunHistory:
    """Find the history of the run; called on every process."""
    labeling, continuation, holder = trainer.labelings[0], trainer.continuation, trainer._holder
    labels = labeling.pseudo_labels.labels
    ids, sizes = holder.count(labels)
    if continuation is not None:
        continuation.find_events(labels, holder)
    next_number = labeling.stage.refiner.next_number
    return make_history(trainer.args, ids, sizes, next_number, trainer.from_scratch, continuation)


def write_label_table(trainer: PLRTrainer, path: str | os.PathLike[str], rows: np.ndarray | None) -> None:
    """Write a row per sample, see `PLRTrainer.save_pseudo_labels`; called on every process."""
    store, holder = trainer.train_dataset, trainer._holder
    part = trainer.extractor.local_slice(store)
    digests = holder.collect(holder.hold(digest_own(store, part, trainer.accelerator)))
    columns = collect_columns(trainer.labelings[0].pseudo_labels, holder)
    if columns is not None and digests is not None and trainer.is_world_process_zero():
        index = store.rows if rows is None else rows[store.rows]
        numbers = np.ascontiguousarray(digests).view(np.uint64)[:, 0]
        write_pseudo_labels(path, index, columns, store.files(), store.segments, numbers)


def summarize_labels(trainer: PLRTrainer, summary: RunSummary) -> RunSummary:
    """Add what is known of the labels to the summary of a run."""
    noun, span = trainer.modality.noun, "" if trainer.train_dataset.segments is None else " start, end,"
    files = (
        (PSEUDO_LABELS_FILE, f"index,{span} label, previous_label, confidence and digest of every training {noun}"),
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
    source = None if trainer._given_stage is None else trainer._given_stage.source
    return dataclasses.replace(
        summary,
        last_labels=describe_labels(of_all, plural, summary.stages, source),
        cluster_sizes=labels.sizes,
        continued="" if trainer.continuation is None else trainer.continuation.describe_events(),
    )
