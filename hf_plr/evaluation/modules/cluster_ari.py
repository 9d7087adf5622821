"""Adjusted Rand index as a module of the evaluate library."""

from hf_plr.evaluation import cluster_metric


class ClusterAri(cluster_metric.ClusterMetric):
    """See `hf_plr.evaluation.clusters.score_clusters`."""

    score = "ari"
    description = "Agreement of clusters and classes on pairs of samples, 0 for clusters at random."
    citation = "Hubert and Arabie, Comparing Partitions, Journal of Classification, 1985."
