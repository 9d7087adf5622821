"""Groups of samples that fit no known cluster: proposals of new patterns."""

from __future__ import annotations

import math

import numpy as np
import torch

from hf_plr.clustering.jaccard import find_near_pairs
from hf_plr.clustering.neighborhoods import find_neighborhoods
from hf_plr.clustering.neighbors import search_gallery
from hf_plr.clustering.reciprocal import NOISE, cluster_by_density

MAX_GROUPED = 20_000  # new samples that are clustered; others join the nearest of them
BACKGROUND = 4_000  # known samples beside them, at most
LEAST_BACKGROUND, BACKGROUND_PER_NEW = 500, 5
LEAST_SIZE, LARGEST_LEAST_SIZE = 5, 50  # bounds of the size of the smallest pattern
EPS, MIN_SAMPLES, K1, K2 = 0.5, 4, 30, 6  # of the clustering, see `ReciprocalDBSCAN`


def smallest_pattern(n_new: int) -> int:
    """Size of the smallest pattern among n new samples: half of their square root, between 5 and 50."""
    return min(max(LEAST_SIZE, math.isqrt(n_new) // 2), LARGEST_LEAST_SIZE)


def group_new_samples(
    new: torch.Tensor, known: torch.Tensor, n_known: int, min_size: int | None = None, seed: int = 0
) -> np.ndarray:
    """Group samples that fit no known cluster.

    They are clustered as by `ReciprocalDBSCAN` with an eps of 0.5, together with samples that do fit. A known sample
    that was flagged by chance lies among others like it, so that its cluster is not one of new samples; and a pattern
    stands out against something, also where it is the only one. A group is the new samples of a cluster most of whose
    members are new, where each known sample that was drawn counts as many as it stands for.

    Of more than 20,000 new samples as many are drawn and clustered; each other one has the group of the most similar.

    Args:
        new: features of unit length of the new samples, in the space of the clusters, float32 (M, D); a CPU tensor.
        known: those of samples that fit, drawn at random, float32 (B, D); B may be 0. The first five
            per new sample are used, at least 500 and at most 4,000.
        n_known: samples that fit, which they were drawn from, at least B.
        min_size: size of the smallest group, at least 2; None takes `smallest_pattern`. Where samples are drawn, it is
            estimated from those of the group that are, at least four of them or `min_size`.
        seed: seed of what is drawn.

    Returns:
        int64 (M,): groups 0, 1, ... by size, the largest first; -1 = in none.
    """
    n_new = len(new)
    min_size = smallest_pattern(n_new) if min_size is None else min_size
    groups = np.full(n_new, NOISE, np.int64)
    if n_new < min_size:
        return groups
    rng = np.random.default_rng(seed)
    drawn = np.arange(n_new)
    if n_new > MAX_GROUPED:
        drawn = np.sort(rng.choice(n_new, MAX_GROUPED, replace=False))
    rows = torch.from_numpy(drawn)
    known = known[: min(BACKGROUND, max(LEAST_BACKGROUND, BACKGROUND_PER_NEW * n_new))]
    neighborhoods = find_neighborhoods(torch.cat([new[rows], known]), K1, K2, "torch")
    labels, _ = cluster_by_density(find_near_pairs(neighborhoods.overlaps(EPS), EPS), MIN_SAMPLES)
    own, beside = labels[: len(drawn)], labels[len(drawn) :]
    n_clusters = int(labels.max()) + 1
    sizes, others = (np.bincount(part[part != NOISE], minlength=n_clusters) for part in (own, beside))
    new_weight, known_weight = n_new / len(drawn), n_known / max(len(known), 1)
    is_group = (sizes >= min(min_size, MIN_SAMPLES)) & (sizes * new_weight >= min_size)
    is_group &= sizes * new_weight > others * known_weight
    groups[drawn] = np.where(np.append(is_group, False)[own], own, NOISE)  # the last is for noise
    if len(drawn) < n_new:
        rest = np.setdiff1d(np.arange(n_new), drawn)
        _, nearest = search_gallery(new[torch.from_numpy(rest)], new[rows], 1)
        groups[rest] = groups[drawn[nearest[:, 0].numpy()]]
    return _number_by_size(groups)


def _number_by_size(groups: np.ndarray) -> np.ndarray:
    """Number groups 0, 1, ..., the largest first; of equally large ones that with the first sample."""
    ids, first, sizes = np.unique(groups[groups != NOISE], return_index=True, return_counts=True)
    number = np.full(int(groups.max(initial=NOISE)) + 2, NOISE, np.int64)  # the last is for -1
    number[ids[np.lexsort((first, -sizes))]] = np.arange(len(ids))
    return number[groups]
