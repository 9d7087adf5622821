"""Neighbourhoods that several clusterings of the same features share."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import scipy.sparse as sp
import torch
from accelerate import Accelerator

from hf_plr.clustering.blocks import iterate_rows
from hf_plr.clustering.jaccard import compute_overlaps, count_half_neighbors, weigh_neighborhoods
from hf_plr.clustering.neighbors import find_nearest_neighbors

BLOCK_ELEMENTS = 1 << 22  # values of features that are hashed at once


@dataclass
class Neighborhoods:
    """Expanded k-reciprocal neighbourhoods of N features, of which n <= N are compared.

    Attributes:
        features: float32 of unit length, shape (n, D), those that are compared.
        neighbors: nearest neighbours, itself first, shape (n, at least max(k1, k2, round(k1 / 2) + 1) or n).
        k1, k2: as for `weigh_neighborhoods`, at most n.
        position: which of the n each of the N has its neighbourhood from, shape (N,); None for n = N.
        largest_eps: largest distance that `overlaps` will be asked for, as far as is known.
    """

    features: torch.Tensor
    neighbors: np.ndarray
    k1: int
    k2: int
    position: np.ndarray | None = None
    largest_eps: float = 0.0
    _overlaps: tuple[float, sp.csr_array] | None = field(default=None, repr=False)

    @cached_property
    def weights(self) -> sp.csr_array:
        """Output of `weigh_neighborhoods` for each of the N, computed on first use, shape (N, n)."""
        weights = weigh_neighborhoods(self.features, self.neighbors, self.k1, self.k2)
        return weights if self.position is None else weights[self.position]

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

    Of identical samples only the first k1 are compared. A list of k1 neighbours holds no more of them, so that further
    ones would be in no list but their own; they have the neighbourhood of the first.

    Args:
        features: float32 of unit length, shape (N, D).
        k1, k2: as for `weigh_neighborhoods`; more than N count as N.
        search: as for `find_nearest_neighbors`.
        accelerator: shares the search.
    """
    kept, position = limit_copies(features, k1)
    is_limited = len(kept) < len(features)
    if is_limited:
        features = features[torch.from_numpy(kept).to(features.device)]
    n = len(kept)
    k = min(max(k1, k2, count_half_neighbors(k1)), n)
    neighbors = find_nearest_neighbors(features, k, accelerator, search)
    return Neighborhoods(features, neighbors, min(k1, n), min(k2, n), position if is_limited else None)


def limit_copies(features: torch.Tensor, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Limit the number of identical rows.

    Args:
        features: float32, shape (N, D).
        most: number of identical rows to keep, at least 1.

    Returns:
        Rows that are kept, the first of identical ones, ascending, shape (n,); and for each row its position among
        them, for one that is not kept that of the first row that is identical, shape (N,).
    """
    source = np.arange(len(features))
    _, code, n_of_code = np.unique(_hash_rows(features), return_inverse=True, return_counts=True)
    for rows in _split_by_code(code, np.flatnonzero(n_of_code > most)):
        values = features[torch.from_numpy(rows).to(features.device)].cpu().numpy()
        _, first, group = np.unique(values, axis=0, return_index=True, return_inverse=True)
        for each, first_row in enumerate(rows[first]):
            source[rows[group.ravel() == each][most:]] = first_row
    kept = np.flatnonzero(source == np.arange(len(features)))
    return kept, np.searchsorted(kept, source)


def _hash_rows(features: torch.Tensor) -> np.ndarray:
    """Hash rows to integers, equal for identical rows and hardly ever for others, shape (N,)."""
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(2**62, (features.shape[1],), generator=generator).to(features.device)
    hashes = torch.empty(len(features), dtype=torch.int64)
    for rows in iterate_rows(len(features), max(1, BLOCK_ELEMENTS // max(1, features.shape[1]))):
        bits = (features[rows] + 0.0).view(torch.int32)  # zeros of both signs are equal
        hashes[rows] = (bits * factors).sum(dim=1).cpu()
    return hashes.numpy()


def _split_by_code(code: np.ndarray, chosen: np.ndarray) -> list[np.ndarray]:
    """Rows of each chosen code, ascending."""
    order = np.argsort(code, kind="stable")
    starts = np.searchsorted(code[order], chosen)
    stops = np.searchsorted(code[order], chosen, "right")
    return [order[start:stop] for start, stop in zip(starts, stops, strict=True)]


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
