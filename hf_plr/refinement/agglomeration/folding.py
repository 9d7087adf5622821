"""Fewer cells for agglomeration: light cells go to the most similar heavy one. The only step that is not exact."""

from __future__ import annotations

import numpy as np

from hf_plr.refinement.blending import SoftCells

BLOCK = 1 << 17  # entries of soft labels that are written out together


def fold(soft: SoftCells, weights: np.ndarray, n_heavy: int) -> tuple[np.ndarray, np.ndarray]:
    """Fold all but the heaviest cells into the nearest heavy cell of the same current cluster.

    The heaviest cell of each part's first code (the current cluster) stays, as far as there is room. A cell whose
    current cluster has no heavy cell goes to the nearest one of its previous cluster, and if there is none, of all.

    Args:
        soft: soft labels of the cells.
        weights: samples in each cell, shape (cells,).
        n_heavy: how many cells to leave.

    Returns:
        The cells that stay, shape (n_heavy,), and for each cell the position of its home among them, shape (cells,).
    """
    heavy = _heaviest(weights, soft.codes[:, 0], n_heavy)
    home = np.full(len(weights), -1, dtype=np.int32)
    home[heavy] = np.arange(len(heavy))
    norms = soft.select(heavy).squared_norms()
    for part in range(soft.codes.shape[1]):
        _fold_within(soft, np.where(soft.shares(part) > 0, soft.codes[:, part], -1), heavy, norms, home)
    _fold_within(soft, np.zeros(len(weights), dtype=np.int8), heavy, norms, home)
    return heavy, home


def _heaviest(weights: np.ndarray, cluster: np.ndarray, n_heavy: int) -> np.ndarray:
    """The heaviest cell of each cluster, then the heaviest of all, as many as there is room for; ascending."""
    top = np.zeros(int(cluster.max()) + 2)
    np.maximum.at(top, cluster, weights)
    heaviest = np.flatnonzero(weights == top[cluster])
    heaviest = heaviest[np.unique(cluster[heaviest], return_index=True)[1]]
    heaviest = heaviest[np.argsort(-weights[heaviest], kind="stable")][:n_heavy]
    chosen = np.zeros(len(weights), dtype=bool)
    chosen[heaviest] = True
    n_more = min(n_heavy, len(weights)) - len(heaviest)
    if n_more > 0:
        rest = np.where(chosen, 0, weights)
        least = np.partition(rest, -n_more)[-n_more]
        above = np.flatnonzero(rest > least)
        chosen[above] = True
        chosen[np.flatnonzero(rest == least)[: n_more - len(above)]] = True
    return np.flatnonzero(chosen)


def _fold_within(soft: SoftCells, group: np.ndarray, heavy: np.ndarray, norms: np.ndarray, home: np.ndarray) -> None:
    """Give each homeless cell the nearest of the heavy cells of its group (not -1), if there is one."""
    light = np.flatnonzero((home < 0) & np.isin(group, group[heavy]) & (group >= 0))
    light = light[np.argsort(group[light], kind="stable")]
    for members in np.split(light, np.flatnonzero(np.diff(group[light])) + 1):
        if len(members) == 0:
            continue
        candidates = np.flatnonzero(group[heavy] == group[members[0]])
        if len(candidates) == 1:
            home[members] = candidates[0]
            continue
        height = max(1, BLOCK // soft.n_columns)
        nearest = np.full(len(members), -np.inf)
        for start in range(0, len(candidates), height):
            block = candidates[start : start + height]
            products = soft.select(members).inner_products(soft.rows(heavy[block]).toarray())
            nearness = 2.0 * products - norms[block, None]  # the member's own norm is the same for all candidates
            best = nearness.argmax(axis=0)
            nearer = nearness.max(axis=0) > nearest
            home[members[nearer]] = block[best[nearer]]
            nearest = np.maximum(nearest, nearness.max(axis=0))
