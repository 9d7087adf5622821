"""Clustering of features between epochs, in scikit-learn's estimator style."""

from hf_plr.clustering.kmeans import KMeans
from hf_plr.clustering.protocol import Clusterer, FitPredictClusterer, as_clusterer
from hf_plr.clustering.reciprocal import ReciprocalDBSCAN, ReciprocalHDBSCAN
from hf_plr.clustering.registry import CLUSTERERS, can_be_finer, make_clusterer, make_clusterers, make_ensemble

__all__ = [
    "CLUSTERERS",
    "Clusterer",
    "FitPredictClusterer",
    "KMeans",
    "ReciprocalDBSCAN",
    "ReciprocalHDBSCAN",
    "as_clusterer",
    "can_be_finer",
    "make_clusterer",
    "make_clusterers",
    "make_ensemble",
]
