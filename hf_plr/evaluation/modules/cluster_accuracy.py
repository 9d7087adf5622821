"""Clustering accuracy as a module of the evaluate library."""

from hf_plr.evaluation import cluster_metric


class ClusterAccuracy(cluster_metric.ClusterMetric):
    """See `hf_plr.evaluation.clusters.score_clusters`."""

    score = "accuracy"
    description = "Fraction of samples in the cluster that is matched to their class, one to one (Hungarian method)."
