"""Clustering of features between epochs, in scikit-learn's estimator style."""

from hf_plr.clustering.kmeans import KMeans
from hf_plr.clustering.reciprocal import ReciprocalDBSCAN

__all__ = ["KMeans", "ReciprocalDBSCAN"]
