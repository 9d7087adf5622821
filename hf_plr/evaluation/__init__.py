"""Scores against true labels, as functions and as modules of the evaluate library."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import evaluate

MODULES = (
    "cluster_accuracy",
    "cluster_nmi",
    "cluster_ari",
    "cluster_purity",
    "cluster_pair_precision",
    "cluster_pair_recall",
    "cluster_pair_f1",
    "weighted_knn",
    "retrieval",
)


def path(name: str) -> str:
    """Path of a module for `evaluate.load`, inside the installed package, so that no network is needed.

    Args:
        name: one of `MODULES`.

    Raises:
        ValueError: if the name is unknown.
    """
    if name not in MODULES:
        raise ValueError(f"name={name!r} is unknown: use one of {', '.join(MODULES)}")
    return str(Path(__file__).parent / "modules" / f"{name}.py")


def load(name: str) -> evaluate.EvaluationModule:
    """Load a module by `evaluate.load(path(name))`, to compute alone or in `evaluate.combine`.

    The cluster modules take `predictions` and `references`: clusters and true labels, integers of shape (N,), -1 for
    none; see `hf_plr.evaluation.clusters.score_clusters`.

    "weighted_knn" and "retrieval" take `predictions`, features of shape (N, D); `references`, classes or identities of
    shape (N,), -1 for what is left out; and `is_query`, True for a query and False for the gallery, (N,). "retrieval"
    needs `cameras` too, integers of shape (N,): a query's ranking is without images of its identity and camera.
    `compute` of "weighted_knn" also takes `n_neighbors` (20) and `temperature` (0.07).

    Args:
        name: one of `MODULES`.

    Raises:
        ValueError: if the name is unknown.
    """
    import evaluate  # keeps `hf-plr refine` quick to start

    return evaluate.load(path(name))  # noqa: TID251 -- a path in this package
