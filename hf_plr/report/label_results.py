"""What a run tells of its labels: scores, a snapshot for the report, columns of a file, a sentence."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch

from hf_plr.clustering.cluster_means import ClusterMeans, average_clusters
from hf_plr.evaluation.clusters import score_table
from hf_plr.evaluation.codes import lift_classes
from hf_plr.evaluation.label_free import describe_collapse
from hf_plr.features.centering import CenteredFeatures
from hf_plr.pseudo_labels.epoch_labels import PseudoLabels
from hf_plr.pseudo_labels.holding import AllLabels
from hf_plr.refinement import NOISE, cooccurrence
from hf_plr.report.html.sheets import Snapshot
from hf_plr.report.summary import STAGE_PREFIX
from hf_plr.utils.words import count_noun

logger = logging.getLogger(__name__)


def score_labels(labels: PseudoLabels, truth: np.ndarray, holder: AllLabels) -> dict[str, float]:
    """Score labels by `score_clusters`; called on every process.

    Args:
        labels: the labels that this process holds.
        truth: true labels of all samples, integers of shape (N,), -1 = unknown; classes may have any other numbers.
        holder: adds up what the processes hold.

    Returns:
        The scores, on every process; empty where no sample has both.
    """
    own_truth = lift_classes(truth)[labels.first : labels.first + len(labels.labels)]
    table = holder.add_shards(cooccurrence(own_truth, labels.labels))
    return score_table(table) if table.matrix().nnz else {}


def collect_columns(labels: PseudoLabels, holder: AllLabels) -> dict[str, np.ndarray] | None:
    """Collect label, previous_label and confidence of all samples on the main process, (N,) each; None on others.

    Called on every process.
    """
    columns = {
        "label": holder.collect(labels.labels),
        "previous_label": holder.collect(labels.previous_labels),
        "confidence": holder.collect(labels.confidence),
    }
    collected = {name: column for name, column in columns.items() if column is not None}
    return collected if len(collected) == len(columns) else None


def take_snapshot(labels: PseudoLabels, holder: AllLabels) -> Snapshot | None:
    """The labels as the report shows them, on the main process; None on others. Called on every process."""
    columns = collect_columns(labels, holder)
    if columns is None:
        return None
    is_first = (columns["previous_label"] == NOISE).all()
    return Snapshot(
        labels.epoch, columns["label"], None if is_first else columns["previous_label"], columns["confidence"]
    )


def average_labels(
    labels: PseudoLabels, features: CenteredFeatures, holder: AllLabels
) -> tuple[np.ndarray, ClusterMeans]:
    """Ids of the clusters of all samples, ascending, and the mean features of their members.

    Args:
        labels: the labels that this process holds.
        features: features of its own samples.
        holder: adds up what the processes hold; called on every process.
    """
    ids, own = holder.count(labels.labels)[0], labels.labels[holder.own(features.part)]
    ids = ids[ids != NOISE]
    places = torch.from_numpy(np.where(own != NOISE, np.searchsorted(ids, own), NOISE))
    return ids, average_clusters(features.rows, places.to(features.rows.device), len(ids), holder.accelerator)


def describe_labels(
    labelings: Sequence[PseudoLabels], plural: str, stages: list[dict[str, float]], source: str | None = None
) -> str:
    """Describe the last labels in a line.

    Args:
        labelings: the labels of each labeling, the reported one first.
        plural: what samples are called.
        stages: metrics of the stages so far.
        source: file or folder of labels that were given; None for those of stages.
    """
    labels, *others = labelings
    words = f"{count_noun(labels.n_clusters, 'cluster')}, {labels.noise_share:.1%} of the {plural} in none"
    if source is not None:
        return f"{words}; given by {source}, the same in all epochs"
    agreement = stages[-1].get(f"{STAGE_PREFIX}agreement_ari") if stages else None
    if agreement is not None:
        words += f", adjusted Rand index {agreement:.2f} with the epoch before"
    if not others:
        return words
    numbers = [f"{other.n_clusters:,}" for other in others[:-1]] + [count_noun(others[-1].n_clusters, "cluster")]
    return f"{words}; trained together with labelings of {' and '.join(numbers)}"


def warn_of_collapse(epoch: int, metrics: dict[str, float], log: list[dict[str, float]]) -> None:
    """Warn where metrics of a stage look as if the features were collapsing, beside the first stage's in the log."""
    rank = f"{STAGE_PREFIX}effective_rank"
    first = next((entry[rank] for entry in log if rank in entry), metrics["effective_rank"])
    sign = describe_collapse(metrics, first)
    if sign is not None:
        logger.warning(
            "Epoch %d: %s. The features may be collapsing: lower the learning rate, or use more clusters.", epoch, sign
        )
