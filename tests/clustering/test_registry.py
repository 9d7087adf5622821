"""Clusterers chosen by name."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.cluster import HDBSCAN, AgglomerativeClustering
from sklearn.datasets import make_blobs
from sklearn.metrics import adjusted_rand_score

from hf_plr import KMeans, ReciprocalDBSCAN
from hf_plr.clustering import CLUSTERERS, make_clusterer


def test_each_name_gives_its_class_with_what_it_knows():
    kmeans = make_clusterer("kmeans", 7, seed=3, verbose=False)
    assert isinstance(kmeans, KMeans)
    assert (kmeans.n_clusters, kmeans.seed) == (7, 3)
    dbscan = make_clusterer("dbscan", 7, {"eps": 0.4, "k1": 20}, seed=3)
    assert isinstance(dbscan, ReciprocalDBSCAN)
    assert (dbscan.eps, dbscan.k1, dbscan.k2) == (0.4, 20, 6)
    assert isinstance(make_clusterer("hdbscan", 7, {"min_cluster_size": 4}), HDBSCAN)
    agglomerative = make_clusterer("agglomerative", 7, {"linkage": "average"})
    assert isinstance(agglomerative, AgglomerativeClustering)
    assert agglomerative.n_clusters == 7


@pytest.mark.parametrize("name", CLUSTERERS)
@pytest.mark.filterwarnings("error")
def test_each_finds_four_blobs(name):
    features, truth = make_blobs(200, n_features=8, centers=4, cluster_std=0.3, random_state=0)
    settings = {"k1": 20} if name == "dbscan" else {}
    labels = make_clusterer(name, 4, settings, seed=0).fit_predict(features.astype(np.float32))
    assert adjusted_rand_score(truth, labels) > 0.9


def test_what_is_unknown_is_named_with_what_there_is():
    with pytest.raises(ValueError, match=r"clusterer='dbscam' is unknown: use one of kmeans, dbscan"):
        make_clusterer("dbscam", 5)
    with pytest.raises(ValueError, match=r"dbscan has no argument 'epsilon'; it has eps, min_samples, k1, k2"):
        make_clusterer("dbscan", 5, {"epsilon": 0.5})
