"""Pairwise precision as a module of the evaluate library."""

from hf_plr.evaluation import cluster_metric


class ClusterPairPrecision(cluster_metric.ClusterMetric):
    """See `hf_plr.evaluation.clusters.score_clusters`."""

    score = "pair_precision"
    description = "Fraction of the pairs of samples in one cluster that are of one class."
