"""Neighbourhoods that several clusterings of the same features share."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import scipy.sparse as sp
import torch
from accelerate import Accelerator

from hf_plr.clustering.jaccard import compute_overlaps, count_half_neighbors, weigh_neighborhoods
from hf_plr.clustering.neighbors import find_nearest_neighbors


@dataclass
class Neighborhoods:
    """Expanded k-reciprocal neighbourhoods of N features.

    Attributes:
        features: float32 of unit length, shape (N, D).
        neighbors: nearest neighbours, itself first, shape (N, at least max(k1, k2, round(k1 / 2) + 1) or N).
        k1, k2: as for `weigh_neighborhoods`, at most N.
        largest_eps: largest distance that `overlaps` will be asked for, as far as is known.
    """

    features: torch.Tensor
    neighbors: np.ndarray
    k1: int
    k2: int
    largest_eps: float = 0.0
    _overlaps: tuple[float, sp.csr_array] | None = field(default=None, repr=False)

    @cached_property
    def weights(self) -> sp.csr_array:
        """Output of `weigh_neighborhoods`, computed on first use, shape (N, N)."""
        return weigh_neighborhoods(self.features, self.neighbors, self.k1, self.k2)

    def overlaps(self, eps: float) -> sp.csr_array:
        """Output of `compute_overlaps` for this eps or a larger one, computed once for the largest, shape (N, N)."""
        if self._overlaps is None or self._overlaps[0] < eps:
            largest_eps = max(eps, self.largest_eps)
            self._overlaps = largest_eps, compute_overlaps(self.weights, largest_eps)
        return self._overlaps[1]


def find_neighborhoods(
    features: torch.Tensor, k1: int, k2: int, search: str, accelerator: Accelerator | None = None
) -> Neighborhoods:
    """Find neighbourhoods on all processes together; each has all features.

    Args:
        features: float32 of unit length, shape (N, D).
        k1, k2: as for `weigh_neighborhoods`; more than N count as N.
        search: as for `find_nearest_neighbors`.
        accelerator: shares the search.
    """
    n = len(features)
    k = min(max(k1, k2, count_half_neighbors(k1)), n)
    return Neighborhoods(features, find_nearest_neighbors(features, k, accelerator, search), min(k1, n), min(k2, n))


class SharedNeighborhoods:
    """Neighbourhoods that are found once for several clusterings of the same features, and dropped after the last.

    Args:
        n_clusterings: number of clusterings, one after the other.
        largest_eps: the largest of their distances, for which overlaps are computed.
    """

    def __init__(self, n_clusterings: int, largest_eps: float = 0.0):
        self.n_clusterings = n_clusterings
        self.largest_eps = largest_eps
        self._key: tuple[bytes, int, int, str] | None = None
        self._neighborhoods: Neighborhoods | None = None
        self._n_requests = 0

    def find(
        self, features: torch.Tensor, k1: int, k2: int, search: str, accelerator: Accelerator | None = None
    ) -> Neighborhoods:
        """Find or reuse neighbourhoods; all processes have the same features, so that all of them search, or none."""
        key = (hashlib.blake2b(features.cpu().numpy().data).digest(), k1, k2, search)
        if self._neighborhoods is None or key != self._key:
            self._key, self._neighborhoods = key, find_neighborhoods(features, k1, k2, search, accelerator)
            self._neighborhoods.largest_eps = self.largest_eps
            self._n_requests = 0
        neighborhoods = self._neighborhoods
        self._n_requests += 1
        if self._n_requests == self.n_clusterings:
            self._neighborhoods = None
        return neighborhoods
