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


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("dbscan", {"eps": 5}, r"clusterer_kwargs: dbscan: eps=5 is outside \[0, 1\]"),
        ("dbscan", {"search": "annoy"}, "clusterer_kwargs: dbscan: search='annoy' is unknown"),
        ("reciprocal_hdbscan", {"max_distance": 2}, "clusterer_kwargs: reciprocal_hdbscan: max_distance=2 is outside"),
        ("reciprocal_hdbscan", {"k1": "many"}, "clusterer_kwargs: reciprocal_hdbscan: "),
        ("kmeans", {"init": "random"}, "clusterer_kwargs: kmeans: init='random' is unknown"),
        ("kmeans", {"init": np.ones((3, 2))}, r"clusterer_kwargs: kmeans: init has shape \(3, 2\)"),
        ("kmeans", {"init": [["a"]]}, "clusterer_kwargs: kmeans: "),
        ("kmeans", {"fit_samples": 3}, "clusterer_kwargs: kmeans: fit_samples=3 must be at least n_clusters=5"),
        ("kmeans", {"n_clusters": 0}, "clusterer_kwargs: kmeans: n_clusters=0 must be at least 1"),
        ("agglomerative", {"linkage": "wrd"}, "clusterer_kwargs: agglomerative: The 'linkage' parameter of"),
        ("agglomerative", {"metric": "cosine"}, "clusterer_kwargs: agglomerative: cosine was provided as metric"),
        ("agglomerative", {"distance_threshold": 1.0}, "clusterer_kwargs: agglomerative: Exactly one of n_clusters"),
        ("hdbscan", {"min_cluster_size": 1}, "clusterer_kwargs: hdbscan: The 'min_cluster_size' parameter of"),
        ("hdbscan", {"algorithm": "kd_tree", "metric": "cosine"}, "clusterer_kwargs: hdbscan: cosine is not a valid"),
    ],
)
def test_a_value_that_does_not_fit_is_named_before_there_are_features(name, settings, message):
    with pytest.raises(ValueError, match=message):
        make_clusterer(name, 5, settings)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("agglomerative", {"metric": "precomputed", "linkage": "average"}),
        ("agglomerative", {"n_clusters": None, "distance_threshold": 3.0}),
        ("agglomerative", {"connectivity": np.ones((50, 50))}),
        ("hdbscan", {"min_cluster_size": 100, "min_samples": 50, "metric": "precomputed"}),
        ("hdbscan", {"max_cluster_size": 40, "store_centers": "medoid"}),
        ("kmeans", {"fit_samples": 5, "init": np.ones((5, 2)).tolist()}),
    ],
)
@pytest.mark.filterwarnings("error")
def test_values_that_fit_are_taken(name, settings):
    found = make_clusterer(name, 5, settings).get_params()
    assert all(found[key] is value for key, value in settings.items())
