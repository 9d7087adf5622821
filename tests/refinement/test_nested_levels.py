"""Several nested levels of one refinement."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from helpers.labels import same_partition
from hypothesis import given
from hypothesis import strategies as st

from hf_plr import PseudoLabelRefiner
from hf_plr.refinement import agglomeration, cooccurrence
from hf_plr.refinement.agglomeration import coassociation

SEEDS = st.integers(0, 2**32 - 1)
WAYS = {
    "nested": {},
    "consensus": {"n_clusters": 3, "min_cluster_size": 1},
    "slr": {},
    "joint": {"n_clusters": "current", "distance_threshold": None},
}


def make(name, n_levels, **options):
    return PseudoLabelRefiner.from_preset(name, **{**WAYS[name], "n_levels": n_levels, **options})


def draw_epochs(seed, n_members, noise=0.1, n_samples=120, n_clusters=12, n_epochs=4):
    """Labels of some epochs, (N,) or (N, M): clusters churn, split and merge, and some samples are noise."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, n_clusters, n_samples)
    epochs = []
    for _ in range(n_epochs):
        shape = (n_samples, n_members)
        labels = np.where(rng.random(shape) < 0.3, rng.integers(0, n_clusters, shape), truth[:, None])
        labels = np.where(rng.random(shape) < noise, -1, labels)
        epochs.append(labels[:, 0] if n_members == 1 else labels)
    return epochs


def levels_of(result):
    return [result, *result.finer]


def assert_nested(levels):
    """Every cluster of a level lies in one of the level before."""
    for coarser, finer in itertools.pairwise(levels):
        labelled = finer >= 0
        assert (coarser[labelled] >= 0).all()
        assert len(set(zip(coarser[labelled], finer[labelled], strict=True))) == len(set(finer[labelled]))


@given(SEEDS, st.sampled_from(sorted(WAYS)), st.integers(2, 4), st.sampled_from([0.0, 0.2]))
def test_levels_are_nested_and_confidences_are_shares(seed, name, n_levels, noise):
    refiner = make(name, n_levels)
    for labels in draw_epochs(seed, 3 if refiner.takes_members else 1, noise):
        result = refiner.refine(labels)
        assert len(result.finer) == n_levels - 1
        assert_nested([level.labels for level in levels_of(result)])
        for level in levels_of(result):
            assert 0.0 <= level.confidence.min() <= level.confidence.max() <= 1.0
            assert (level.confidence[level.labels < 0] == 0.0).all()
            np.testing.assert_array_equal(level.cells.labels[level.cell_of_sample()], level.labels)
        assert [level.cells for level in result.finer] == list(result.cells.finer)
        assert {level.changed_share for level in levels_of(result)[:1]} == {levels_of(result)[-1].changed_share}


@given(SEEDS, st.sampled_from(sorted(WAYS)), st.integers(2, 3))
def test_a_level_is_what_its_number_of_clusters_alone_gives(seed, name, n_levels):
    """Exact: nothing of a level depends on the others but where the tree is cut."""
    refiner = make(name, n_levels, n_clusters="current", min_cluster_size=1)
    *before, labels = draw_epochs(seed, 3 if refiner.takes_members else 1, noise=0.1)
    for each in before:
        refiner.refine(each)
    alone = PseudoLabelRefiner(**{**refiner.settings(), "n_levels": 1})
    alone.load_state_dict({key: value for key, value in refiner.state_dict().items() if not key.startswith("finer")})
    found = levels_of(refiner.refine(labels))
    n_current = len(found[0].table.current_ids)
    for level, n in zip(found, [round(n_current / 2**i) for i in range(n_levels)[::-1]], strict=True):
        alone.n_clusters = max(n, 1)
        expected = alone.refine_cells(level.table)
        assert same_partition(expected.labels[expected.table.locate(*level._labelings)], level.labels)
        np.testing.assert_array_equal(expected.confidence, level.cells.confidence)


@given(SEEDS, st.sampled_from(sorted(WAYS)))
def test_names_of_the_clusters_change_nothing(seed, name):
    one, other = make(name, 3), make(name, 3)
    rng = np.random.default_rng(seed)
    for labels in draw_epochs(seed, 3 if one.takes_members else 1, noise=0.1):
        names = np.append(rng.permutation(40), -1)
        first, second = one.refine(labels), other.refine(names[labels])
        for level, renamed in zip(levels_of(first), levels_of(second), strict=True):
            assert same_partition(level.labels, renamed.labels)
            np.testing.assert_array_equal(level.labels < 0, renamed.labels < 0)
            np.testing.assert_allclose(level.confidence, renamed.confidence, atol=1e-12)


@given(SEEDS, st.integers(1, 4))
def test_numbers_of_every_level_live_on(seed, n_members):
    """The same samples under other names: clusters of every level keep their numbers, and events say so."""
    refiner = make("nested", 3, min_cluster_size=1)
    rng = np.random.default_rng(seed)
    labels = np.stack([rng.integers(0, 8, 60) for _ in range(n_members)], axis=1)
    for _ in range(3):
        before = refiner.refine(labels)
    now = refiner.refine(rng.permutation(30)[labels])
    for last, level in zip(levels_of(before), levels_of(now), strict=True):
        np.testing.assert_array_equal(last.labels, level.labels)
        assert level.events.counts()["kept"] == len(np.unique(level.labels))


def test_an_example_by_hand():
    """Four clusters of the finest level, which pairs of members join, and these another member."""
    finest = np.repeat(np.arange(4), 5)
    labels = np.stack([finest, finest // 2, finest // 2, finest * 0], axis=1)
    result = PseudoLabelRefiner.from_preset("nested").refine(labels)
    np.testing.assert_array_equal(result.labels, finest * 0)
    np.testing.assert_array_equal(result.finer[0].labels, finest // 2)
    np.testing.assert_array_equal(result.finer[1].labels, finest)
    # A sample is with 4 others of its cluster in all labelings, with 5 in three, with 10 in one.
    np.testing.assert_allclose(result.finer[1].confidence, 1.0)
    np.testing.assert_allclose(result.finer[0].confidence, (4 + 5 * 3 / 4) / 9)
    np.testing.assert_allclose(result.confidence, (4 + 5 * 3 / 4 + 10 / 4) / 19)
    assert result.changed_share == 0.0
    two = PseudoLabelRefiner.from_preset("nested", n_clusters=2).refine(labels)
    counts = [len(np.unique(level.labels)) for level in (two, *two.finer)]
    assert counts == [2, 4, 4]  # no finer than the current clustering


@pytest.mark.parametrize("name", sorted(WAYS))
def test_state_goes_to_another_refiner(name):
    one, other = make(name, 3), make(name, 3)
    epochs = draw_epochs(0, 3 if one.takes_members else 1, n_epochs=6)
    for labels in epochs[:3]:
        one.refine(labels)
    other.load_state_dict({key: value.copy() for key, value in one.state_dict().items()})
    for labels in epochs[3:]:
        for ours, theirs in zip(levels_of(one.refine(labels)), levels_of(other.refine(labels)), strict=True):
            np.testing.assert_array_equal(ours.labels, theirs.labels)
            np.testing.assert_array_equal(ours.confidence, theirs.confidence)
            assert ours.events == theirs.events


def test_damaged_state_is_refused():
    refiner = make("nested", 3)
    for labels in draw_epochs(1, 3):
        refiner.refine(labels)
    state = refiner.state_dict()
    assert {"finer.1", "finer.2"} < set(state)
    with pytest.raises(ValueError, match="state holds 3 levels, but n_levels=2 here"):
        make("nested", 2).load_state_dict(state)
    with pytest.raises(ValueError, match=r"finer\.1"):
        make("nested", 3).load_state_dict({key: value for key, value in state.items() if key != "finer.1"})
    with pytest.raises(ValueError, match=r"lengths \[20, 120\]"):
        make("nested", 3).load_state_dict({**state, "finer.2": state["finer.2"][:20]})


def test_an_earlier_run_is_continued_in_the_coarsest_level():
    rng = np.random.default_rng(0)
    last = np.repeat([4, 9, 17, 2], 30)
    refiner = PseudoLabelRefiner.from_preset("nested", n_clusters=4)
    refiner.continue_from(last, 3, next_number=40)
    finest = 4 * rng.permutation(4).repeat(30) + np.arange(120) % 4
    result = refiner.refine(np.stack([finest, finest // 2, finest // 2], axis=1))
    np.testing.assert_array_equal(result.labels, last)
    assert_nested([level.labels for level in levels_of(result)])
    state = PseudoLabelRefiner.from_preset("nested", n_clusters=4)
    state.continue_from(last, 3, next_number=40)
    assert "finer.1" not in state.state_dict()


@pytest.mark.parametrize("name", ["nested", "slr"])
def test_levels_stay_nested_where_cells_are_too_many(monkeypatch, name):
    monkeypatch.setattr(coassociation, "MAX_PAIRS", 30_000)
    monkeypatch.setattr(agglomeration, "SMALL", 0)
    monkeypatch.setattr(agglomeration, "MAX_RELATED_PAIRS", 0)
    monkeypatch.setattr(agglomeration, "FOLDED", 50)
    refiner = make(name, 3, max_cells=30)
    for labels in draw_epochs(2, 4 if refiner.takes_members else 1, n_samples=1500, n_epochs=3):
        result = refiner.refine(labels)
        assert_nested([level.labels for level in levels_of(result)])
    assert not result.exact
    assert not any(level.exact for level in result.finer)
    assert len(np.unique(result.labels)) < len(np.unique(result.finer[-1].labels))


def test_what_makes_no_sense_is_refused():
    for options in (
        {"assignment": "argmax"},
        {"assignment": "soft"},
        {"n_clusters": None, "distance_threshold": 0.5},
    ):
        with pytest.raises(ValueError, match="n_levels=2 needs assignment='hierarchical' and a number of clusters"):
            PseudoLabelRefiner(n_levels=2, **options)
    with pytest.raises(ValueError, match="n_levels=0 must be an integer of at least 1"):
        PseudoLabelRefiner(n_levels=0)


def test_one_level_has_no_finer_ones():
    labels = np.arange(20) % 4
    result = PseudoLabelRefiner().refine(labels)
    assert result.finer == ()
    assert PseudoLabelRefiner().refine_cells(cooccurrence(labels, labels)).finer == ()


def test_numbers_of_coarser_levels_are_rounded():
    refiner = PseudoLabelRefiner(n_clusters="current", n_levels=3)
    table = cooccurrence(np.arange(7), np.arange(7))
    assert [cut.n_clusters for cut in refiner._cuts(table)] == [2, 4, 7]  # of 1.75, 3.5 and 7
