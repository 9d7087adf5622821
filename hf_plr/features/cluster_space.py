"""Space in which the clusters are sought: the centered features, or these whitened.

A few directions hold most of the variance of a transformer's features, and k-means and nearest neighbours see little
else. Whitening gives the other directions a say, but too much of it lets noise speak. How much is decided without
labels: a good space puts a sample and its augmented view into one cluster.

The loss stays in the centered space. Labels that carry what this space hides teach the weights to show it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import torch
from accelerate import Accelerator

from hf_plr.clustering import KMeans
from hf_plr.clustering.whitening import Whitening, draw_rows_to_fit, map_rows, whiten
from hf_plr.features.centering import CenteredFeatures, compute_directions
from hf_plr.features.extractor import allocate_in_file
from hf_plr.utils.distributed import gather_rows, run_on_main
from hf_plr.utils.serialization import validate_array

logger = logging.getLogger(__name__)

CENTERED = float("inf")  # the shrinkage that leaves features as they are
SHRINKAGES = (CENTERED, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03)  # that a trial compares
TRIAL_SAMPLES = 2048
SAMPLES_PER_CLUSTER = 16  # of a trial's clusters, at least


class ClusterSpace:
    """Space in which the clusters of a run are sought.

    Args:
        shrinkage: of the whitening, above 0, infinite for the centered features; None lets a trial at each stage decide.
        folder: folder of a memory-mapped file for the whitened features; None keeps them on the device.
        seed: seed of the trial's clusters.

    Attributes:
        shrinkage: as given, or as the last trial decided.
    """

    def __init__(self, shrinkage: float | None, folder: str | None, seed: int):
        self.shrinkage = shrinkage
        self.needs_trial = shrinkage is None
        self.folder = folder
        self.seed = seed

    def decide(
        self,
        features: CenteredFeatures,
        extract_view: Callable[[torch.Tensor], torch.Tensor],
        n_clusters: int,
        accelerator: Accelerator,
    ) -> None:
        """Decide the shrinkage, where it is open, by a trial with 2,048 samples, evenly spaced.

        Args:
            features: all samples without augmentation.
            extract_view: extracts features of one augmented view of the samples at these positions of this process.
            n_clusters: number of clusters that is sought among all samples.
            accelerator: connects the processes.
        """
        if not self.needs_trial:
            return
        n_samples = sum_lengths(features, accelerator)
        positions = torch.linspace(0, n_samples - 1, min(n_samples, TRIAL_SAMPLES), dtype=torch.float64).long()
        own = positions[(positions >= features.part.start) & (positions < features.part.stop)]
        views = compute_directions(features.center, extract_view(own))
        clean = gather_rows(accelerator, features.rows[(own - features.part.start).to(features.rows.device)]).cpu()
        augmented = gather_rows(accelerator, views).cpu()
        drawn = draw_rows_to_fit(features.rows, accelerator)
        self.shrinkage = run_on_main(
            accelerator,
            lambda: find_stable_shrinkage(Whitening(drawn), clean, augmented, n_clusters, self.seed),
            "looking for the space of the clusters",
        )

    def map(self, features: CenteredFeatures, accelerator: Accelerator) -> torch.Tensor:
        """Map this process's features into the space: unit length, float32 of shape (n, D)."""
        if self.shrinkage is None or self.shrinkage == CENTERED:
            return features.rows
        out = None if self.folder is None else allocate_in_file(*features.rows.shape, self.folder)
        return whiten(features.rows, self.shrinkage, accelerator, out)


def sum_lengths(features: CenteredFeatures, accelerator: Accelerator) -> int:
    from hf_plr.utils.distributed import locate_rows

    return locate_rows(accelerator, len(features.rows))[1]


def find_stable_shrinkage(
    whitening: Whitening, clean: torch.Tensor, augmented: torch.Tensor, n_clusters: int, seed: int
) -> float:
    """Find the shrinkage whose clusters hold most samples together with their augmented views.

    Args:
        whitening: of all samples.
        clean: centered features of the trial's samples, float32 of shape (m, D).
        augmented: those of an augmented view of each.
        n_clusters: number of clusters; fewer are sought where there would be less than 16 samples for each.
        seed: seed of the clusters.
    """
    shares = {}
    n_clusters = max(2, min(n_clusters, len(clean) // SAMPLES_PER_CLUSTER))
    for shrinkage in SHRINKAGES:
        rows, views = clean, augmented
        if shrinkage != CENTERED:
            matrix = whitening.matrix(shrinkage)
            rows, views = map_rows(clean, matrix), map_rows(augmented, matrix)
        kmeans = KMeans(n_clusters, seed=seed).fit(rows)
        centers = torch.as_tensor(kmeans.cluster_centers_)
        together = (views @ centers.T).argmax(dim=1).numpy() == kmeans.labels_
        shares[shrinkage] = float(together.mean())
    logger.info("Share of samples in one cluster with their augmented view, by shrinkage: %s", shares)
    return max(shares, key=lambda shrinkage: shares[shrinkage])
