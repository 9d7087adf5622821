"""Scores without labels, against independent implementations and hand-worked cases."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st

from hf_plr.clustering.cluster_means import ClusterMeans, average_clusters
from hf_plr.evaluation.label_free import describe_collapse, effective_rank, label_free_scores, silhouettes, size_entropy


def clustered(seed: int, n: int = 60, width: int = 7, n_clusters: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit rows and their clusters, each of at least two rows; some rows are in none."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(n) % (n_clusters + 1) - 1
    centers = torch.randn(n_clusters + 1, width, generator=generator)
    rows = centers[targets] + 0.7 * torch.randn(n, width, generator=generator)
    return torch.nn.functional.normalize(rows, dim=1), targets


def naive_silhouettes(rows: np.ndarray, targets: np.ndarray) -> np.ndarray:
    def distance(x: np.ndarray, members: np.ndarray) -> float:
        center = members.mean(axis=0)
        return 1.0 - float(x @ center) / float(np.linalg.norm(center))

    found = []
    for i in np.flatnonzero(targets >= 0):
        own = [j for j in np.flatnonzero(targets == targets[i]) if j != i]
        others = [rows[targets == k] for k in np.unique(targets[targets >= 0]) if k != targets[i]]
        within, between = distance(rows[i], rows[own]), min(distance(rows[i], members) for members in others)
        found.append((between - within) / max(within, between))
    return np.array(found)


def means_of(rows: torch.Tensor, targets: torch.Tensor) -> ClusterMeans:
    return average_clusters(rows, targets, int(targets.max()) + 1)


@given(seed=st.integers(0, 1000), n=st.integers(1, 40), width=st.integers(1, 12))
def test_effective_rank_is_the_exponential_of_the_entropy_of_singular_values(seed, n, width):
    rows = np.random.default_rng(seed).normal(size=(n, width))
    values = np.linalg.svd(rows, compute_uv=False)
    expected = np.exp(scipy.stats.entropy(values / values.sum()))
    assert effective_rank(torch.from_numpy(rows)) == pytest.approx(expected, rel=1e-4)


def test_effective_rank_counts_equal_directions():
    assert effective_rank(torch.eye(6)) == pytest.approx(6.0)
    assert effective_rank(torch.ones(50, 8)) == pytest.approx(1.0, abs=1e-3)
    assert effective_rank(torch.zeros(5, 3)) == 0.0


@pytest.mark.parametrize("seed", range(5))
def test_silhouettes_are_those_of_distances_to_centers_without_the_sample(seed):
    rows, targets = clustered(seed)
    memory = means_of(rows, targets)
    member = targets >= 0
    found = silhouettes(rows[member] @ memory.directions.T, targets[member], memory.sizes, memory.lengths)
    np.testing.assert_allclose(found, naive_silhouettes(rows.double().numpy(), targets.numpy()), atol=2e-4)


def test_only_members_and_a_single_cluster_have_a_silhouette_of_zero():
    rows = torch.eye(3)
    memory = means_of(rows, torch.tensor([0, 1, 1]))
    found = silhouettes(rows @ memory.directions.T, torch.tensor([0, 1, 1]), memory.sizes, memory.lengths)
    assert found[0] == 0.0
    one = means_of(rows, torch.zeros(3, dtype=torch.int64))
    assert silhouettes(rows @ one.directions.T, torch.zeros(3), one.sizes, one.lengths).tolist() == [0.0] * 3


@given(seed=st.integers(0, 1000), order=st.permutations(range(5)))
def test_renaming_clusters_and_reordering_samples_change_nothing(seed, order):
    rows, targets = clustered(seed)
    renamed = torch.where(targets >= 0, torch.tensor(order)[targets], -1)
    shuffled = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    accelerator = Accelerator(cpu=True)
    first = label_free_scores(rows, targets, means_of(rows, targets), accelerator)
    assert label_free_scores(rows, renamed, means_of(rows, renamed), accelerator) == pytest.approx(first)
    rows, targets = rows[shuffled], targets[shuffled]
    assert label_free_scores(rows, targets, means_of(rows, targets), accelerator) == pytest.approx(first)


@given(st.lists(st.integers(1, 1000), min_size=2, max_size=30))
def test_size_entropy_is_the_entropy_over_its_largest_value(sizes):
    expected = scipy.stats.entropy(sizes) / np.log(len(sizes))
    assert size_entropy(np.array(sizes)) == pytest.approx(expected)
    assert size_entropy(np.array(sizes[::-1])) == pytest.approx(expected)


def test_size_entropy_of_one_cluster_is_zero():
    assert size_entropy(np.array([7])) == 0.0


def test_signs_of_collapse():
    healthy = {"effective_rank": 30.0, "largest_share": 0.1, "clusters": 20.0}
    assert describe_collapse(healthy, 50.0) is None
    assert describe_collapse({**healthy, "effective_rank": 5.1}, 50.0) is None
    found = describe_collapse({**healthy, "effective_rank": 4.9}, 50.0)
    assert found is not None
    assert "4.9 directions, 50.0 at the first stage" in found
    assert describe_collapse({**healthy, "largest_share": 0.49}, 50.0) is None
    assert describe_collapse({**healthy, "largest_share": 0.51, "clusters": 2.0}, 50.0) is None  # one of two is larger
    found = describe_collapse({**healthy, "largest_share": 0.51}, 50.0)
    assert found == "one of 20 clusters has 51% of the samples"
