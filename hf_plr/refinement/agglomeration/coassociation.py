"""Average linkage of the co-association: the consensus of many labelings, by evidence accumulation.

The co-association of two samples is the weighted share of the labelings that put them into one cluster. That of two
clusters is the mean over their pairs of samples. A pair that is together nowhere adds nothing to the sum, so that
average linkage is exact on the stored pairs alone. Mutual nearest neighbours may merge in any order, so that all of
them merge at once: a round is one contraction of the sparse matrix.

Sources: Fred and Jain, "Combining Multiple Clusterings Using Evidence Accumulation", IEEE TPAMI 2005; reducibility of
average linkage: Bruynooghe 1978.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from hf_plr.refinement.agglomeration.merges import Cut, Merges
from hf_plr.refinement.blending import SoftCells
from hf_plr.refinement.cooccurrence import NOISE, iterate_blocks

MAX_PAIRS = 64_000_000  # stored pairs of cells: 0.7 GiB, and up to 1.4 GiB while they are contracted
DRAWN = 1_024  # cells whose pairs are counted, to estimate those of all
BLOCK = 1 << 22  # pairs that are compared together
CELLS = 1 << 14  # cells that join clusters together
STALE = -2  # nearest neighbour that is not known
LARGEST_WEIGHT = 1 << 10  # of a labeling, where weights differ; keeps sums in the integers that floats hold


def agglomerate_coassociation(
    soft: SoftCells, weights: np.ndarray, cuts: Sequence[Cut]
) -> tuple[list[np.ndarray], bool]:
    """Cluster weighted cells by average linkage of their co-association.

    The height of a merge is one minus the mean co-association. Clusters that are together in no labeling never merge,
    even where more than `cut.n_clusters` are left: no labeling speaks for it. A cell whose own samples are not together
    up to the cut is noise: with a distance threshold where it is noise in more than that share of the labelings, with
    a number of clusters in more than half. Labelings in which all samples are noise do not count.

    Args:
        soft: joint soft labels of the cells. The order of the cells decides ties, so it should not depend on names.
        weights: samples per cell, at least 1, shape (cells,).
        cuts: places of the cuts through the tree, that into the fewest clusters first; several are numbers of clusters.

    Returns:
        For each cut cluster per cell, from 0, -1 = noise, shape (cells,), and True if all cells were agglomerated. The
        clusters of a cut lie in those of the one before. Where more than about `MAX_PAIRS` pairs of cells are together
        in a labeling, only a part of the cells is agglomerated, spread evenly over the samples, so that clusters of a
        few samples may be missed. Each of the others then joins the cluster of the last cut with the largest mean
        co-association, or is noise where it has none or a distance threshold does not allow it.
    """
    votes = count_votes(soft)
    levels = [np.full(len(weights), NOISE) for _ in cuts]
    present = np.flatnonzero(_find_present(soft, votes, cuts[0]))
    if len(present) == 0:
        return levels, True
    weights = np.asarray(weights, dtype=np.float64)[present]
    if len(present) < len(soft):
        soft = soft.select(present)
    chosen = _choose_cells(soft, weights, votes, MAX_PAIRS)
    is_exact = len(chosen) == len(present)
    # A light cell that was chosen stands for its neighbours too.
    least = 1.0 if is_exact else max(1.0, np.rint(weights.sum() / len(chosen)))
    clusters = CoassociatedClusters(soft.select(chosen), np.maximum(weights[chosen], least), votes)
    clusters.merge_until(cuts[0])
    of_chosen = [cut.apply(clusters.merges) for cut in cuts]
    finest = np.full(len(present), NOISE)
    finest[chosen] = of_chosen[-1]
    if not is_exact:
        _join_clusters(soft, weights, votes, finest, cuts[-1])
    for level, own in zip(levels, of_chosen, strict=True):
        coarser = np.full(len(own) + 1, NOISE)  # of each cluster of the finest level, and of its noise
        coarser[of_chosen[-1]] = own
        level[present] = coarser[finest]
    return levels, is_exact


def measure_coassociation(soft: SoftCells, cluster: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Measure the mean co-association of each cell's samples with the other members of their cluster.

    Linear in the cells: for each labeling, samples are counted by its cluster and the given one.

    Args:
        soft: joint soft labels of the cells.
        cluster: cluster per cell, from 0, -1 = noise, shape (cells,).
        counts: samples per cell, shape (cells,).

    Returns:
        In [0, 1], 0 for noise, shape (cells,). A sample that is alone has its share of labelings without noise.
    """
    votes = count_votes(soft)
    members = np.flatnonzero(cluster != NOISE)
    result = np.zeros(len(cluster))
    if len(members) == 0:
        return result
    own_cluster, own_counts = cluster[members].astype(np.int64), counts[members]
    together, own = np.zeros(len(members)), np.zeros(len(members))
    for part, vote in enumerate(votes):
        labelled = np.flatnonzero(soft.shares(part)[members] > 0)
        keys = soft.codes[members[labelled], part].astype(np.int64) * (own_cluster.max() + 1) + own_cluster[labelled]
        _, position = np.unique(keys, return_inverse=True)
        together[labelled] += vote * np.bincount(position, own_counts[labelled])[position]
        own[labelled] += vote
    others = np.bincount(own_cluster, own_counts)[own_cluster] - 1.0
    mean = np.where(others > 0, (together - own) / np.maximum(others, 1.0), own)
    result[members] = np.clip(mean / max(votes.sum(), 1.0), 0.0, 1.0)
    return result


def count_votes(soft: SoftCells) -> np.ndarray:
    """Count the votes of each labeling as integers, so that sums of them are exact and ties are found.

    Labelings of equal weight have one vote each; other weights are rounded to `LARGEST_WEIGHT` steps.

    Args:
        soft: joint soft labels.

    Returns:
        0 for a labeling where all samples are noise, shape (parts,).
    """
    shares = soft.shares_of_case.max(axis=0, initial=0.0)
    has_clusters = np.array([basis.shape[0] > 0 for basis in soft.bases])
    shares = np.where(has_clusters, shares, 0.0)
    weighted = shares[shares > 0]
    if len(weighted) == 0:
        return np.zeros(len(shares))
    if np.ptp(weighted) <= 1e-12 * weighted.max():
        return (shares > 0).astype(np.float64)
    return np.ceil(shares / shares.max() * LARGEST_WEIGHT - 1e-6)


class CoassociatedClusters:
    """Clusters of cells with the sums of co-association over all pairs of their samples, stored where not 0.

    Args:
        soft: joint soft labels of the cells, none of them empty.
        weights: samples per cell, shape (n,).
        votes: output of `count_votes`.
    """

    def __init__(self, soft: SoftCells, weights: np.ndarray, votes: np.ndarray):
        self.weights = weights
        self.merges = Merges(len(weights))
        self._total_votes = float(votes.sum())
        self._representatives = np.arange(len(weights))  # a cell of each cluster
        self._neighbor = np.full(len(weights), STALE)  # nearest cluster, NOISE where there is none
        self._nearness = np.zeros(len(weights))  # mean co-association with it
        rows = _make_one_hot(soft, votes)
        votes_of_column = np.repeat(votes, [basis.shape[0] for basis in soft.bases])
        rows.data = np.repeat(weights, np.diff(rows.indptr))
        voted = sp.csr_array((votes_of_column[rows.indices] * rows.data, rows.indices, rows.indptr), shape=rows.shape)
        self._sums = sp.csr_array(voted @ sp.csr_array(rows.T))

    def merge_until(self, cut: Cut) -> None:
        """Merge mutual nearest neighbours, round by round, until the cut is settled."""
        while True:
            self._find_nearest(np.flatnonzero(self._neighbor == STALE))
            distance = 1.0 - self._nearness
            if cut.is_settled(self.merges, float(distance.min())):
                return
            first = np.flatnonzero((self._neighbor >= 0) & (distance <= cut.limit(self.merges)))
            second = self._neighbor[first]
            is_mutual = (first < second) & (self._neighbor[second] == first)
            if not is_mutual.any():
                return
            self._merge(first[is_mutual], second[is_mutual], distance[first[is_mutual]])

    def _find_nearest(self, clusters: np.ndarray) -> None:
        """Find the nearest other cluster of some clusters, and the mean co-association with it.

        Of equally near ones it is the lightest, so that no merge of others comes nearer or as near. Further ties go by
        an arbitrary but fixed order of pairs: by number, all of a tied group would have the first one as their nearest,
        and merge one by one.
        """
        self._neighbor[clusters], self._nearness[clusters] = NOISE, 0.0
        lengths = np.diff(self._sums.indptr)[clusters]
        for part in np.split(clusters, np.flatnonzero(np.diff(np.cumsum(lengths) // BLOCK)) + 1):
            if len(part) == 0:
                continue
            rows = sp.csr_array(self._sums[part])
            row, column = np.repeat(part, np.diff(rows.indptr)), rows.indices
            means = rows.data / (self.weights[row] * self.weights[column])
            means[row == column] = 0.0
            highest = np.maximum.reduceat(means, rows.indptr[:-1])  # no row is empty: each cluster is with itself
            chosen = np.flatnonzero((means == np.repeat(highest, np.diff(rows.indptr))) & (means > 0))
            row, column, means = row[chosen], column[chosen].astype(np.int64), means[chosen]
            row, column, means = _keep_smallest(row, self.weights[column], column, means)
            row, column, means = _keep_smallest(row, self._shuffle(row, column), column, means)
            self._neighbor[row], self._nearness[row] = column, means / self._total_votes

    def _shuffle(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Give each pair of clusters a number of its own, the same in both directions and in every round."""
        a, b = self._representatives[first], self._representatives[second]
        x = (np.minimum(a, b) * self.merges.n_points + np.maximum(a, b)).astype(np.uint64)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
            x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)  # bijective
        return x

    def _merge(self, first: np.ndarray, second: np.ndarray, heights: np.ndarray) -> None:
        """Merge disjoint pairs of clusters."""
        n = len(self.weights)
        weights = self.weights[first] + self.weights[second]
        self.merges.add_pairs(self._representatives[first], self._representatives[second], heights, weights)
        survives = np.ones(n, dtype=bool)
        survives[second] = False
        is_merged = ~survives
        is_merged[first] = True
        group = np.cumsum(survives) - 1
        group[second] = group[first]

        # Both columns of a pair get one number; the product with the rows then adds up what has the same number.
        sums = self._sums
        names = group.astype(sums.indices.dtype)
        for block in iterate_blocks(sums.nnz, BLOCK):  # in place: a copy would take a third of the sums
            sums.indices[block] = names[sums.indices[block]]
        sums = sp.csr_array((sums.data, sums.indices, sums.indptr), shape=(n, n - len(first)))
        contraction = sp.csr_array((np.ones(n), names, np.arange(n + 1, dtype=names.dtype)), shape=(n, n - len(first)))
        self._sums = sp.csr_array(sp.csr_array(contraction.T) @ sums)

        is_stale = is_merged | ((self._neighbor >= 0) & is_merged[self._neighbor])
        neighbor = np.where(is_stale, STALE, np.append(group, NOISE)[self._neighbor])
        self._neighbor, self._nearness = neighbor[survives], self._nearness[survives]
        self._representatives = self._representatives[survives]
        self.weights = np.bincount(group, self.weights)


def _find_present(soft: SoftCells, votes: np.ndarray, cut: Cut) -> np.ndarray:
    """Find the cells whose own samples are together up to the cut, bool of shape (cells,)."""
    present_votes = ((soft.shares_of_case > 0) @ votes)[soft.case]
    limit = 0.5 if cut.n_clusters is not None else cut.limit(Merges(0))
    present: np.ndarray = (present_votes > 0) & (1.0 - present_votes / max(votes.sum(), 1.0) <= limit)
    return present


def _make_one_hot(soft: SoftCells, votes: np.ndarray, dtype: npt.DTypeLike = np.float64) -> sp.csr_array:
    """Make a row per cell with 1 at its cluster in each labeling that votes."""
    sizes = [basis.shape[0] for basis in soft.bases]
    starts = np.cumsum([0, *sizes]).astype(np.int32)
    is_labelled = ((soft.shares_of_case > 0) & (votes > 0))[soft.case]
    indices = (soft.codes + starts[:-1])[is_labelled]
    indptr = np.concatenate([[0], np.cumsum(is_labelled.sum(axis=1))])
    if len(indices) < 2**31:  # else all that comes of it has int64 too, four bytes more for each pair of cells
        indptr = indptr.astype(np.int32)
    return sp.csr_array((np.ones(len(indices), dtype), indices, indptr), shape=(len(soft), starts[-1]))


def _choose_cells(soft: SoftCells, weights: np.ndarray, votes: np.ndarray, max_pairs: int) -> np.ndarray:
    """Choose cells to agglomerate so that about `max_pairs` pairs of them at most are together; ascending.

    A systematic sample along the current clusters, proportional to the weights: heavy cells are in it, and every
    large enough cluster.
    """
    chosen = np.arange(len(weights))
    n_pairs = _estimate_pairs(soft, votes)
    if n_pairs <= max_pairs:
        return chosen
    current = np.where(soft.shares(0) > 0, soft.codes[:, 0], NOISE)
    _, first, position = np.unique(current, return_index=True, return_inverse=True)
    order = np.argsort(first[position], kind="stable")
    cumulative = np.cumsum(weights[order])
    n_left = len(weights)
    while n_pairs > max_pairs and n_left > 1:
        n_left = max(1, min(n_left - 1, int(n_left * 0.98 * (max_pairs / n_pairs) ** 0.5)))
        drawn = np.searchsorted(cumulative, (np.arange(n_left) + 0.5) * (cumulative[-1] / n_left))
        chosen = np.sort(order[np.unique(drawn)])
        n_pairs = _estimate_pairs(soft.select(chosen), votes)
    return chosen


def _estimate_pairs(soft: SoftCells, votes: np.ndarray) -> float:
    """Estimate the number of ordered pairs of cells that are together in a labeling from those of some cells."""
    rows = _make_one_hot(soft, votes, np.int16)  # sums are of labelings at most
    drawn = np.unique(np.arange(DRAWN) * 2_654_435_761 % len(soft)) if len(soft) > DRAWN else np.arange(len(soft))
    return (rows[drawn] @ sp.csr_array(rows.T)).nnz * (len(soft) / len(drawn))


def _join_clusters(soft: SoftCells, weights: np.ndarray, votes: np.ndarray, cluster: np.ndarray, cut: Cut) -> None:
    """Let each cell without a cluster join the one with the largest mean co-association, if the cut allows it."""
    members = np.flatnonzero(cluster != NOISE)
    sizes = np.bincount(cluster[members], weights[members])
    # Samples by cluster of a labeling and refined cluster; whole numbers, so that sums of blocks are exact.
    table = sp.csr_array((sum(basis.shape[0] for basis in soft.bases), len(sizes)))
    for block in iterate_blocks(len(members), CELLS):
        cells = members[block]
        place = np.arange(len(cells)), cluster[cells]
        membership = sp.csr_array((weights[cells], place), shape=(len(cells), len(sizes)))
        table = table + sp.csr_array(_make_one_hot(soft.select(cells), votes).T) @ membership
    table = sp.csr_array(table)
    row_votes = np.repeat(np.repeat(votes, [basis.shape[0] for basis in soft.bases]), np.diff(table.indptr))
    table.data *= row_votes
    lowest = 0.0 if cut.n_clusters is not None else 1.0 - cut.limit(Merges(0))
    waiting = np.flatnonzero(cluster == NOISE)
    for block in iterate_blocks(len(waiting), CELLS):
        cells = waiting[block]
        sums = sp.csr_array(_make_one_hot(soft.select(cells), votes) @ table)
        sums.sort_indices()
        has_entries = np.flatnonzero(np.diff(sums.indptr))
        row = np.repeat(np.arange(len(cells)), np.diff(sums.indptr))
        means = sums.data / sizes[sums.indices] / votes.sum()
        highest = np.zeros(len(cells))
        if len(has_entries):
            highest[has_entries] = np.maximum.reduceat(means, sums.indptr[has_entries])
        best = np.flatnonzero((means == highest[row]) & (means > 0) & (means >= lowest))
        row, first = np.unique(row[best], return_index=True)
        cluster[cells[row]] = sums.indices[best[first]]


def _keep_smallest(row: np.ndarray, keys: np.ndarray, *values: np.ndarray) -> tuple[np.ndarray, ...]:
    """Keep the entries with the smallest key of their row; rows ascend."""
    if len(row) == 0:
        return row, *values
    starts = np.flatnonzero(np.diff(row, prepend=-1))
    smallest = np.repeat(np.minimum.reduceat(keys, starts), np.diff(starts, append=len(row)))
    kept = np.flatnonzero(keys == smallest)
    return row[kept], *(value[kept] for value in values)
