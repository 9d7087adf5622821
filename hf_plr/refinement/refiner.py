"""The refinement of one epoch's cluster labels by the last epoch's, in five steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from hf_plr.refinement.blending import blend_joint, blend_projected, onehot
from hf_plr.refinement.cooccurrence import NOISE, CooccurrenceTable, cooccurrence
from hf_plr.refinement.correspondence import mutual_best, number_clusters
from hf_plr.refinement.linkage import LINKAGES, cut, euclidean_distances, weighted_linkage
from hf_plr.refinement.projection import project

STATE_VERSION = 1

PRESETS: dict[str, dict[str, Any]] = {
    # Our reading of arXiv 2410.14242: project, blend half and half, average linkage, as many clusters as now.
    "slr": {},
    # Both epochs side by side; only samples that agree in both stay together, groups under four become noise.
    "joint": {
        "space": "joint",
        "n_clusters": None,
        "distance_threshold": 0.0,
        "noise": "drop",
        "previous": "raw",
        "min_cluster_size": 4,
    },
    # The baseline: the current clusters as they are, through the same code.
    # Soft targets over the current clusters, with the mix of RLCC (Zhang et al., CVPR 2021).
    "soft": {"harden": "none", "weight": 0.9},
    "none": {"harden": "current", "min_cluster_size": 1},
}


@dataclass(frozen=True)
class RefinementResult:
    """What one call of `PseudoLabelRefiner.refine` found.

    Attributes:
        labels: refined label of every sample, -1 = noise, shape (N,). Numbers live on: a cluster that continues a
            previous one (each the other's largest overlap) keeps its number; new ones, by size and then by first
            member, take the lowest free numbers. Numbers may have gaps.
        confidence: share of each sample's soft label that lies on its refined cluster, in [0, 1], 0 for noise,
            shape (N,).
        projection: previous clusters projected onto current ones, sparse, shape (K', K).
        table: the occupied cells of the co-occurrence table.
        changed_share: share of the samples whose refined cluster does not continue their current cluster, in [0, 1].
        exact: False if so many cells were occupied that the lightest were folded into similar ones.
    """

    labels: np.ndarray
    confidence: np.ndarray
    projection: sp.csr_array
    table: CooccurrenceTable
    changed_share: float
    exact: bool
    cell_of_sample: np.ndarray
    cell_rows: sp.csr_array

    def soft_labels(self, start: int = 0, stop: int | None = None) -> sp.csr_array:
        """Soft labels of samples start to stop, made on demand: sparse rows, shape (stop - start, columns).

        The columns are the current clusters in ascending order; in the joint space the previous clusters follow.
        A sample without any label has an empty row.
        """
        return self.cell_rows[self.cell_of_sample[start:stop]]


class PseudoLabelRefiner:
    """Refine cluster labels by the labels of the epoch before.

    Works on label vectors alone; all arithmetic runs on the occupied (previous, current) cells, so its cost hardly
    depends on the number of samples. The method is our reading of "Pseudo-label Refinement for Improving
    Self-Supervised Learning Systems" (arXiv 2410.14242), with options where that description leaves a choice.

    Args:
        weight: share of the current label in the blend, in [0, 1].
        space: "projected" blends in the space of the current clusters (the published way); "joint" keeps both
            labels side by side, which treats splits and merges alike.
        normalize: "row" or "column": the axis over which the projection sums to one.
        harden: "hierarchical" re-clusters the soft labels; "argmax" takes the strongest current cluster; "none"
            keeps the current clusters as hard labels and leaves the blend as a soft target; "current" does the
            same with no blending at all, which is the baseline without refinement.
        linkage: "average", "ward", "complete" or "single".
        n_clusters: where the tree is cut: "current" for as many clusters as now, a number, or None.
        distance_threshold: height of the cut, at least 0; exactly one of this and `n_clusters` must be given. Distances
            scale with the weight: two halves of a split cluster are weight * sqrt(2) apart.
        noise: "project" takes a sample that is noise now back in by what it was, "drop" leaves it out.
        previous: "refined" carries the refined labels to the next call, "raw" the labels as they came.
        min_cluster_size: refined clusters with fewer samples become noise, at least 1.
        max_cells: beyond this many distinct cells the lightest are folded into the most similar heavier ones
            before agglomeration, whose memory grows with the square of this number; the result says so.

    Raises:
        ValueError: for a value outside these ranges, naming the argument.
    """

    def __init__(
        self,
        weight: float = 0.5,
        space: str = "projected",
        normalize: str = "row",
        harden: str = "hierarchical",
        linkage: str = "average",
        n_clusters: str | int | None = "current",
        distance_threshold: float | None = None,
        noise: str = "project",
        previous: str = "refined",
        min_cluster_size: int = 2,
        max_cells: int = 10_000,
    ):
        self.weight = weight
        self.space = space
        self.normalize = normalize
        self.harden = harden
        self.linkage = linkage
        self.n_clusters = n_clusters
        self.distance_threshold = distance_threshold
        self.noise = noise
        self.previous = previous
        self.min_cluster_size = min_cluster_size
        self.max_cells = max_cells
        self._check_arguments()
        self._previous_labels: np.ndarray | None = None
        self._refined_labels: np.ndarray | None = None  # of the last call: clusters that continue keep their numbers

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> PseudoLabelRefiner:
        """Make a refiner from a named preset: "slr", "joint" or "none"; keyword arguments win over the preset.

        Raises:
            ValueError: if there is no such preset.
        """
        if name not in PRESETS:
            raise ValueError(f"preset {name!r} is unknown: use one of {', '.join(sorted(PRESETS))}")
        return cls(**{**PRESETS[name], **overrides})

    def settings(self) -> dict[str, Any]:
        """The constructor's arguments, by name."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def refine(self, labels: np.ndarray) -> RefinementResult:
        """Refine this epoch's labels by the last epoch's and remember them for the next call.

        Args:
            labels: integer cluster labels, -1 = noise, shape (N,), samples in the same order at every call. Ids may
                be any integers from 0. The first call has nothing to refine by: it only remembers and numbers.

        Raises:
            TypeError: if the labels are not integers.
            ValueError: if they are not one-dimensional, are below -1, or differ in number from the last call's.
        """
        current = self._check_labels(labels)
        first_call = self._previous_labels is None
        previous = np.full(len(current), NOISE) if self._previous_labels is None else self._previous_labels

        table, cell_of_sample = cooccurrence(previous, current)  # 1. co-occurrence
        projection = project(table, self.normalize)  # 2. projection
        soft = self._blend(table, projection)  # 3. blend
        if first_call:
            cell_cluster, exact = table.current.copy(), True
        else:
            cell_cluster, exact = self._harden(table, soft)  # 4. harden
        refined = self._number(cell_cluster, table, cell_of_sample)
        self._previous_labels = refined if self.previous == "refined" else current.copy()  # 5. carry
        self._refined_labels = refined

        return RefinementResult(
            labels=refined,
            confidence=_confidence(soft, cell_cluster, table.counts)[cell_of_sample],
            projection=projection,
            table=table,
            changed_share=_changed_share(table, cell_cluster),
            exact=exact,
            cell_of_sample=cell_of_sample,
            cell_rows=soft,
        )

    def state_dict(self) -> dict[str, np.ndarray]:
        """What the next call needs, as arrays: `version` and, after the first call, two vectors of labels."""
        state = {"version": np.array([STATE_VERSION])}
        if self._previous_labels is not None and self._refined_labels is not None:
            state |= {"previous_labels": self._previous_labels, "refined_labels": self._refined_labels}
        return state

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Restore what `state_dict` gave.

        Raises:
            ValueError: if the state was written by another version of this format.
        """
        version = int(state["version"][0])
        if version != STATE_VERSION:
            raise ValueError(f"refiner state has version {version}, this release reads version {STATE_VERSION}")
        self._previous_labels = state.get("previous_labels")
        self._refined_labels = state.get("refined_labels")

    def forget(self) -> None:
        """Let the next call be a first call that refines nothing; the numbers of the clusters still live on."""
        self._previous_labels = None

    def _number(self, cell_cluster: np.ndarray, table: CooccurrenceTable, cell_of_sample: np.ndarray) -> np.ndarray:
        """Refined label of each sample, in numbers that continue those of the last call."""
        if self._refined_labels is None or self._refined_labels is self._previous_labels:
            cell_label = number_clusters(
                cell_cluster, table.previous, table.previous_ids, table.counts, table.first_member
            )
            return cell_label[cell_of_sample]
        overlap, cell = cooccurrence(self._refined_labels, cell_cluster[cell_of_sample])
        label = number_clusters(
            overlap.current, overlap.previous, overlap.previous_ids, overlap.counts, overlap.first_member
        )
        return label[cell]

    def _blend(self, table: CooccurrenceTable, projection: sp.csr_array) -> sp.csr_array:
        if self.harden == "current":
            return onehot(table.current, len(table.current_ids))
        if self.space == "joint":
            return blend_joint(table, self.weight, self.noise)
        return blend_projected(table, projection, self.weight, self.noise)

    def _harden(self, table: CooccurrenceTable, soft: sp.csr_array) -> tuple[np.ndarray, bool]:
        """The refined cluster of each cell, -1 = noise, and whether it is exact."""
        if self.harden in ("current", "none"):
            cluster, exact = table.current.copy(), True
        elif self.harden == "argmax":
            cluster, exact = _argmax_rows(soft), True
        else:
            cluster, exact = self._recluster(table, soft)
        sizes = np.bincount(cluster[cluster != NOISE], weights=table.counts[cluster != NOISE])
        small = np.flatnonzero(sizes < self.min_cluster_size)
        return np.where(np.isin(cluster, small), NOISE, cluster), exact

    def _recluster(self, table: CooccurrenceTable, soft: sp.csr_array) -> tuple[np.ndarray, bool]:
        cluster = np.full(len(table), NOISE, dtype=np.int64)
        labelled = np.flatnonzero(np.diff(soft.indptr) > 0)
        if len(labelled) == 0:
            return cluster, True
        # Ties are decided by the order of the points: by size and first member, so that ids mean nothing.
        labelled = labelled[np.lexsort((table.first_member[labelled], -table.counts[labelled]))]
        rows, row_of_cell = _distinct_rows(soft[labelled])
        weights = np.bincount(row_of_cell, weights=table.counts[labelled])
        n_clusters = len(table.current_ids) if isinstance(self.n_clusters, str) else self.n_clusters
        if self.distance_threshold == 0.0:
            point_cluster, exact = np.arange(len(weights)), True
        else:
            point_cluster, exact = agglomerate(
                rows, weights, self.linkage, n_clusters, self.distance_threshold, self.max_cells
            )
        cluster[labelled] = point_cluster[row_of_cell]
        return cluster, exact

    def _check_arguments(self) -> None:
        if not 0.0 <= self.weight <= 1.0:
            raise ValueError(f"weight={self.weight} is outside [0, 1]")
        for name, allowed in (
            ("space", ("projected", "joint")),
            ("normalize", ("row", "column")),
            ("harden", ("hierarchical", "argmax", "none", "current")),
            ("linkage", LINKAGES),
            ("noise", ("project", "drop")),
            ("previous", ("refined", "raw")),
        ):
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"{name}={value!r} is unknown: use one of {', '.join(allowed)}")
        if (self.n_clusters is None) == (self.distance_threshold is None):
            raise ValueError(
                f"n_clusters={self.n_clusters!r} and distance_threshold={self.distance_threshold!r}: "
                "give exactly one of them, None for the other"
            )
        is_count = isinstance(self.n_clusters, (int, np.integer)) and self.n_clusters >= 1
        if self.n_clusters not in (None, "current") and not is_count:
            raise ValueError(f"n_clusters={self.n_clusters!r}: use 'current', an integer of at least 1, or None")
        if self.distance_threshold is not None and not self.distance_threshold >= 0:
            raise ValueError(f"distance_threshold={self.distance_threshold} must be at least 0")
        if self.min_cluster_size < 1:
            raise ValueError(f"min_cluster_size={self.min_cluster_size} must be at least 1")
        if self.max_cells < 2:
            raise ValueError(f"max_cells={self.max_cells} must be at least 2")
        if self.harden == "argmax" and self.space == "joint":
            raise ValueError("harden='argmax' needs space='projected': in the joint space no column is a cluster")

    def _check_labels(self, labels: np.ndarray) -> np.ndarray:
        labels = np.asarray(labels)
        if not np.issubdtype(labels.dtype, np.integer):
            raise TypeError(f"labels must be integers (-1 = noise), not {labels.dtype}")
        if labels.ndim != 1:
            raise ValueError(f"labels must have shape (N,), not {labels.shape}")
        if len(labels) == 0:
            raise ValueError("labels are empty: at least one sample is needed")
        if labels.min() < NOISE:
            raise ValueError(f"labels must be -1 (noise) or above, but {labels.min()} is among them")
        if self._previous_labels is not None and len(labels) != len(self._previous_labels):
            raise ValueError(
                f"{len(labels)} labels, but the last call had {len(self._previous_labels)}: "
                "refinement needs the same samples in the same order"
            )
        return labels.astype(np.int64)


def agglomerate(
    rows: sp.csr_array,
    weights: np.ndarray,
    linkage: str,
    n_clusters: int | None,
    distance_threshold: float | None,
    max_cells: int,
) -> tuple[np.ndarray, bool]:
    """Cluster weighted sparse rows hierarchically; returns each row's cluster and whether that is exact.

    Beyond `max_cells` rows the lightest are folded into the nearest of the heaviest `max_cells` first.
    """
    exact = len(weights) <= max_cells
    if exact:
        tree = weighted_linkage(euclidean_distances(rows), weights, linkage)
        return cut(tree, len(weights), n_clusters, distance_threshold), True
    order = np.argsort(-weights, kind="stable")
    heavy, light = np.sort(order[:max_cells]), np.sort(order[max_cells:])
    home = np.empty(len(weights), dtype=np.int64)
    home[heavy] = np.arange(max_cells)
    for chunk in np.array_split(light, max(1, len(light) // 1_000)):
        home[chunk] = euclidean_distances(rows[chunk], rows[heavy]).argmin(axis=1)
    folded_weights = np.bincount(home, weights=weights, minlength=max_cells)
    tree = weighted_linkage(euclidean_distances(rows[heavy]), folded_weights, linkage)
    return cut(tree, max_cells, n_clusters, distance_threshold)[home], False


def _distinct_rows(rows: sp.csr_array) -> tuple[sp.csr_array, np.ndarray]:
    """The distinct rows in order of first appearance, and the distinct row that each row equals."""
    rows.sort_indices()
    seen: dict[bytes, int] = {}
    row_of = np.empty(rows.shape[0], dtype=np.int64)
    first: list[int] = []
    for i in range(rows.shape[0]):
        span = slice(rows.indptr[i], rows.indptr[i + 1])
        key = rows.indices[span].tobytes() + rows.data[span].tobytes()
        if key not in seen:
            seen[key] = len(first)
            first.append(i)
        row_of[i] = seen[key]
    return rows[first], row_of


def _argmax_rows(soft: sp.csr_array) -> np.ndarray:
    """Column of the largest entry of each row (ties: the lowest), -1 for an empty row."""
    row = np.repeat(np.arange(soft.shape[0]), np.diff(soft.indptr))
    order = np.lexsort((soft.indices, -soft.data, row))
    rows_with_entries, first = np.unique(row[order], return_index=True)
    result = np.full(soft.shape[0], NOISE, dtype=np.int64)
    result[rows_with_entries] = soft.indices[order[first]]
    return result


def _confidence(soft: sp.csr_array, cell_cluster: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Share of each cell's soft label that lies on columns which belong mostly to its refined cluster."""
    member = cell_cluster != NOISE
    if not member.any():
        return np.zeros(len(cell_cluster))
    clusters, code = np.unique(cell_cluster[member], return_inverse=True)
    code_of_cell = np.full(len(cell_cluster), NOISE, dtype=np.int64)
    code_of_cell[member] = code
    weighted = sp.csr_array(sp.diags_array(counts.astype(np.float64)) @ soft)
    mass = sp.csr_array(onehot(code_of_cell, len(clusters)).T @ weighted)  # (clusters, columns)
    column_mass = sp.csr_array(mass.T)
    home_of_column = _argmax_rows(column_mass)
    entry_row = np.repeat(np.arange(soft.shape[0]), np.diff(soft.indptr))
    at_home = home_of_column[soft.indices] == code_of_cell[entry_row]
    on_cluster = np.bincount(entry_row, weights=soft.data * at_home, minlength=soft.shape[0])
    total = np.bincount(entry_row, weights=soft.data, minlength=soft.shape[0])
    share = np.divide(on_cluster, total, out=np.zeros_like(total), where=total > 0)
    return np.where(member, np.clip(share, 0.0, 1.0), 0.0)


def _changed_share(table: CooccurrenceTable, cell_cluster: np.ndarray) -> float:
    """Share of samples whose refined cluster is not the continuation of their current cluster."""
    refined, current = mutual_best(cell_cluster, table.current, table.counts)
    partner = np.full(max(int(cell_cluster.max(initial=0)) + 1, 1), NOISE - 1)
    partner[refined] = current
    same = np.where(cell_cluster == NOISE, table.current == NOISE, partner[cell_cluster] == table.current)
    return float(table.counts[~same].sum() / table.counts.sum())
