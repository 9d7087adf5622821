"""P x K batches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_plr.pseudo_labels.sampler import ClusterSampler, LengthSampler


@given(st.integers(1, 200), st.integers(1, 9), st.integers(1, 12), st.integers(0, 5))
def test_length_groups_and_noise(n_samples, group_size, n_clusters, seed):
    targets = np.random.default_rng(seed).integers(-1, n_clusters, n_samples)
    targets[0] = 0
    sampler = ClusterSampler(n_samples, group_size, seed)
    sampler.set_targets(targets, epoch=1)
    drawn = np.array(list(sampler))
    assert len(drawn) == n_samples == len(sampler)
    assert (targets[drawn] >= 0).all()
    members = np.flatnonzero(targets >= 0)
    one_pass = drawn[: len(members)]
    assert sorted(one_pass) == members[: len(one_pass)].tolist() or len(members) > n_samples


def test_groups_are_of_one_cluster():
    targets = np.repeat(np.arange(6), [8, 8, 12, 4, 8, 24])
    sampler = ClusterSampler(64, 4, seed=1)
    sampler.set_targets(targets, epoch=0)
    groups = targets[np.array(list(sampler))].reshape(-1, 4)
    assert (groups == groups[:, :1]).all()


def test_small_clusters_are_not_drawn_at_the_cost_of_others():
    targets = np.arange(1000) // 2
    sampler = ClusterSampler(1000, 4, seed=1)
    sampler.set_targets(targets, epoch=0)
    assert sorted(sampler) == list(range(1000))


def test_every_member_is_drawn_about_once():
    targets = np.repeat(np.arange(10), 40)
    sampler = ClusterSampler(400, 4, seed=0)
    sampler.set_targets(targets, epoch=0)
    assert sorted(sampler) == list(range(400))


def test_a_batch_holds_many_clusters():
    targets = np.repeat([0, 1, 2, 3], [370, 10, 10, 10])
    sampler = ClusterSampler(400, 2, seed=0)
    sampler.set_targets(targets, epoch=0)
    first_half = targets[np.array(list(sampler))[:200]]
    assert 2 <= (first_half == 1).sum() <= 8


def test_order_follows_seed_and_epoch():
    def order(seed, epoch):
        sampler = ClusterSampler(100, 4, seed)
        sampler.set_targets(np.arange(100) % 7, epoch)
        return list(sampler)

    assert order(0, 3) == order(0, 3)
    assert order(0, 3) != order(0, 4)
    assert order(0, 3) != order(1, 3)


def test_without_targets_it_says_so():
    with pytest.raises(RuntimeError, match="no targets yet"):
        iter(ClusterSampler(10, 2, 0))


def test_samples_of_a_batch_are_of_similar_lengths():
    sampler = LengthSampler(4_000, batch_size=10, seed=0)
    batches = np.array(list(sampler)).reshape(-1, 10)
    spread = np.ptp(batches, axis=1)  # positions in order of lengths
    assert spread.max() <= 5 * 10  # those of four batches are mixed, and a fifth begins
    assert spread.mean() > 10  # neighbours alone would have 9
