"""Pairwise recall as a module of the evaluate library."""

from hf_plr.evaluation import cluster_metric


class ClusterPairRecall(cluster_metric.ClusterMetric):
    """See `hf_plr.evaluation.clusters.score_clusters`."""

    score = "pair_recall"
    description = "Fraction of the pairs of samples of one class that are in one cluster."
