"""The tree of a run's clusters, and cuts through it: by number, by height, and with clusters that people pin."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, pairwise

import numpy as np

from hf_plr.refinement.agglomeration import weighted_linkage
from hf_plr.refinement.cluster_tree.level import Level

HEIGHT_DECIMALS = 6
N_LEVELS = 3  # that are chosen where none are named


class TreeError(ValueError):
    """A cut that a tree does not have, or clusters that are not its own."""


@dataclass(frozen=True)
class ClusterTree:
    """Agglomeration of K clusters, which its cuts never separate.

    The clusters are nodes 0 to K - 1, in order of seniority, and merge i makes node K + i. The number of a node is that
    of its most senior cluster. So a node keeps its number as long as it keeps that cluster, however sizes change.

    Attributes:
        labels: the clusters' labels, the most senior first, int64 (K,).
        sizes: members of each, at least 1, int64 (K,).
        nodes: the two nodes of each merge, int64 (K - 1, 2).
        heights: distance at which they merge, from 0, ascending, float64 (K - 1,).

    Raises:
        TreeError: if they do not make a tree.
    """

    labels: np.ndarray
    sizes: np.ndarray
    nodes: np.ndarray
    heights: np.ndarray

    def __post_init__(self) -> None:
        n = len(self.labels)
        if self.labels.shape != (n,) or self.sizes.shape != (n,) or len(np.unique(self.labels)) < n:
            raise TreeError("its clusters do not have a label and a size each")
        if n and (self.labels.min() < 0 or self.sizes.min() < 1):
            raise TreeError("a label is below 0 or a size below 1")
        if self.nodes.shape != (max(n - 1, 0), 2) or self.heights.shape != (max(n - 1, 0),):
            raise TreeError(f"it has {len(self.nodes):,} merges of {n:,} clusters")
        if not np.isfinite(self.heights).all() or (np.diff(self.heights, prepend=0.0) < 0).any():
            raise TreeError("its heights do not ascend from 0")
        made_before = n + np.arange(len(self.nodes))[:, None]
        if (self.nodes < 0).any() or (self.nodes >= made_before).any() or len(np.unique(self.nodes)) < self.nodes.size:
            raise TreeError("a node is merged twice, or before it is made")

    @classmethod
    def from_distances(
        cls, labels: np.ndarray, sizes: np.ndarray, distances: np.ndarray, linkage: str = "average"
    ) -> ClusterTree:
        """Agglomerate clusters, each with its size as weight.

        Args:
            labels: their labels, the most senior first, (K,).
            sizes: members of each, at least 1, (K,).
            distances: distances between them, at least 0, symmetric, (K, K).
            linkage: as for `weighted_linkage`.
        """
        merges = weighted_linkage(distances, np.asarray(sizes), linkage)
        heights = np.maximum.accumulate(np.round(merges[:, 2], HEIGHT_DECIMALS))  # ascend but for errors of rounding
        return cls(np.asarray(labels, np.int64), np.asarray(sizes, np.int64), merges[:, :2].astype(np.int64), heights)

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def node_sizes(self) -> np.ndarray:
        """Members of every node, int64 (2 K - 1,)."""
        sizes = np.concatenate([self.sizes, np.zeros(len(self.nodes), np.int64)])
        for node, (first, second) in enumerate(self.nodes, start=len(self)):
            sizes[node] = sizes[first] + sizes[second]
        return sizes

    @cached_property
    def numbers(self) -> np.ndarray:
        """Number of every node: the label of its most senior cluster, int64 (2 K - 1,)."""
        return self.labels[self._most_senior]

    @cached_property
    def _most_senior(self) -> np.ndarray:
        most_senior = np.arange(len(self) + len(self.nodes))
        for node, pair in enumerate(self.nodes, start=len(self)):
            most_senior[node] = most_senior[pair].min()
        return most_senior

    def cut(
        self,
        clusters: int | None = None,
        height: float | None = None,
        *,
        keep: Iterable[Sequence[int]] = (),
        join: Iterable[Sequence[int]] = (),
    ) -> Level:
        """Cut the tree; with neither a number nor a height, only what is pinned is joined.

        Cuts with the same pins are nested: a cut into fewer clusters joins those of a cut into more.

        Args:
            clusters: number of clusters to leave.
            height: largest height of the merges that are made, in place of a number.
            keep: groups of labels that stay apart from each other. A merge that would bring two of them together is
                not made: the side with the most senior cluster of both goes on and takes part in all later merges, the
                other one stays as it is.
            join: groups of labels that are one cluster from the start.

        Raises:
            TreeError: if the tree has no such cut, or a pinned label is none of its clusters'.
        """
        if clusters is not None and height is not None:
            raise TreeError("a cut has a number of clusters or a height, not both")
        if clusters is not None and clusters < 1:
            raise TreeError(f"a cut leaves at least 1 cluster, not {clusters}")
        if height is not None and not height >= 0.0:
            raise TreeError(f"a height is at least 0, not {height:g}")
        parts = _Parts(self, keep, join)
        if clusters is not None and clusters > len(parts):
            joined = " after the joins" if len(parts) < len(self) else ""
            raise TreeError(f"{clusters:,} clusters are more than the {len(parts):,} that there are{joined}")
        made_at = 0.0
        wanted = len(self) if clusters is None else clusters
        for first, second, merged_at in self._edges():
            if (height is None and len(parts) <= wanted) or (height is not None and merged_at > height):
                break
            made_at = merged_at if parts.merge(first, second) else made_at
        if clusters is not None and len(parts) > clusters:
            raise TreeError(f"what stays apart leaves at least {len(parts):,} clusters, not {clusters:,}")
        return Level(self.labels, self.sizes, parts.numbers(), float(made_at))

    def choose_levels(self, n_levels: int = N_LEVELS) -> list[int]:
        """Choose numbers of clusters at which the tree is cut best, the fewest first.

        The numbers from 2 to K / 2, of which each level joins a half of the clusters or more, are divided into as many
        ranges, equal in their logarithms. In each of them the number is chosen that is left over the longest range of
        heights (the largest gap between two merges); of equal ones the smallest. A tree with fewer clusters has fewer
        levels, and none with less than 3.
        """
        n = len(self)
        if n < 3:
            return []
        end = max(2, n // 2) + 1
        bounds = np.geomspace(2, end, n_levels + 1)
        gaps = np.diff(self.heights)[::-1]  # of 2, 3, ..., K - 1 clusters
        chosen = []
        for low, high in pairwise(bounds):
            numbers = np.arange(max(2, int(np.ceil(low - 1e-9))), min(end, int(np.ceil(high - 1e-9))))
            if len(numbers):
                chosen.append(int(numbers[np.argmax(gaps[numbers - 2])]))
        return sorted(set(chosen))

    def _edges(self) -> Iterable[tuple[int, int, float]]:
        """The most senior clusters of the two nodes of each merge, by position, and its height; lowest first."""
        pairs = self._most_senior[self.nodes]
        return zip(pairs[:, 0].tolist(), pairs[:, 1].tolist(), self.heights.tolist(), strict=True)


class _Parts:
    """Clusters that have been joined so far, under pins."""

    def __init__(self, tree: ClusterTree, keep: Iterable[Sequence[int]], join: Iterable[Sequence[int]]):
        self._labels = tree.labels
        self._parent = list(range(len(tree)))
        self._n = len(tree)
        position = {label: place for place, label in enumerate(tree.labels.tolist())}
        self._apart: dict[int, set[int]] = {}  # of each part that has a pinned cluster: parts it must not join
        for group in join:
            first, *others = _locate(group, position, "join")
            for other in others:
                self.merge(first, other)
        for group in keep:
            for first, second in combinations(_locate(group, position, "keep"), 2):
                a, b = self._root(first), self._root(second)
                if a == b:
                    names = f"{self._labels[first]} and {self._labels[second]}"
                    raise TreeError(f"clusters {names} are to be joined and to stay apart: settle on one")
                self._apart.setdefault(a, set()).add(b)
                self._apart.setdefault(b, set()).add(a)

    def __len__(self) -> int:
        return self._n

    def merge(self, first: int, second: int) -> bool:
        """Merge the parts of two clusters; False if they are one already, or must stay apart."""
        a, b = sorted((self._root(first), self._root(second)))
        if a == b or b in self._apart.get(a, ()):
            return False
        self._parent[b] = a  # the most senior cluster of a part is its root
        self._n -= 1
        for other in self._apart.pop(b, ()):
            self._apart[other].remove(b)
            self._apart[other].add(a)
            self._apart.setdefault(a, set()).add(other)
        return True

    def numbers(self) -> np.ndarray:
        """Number of the part of each cluster, (K,)."""
        return self._labels[[self._root(cluster) for cluster in range(len(self._parent))]]

    def _root(self, cluster: int) -> int:
        while self._parent[cluster] != cluster:
            self._parent[cluster] = self._parent[self._parent[cluster]]
            cluster = self._parent[cluster]
        return cluster


def _locate(group: Sequence[int], position: dict[int, int], verb: str) -> list[int]:
    labels = list(dict.fromkeys(group))
    unknown = [label for label in labels if label not in position]
    if unknown:
        raise TreeError(f"there is no cluster {unknown[0]} to {verb}")
    if len(labels) < 2:
        raise TreeError(f"to {verb} takes two clusters or more, not {', '.join(map(str, group)) or 'none'}")
    return [position[label] for label in labels]


def make_tree(
    labels: np.ndarray, sizes: np.ndarray, distances: np.ndarray, runs: Iterable[dict[int, int]] = ()
) -> ClusterTree:
    """Make the tree of a run's clusters by average linkage.

    Args:
        labels: their labels, (K,).
        sizes: members of each, (K,).
        distances: output of `compare_clusters`, (K, K).
        runs: as for `order_by_seniority`.
    """
    order = order_by_seniority(labels, sizes, runs)
    return ClusterTree.from_distances(labels[order], sizes[order], distances[np.ix_(order, order)])


def order_by_seniority(labels: np.ndarray, sizes: np.ndarray, runs: Iterable[dict[int, int]] = ()) -> np.ndarray:
    """Order clusters by seniority: of the earliest run that has them, then by their size in it, largest first.

    Of equal ones the lowest label comes first. Numbers are never given twice over the runs that continue each other, so
    that the order of two clusters stays the same in all of them.

    Args:
        labels: their labels, (K,).
        sizes: members of each, (K,).
        runs: size by label in each run that led here, oldest first.

    Returns:
        Positions of the clusters, the most senior first, (K,).
    """
    rank: dict[int, tuple[int, int, int]] = {}
    now = dict(zip(labels.tolist(), sizes.tolist(), strict=True))
    for age, run in enumerate([*runs, now]):
        for label, size in run.items():
            rank.setdefault(label, (age, -size, label))
    return np.array(sorted(range(len(labels)), key=lambda place: rank[int(labels[place])]), np.int64)
