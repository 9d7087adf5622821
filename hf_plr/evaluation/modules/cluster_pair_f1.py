"""Pairwise F1 as a module of the evaluate library."""

from hf_plr.evaluation import cluster_metric


class ClusterPairF1(cluster_metric.ClusterMetric):
    """See `hf_plr.evaluation.clusters.score_clusters`."""

    score = "pair_f1"
    description = "Harmonic mean of pairwise precision and recall."
