"""What a `PLRTrainer` leaves of its labels: the files beside the backbone, and what the summary tells of them."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING

import numpy as np

from hf_plr.report.cluster_files import CLUSTER_FILES, write_cluster_files
from hf_plr.report.label_results import collect_columns, describe_labels
from hf_plr.report.names import NAMES_FILE, write_cluster_names
from hf_plr.report.outputs import PSEUDO_LABELS_FILE, write_pseudo_labels
from hf_plr.report.run_history import HISTORY_FILE
from hf_plr.report.summary import RunSummary
from hf_plr.trainer.continuation import digest_own, make_history

if TYPE_CHECKING:
    from hf_plr.trainer.plr_trainer import PLRTrainer


def write_label_files(trainer: PLRTrainer, directory: str | os.PathLike[str], rows: np.ndarray | None) -> None:
    """Write labels, clusters, and last of all the history of the run; called on every process.

    Args:
        trainer: the trainer.
        directory: where to, made if it is missing.
        rows: as for `PLRTrainer.save_pseudo_labels`.
    """
    os.makedirs(directory, exist_ok=True)
    trainer.save_pseudo_labels(os.path.join(directory, PSEUDO_LABELS_FILE), rows)
    write_cluster_files(directory, trainer.labelings[0].pseudo_labels, trainer._extract_now(), trainer._holder)
    write_history(trainer, directory)


def write_history(trainer: PLRTrainer, directory: str | os.PathLike[str]) -> None:
    """Write the history of the run, and the names that its clusters had in the run before; called on every process."""
    labeling, continuation, holder = trainer.labelings[0], trainer.continuation, trainer._holder
    labels = labeling.pseudo_labels.labels
    ids, sizes = holder.count(labels)
    if continuation is not None:
        continuation.find_events(labels, holder)
    if not trainer.is_world_process_zero():
        return
    next_number = labeling.stage.refiner.next_number
    if continuation is not None and not os.path.exists(os.path.join(directory, NAMES_FILE)):
        write_cluster_names(directory, continuation.predecessor.names)
    history = make_history(trainer.args, ids, sizes, next_number, trainer.from_scratch, continuation)
    history.write(directory)


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
        (PSEUDO_LABELS_FILE, f"index,{span} label, previous_label and confidence of every training {noun}"),
        *CLUSTER_FILES,
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
