"""How much each epoch counts in the joint space."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score

from hf_plr import PseudoLabelRefiner
from hf_plr.refinement import cooccurrence
from hf_plr.refinement.generations import agree_with_current, share_among_parts

seeds = st.integers(0, 2**32 - 1)


def draw_epochs(seed, n_samples=80, n_members=3, n_epochs=3, noise=0.1):
    """Labelings of some epochs, the oldest first, each of shape (N, M), that have a partition in common."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 5, n_samples)
    shape = (n_epochs, n_samples, n_members)
    labels = np.where(rng.random(shape) < 0.4, rng.integers(0, 5, shape), truth[:, None])
    return np.where(rng.random(shape) < noise, -1, labels)


def arrange(epochs):
    """The order of a table: further labelings of the oldest epoch first, then the current clusterings."""
    return [*(further for epoch in epochs for further in epoch.T[1:]), *(epoch[:, 0] for epoch in epochs)]


def agreement_of_pairs(first, second):
    is_in_both = (first >= 0) & (second >= 0)
    return adjusted_rand_score(first[is_in_both], second[is_in_both])


@given(seeds, st.integers(3, 4))
def test_agreement_is_that_of_the_further_labelings_as_they_are_defined(seed, n_members):
    epochs = draw_epochs(seed, n_members=n_members)
    *earlier, current = epochs[:, :, 1:]
    among_each_other = np.mean([agreement_of_pairs(a, b) for a, b in itertools.combinations(current.T, 2)])
    expected = [1.0]
    for epoch in earlier[::-1]:
        with_current = np.mean([agreement_of_pairs(a, b) for a, b in zip(epoch.T, current.T, strict=True)])
        expected.append(np.clip(with_current / among_each_other, 0.0, 1.0))
    found = agree_with_current(cooccurrence(*arrange(epochs)), 3)
    np.testing.assert_allclose(found, expected, atol=1e-12)


@given(seeds)
def test_neither_names_nor_shards_change_it(seed):
    epochs = draw_epochs(seed)
    renamed = np.where(epochs < 0, -1, (epochs * 7 + 3) % 31)
    shards = sum(cooccurrence(*arrange(epochs[:, part]), offset=part.start) for part in (slice(0, 30), slice(30, 80)))
    shares = share_among_parts(cooccurrence(*arrange(epochs)), "agreement", 3)
    for table in (cooccurrence(*arrange(renamed)), shards):
        np.testing.assert_array_equal(share_among_parts(table, "agreement", 3), shares)
    assert shares.sum() == pytest.approx(1.0)


def test_an_epoch_with_the_same_labelings_counts_as_the_current_one_and_an_unrelated_one_does_not():
    rng = np.random.default_rng(0)
    current = draw_epochs(0, n_samples=2000, noise=0.0)[0]
    unrelated = rng.integers(0, 5, current.shape)
    missing = np.full(current.shape, -1)
    found = agree_with_current(cooccurrence(*arrange([missing, unrelated, current, current])), 4)
    assert found[:2] == pytest.approx([1.0, 1.0])
    assert 0.0 <= found[2] < 0.1
    assert found[3] == 0.0


@pytest.mark.parametrize("n_members", [1, 2])
def test_where_nothing_tells_how_much_labelings_differ_the_index_counts_as_it_is(n_members):
    epochs = draw_epochs(1, n_members=n_members, noise=0.0)
    expected = [adjusted_rand_score(epoch[:, -1], epochs[-1][:, -1]) for epoch in epochs[::-1]]
    found = agree_with_current(cooccurrence(*arrange(epochs)), 3)
    np.testing.assert_allclose(found, np.clip(expected, 0.0, 1.0), atol=1e-12)


def test_samples_that_an_epoch_does_not_know_do_not_lower_its_agreement():
    epochs = draw_epochs(2, n_samples=400, noise=0.0)
    known = np.where(np.arange(400)[:, None] < 200, epochs[0], -1)
    half = [epochs[0][:200], epochs[1][:200], epochs[2][:200]]
    found = agree_with_current(cooccurrence(*arrange([known, *epochs[1:]])), 3)
    of_half = agree_with_current(cooccurrence(*arrange(half)), 3)
    assert found[2] == pytest.approx(of_half[2], abs=0.1)


def test_votes_of_an_unrelated_epoch_are_not_heard():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, 300)

    def labelings():
        return np.stack([np.where(rng.random(300) < 0.1, rng.integers(0, 4, 300), truth) for _ in range(5)], axis=1)

    def found(weight):
        refiner = PseudoLabelRefiner.from_preset("nested", weight=weight, n_clusters=4, n_levels=1, min_cluster_size=10)
        for others in unrelated:
            refiner.refine(others)
        return adjusted_rand_score(refiner.refine(current).labels, truth)

    unrelated = [rng.permutation(truth)[:, None].repeat(5, axis=1) for _ in range(4)]
    current = labelings()
    assert found("agreement") > 0.9
    assert found(None) < 0.5


def test_agreement_needs_the_joint_space():
    with pytest.raises(ValueError, match="weight='agreement' and space='projected'"):
        PseudoLabelRefiner(weight="agreement")
    with pytest.raises(ValueError, match="weight='disagreement'"):
        PseudoLabelRefiner.from_preset("consensus", weight="disagreement")
