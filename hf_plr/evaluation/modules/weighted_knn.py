"""Weighted-kNN accuracy as a module of the evaluate library."""

from hf_plr.evaluation import neighbors_metric


class WeightedKnn(neighbors_metric.WeightedKnnMetric):
    """See `hf_plr.evaluation.neighbors.LabeledNeighbors.vote_by_similarity`."""
