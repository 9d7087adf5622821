"""Purity as a module of the evaluate library."""

from hf_plr.evaluation import cluster_metric


class ClusterPurity(cluster_metric.ClusterMetric):
    """See `hf_plr.evaluation.clusters.score_clusters`."""

    score = "purity"
    description = "Fraction of samples in the most frequent class of their cluster."
    citation = "Manning et al., Introduction to Information Retrieval, 2008, 16.3."
