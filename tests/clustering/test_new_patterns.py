"""Groups of new samples: kinds are told apart, and flagged samples of known kinds are in none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hf_plr.clustering import new_patterns
from hf_plr.clustering.new_patterns import group_new_samples, smallest_pattern


def make_kinds(sizes, seed=0, spread=0.35):
    """Samples of unit length around one direction for each kind: (N, 16), and their kind (N,)."""
    rng = np.random.default_rng(seed)
    centers = np.eye(16)[: len(sizes)]
    kind = np.repeat(np.arange(len(sizes)), sizes)
    rows = centers[kind] + spread * rng.normal(size=(len(kind), 16)) / 4
    return torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True)).float(), kind


def test_two_kinds_are_two_groups_and_stray_samples_are_in_none():
    rows, kind = make_kinds([60, 35, 150, 150])
    is_new = kind < 2
    strays = np.flatnonzero(kind == 2)[:6]
    is_new[strays] = True
    groups = group_new_samples(rows[is_new], rows[~is_new], int((~is_new).sum()))
    of_kind = [groups[kind[is_new] == number] for number in range(3)]
    assert (of_kind[0] == 0).mean() > 0.95  # numbered by size
    assert (of_kind[1] == 1).mean() > 0.95
    assert (of_kind[2] == -1).all()
    assert groups.max() == 1


def test_a_single_kind_is_one_group():
    rows, kind = make_kinds([40, 150, 150], seed=1)
    groups = group_new_samples(rows[kind == 0], rows[kind > 0], 300)
    assert (groups == 0).mean() > 0.95
    assert groups.max() == 0


def test_a_drawn_sample_stands_for_many():
    rows, kind = make_kinds([30, 30, 90], seed=2)
    near = kind == 0
    drawn = np.flatnonzero(near)[:10]  # as many flagged samples of a known kind as its drawn ones twice over
    new = np.setdiff1d(np.flatnonzero(near), drawn)
    known = np.concatenate([drawn, np.flatnonzero(kind == 2)])
    assert (group_new_samples(rows[new], rows[known], len(known)) >= 0).any()
    assert (group_new_samples(rows[new], rows[known], 100 * len(known)) == -1).all()


def test_few_new_samples_are_no_pattern():
    rows, _ = make_kinds([4, 60])
    assert group_new_samples(rows[:4], rows[4:], 60).tolist() == [-1] * 4
    assert group_new_samples(rows[:0], rows[4:], 60).tolist() == []


def test_more_than_are_clustered_join_the_nearest(monkeypatch):
    rows, kind = make_kinds([120, 80, 100], seed=3)
    monkeypatch.setattr(new_patterns, "MAX_GROUPED", 90)
    groups = group_new_samples(rows[kind < 2], rows[kind == 2], 100)
    for number in (0, 1):
        assert (groups[kind[kind < 2] == number] == number).mean() > 0.9


@pytest.mark.parametrize(("n_new", "size"), [(3, 5), (400, 10), (90_000, 50)])
def test_the_smallest_pattern_grows_with_the_new_samples(n_new, size):
    assert smallest_pattern(n_new) == size


def test_where_nothing_is_dense_there_is_no_pattern():
    rng = np.random.default_rng(0)
    rows = torch.from_numpy(rng.normal(size=(200, 192))).float()
    rows /= rows.norm(dim=1, keepdim=True)
    assert group_new_samples(rows[:40], rows[40:], 160).tolist() == [-1] * 40


def test_patterns_are_found_without_known_samples():
    rows, kind = make_kinds([60, 40], seed=4)
    groups = group_new_samples(rows, rows[:0], 0)
    assert (groups[kind == 0] == 0).mean() > 0.9
    assert (groups[kind == 1] == 1).mean() > 0.9


def test_the_size_of_a_pattern_is_that_among_all_and_not_among_the_drawn(monkeypatch):
    rows, kind = make_kinds([140, 60, 100], seed=3)
    monkeypatch.setattr(new_patterns, "MAX_GROUPED", 100)  # half of the new samples
    groups = group_new_samples(rows[kind < 2], rows[kind == 2], 100, min_size=45)
    for number in (0, 1):
        assert (groups[kind[kind < 2] == number] == number).mean() > 0.9
    groups = group_new_samples(rows[kind < 2], rows[kind == 2], 100, min_size=100)
    assert groups.max() == 0


def test_few_new_samples_are_seen_among_five_hundred_known_ones(monkeypatch):
    rows, _ = make_kinds([10, 400, 400])
    seen = []
    find = new_patterns.find_neighborhoods

    def note(rows, *others):
        seen.append(len(rows))
        return find(rows, *others)

    monkeypatch.setattr(new_patterns, "find_neighborhoods", note)
    group_new_samples(rows[:10], rows[10:], 800)
    assert seen == [510]  # five per new one would be 50
