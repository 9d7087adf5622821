"""Scores of clusters against true labels, from the table of how often each pair of them occurs."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from scipy.stats import entropy
from sklearn.metrics import mutual_info_score

from hf_plr.refinement.cooccurrence import NOISE, cooccurrence
from hf_plr.refinement.correspondence import adjusted_rand

CLUSTER_SCORES = {
    "accuracy": "Clustering accuracy",
    "nmi": "NMI",
    "ari": "ARI",
    "purity": "Purity",
    "pair_precision": "Pairwise precision",
    "pair_recall": "Pairwise recall",
    "coverage": "Share in a cluster",
}


def score_clusters(clusters: npt.ArrayLike, labels: npt.ArrayLike) -> dict[str, float]:
    """How well clusters agree with true labels.

    Samples of an unknown label are left out. So are samples in no cluster, as is usual with density clustering; a
    clusterer that leaves the hard ones out scores better by that, which "coverage" tells.

    * "accuracy": share of the samples in the cluster that is matched to their class, one to one (Hungarian method).
    * "nmi": mutual information over the mean of the two entropies (scikit-learn's `normalized_mutual_info_score`).
    * "ari": adjusted Rand index (Hubert and Arabie, 1985), 0 for clusters at random.
    * "purity": share of the samples that are of their cluster's most frequent class (Manning et al., Introduction to
      Information Retrieval, 2008, 16.3); with more clusters it rises by itself. HuBERT's "phone purity" is this one.
    * "pair_precision", "pair_recall": of the pairs of samples in one cluster the share that is of one class, and of
      the pairs of one class the share in one cluster; 1 where there is no such pair.
    * "coverage": share of the samples of known label that are in a cluster.

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
    counted = cooccurrence(labels, clusters)
    table = counted.matrix()
    n_samples = int(table.sum())
    if n_samples == 0:
        raise ValueError(f"none of {len(np.asanyarray(labels))} samples has both a cluster and a label")
    cells = table.tocoo()
    of_label, of_cluster = (np.asarray(table.sum(axis=axis)).ravel() for axis in (1, 0))
    together = _pairs(cells.data)
    in_one_cluster, of_one_label = _pairs(of_cluster), _pairs(of_label)
    return {
        "accuracy": int(_matched(table)[1].sum()) / n_samples,
        "nmi": _nmi(table, of_label, of_cluster),
        "ari": adjusted_rand(cells.row, cells.col, cells.data),
        "purity": int(table.max(axis=0).sum()) / n_samples,
        "pair_precision": together / in_one_cluster if in_one_cluster else 1.0,
        "pair_recall": together / of_one_label if of_one_label else 1.0,
        "coverage": n_samples / int(counted.sizes(0).sum()),
    }


def find_matched(clusters: npt.ArrayLike, labels: npt.ArrayLike) -> np.ndarray:
    """Whether each sample is in the cluster that is matched to its class, one to one; False where either is -1.

    Args:
        clusters: integers of shape (N,), -1 = in no cluster.
        labels: integers of shape (N,), -1 = unknown.

    Returns:
        bool of shape (N,); the mean over samples that have both is the clustering accuracy.
    """
    labels, clusters = np.asarray(labels), np.asarray(clusters)
    table = cooccurrence(labels, clusters)
    partner, _ = _matched(table.matrix())
    known = (labels != NOISE) & (clusters != NOISE)
    found = np.zeros(len(labels), bool)
    rows = np.searchsorted(table.previous_ids, labels[known])
    found[known] = partner[rows] == np.searchsorted(table.current_ids, clusters[known])
    return found


def _matched(table: sp.csr_array) -> tuple[np.ndarray, np.ndarray]:
    """Column matched to each row so that the most samples are matched, -1 for none, and how many these are; (K',)."""
    n_rows, n_columns = table.shape
    # Every row may stay alone, in a column of its own. Zeros would be taken for missing edges, so all weigh 1 more.
    weights = sp.csr_array((table.data + 1.0, table.indices, table.indptr), shape=table.shape)
    rows, columns = min_weight_full_bipartite_matching(
        sp.hstack([weights, sp.eye_array(n_rows)], format="csr"), maximize=True
    )
    partner = np.full(n_rows, NOISE)
    partner[rows] = np.where(columns < n_columns, columns, NOISE)
    matched = np.flatnonzero(partner != NOISE)
    counts = np.zeros(n_rows, np.int64)
    counts[matched] = table[matched, partner[matched]]
    return partner, counts


def _nmi(table: sp.csr_array, of_label: np.ndarray, of_cluster: np.ndarray) -> float:
    uncertainty = (entropy(of_label) + entropy(of_cluster)) / 2.0
    if uncertainty == 0.0:  # one class, in one cluster
        return 1.0
    return float(np.clip(mutual_info_score(None, None, contingency=table) / uncertainty, 0.0, 1.0))


def _pairs(sizes: np.ndarray) -> float:
    return float((sizes * (sizes - 1.0) / 2.0).sum())
