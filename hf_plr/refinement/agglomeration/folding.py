"""Folding of light cells into the most similar heavy one, where agglomeration has too many: not exact."""

from __future__ import annotations

import numpy as np

from hf_plr.refinement.blending import SoftCells

BLOCK = 1 << 17  # entries of soft labels that are written out together


def fold(soft: SoftCells, weights: np.ndarray, n_heavy: int) -> tuple[np.ndarray, np.ndarray]:
    """Fold all but the heaviest cells into the nearest heavy cell of the same current cluster.

    The heaviest cell of each current cluster stays, as far as there is room. A cell whose current cluster has no heavy
    cell goes to the nearest one of its previous cluster, and if there is none, of all.

    Args:
        soft: soft labels of the cells.
        weights: samples per cell, shape (cells,).
        n_heavy: number of cells to leave.

    Returns:
        Cells that stay, shape (n_heavy,), and the position among them that each cell folds into, shape (cells,).
    """
    heavy = _select_heaviest(weights, soft.codes[:, 0], n_heavy)
    destination = np.full(len(weights), -1, dtype=np.int32)
    destination[heavy] = np.arange(len(heavy))
    norms = soft.select(heavy).squared_norms()
    for part in range(soft.codes.shape[1]):
        _fold_within(soft, np.where(soft.shares(part) > 0, soft.codes[:, part], -1), heavy, norms, destination)
    _fold_within(soft, np.zeros(len(weights), dtype=np.int8), heavy, norms, destination)
    return heavy, destination


def _select_heaviest(weights: np.ndarray, cluster: np.ndarray, n_heavy: int) -> np.ndarray:
    """Select the heaviest cell of each cluster, then the heaviest of all, as many as there is room for; ascending."""
    largest = np.zeros(int(cluster.max()) + 2)
    np.maximum.at(largest, cluster, weights)
    leaders = np.flatnonzero(weights == largest[cluster])
    leaders = leaders[np.unique(cluster[leaders], return_index=True)[1]]
    leaders = leaders[np.argsort(-weights[leaders], kind="stable")][:n_heavy]
    chosen = np.zeros(len(weights), dtype=bool)
    chosen[leaders] = True
    n_more = min(n_heavy, len(weights)) - len(leaders)
    if n_more > 0:
        remaining = np.where(chosen, 0, weights)
        threshold = np.partition(remaining, -n_more)[-n_more]
        heavier = np.flatnonzero(remaining > threshold)
        chosen[heavier] = True
        chosen[np.flatnonzero(remaining == threshold)[: n_more - len(heavier)]] = True
    return np.flatnonzero(chosen)


def _fold_within(
    soft: SoftCells, group: np.ndarray, heavy: np.ndarray, norms: np.ndarray, destination: np.ndarray
) -> None:
    """Fold each cell that has no destination into the nearest heavy cell of its group (not -1), if there is one."""
    light = np.flatnonzero((destination < 0) & np.isin(group, group[heavy]) & (group >= 0))
    light = light[np.argsort(group[light], kind="stable")]
    for members in np.split(light, np.flatnonzero(np.diff(group[light])) + 1):
        if len(members) == 0:
            continue
        candidates = np.flatnonzero(group[heavy] == group[members[0]])
        if len(candidates) == 1:
            destination[members] = candidates[0]
            continue
        height = max(1, BLOCK // soft.n_columns)
        nearest = np.full(len(members), -np.inf)
        for start in range(0, len(candidates), height):
            block = candidates[start : start + height]
            products = soft.select(members).inner_products(soft.rows(heavy[block]).toarray())
            nearness = 2.0 * products - norms[block, None]  # the member's own norm is the same for all candidates
            best = nearness.argmax(axis=0)
            nearer = nearness.max(axis=0) > nearest
            destination[members[nearer]] = block[best[nearer]]
            nearest = np.maximum(nearest, nearness.max(axis=0))
