"""Clustering of features between epochs, in scikit-learn's estimator style."""

from hf_plr.clustering.kmeans import KMeans

__all__ = ["KMeans"]
