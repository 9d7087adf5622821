"""Labels of an earlier run: their numbers go on, and none is given twice."""

from __future__ import annotations

import contextlib
import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_plr.refinement import PseudoLabelRefiner, cooccurrence

NAMES = ("slr", "joint", "consensus", "soft", "rlcc", "none")
LAST = np.repeat([4, 9, 17, 2], 30)


def permuted(labels, seed):
    """The same clusters under other ids."""
    ids = np.unique(labels)
    return np.random.default_rng(seed).permutation(len(ids))[np.searchsorted(ids, labels)]


@pytest.mark.parametrize("name", NAMES)
def test_the_first_call_continues_the_numbers_of_an_earlier_run(name):
    refiner = PseudoLabelRefiner.from_preset(name)
    refiner.continue_from(LAST, 1, next_number=40)
    found = refiner.refine(permuted(LAST, 0))
    np.testing.assert_array_equal(found.labels, LAST)
    assert found.events.counts()["kept"] == 4
    assert refiner.next_number == 40


@pytest.mark.parametrize("name", ["slr", "none"])
def test_new_clusters_begin_at_the_next_number_and_that_of_a_dead_one_is_for_its_samples_alone(name):
    refiner = PseudoLabelRefiner.from_preset(name)
    refiner.continue_from(np.concatenate([LAST, np.full(30, -1)]), 1, next_number=40)
    clusters = np.arange(150) // 30
    first = refiner.refine(clusters).labels
    np.testing.assert_array_equal(first, np.concatenate([LAST, np.full(30, 40)]))
    for _ in range(4):  # cluster 4 dies: another one as large takes its samples
        gone = refiner.refine(np.where(clusters == 3, 0, clusters)).labels
    assert set(gone) == {2, 9, 17, 40}
    for _ in range(4):  # and of the same samples it comes back
        back = refiner.refine(clusters).labels
    np.testing.assert_array_equal(back, first)
    other = np.concatenate([clusters[:120], 4 + np.arange(30) // 15])
    for _ in range(4):  # half of a cluster that the earlier run did not have becomes one
        born = refiner.refine(other).labels
    assert set(born) == {4, 9, 17, 2, 40, 41}
    assert refiner.next_number == 42


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(NAMES), st.integers(0, 2**31), st.integers(1, 3))
def test_no_number_is_ever_given_to_two_clusters(name, seed, n_labelings):
    """A number that is gone does not come back, but one of the earlier run to its samples, and new ones only grow."""
    refiner = PseudoLabelRefiner.from_preset(name)
    n_labelings = n_labelings if refiner.takes_members else 1
    rng = np.random.default_rng(seed)
    last = rng.integers(-1, 8, 90) * 3
    last[last < 0] = -1
    refiner.continue_from(last, n_labelings, next_number=30)
    gone, seen = set(range(30)) - set(last.tolist()), set(last.tolist()) | {-1}
    current = last.copy()
    for _ in range(6):
        moved = rng.random(90) < rng.choice([0.05, 0.5, 0.95])
        current = np.where(moved, rng.integers(-1, rng.integers(2, 9), 90), current)
        several = np.stack([current, *(rng.integers(0, 20, 90) for _ in range(n_labelings - 1))], axis=1)
        labels = set(refiner.refine(current if n_labelings == 1 else several).labels.tolist())
        assert not (labels & gone) - set(last.tolist())  # those of the earlier run return to its samples
        assert all(number >= 30 for number in labels - seen)
        gone |= seen - labels - {-1}
        seen |= labels
        assert max(labels) < refiner.next_number


@pytest.mark.parametrize("name", ["slr", "none", "consensus"])
def test_numbers_stay_with_the_samples_of_the_earlier_run_while_clusters_exchange_them(name):
    """Two clusters exchange a sample at each call, until each has those of the other."""
    last = np.repeat([4, 9], 30)
    refiner = PseudoLabelRefiner.from_preset(name)
    refiner.continue_from(last, 1, next_number=40)
    labels = [refiner.refine(np.repeat([0, 1], 30)).labels]
    for step in range(1, 31):
        now = np.concatenate([np.where(np.arange(30) < step, 1, 0), np.where(np.arange(30) < step, 0, 1)])
        labels.append(refiner.refine(now).labels.copy())
    for _ in range(3):
        labels.append(refiner.refine(now).labels)
    np.testing.assert_array_equal(labels[0], last)
    np.testing.assert_array_equal(labels[-1], last)  # by the names from epoch to epoch it would be the other way round


def test_a_cluster_that_drifted_away_gets_a_new_number():
    refiner = PseudoLabelRefiner.from_preset("none")
    last = np.concatenate([np.full(20, 7), np.full(20, -1)])
    refiner.continue_from(last, 1, next_number=10)
    for start in range(0, 21, 4):  # a window that moves from the known samples to new ones
        inside = (np.arange(40) >= start) & (np.arange(40) < start + 20)
        found = refiner.refine(np.where(inside, 0, -1)).labels
    assert set(found[20:]) == {10}
    assert refiner.refine(np.repeat([1, 0], 20)).labels.tolist() == [7] * 20 + [10] * 20


def test_a_number_above_those_in_use_is_needed():
    with pytest.raises(ValueError, match="next_number=17 must be above the labels, but 17 is among them"):
        PseudoLabelRefiner().continue_from(LAST, 1, next_number=17)
    with pytest.raises(ValueError, match="3 labelings an epoch need space='joint'"):
        PseudoLabelRefiner().continue_from(LAST, 3, next_number=18)
    refiner = PseudoLabelRefiner()
    refiner.continue_from(LAST, 1, next_number=18)
    with pytest.raises(ValueError, match="7 labels, but the last call had 120"):
        refiner.refine(np.zeros(7, int))


@pytest.mark.parametrize("name", NAMES)
def test_shards_and_a_restored_state_give_the_same_labels(name):
    rng = np.random.default_rng(3)
    epochs = [np.where(rng.random(120) < 0.2, rng.integers(-1, 7, 120), LAST % 7) for _ in range(5)]
    whole = PseudoLabelRefiner.from_preset(name)
    whole.continue_from(LAST, 1, next_number=40)
    halves = [slice(0, 50), slice(50, 120)]
    parts = [PseudoLabelRefiner.from_preset(name) for _ in halves]
    for part, half in zip(parts, halves, strict=True):
        part.continue_from(LAST[half], 1, next_number=40)
    for number, labels in enumerate(epochs):
        expected = whole.refine(labels).labels
        tables: dict[int, list] = {}
        found = _refine_in_shards(parts, [labels[half] for half in halves], halves, tables)
        np.testing.assert_array_equal(np.concatenate(found), expected)
        assert {part.next_number for part in parts} == {whole.next_number}
        if number == 2:
            restored = PseudoLabelRefiner.from_preset(name)
            restored.load_state_dict({key: value.copy() for key, value in whole.state_dict().items()})
            assert restored.next_number == whole.next_number
            whole = restored


def _refine_in_shards(parts, labels, halves, tables):
    """What each shard's refiner finds; a first round collects the tables of each call, a second one adds them up."""
    rounds: list[list] = []
    while True:
        found, asked = [], []
        for part, own, half in zip(parts, labels, halves, strict=True):
            calls: list = []

            def add(table, calls=calls):
                calls.append(table)
                if len(calls) <= len(rounds):
                    return sum(rounds[len(calls) - 1])
                raise _Waits

            refiner = copy.deepcopy(part)
            with contextlib.suppress(_Waits):
                found.append((refiner, refiner.refine(own, offset=half.start, add_shards=add).labels))
            asked.append(calls)
        if len(found) == len(parts):
            for part, (refiner, _) in zip(parts, found, strict=True):
                vars(part).update(vars(refiner))
            return [each for _, each in found]
        rounds.append([calls[len(rounds)] for calls in asked])


class _Waits(Exception):
    """A shard waits for the tables of the others."""


def test_the_first_run_takes_the_lowest_numbers_and_knows_the_highest():
    refiner = PseudoLabelRefiner()
    refiner.refine([0, 0, 1, 1, 2, 2])
    assert refiner.next_number == 3
    refiner.refine([0, 0, 0, 0, 0, 0])
    assert refiner.refine([0, 0, 5, 5, 6, 6]).labels.max() <= 2
    assert refiner.next_number == 3
    older = {name: value for name, value in refiner.state_dict().items() if name != "numbers"}
    restored = PseudoLabelRefiner()
    restored.load_state_dict(older)
    assert restored.next_number == int(older["refined"].max()) + 1
    assert len(cooccurrence(older["refined"], older["refined"])) > 0


def test_the_labels_of_an_earlier_run_or_of_a_finer_level_are_not_overwritten(tmp_path):
    last = np.lib.format.open_memmap(tmp_path / "last.npy", "w+", np.int64, (40,))
    last[:] = np.repeat([5, 6, 7, 8], 10)
    labels = np.repeat(np.arange(4), 10)
    refiner = PseudoLabelRefiner(previous="raw")
    refiner.continue_from(last, 1, 20)
    refiner.refine(labels)
    with pytest.raises(ValueError, match="out holds labels that are still in use"):
        refiner.refine(np.where(labels == 1, 0, labels), out=last)
    assert last[::10].tolist() == [5, 6, 7, 8]

    nested = PseudoLabelRefiner(n_levels=2)
    nested.refine(labels)
    finer = nested.refine(labels).finer[0].labels
    with pytest.raises(ValueError, match="out holds labels that are still in use"):
        nested.refine(labels, out=finer)


def test_refused_labels_of_an_earlier_run_leave_the_refiner_as_it_was():
    refiner = PseudoLabelRefiner(previous="raw")
    refiner.continue_from(LAST, 1, 30)
    refiner.refine(LAST % 3)
    before = refiner.state_dict()
    for labels, n_labelings, error in (
        (np.full(120, 99), 1, ValueError),
        (LAST, 2, ValueError),
        (np.full(120, 0.5), 1, TypeError),
        (np.stack([LAST, LAST], axis=1), 1, ValueError),
    ):
        with pytest.raises(error):
            refiner.continue_from(labels, n_labelings, 50)
        after = refiner.state_dict()
        assert before.keys() == after.keys()
        for name in before:
            np.testing.assert_array_equal(before[name], after[name])
    refiner.continue_from(np.arange(7), 1, 50)  # of other samples
    assert refiner.next_number == 50
