"""Scores of clusters against true labels, from their contingency table."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from scipy.stats import entropy
from sklearn.metrics import mutual_info_score

from hf_plr.refinement.cooccurrence import NOISE, CooccurrenceTable, cooccurrence
from hf_plr.refinement.correspondence import adjusted_rand

CLUSTER_SCORES = {
    "accuracy": "Clustering accuracy",
    "nmi": "NMI",
    "ari": "ARI",
    "purity": "Purity",
    "pair_precision": "Pairwise precision",
    "pair_recall": "Pairwise recall",
    "pair_f1": "Pairwise F1",
    "coverage": "Fraction in a cluster",
}


def score_clusters(clusters: npt.ArrayLike, labels: npt.ArrayLike) -> dict[str, float]:
    """Score the agreement of clusters with true labels.

    Samples of an unknown label are left out. So are samples in no cluster, as is usual with density clustering. A
    clusterer that leaves the hard samples out gets better scores and a lower "coverage".

    * "accuracy": fraction of samples in the cluster that is matched to their class, one to one (Hungarian method).
    * "nmi": mutual information over the mean of the two entropies (scikit-learn's `normalized_mutual_info_score`).
    * "ari": adjusted Rand index (Hubert and Arabie, 1985), 0 for clusters at random.
    * "purity": fraction of samples in their cluster's most frequent class (Manning et al., Introduction to Information
      Retrieval, 2008, 16.3). It rises with the number of clusters. HuBERT's "phone purity" is this one.
    * "pair_precision": fraction of the pairs of samples in one cluster that are in one class; 1 without such pairs.
    * "pair_recall": fraction of the pairs of samples in one class that are in one cluster; 1 without such pairs.
    * "pair_f1": harmonic mean of these two, 1 without pairs of either kind.
    * "coverage": fraction of the samples of known label that are in a cluster.

    All come from the occupied cells of the contingency table: label vectors are read once, in chunks.

    Args:
        clusters: integers of shape (N,), -1 = in no cluster.
        labels: integers of shape (N,), -1 = unknown.

    Returns:
        The scores by the names in `CLUSTER_SCORES`, each in [0, 1], "ari" in [-0.5, 1].

    Raises:
        TypeError: if clusters or labels are not integers.
        ValueError: if they differ in length, or no sample has both.
    """
    return score_table(cooccurrence(labels, clusters))


def score_table(co_occurrences: CooccurrenceTable) -> dict[str, float]:
    """Score as `score_clusters` does, from the table of (labels, clusters); tables of shards add up.

    Raises:
        ValueError: if no sample has both a cluster and a label.
    """
    table = co_occurrences.matrix()
    n_samples = int(table.sum())
    if n_samples == 0:
        raise ValueError(f"none of {co_occurrences.counts.sum()} samples has both a cluster and a label")
    cells = table.tocoo()
    label_sizes, cluster_sizes = (np.asarray(table.sum(axis=axis)).ravel() for axis in (1, 0))
    shared_pairs = _count_pairs(cells.data)
    cluster_pairs, label_pairs = _count_pairs(cluster_sizes), _count_pairs(label_sizes)
    return {
        "accuracy": int(_match_clusters(table)[1].sum()) / n_samples,
        "nmi": _nmi(table, label_sizes, cluster_sizes),
        "ari": adjusted_rand(cells.row, cells.col, cells.data),
        "purity": int(table.max(axis=0).sum()) / n_samples,
        "pair_precision": shared_pairs / cluster_pairs if cluster_pairs else 1.0,
        "pair_recall": shared_pairs / label_pairs if label_pairs else 1.0,
        "pair_f1": 2.0 * shared_pairs / (cluster_pairs + label_pairs) if cluster_pairs + label_pairs else 1.0,
        "coverage": n_samples / int(co_occurrences.sizes(0).sum()),
    }


def find_matched(clusters: npt.ArrayLike, labels: npt.ArrayLike) -> np.ndarray:
    """Find the samples in the cluster that is matched to their class, one to one; False where either is -1.

    Args:
        clusters: integers of shape (N,), -1 = in no cluster.
        labels: integers of shape (N,), -1 = unknown.

    Returns:
        bool of shape (N,); the mean over samples that have both is the clustering accuracy.
    """
    labels, clusters = np.asarray(labels), np.asarray(clusters)
    table = cooccurrence(labels, clusters)
    partner, _ = _match_clusters(table.matrix())
    is_known = (labels != NOISE) & (clusters != NOISE)
    is_matched = np.zeros(len(labels), bool)
    rows = np.searchsorted(table.previous_ids, labels[is_known])
    is_matched[is_known] = partner[rows] == np.searchsorted(table.current_ids, clusters[is_known])
    return is_matched


def _match_clusters(table: sp.csr_array) -> tuple[np.ndarray, np.ndarray]:
    """Match columns to rows so that most samples match; returns columns, -1 = none, and their counts, both (K',)."""
    n_rows, n_columns = table.shape
    # Each row may match a column of its own. Weights are raised by 1, as zeros are missing edges.
    weights = sp.csr_array((table.data + 1.0, table.indices, table.indptr), shape=table.shape)
    rows, columns = min_weight_full_bipartite_matching(
        sp.hstack([weights, sp.eye_array(n_rows)], format="csr"), maximize=True
    )
    partner = np.full(n_rows, NOISE)
    partner[rows] = np.where(columns < n_columns, columns, NOISE)
    matched_rows = np.flatnonzero(partner != NOISE)
    counts = np.zeros(n_rows, np.int64)
    counts[matched_rows] = table[matched_rows, partner[matched_rows]]
    return partner, counts


def _nmi(table: sp.csr_array, label_sizes: np.ndarray, cluster_sizes: np.ndarray) -> float:
    uncertainty = (entropy(label_sizes) + entropy(cluster_sizes)) / 2.0
    if uncertainty == 0.0:  # one class, in one cluster
        return 1.0
    return float(np.clip(mutual_info_score(None, None, contingency=table) / uncertainty, 0.0, 1.0))


def _count_pairs(sizes: np.ndarray) -> float:
    return float((sizes * (sizes - 1.0) / 2.0).sum())
