"""Clusterers by name, for the command line."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.cluster import HDBSCAN, AgglomerativeClustering

from hf_plr.clustering.ensemble import Clusterings, Ensemble, FreshKMeans
from hf_plr.clustering.kmeans import KMeans
from hf_plr.clustering.reciprocal import ReciprocalDBSCAN, ReciprocalHDBSCAN

FINER_EPS = 0.75  # of one labeling over that of the one before
MEMBERS_EPS = (0.85, 1.15)  # of the ensemble beside a DBSCAN, over its own
CLUSTERERS: dict[str, type[BaseEstimator]] = {
    "kmeans": KMeans,
    "dbscan": ReciprocalDBSCAN,
    "reciprocal_hdbscan": ReciprocalHDBSCAN,
    "hdbscan": HDBSCAN,
    "agglomerative": AgglomerativeClustering,
}
TRIAL = {"n_clusters": 2, "connectivity": None, "min_cluster_size": 2, "min_samples": 1}  # for three samples


def make_clusterer(
    name: str, num_clusters: int, settings: dict[str, Any] | None = None, **defaults: Any
) -> BaseEstimator:
    """Make a clusterer by its name in `CLUSTERERS`.

    Args:
        name: "kmeans", "dbscan" or "reciprocal_hdbscan" (on k-reciprocal neighbours), scikit-learn's "hdbscan" or
            "agglomerative".
        num_clusters: number of clusters, for those that take one.
        settings: keyword arguments of the clusterer's class; they override everything else.
        **defaults: keyword arguments that are left out where the clusterer does not accept them, such as `seed`.

    Raises:
        ValueError: if the name, a keyword or its value is unknown; the message lists the accepted ones.
    """
    if name not in CLUSTERERS:
        raise ValueError(f"clusterer={name!r} is unknown: use one of {', '.join(CLUSTERERS)}")
    accepted = inspect.signature(CLUSTERERS[name]).parameters
    unknown = sorted(set(settings or {}) - set(accepted))
    if unknown:
        raise ValueError(
            f"clusterer_kwargs: {name} has no argument {', '.join(map(repr, unknown))}; it has {', '.join(accepted)}"
        )
    defaults = {"n_clusters": num_clusters, "copy": True, **defaults}  # HDBSCAN warns without `copy`
    chosen = {key: value for key, value in defaults.items() if key in accepted}
    clusterer = CLUSTERERS[name](**{**chosen, **(settings or {})})
    try:
        _check_arguments(clusterer)
    except (TypeError, ValueError) as error:
        raise ValueError(f"clusterer_kwargs: {name}: {error}") from error
    return clusterer


def _check_arguments(clusterer: Any) -> None:
    """Check the arguments of a clusterer without features; raises ValueError or TypeError."""
    if hasattr(clusterer, "check_arguments"):
        clusterer.check_arguments()
    if not isinstance(clusterer, (HDBSCAN, AgglomerativeClustering)):
        return
    clusterer._validate_params()  # scikit-learn has nothing public that checks values without features
    if callable(clusterer.metric):  # it may need features of a certain width
        return
    parameters = clusterer.get_params(deep=False)
    small = {name: value for name, value in TRIAL.items() if parameters.get(name) is not None}
    trial = clone(clusterer).set_params(**small)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trial.fit(1.0 - np.eye(3))  # distances and features alike: finds values that do not fit together


def make_ensemble(clusterer: Any, n_samples: int, seed: int) -> Ensemble | None:
    """Make the ensemble of a clusterer: fresh k-means for k-means, other eps for DBSCAN, None for any other.

    Args:
        clusterer: the clusterer beside which the ensemble's members cluster.
        n_samples: number of samples.
        seed: seed of the members.
    """
    if isinstance(clusterer, KMeans):
        return FreshKMeans(clusterer, n_samples, seed)
    if isinstance(clusterer, ReciprocalDBSCAN):
        return Clusterings(
            [clone(clusterer).set_params(eps=_scale_eps(clusterer.eps, factor)) for factor in MEMBERS_EPS]
        )
    return None


def _scale_eps(eps: float, factor: float) -> float:
    """Multiply an eps, and stay below 1, at which all samples are neighbours and one cluster."""
    return min(factor * eps, (1.0 + eps) / 2)


def can_be_finer(clusterer: BaseEstimator) -> bool:
    """True if a clusterer has an eps, or a number of clusters whose centres it initialises by itself."""
    parameters = clusterer.get_params(deep=False)
    seeks_centers = isinstance(parameters.get("init", ""), str)
    return "eps" in parameters or (isinstance(parameters.get("n_clusters"), int) and seeks_centers)


def make_clusterers(
    n: int, name: str, num_clusters: int, settings: dict[str, Any] | None = None, *, n_samples: int, **defaults: Any
) -> list[BaseEstimator]:
    """Make clusterers of the same samples, each one finer than the one before.

    Args:
        n: number of clusterers.
        name: as for `make_clusterer`.
        num_clusters: number of clusters of the first, for those that take one; each next one has twice as many, up to
            half of the samples. With "dbscan" each next one has three quarters of the eps.
        settings: as for `make_clusterer`; an `n_clusters` or `eps` there is that of the first one. `fit_samples` are
            raised to the number of clusters of a finer one.
        n_samples: number of samples.
        **defaults: as for `make_clusterer`.

    Raises:
        ValueError: as `make_clusterer`, or if this clusterer cannot be made finer.
    """
    first = make_clusterer(name, num_clusters, settings, **defaults)
    if n == 1:
        return [first]
    if not can_be_finer(first):
        raise ValueError(
            f"num_labelings={n} needs a clusterer with a number of clusters, without centres to start from, or with an "
            f"eps: {name} has none of these here"
        )
    parameters = first.get_params(deep=False)
    if "eps" in parameters:
        finer = [{**(settings or {}), "eps": round(parameters["eps"] * FINER_EPS**i, 6)} for i in range(n)]
        return [make_clusterer(name, num_clusters, options, **defaults) for options in finer]
    n_clusters = parameters["n_clusters"]
    finest = max(n_clusters, n_samples // 2)
    counts = [min(n_clusters * 2**i, finest) for i in range(n)]
    seed = defaults.pop("seed", 0)
    finer_by_count = []
    for i, count in enumerate(counts):
        chosen = {**(settings or {}), "n_clusters": count}
        if i > 0 and chosen.get("fit_samples") is not None:
            chosen["fit_samples"] = max(chosen["fit_samples"], count)
        finer_by_count.append(make_clusterer(name, count, chosen, seed=seed + i, **defaults))
    return finer_by_count
