"""Files that tell what the last clusters look like to the backbone beside them."""

from __future__ import annotations

import os

import numpy as np
import torch
from safetensors.numpy import save_file

from hf_plr.clustering.cluster_means import ClusterMeans
from hf_plr.clustering.novelty import KNOWN_CLUSTERS_FILE, KnownClusters, draw_references
from hf_plr.features.centering import CenteredFeatures, center_features
from hf_plr.pseudo_labels.epoch_labels import PseudoLabels
from hf_plr.pseudo_labels.holding import AllLabels
from hf_plr.report.label_results import average_labels
from hf_plr.utils.files import replacing

PROTOTYPES_FILE = "prototypes.safetensors"
PROTOTYPES_FORMAT = "hf-plr-prototypes-1"
CLUSTER_FILES = (
    (PROTOTYPES_FILE, "mean feature of every cluster, its label, and the mean that features are relative to"),
    (KNOWN_CLUSTERS_FILE, "what hf-plr assign compares new samples with"),
)


def write_cluster_files(
    directory: str | os.PathLike[str], labels: PseudoLabels, features: torch.Tensor, holder: AllLabels
) -> tuple[np.ndarray, ClusterMeans, CenteredFeatures]:
    """Write prototypes and known clusters; called on every process, of which the main one writes.

    Args:
        directory: where to.
        labels: the labels that this process holds.
        features: features of its own samples, float32 of shape (n, D); overwritten.
        holder: adds up what the processes hold.

    Returns:
        Labels of the clusters, ascending, (K,), their means, and the features relative to their center.
    """
    drawn = draw_references(features, holder.accelerator)
    centered = center_features(features, holder.accelerator, out=features)
    ids, means = average_labels(labels, centered, holder)
    if not (holder.accelerator is None or holder.accelerator.is_main_process):
        return ids, means, centered
    prototypes, center = means.directions.cpu(), centered.center.cpu()
    write_prototypes(os.path.join(directory, PROTOTYPES_FILE), prototypes.numpy(), ids, center.numpy())
    known = KnownClusters.fit(drawn, center, prototypes, ids, means.sizes.cpu().numpy())
    known.save(os.path.join(directory, KNOWN_CLUSTERS_FILE))
    return ids, means, centered


def write_prototypes(
    path: str | os.PathLike[str], prototypes: np.ndarray, labels: np.ndarray, center: np.ndarray
) -> None:
    """Write the prototypes of the clusters of `pseudo_labels.parquet`, as the backbone beside it sees them.

    A sample's feature minus `center` is compared with the rows of `prototypes` by cosine; the most similar row stands
    for the cluster of the same row of `labels`.

    Args:
        path: a safetensors file, written atomically.
        prototypes: mean feature per cluster relative to the center, of unit length, (K, D).
        labels: the clusters' labels, (K,).
        center: mean feature of all samples, (D,).
    """
    arrays: dict[str, np.ndarray] = {
        "prototypes": np.ascontiguousarray(prototypes, np.float32),
        "labels": np.ascontiguousarray(labels, np.int64),
        "center": np.ascontiguousarray(center, np.float32),
    }
    with replacing(path) as temporary:
        save_file(arrays, temporary, metadata={"format": PROTOTYPES_FORMAT})
