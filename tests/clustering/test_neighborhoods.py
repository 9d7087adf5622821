"""Clusterings of the same features search for neighbours and compare neighbourhoods once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hf_plr.clustering import ReciprocalDBSCAN, make_clusterers, neighborhoods
from hf_plr.clustering.neighborhoods import SharedNeighborhoods, limit_copies
from hf_plr.clustering.reciprocal import share_neighborhoods


@pytest.fixture
def searches(monkeypatch):
    """The sizes of what was searched."""
    done = []

    def search(features, *arguments):
        done.append(len(features))
        return nearest(features, *arguments)

    nearest = neighborhoods.find_nearest_neighbors
    monkeypatch.setattr(neighborhoods, "find_nearest_neighbors", search)
    return done


@pytest.fixture
def comparisons(monkeypatch):
    """The distances for which overlaps were computed."""
    done = []

    def compare(weights, eps):
        done.append(eps)
        return compute(weights, eps)

    compute = neighborhoods.compute_overlaps
    monkeypatch.setattr(neighborhoods, "compute_overlaps", compare)
    return done


def grouped(n: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(n // 10, 16, generator=generator).repeat_interleave(10, dim=0)
    return centers + 0.8 * torch.randn(centers.shape, generator=generator)


def test_labelings_search_and_compare_once_a_stage_and_find_what_each_would_alone(searches, comparisons):
    settings = {"eps": 0.6, "k1": 12, "k2": 4}
    together = make_clusterers(3, "dbscan", 5, settings, n_samples=200)
    share_neighborhoods(together)
    for stage in range(2):
        features = grouped(200, stage)
        found = [each.fit_predict(features) for each in together]
        assert len(searches) == 1
        assert comparisons == [0.6]
        searches.clear()
        for labels, clusterer in zip(found, together, strict=True):
            alone = ReciprocalDBSCAN(clusterer.eps, k1=12, k2=4)
            np.testing.assert_array_equal(labels, alone.fit_predict(features))
        assert len(searches) == 3
        assert comparisons[1:] == [0.6, 0.45, 0.3375]
        searches.clear()
        comparisons.clear()
    assert len({labels.tobytes() for labels in found}) == 3


def test_other_features_and_other_arguments_are_searched_anew(searches):
    shared, features = SharedNeighborhoods(3), torch.nn.functional.normalize(grouped(50, 0), dim=1)
    first = shared.find(features, 6, 2, "torch")
    assert shared.find(features.clone(), 6, 2, "torch") is first
    assert shared.find(features, 7, 2, "torch") is not first
    changed = features.clone()
    changed[3] = changed[4]
    assert shared.find(changed, 7, 2, "torch").features is changed
    assert len(searches) == 3


def test_overlaps_are_those_of_the_largest_distance_whatever_the_order(comparisons):
    together = make_clusterers(3, "dbscan", 5, {"eps": 0.6, "k1": 12, "k2": 4}, n_samples=200)
    share_neighborhoods(together)
    features = grouped(200, 0)
    found = [each.fit_predict(features) for each in reversed(together)]
    assert comparisons == [0.6]
    for labels, clusterer in zip(found, reversed(together), strict=True):
        np.testing.assert_array_equal(labels, ReciprocalDBSCAN(clusterer.eps, k1=12, k2=4).fit_predict(features))
    comparisons.clear()
    together[2].set_params(eps=0.8)  # larger than it was known to be
    found = [each.fit_predict(features) for each in together]
    assert comparisons == [0.6, 0.8]
    np.testing.assert_array_equal(found[2], ReciprocalDBSCAN(0.8, k1=12, k2=4).fit_predict(features))


def test_nothing_is_kept_after_the_last(searches):
    shared, features = SharedNeighborhoods(2), torch.nn.functional.normalize(grouped(50, 0), dim=1)
    shared.find(features, 6, 2, "torch")
    shared.find(features, 6, 2, "torch")
    assert shared._neighborhoods is None
    shared.find(features, 6, 2, "torch")
    assert len(searches) == 2


def test_only_the_first_of_identical_rows_are_kept():
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, -0.0], [1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [1.0, 0.0]])
    for most, kept, position in (
        (1, [0, 1, 5], [0, 1, 0, 0, 1, 2, 0]),
        (2, [0, 1, 2, 4, 5], [0, 1, 2, 0, 3, 4, 0]),
        (4, list(range(7)), list(range(7))),
    ):
        found = limit_copies(rows, most)
        assert (found[0].tolist(), found[1].tolist()) == (kept, position)


def test_rows_whose_hashes_are_equal_are_told_apart(monkeypatch):
    monkeypatch.setattr(neighborhoods, "_hash_rows", lambda features: np.zeros(len(features), np.int64))
    kept, position = limit_copies(torch.tensor([[1.0], [2.0], [1.0], [2.0], [3.0], [1.0]]), 2)
    assert (kept.tolist(), position.tolist()) == ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 0])
