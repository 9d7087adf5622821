"""Labels of a run before are carried to new samples that fit, and to the first centers of k-means."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from hf_plr.clustering import KMeans
from hf_plr.clustering.seeding import add_seeds
from hf_plr.pseudo_labels.carrying import carry_labels, start_from_clusters


def blobs(sizes, seed=0, spread=0.15, dimension=16):
    """Rows of unit length around a few directions, and the direction of each."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.nn.functional.normalize(torch.randn(len(sizes), dimension, generator=generator), dim=1)
    kind = np.repeat(np.arange(len(sizes)), sizes)
    rows = centers[kind] + spread * torch.randn(len(kind), dimension, generator=generator)
    return torch.nn.functional.normalize(rows, dim=1), kind


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


def test_new_samples_get_the_nearest_cluster_and_those_of_a_new_pattern_none(accelerator):
    rows, kind = blobs([60, 60, 60, 40])
    is_new = (np.arange(220) % 3 == 0) | (kind == 3)
    labels = np.array([7, 2, 9, -1])[kind]
    last = np.where(is_new, -1, labels)
    carried = carry_labels(rows, last, is_new, np.array([2, 7, 9]), accelerator)
    fitting = is_new & (kind < 3)
    assert (carried.labels[fitting] == labels[fitting]).mean() > 0.9  # about a hundredth does not fit
    np.testing.assert_array_equal(
        carried.labels[fitting & (carried.labels >= 0)], labels[fitting & (carried.labels >= 0)]
    )
    assert (carried.labels[kind == 3] == -1).all()
    np.testing.assert_array_equal(carried.labels[~is_new], last[~is_new])
    assert carried.n_fitting == (carried.labels[is_new] >= 0).sum()
    np.testing.assert_array_equal(carried.sizes, [(carried.labels == label).sum() for label in (2, 7, 9)])
    for place, label in enumerate((2, 7, 9)):
        mean = torch.nn.functional.normalize(rows[last == label].mean(dim=0), dim=0)
        torch.testing.assert_close(carried.means[place], mean, atol=1e-6, rtol=0)


def test_about_one_in_a_hundred_new_samples_of_known_kinds_fits_nowhere(accelerator):
    rows, kind = blobs([4000, 4000], spread=0.3)
    is_new = np.arange(8000) % 2 == 0
    carried = carry_labels(rows, np.where(is_new, -1, kind), is_new, np.arange(2), accelerator)
    assert 0.003 < 1 - carried.n_fitting / is_new.sum() < 0.03


def test_known_noise_stays_noise_and_without_members_beside_each_other_nothing_fits(accelerator):
    rows, _ = blobs([10, 10])
    last = np.full(20, -1)
    last[[0, 19]] = [3, 5]
    is_new = np.zeros(20, bool)
    is_new[1:5] = True
    carried = carry_labels(rows, last, is_new, np.array([3, 5]), accelerator)
    np.testing.assert_array_equal(carried.labels, last)  # single members say nothing of how far others may be
    last[:] = -1
    np.testing.assert_array_equal(carry_labels(rows, last, is_new, np.array([], int), accelerator).labels, last)


@pytest.mark.parametrize("n_clusters", [2, 3, 6])
def test_kmeans_starts_from_the_largest_carried_clusters_and_fills_up_with_seeds(accelerator, n_clusters):
    rows, kind = blobs([30, 50, 40])
    carried = carry_labels(rows, kind, np.zeros(120, bool), np.arange(3), accelerator)
    kmeans = KMeans(n_clusters)
    start_from_clusters(kmeans, carried, rows, accelerator)
    centers = kmeans.cluster_centers_
    assert centers.shape == (n_clusters, 16)
    expected = carried.means[[1, 2]] if n_clusters == 2 else carried.means
    torch.testing.assert_close(centers[: len(expected)], expected)
    for seed in centers[3:]:
        assert torch.isclose(rows, seed).all(dim=1).any()
    labels = kmeans.fit_predict_shard(rows, accelerator)
    if n_clusters == 3:
        np.testing.assert_array_equal(labels, kind)


def test_further_seeds_are_far_from_the_first():
    rows, kind = blobs([50, 50, 50, 50], spread=0.01)
    first = torch.stack([rows[kind == 0].mean(dim=0), rows[kind == 2].mean(dim=0)])
    seeds = add_seeds(rows, first, 4, 0, None)
    torch.testing.assert_close(seeds[:2], first)
    nearest = (seeds[2:] @ rows.T).argmax(dim=1).numpy()
    assert sorted(kind[nearest].tolist()) == [1, 3]
    assert add_seeds(rows, first, 2, 0, None) is first
