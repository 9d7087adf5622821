"""Labels of the run before, carried to samples that only this run has, and to the first centers of k-means."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator

from hf_plr.clustering import KMeans
from hf_plr.clustering.blocks import iterate_rows
from hf_plr.clustering.cluster_means import ClusterMeans, average_clusters
from hf_plr.clustering.rows import Rows, assign_rows
from hf_plr.clustering.seeding import add_seeds
from hf_plr.refinement import NOISE
from hf_plr.utils.distributed import gather_objects, gather_rows, locate_rows
from hf_plr.utils.precision import exact_products

LEFT_OUT = 0.01  # of the members of clusters, which as new samples would fit none
COMPARED = 1 << 20  # members that say what fits, at most
BLOCK_ROWS = 1 << 14


@dataclass(frozen=True)
class CarriedLabels:
    """What the first stage takes over from the run before.

    Attributes:
        labels: label of each sample of this process, -1 = none, int32 of shape (n,): its last one, or that of the
            cluster that a new one fits.
        n_fitting: new samples of all processes that fit a cluster.
        means: mean direction of the known members of each cluster, ascending by label, shape (K, D).
        sizes: members by cluster, new ones that fit among them, int64 of shape (K,).
    """

    labels: np.ndarray
    n_fitting: int
    means: torch.Tensor
    sizes: np.ndarray


@torch.no_grad()
def carry_labels(
    rows: torch.Tensor, last: np.ndarray, is_new: np.ndarray, ids: np.ndarray, accelerator: Accelerator
) -> CarriedLabels:
    """Give each new sample the label of the nearest cluster of known samples, if it fits.

    It fits if its cosine to the mean of the cluster is at least that of the hundredth part of the known members which
    is farthest from the means of the others of their clusters. Features are those of the present weights, whatever the
    weights of the run before were.

    Args:
        rows: features of this process's samples, unit length, float32 of shape (n, D).
        last: label of each in the run before, -1 = none, shape (n,).
        is_new: True for those that it did not have, shape (n,).
        ids: all labels of known samples, of all processes, ascending, shape (K,).
        accelerator: connects the processes.
    """
    place = np.where(last != NOISE, np.searchsorted(ids, last), NOISE)
    targets = torch.from_numpy(place).to(rows.device)
    means = average_clusters(rows, targets, len(ids), accelerator)
    labels = last.astype(np.int32)
    sizes = means.sizes.cpu().numpy().copy()
    own = np.zeros(len(ids), np.int64)
    lowest = _find_lowest_fitting(rows, targets, means, accelerator) if len(ids) else float("inf")
    new = np.flatnonzero(is_new) if len(ids) else np.empty(0, np.int64)
    if len(new):
        new_rows = rows[torch.from_numpy(new).to(rows.device)]
        with exact_products(rows.device):
            nearest, _ = assign_rows(Rows(new_rows, False, None), means.directions)
        fits = (_cosines(new_rows, means.directions[nearest]) >= lowest).cpu().numpy()
        chosen = nearest.cpu().numpy()[fits]
        labels[new[fits]] = ids[chosen]
        own = np.bincount(chosen, minlength=len(ids))
    added = np.sum(gather_objects(accelerator, own), axis=0)
    return CarriedLabels(labels, int(added.sum()), means.directions, sizes + added)


def start_from_clusters(kmeans: KMeans, carried: CarriedLabels, rows: torch.Tensor, accelerator: Accelerator) -> None:
    """Let the next fit of k-means start from the means of the carried clusters.

    If it seeks more clusters, seeds of k-means++ beside them are the others; if fewer, the largest ones remain.

    Args:
        kmeans: seeks K clusters from a warm start.
        carried: the clusters.
        rows: features of this process's samples in the space of the clusters, shape (n, D).
        accelerator: connects the processes.
    """
    largest = np.sort(np.argsort(-carried.sizes, kind="stable")[: kmeans.n_clusters])
    centers = carried.means[torch.from_numpy(largest).to(carried.means.device)]
    if len(centers) < kmeans.n_clusters:
        all_rows = Rows(rows, kmeans.spherical, kmeans.device)
        drawn = kmeans.draw_rows_to_seed(all_rows, *locate_rows(accelerator, len(rows)))
        centers = add_seeds(drawn, centers.to(drawn), kmeans.n_clusters, kmeans.seed, accelerator)
    kmeans.load_state_dict({"cluster_centers": centers})


def _find_lowest_fitting(
    rows: torch.Tensor, targets: torch.Tensor, means: ClusterMeans, accelerator: Accelerator
) -> float:
    """Find the cosine to the mean of the others of its cluster that all but `LEFT_OUT` of the members reach."""
    start, total = locate_rows(accelerator, len(rows))
    positions = torch.linspace(0, total - 1, min(total, COMPARED), dtype=torch.float64).long()
    own = positions[(positions >= start) & (positions < start + len(rows))] - start
    own = own.to(rows.device)
    own = own[(targets[own] != NOISE)]
    own = own[means.sizes.to(rows.device)[targets[own]] > 1]
    cosines = []
    for part in (own[span] for span in iterate_rows(len(own), BLOCK_ROWS)):
        target = targets[part]
        scale = (means.lengths * means.sizes.to(means.lengths.device)).to(rows.device, torch.float64)[target][:, None]
        others = means.directions[target].double() * scale - rows[part].double()
        cosines.append(_cosines(rows[part], torch.nn.functional.normalize(others, dim=1).float()))
    own_cosines = torch.cat([rows.new_empty(0, dtype=torch.float64), *cosines])
    found = gather_rows(accelerator, own_cosines).cpu().numpy()
    return float(np.quantile(found, LEFT_OUT, method="lower")) if len(found) else float("inf")


def _cosines(rows: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """Cosines (n,) of rows of unit length with as many directions, in float64 so that equal rows give equal ones."""
    return (rows.double() * directions.double()).sum(dim=1)
