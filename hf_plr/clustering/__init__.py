"""Clustering of features between epochs, in scikit-learn's estimator style."""

from hf_plr.clustering.by_name import CLUSTERERS, make_clusterer, make_clusterers
from hf_plr.clustering.kmeans import KMeans
from hf_plr.clustering.reciprocal import ReciprocalDBSCAN, ReciprocalHDBSCAN

__all__ = ["CLUSTERERS", "KMeans", "ReciprocalDBSCAN", "ReciprocalHDBSCAN", "make_clusterer", "make_clusterers"]
