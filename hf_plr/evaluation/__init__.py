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
    "weighted_knn",
    "retrieval",
)


def path(name: str) -> str:
    """Where `evaluate.load` finds one of our modules: in the installed package, so that no network is needed.

    Args:
        name: one of `MODULES`.

    Raises:
        ValueError: if there is no such module.
    """
    if name not in MODULES:
        raise ValueError(f"name={name!r} is unknown: use one of {', '.join(MODULES)}")
    return str(Path(__file__).parent / "modules" / f"{name}.py")


def load(name: str) -> evaluate.EvaluationModule:
    """`evaluate.load(path(name))`: takes predictions and references, alone or in `evaluate.combine`.

    The cluster modules take clusters and true labels, -1 for none; see `hf_plr.evaluation.clusters.score_clusters`.
    "weighted_knn" and "retrieval" take features and classes or identities, and which of them ask.

    Args:
        name: one of `MODULES`.

    Raises:
        ValueError: if there is no such module.
    """
    import evaluate  # `hf-plr refine` needs none of it

    return evaluate.load(path(name))  # noqa: TID251 -- a path in this package
