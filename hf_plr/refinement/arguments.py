"""Checks of the arguments of `PseudoLabelRefiner`."""

from __future__ import annotations

from typing import Any

import numpy as np

from hf_plr.refinement.agglomeration import LINKAGES
from hf_plr.refinement.generations import AGREEMENT

CHOICES = (
    ("space", ("projected", "joint")),
    ("normalize", ("row", "column")),
    ("assignment", ("hierarchical", "argmax", "soft", "current")),
    ("metric", ("euclidean", "coassociation")),
    ("linkage", LINKAGES),
    ("noise", ("project", "drop")),
    ("previous", ("refined", "raw")),
)
COUNTS = (("generations", 2), ("min_cluster_size", 1), ("max_cells", 2), ("n_levels", 1))


def check_arguments(given: dict[str, Any]) -> None:
    """Check all arguments by name, and that they fit together.

    Raises:
        ValueError: naming an argument, its value and what would be right.
    """
    weight, threshold, n_clusters = given["weight"], given["distance_threshold"], given["n_clusters"]
    if isinstance(weight, str):
        if weight != AGREEMENT or given["space"] != "joint":
            raise ValueError(
                f"weight={weight!r} and space={given['space']!r}: use a fraction, or 'agreement' with 'joint'"
            )
    elif weight is not None and not 0.0 <= weight <= 1.0:
        raise ValueError(f"weight={weight} is outside [0, 1]: give a fraction")
    for name, allowed in CHOICES:
        if given[name] not in allowed:
            raise ValueError(f"{name}={given[name]!r} is unknown: use one of {', '.join(allowed)}")
    if (n_clusters is None) == (threshold is None):
        raise ValueError(
            f"n_clusters={n_clusters!r} and distance_threshold={threshold!r}: give exactly one of them, None for the "
            "other"
        )
    if n_clusters not in (None, "current") and not is_count(n_clusters, 1):
        raise ValueError(f"n_clusters={n_clusters!r}: use 'current', an integer of at least 1, or None")
    if threshold is not None and not threshold >= 0:
        raise ValueError(f"distance_threshold={threshold} must be at least 0")
    for name, minimum in COUNTS:
        if not is_count(given[name], minimum):
            raise ValueError(f"{name}={given[name]!r} must be an integer of at least {minimum}")
    if given["generations"] > 2 and given["space"] != "joint":
        raise ValueError(
            f"generations={given['generations']} needs space='joint': a projection is from one epoch to the next"
        )
    if given["assignment"] == "argmax" and given["space"] == "joint":
        raise ValueError("assignment='argmax' needs space='projected': in the joint space no column is a cluster")
    if given["metric"] == "coassociation":
        _check_coassociation(given)
    if given["n_levels"] > 1 and (given["assignment"] != "hierarchical" or n_clusters is None):
        raise ValueError(
            f"n_levels={given['n_levels']} needs assignment='hierarchical' and a number of clusters, not "
            f"assignment={given['assignment']!r} and n_clusters={n_clusters!r}"
        )


def _check_coassociation(given: dict[str, Any]) -> None:
    for name, needed in (("space", "joint"), ("assignment", "hierarchical"), ("linkage", "average")):
        if given[name] != needed:
            raise ValueError(f"metric='coassociation' needs {name}={needed!r}, not {given[name]!r}")
    if given["weight"] == 0.0:
        raise ValueError("weight=0.0 must be above 0 with metric='coassociation': the first epoch has no other votes")
    threshold = given["distance_threshold"]
    if threshold is not None and threshold >= 1:
        raise ValueError(
            f"distance_threshold={threshold} must be below 1 with metric='coassociation': at 1 are samples that are "
            "together in no labeling"
        )


def is_count(value: Any, minimum: int) -> bool:
    """True for an integer, but no bool, of at least `minimum`."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and int(value) >= minimum


def check_out(out: np.ndarray | None, n_samples: int, in_use: list[np.ndarray]) -> np.ndarray:
    """Check the array that refined labels are written to; returns it, or for None a new one, shape (n_samples,).

    Args:
        out: the array.
        n_samples: number of labels.
        in_use: labels that it must not share memory with.

    Raises:
        TypeError: if it does not hold signed integers.
        ValueError: if it has another shape or shares memory.
    """
    if out is None:
        return np.empty(n_samples, dtype=np.int64)
    if not np.issubdtype(out.dtype, np.signedinteger):
        raise TypeError(f"out must hold signed integers, not {out.dtype}")
    if out.shape != (n_samples,):
        raise ValueError(f"out has shape {out.shape}, but there are {n_samples} labels")
    if any(np.may_share_memory(out, labels) for labels in in_use):
        raise ValueError(
            "out holds labels that are still in use, of this call, the last or an earlier run: give another array"
        )
    return out
