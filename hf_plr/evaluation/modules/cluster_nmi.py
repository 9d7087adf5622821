"""Normalised mutual information as a module of the evaluate library."""

from hf_plr.evaluation import cluster_metric


class ClusterNmi(cluster_metric.ClusterMetric):
    """See `hf_plr.evaluation.clusters.score_clusters`."""

    score = "nmi"
    description = "Mutual information of clusters and classes over the mean of their entropies."
