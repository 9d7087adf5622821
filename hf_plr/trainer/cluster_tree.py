"""The tree of a trainer's clusters: of the stage, for the report, and of what a run leaves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hf_plr.clustering.cluster_means import ClusterMeans
from hf_plr.features.centering import CenteredFeatures
from hf_plr.refinement import cooccurrence
from hf_plr.refinement.cluster_tree import ClusterTree, compare_clusters, make_tree
from hf_plr.report.html.tree_facts import MAX_CLUSTERS
from hf_plr.report.label_results import average_labels

if TYPE_CHECKING:
    from hf_plr.trainer.plr_trainer import PLRTrainer


def compare_last_clusters(trainer: PLRTrainer, means: ClusterMeans, features: CenteredFeatures) -> np.ndarray:
    """Measure distances of the reported clusters, ascending by label, for their tree, (K, K); called on every process.

    What is known of them is their means in the space in which they are sought, and where their members were in the
    clusterings of the last epochs that the refiner remembers. Tables add up; nothing per sample travels.
    """
    labeling, holder = trainer.labelings[0], trainer.holder
    labels = labeling.pseudo_labels
    directions = trainer.cluster_space.map_means(means.directions, features, trainer.accelerator)
    others = (*labeling.stage.refiner.history, labels.raw_labels, labels.previous_labels)
    tables = [holder.add_shards(cooccurrence(other, labels.labels)) for other in others]
    return compare_clusters(directions.cpu().numpy(), tables)


def make_stage_tree(trainer: PLRTrainer, features: CenteredFeatures) -> ClusterTree | None:
    """Make the tree of the clusters of this stage for the report; called on every process.

    Returns:
        The tree; None where no report is written during the run, or there are more clusters than a page shows.
    """
    labels = trainer.labelings[0].pseudo_labels
    if trainer.args.report != "epoch" or not 2 <= len(labels.sizes) <= MAX_CLUSTERS:
        return None
    ids, means = average_labels(labels, features, trainer.holder)
    distances = compare_last_clusters(trainer, means, features)
    runs = () if trainer.continuation is None else trainer.continuation.predecessor.history.runs
    return make_tree(ids, means.sizes.cpu().numpy(), distances, [run.clusters for run in runs])
