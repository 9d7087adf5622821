"""Votes of nearest neighbours, the field's way to score features without training on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator

from hf_plr.clustering.neighbors import search_gallery
from hf_plr.utils.distributed import gather_rows

N_NEIGHBORS = 5
N_WEIGHTED_NEIGHBORS = 20
TEMPERATURE = 0.07
BLOCK_VOTES = 1 << 22  # sums of votes in memory at once, 32 MiB


@dataclass(frozen=True)
class LabeledNeighbors:
    """Nearest samples of a gallery to M queries, nearest first.

    Attributes:
        cosines: similarities, float64 of shape (M, k).
        labels: classes of these samples, int64 of shape (M, k).
    """

    cosines: np.ndarray
    labels: np.ndarray

    def vote(self, n_neighbors: int = N_NEIGHBORS) -> np.ndarray:
        """Predict the class of most of the nearest neighbours, as scikit-learn's `KNeighborsClassifier` does.

        Args:
            n_neighbors: number of neighbours that vote, at least 1; more than k count as k.

        Returns:
            int64 of shape (M,); the smallest of classes with equally many votes.

        Raises:
            ValueError: if there are no neighbours to vote.
        """
        return self._elect(n_neighbors, np.ones_like(self.cosines))

    def vote_by_similarity(
        self, n_neighbors: int = N_WEIGHTED_NEIGHBORS, temperature: float = TEMPERATURE
    ) -> np.ndarray:
        """Predict the class with most votes, where each neighbour has exp(cosine / temperature) of them.

        Source: Wu et al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination, CVPR 2018. DINO
        (Caron et al., ICCV 2021) has 20 neighbours and a temperature of 0.07.

        Args:
            n_neighbors: as for `vote`.
            temperature: divisor of the cosines, above 0.

        Returns:
            int64 of shape (M,); the smallest of classes with equally many votes.

        Raises:
            ValueError: if an argument is outside its range.
        """
        if not temperature > 0.0:
            raise ValueError(f"temperature={temperature} must be above 0")
        # Relative to a cosine of 1: nothing overflows.
        return self._elect(n_neighbors, np.exp((self.cosines - 1.0) / temperature))

    def _elect(self, n_neighbors: int, votes: np.ndarray) -> np.ndarray:
        """Sum votes (M, k) by class, nearest first, so that the sums are the same on every machine."""
        if n_neighbors < 1:
            raise ValueError(f"n_neighbors={n_neighbors} must be at least 1")
        votes = votes[:, :n_neighbors]
        classes, codes = np.unique(self.labels[:, :n_neighbors], return_inverse=True)
        codes = codes.reshape(votes.shape)
        elected = np.empty(len(votes), np.int64)
        height = max(1, BLOCK_VOTES // max(len(classes), 1))
        for start in range(0, len(votes), height):
            block = slice(start, start + height)
            cells = np.arange(len(codes[block]))[:, None] * len(classes) + codes[block]
            sums = np.bincount(cells.ravel(), votes[block].ravel(), len(cells) * len(classes))
            elected[block] = classes[sums.reshape(len(cells), len(classes)).argmax(axis=1)]
        return elected


def find_labeled_neighbors(
    gallery: torch.Tensor,
    labels: np.ndarray,
    queries: torch.Tensor,
    k: int = N_WEIGHTED_NEIGHBORS,
    accelerator: Accelerator | None = None,
) -> LabeledNeighbors:
    """Find the nearest samples of a gallery, which processes may share, and their classes.

    Args:
        gallery: float32 of unit length, this process's rows, shape (n, D), on any device.
        labels: classes of these rows, integers of shape (n,).
        queries: float32 of unit length, shape (M, D), on the device of the gallery; the same on every process.
        k: number of neighbours, at least 1; more than the gallery has count as all.
        accelerator: connects processes that hold further rows of the gallery.

    Returns:
        The same on every process, for any number of them.

    Raises:
        ValueError: if k is below 1, or no process has a row.
    """
    cosines, positions = search_gallery(queries, gallery, k, accelerator)
    all_labels = gather_rows(accelerator, torch.as_tensor(np.asarray(labels, np.int64))).numpy()
    return LabeledNeighbors(cosines.double().cpu().numpy(), all_labels[positions.cpu().numpy()])
