"""What lives on from call to call: numbers, events, generations, state, files."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.labels import churned, label_pairs, refined, same_partition
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score

from hf_plr import PseudoLabelRefiner
from hf_plr.refinement import ClusterEvents, cooccurrence


def kept_as_it_is(*epochs):
    """Refine by nothing, so that events and numbers are those of the labels themselves."""
    refiner = PseudoLabelRefiner.from_preset("none")
    return [refiner.refine(np.array(labels)) for labels in epochs][-1]


@pytest.mark.parametrize(
    ("previous", "current", "kind", "before", "after"),
    [
        ([0, 0, 0, 1, 1], [4, 4, 4, 7, 7], "kept", 1, 1),
        ([0] * 9 + [1] * 3, [0] * 5 + [1] * 4 + [2] * 3, "split", 1, 2),
        ([0] * 5 + [1] * 4 + [2] * 3, [0] * 9 + [1] * 3, "merged", 2, 1),
        ([0, 0, 0, -1, -1], [0, 0, 0, 1, 1], "born", 0, 1),
        ([0, 0, 0, 1, 1], [0, 0, 0, -1, -1], "died", 1, 0),
        ([0] * 7 + [1] * 5, [0] * 3 + [1] * 9, "reshaped", 2, 2),
    ],
)
def test_each_kind_of_event(previous, current, kind, before, after):
    events = kept_as_it_is(previous, current).events
    (event,) = events.of_kind(kind) if kind != "kept" else events.of_kind(kind)[:1]
    assert (len(event.previous), len(event.current)) == (before, after)
    samples = np.isin(kept_as_it_is(previous, current).labels, event.current) if after else np.array(previous) == 1
    assert event.samples == samples.sum()
    assert f"{kind}={events.counts()[kind]}" in repr(events)


@given(label_pairs)
def test_every_cluster_is_in_one_event(pair):
    previous, current = pair
    refiner = PseudoLabelRefiner(min_cluster_size=1)
    first = refiner.refine(previous)
    result = refiner.refine(current)
    assert isinstance(result.events, ClusterEvents)
    for labels, clusters in (
        (first.labels, [i for event in result.events for i in event.previous]),
        (result.labels, [i for event in result.events for i in event.current]),
    ):
        assert sorted(clusters) == np.unique(labels[labels >= 0]).tolist()
    assert sum(e.samples for e in result.events if e.current) == (result.labels >= 0).sum()
    with pytest.raises(ValueError, match="kind='lost'"):
        result.events.of_kind("lost")


def test_first_numbers_go_by_size_and_then_by_first_member():
    result = kept_as_it_is([7, 3, 3, 9, 9, 7, 5, 5, 5])
    np.testing.assert_array_equal(result.labels, [1, 2, 2, 3, 3, 1, 0, 0, 0])


@given(label_pairs, st.sampled_from(["refined", "raw"]))
def test_a_number_passes_only_to_the_mutual_best_overlap(pair, carried):
    first, second = pair
    refiner = PseudoLabelRefiner(previous=carried, min_cluster_size=1)
    last = refiner.refine(first).labels
    now = refiner.refine(second).labels
    old = np.unique(last[last >= 0]).tolist()
    for number in np.unique(now[now >= 0]):
        if number in old:
            overlap = np.bincount(last[(now == number) & (last >= 0)], minlength=max(old) + 1)
            assert overlap[number] == overlap.max() > 0


def test_numbers_continue_where_raw_labels_are_carried():
    previous, current = churned(400, 8, 0.1, seed=5)
    refiner = PseudoLabelRefiner.from_preset("joint")
    first = refiner.refine(previous).labels
    second = refiner.refine((current + 3) % 8)
    assert (second.labels == first)[second.labels >= 0].mean() > 0.85
    np.testing.assert_array_equal(second.labels, second.cells.labels[second.table.locate(previous, (current + 3) % 8)])


def test_clusters_do_not_drift_away_when_nothing_changes():
    labels, _ = churned(500, 9, 0.0)
    refiner = PseudoLabelRefiner()
    first = refiner.refine(labels).labels
    for _ in range(5):
        result = refiner.refine(labels)
        np.testing.assert_array_equal(result.labels, first)
    assert result.events.counts()["kept"] == 9


def test_splits_are_undone_and_merges_stay_so_that_counts_drift_down():
    """Forward projection can undo a split, never a merge."""
    halves = np.repeat([0, 1, 2, 3], 50)
    whole = np.repeat([0, 1, 2], [100, 50, 50])
    split = refined(whole, halves, n_clusters=3)
    assert same_partition(split.labels, whole)
    merged = refined(halves, whole, n_clusters=4)
    assert same_partition(merged.labels, whole)


def test_older_generations_outvote_a_single_epoch():
    base = np.repeat([0, 1], 50)
    odd = base.copy()
    odd[:10] = 1
    options = {"space": "joint", "previous": "raw", "weight": 1 / 3, "n_clusters": 2, "generations": 3}
    refiner = PseudoLabelRefiner(**options)
    for labels in (base, base, odd):
        result = refiner.refine(labels)
    assert same_partition(result.labels, base)
    assert result.table.codes.shape[1] == 3
    refiner = PseudoLabelRefiner(**options)
    for labels in (odd, odd, base):
        result = refiner.refine(labels)
    assert same_partition(result.labels, odd)


@pytest.mark.parametrize("preset", ["slr", "soft", "joint", "rlcc", "none"])
def test_shards_refine_to_the_same_as_the_whole(preset):
    previous, current = churned(900, 12, 0.2, seed=8, noise=0.1)
    refiner = PseudoLabelRefiner.from_preset(preset)
    first = refiner.refine(previous)
    carried = first.labels if refiner.previous == "refined" else previous
    shards = [slice(0, 100), slice(100, 550), slice(550, 900)]
    table = sum(cooccurrence(carried[s], current[s], offset=s.start) for s in shards)
    cells = PseudoLabelRefiner.from_preset(preset).refine_cells(table)
    whole = refiner.refine(current)
    for s in shards:
        located = table.locate(carried[s], current[s])
        assert same_partition(cells.labels[located], whole.labels[s])
        np.testing.assert_array_equal(cells.confidence[located], whole.confidence[s])
    with pytest.raises(ValueError, match="table has 2 labelings, but generations=3"):
        PseudoLabelRefiner(space="joint", generations=3).refine_cells(table)


@pytest.mark.parametrize("carried", ["refined", "raw"])
@pytest.mark.parametrize("generations", [2, 4])
def test_state_goes_to_another_refiner(carried, generations):
    options = {"previous": carried, "space": "joint", "generations": generations}
    epochs = [churned(200, 6, 0.3, seed=seed)[1] for seed in range(6)]
    one = PseudoLabelRefiner(**options)
    for labels in epochs[:4]:
        one.refine(labels)
    other = PseudoLabelRefiner(**options)
    other.load_state_dict(one.state_dict())
    for labels in epochs[4:]:
        ours, theirs = one.refine(labels), other.refine(labels)
        np.testing.assert_array_equal(ours.labels, theirs.labels)
        assert ours.events == theirs.events


def test_state_of_another_version_or_length_is_refused():
    labels, _ = churned(200, 6, 0.3)
    one = PseudoLabelRefiner()
    one.refine(labels)
    state = one.state_dict()
    other = PseudoLabelRefiner()
    with pytest.raises(ValueError, match=r"version 99, this release reads version 2"):
        other.load_state_dict({**state, "version": np.array([99])})
    with pytest.raises(ValueError, match="version None"):
        other.load_state_dict({})
    with pytest.raises(ValueError, match=r"lengths \[50, 200\]"):
        other.load_state_dict({**state, "refined": labels[:50]})
    other.refine(labels[:80])
    with pytest.raises(ValueError, match="of 200 samples, but this refiner's last call had 80"):
        other.load_state_dict(state)
    deep = PseudoLabelRefiner(space="joint", generations=4)
    for _ in range(3):
        deep.refine(labels)
    with pytest.raises(ValueError, match="holds 4 generations, but generations=2"):
        PseudoLabelRefiner(space="joint").load_state_dict(deep.state_dict())
    fresh = PseudoLabelRefiner()
    fresh.load_state_dict(state)
    with pytest.raises(ValueError, match="100 labels, but the last call had 200"):
        fresh.refine(labels[:100])


def test_memory_mapped_labels_give_the_same_and_are_not_copied(tmp_path):
    previous, current = churned(1000, 10, 0.3, seed=2, noise=0.05)
    maps = []
    for name, labels in (("previous", previous), ("current", current)):
        np.save(tmp_path / f"{name}.npy", labels.astype(np.int16))
        maps.append(np.load(tmp_path / f"{name}.npy", mmap_mode="r"))
    out = np.lib.format.open_memmap(tmp_path / "out.npy", "w+", np.int32, (1000,))
    refiner = PseudoLabelRefiner()
    refiner.refine(maps[0])
    result = refiner.refine(maps[1], out=out)
    expected = refined(previous, current)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), expected.labels)
    np.testing.assert_array_equal(result.confidence, expected.confidence)
    assert result._labelings[-1] is maps[1]
    with pytest.raises(TypeError, match="out must hold signed integers, not float64"):
        refiner.refine(maps[1], out=np.empty(1000))
    with pytest.raises(ValueError, match="labels that are still in use"):
        refiner.refine(maps[1], out=out)
    with pytest.raises(ValueError, match="labels that are still in use"):
        refiner.refine(out, out=out)
    with pytest.raises(ValueError, match=r"out has shape \(5,\), but there are 1000"):
        refiner.refine(maps[1], out=np.empty(5, dtype=int))


def test_what_the_caller_does_to_its_arrays_later_means_nothing():
    previous, current = churned(100, 5, 0.3)
    expected = refined(previous, current, previous="raw", space="joint")
    refiner = PseudoLabelRefiner(previous="raw", space="joint")
    buffer = previous.copy()
    refiner.refine(buffer)
    buffer[:] = current
    result = refiner.refine(buffer)
    buffer[:] = 0
    np.testing.assert_array_equal(result.labels, expected.labels)
    np.testing.assert_array_equal(result.soft_labels().toarray(), expected.soft_labels().toarray())
    with pytest.raises(ValueError, match="read-only"):
        result.labels[0] = 5


def test_rlcc_lets_similar_previous_clusters_share_their_projections():
    previous = np.repeat([0, 1, 2], 20)
    current = previous.copy()
    refiner = PseudoLabelRefiner.from_preset("rlcc")
    refiner.refine(previous)
    cosines = np.array([[1.0, 0.95, -0.2], [0.95, 1.0, 0.0], [-0.2, 0.0, 1.0]])
    result = refiner.refine(current, centroid_cosines=cosines)
    similar = np.exp(30 * cosines) / np.exp(30 * cosines).sum(axis=1, keepdims=True)
    mixing = 0.9 * np.eye(3) + 0.1 * similar
    np.testing.assert_allclose(result.projection.toarray(), mixing, atol=1e-12)
    np.testing.assert_allclose(result.soft_labels(0, 1).toarray()[0], 0.9 * np.eye(3)[0] + 0.1 * mixing[0])
    np.testing.assert_array_equal(result.labels, current)  # hard labels stay
    with pytest.raises(ValueError, match=r"shape \(2, 2\), but there are 3 previous clusters"):
        refiner.refine(current, centroid_cosines=np.eye(2))
    with pytest.raises(ValueError, match=r"in \[-1, 1\]"):
        refiner.refine(current, centroid_cosines=np.eye(3) * np.nan)
    joint = PseudoLabelRefiner(space="joint")
    joint.refine(previous)
    with pytest.raises(ValueError, match="space='projected'"):
        joint.refine(current, centroid_cosines=np.eye(3))


def test_rlcc_gives_nothing_to_clusters_that_project_nowhere():
    previous = np.array([0, 0, 1, 1])
    refiner = PseudoLabelRefiner.from_preset("rlcc")
    refiner.refine(previous)
    result = refiner.refine(np.array([0, 0, -1, -1]), centroid_cosines=np.ones((2, 2)))
    np.testing.assert_allclose(result.projection.toarray(), [[1.0], [0.0]])
    everything = refiner.refine(np.array([-1, -1, -1, -1]), centroid_cosines=np.ones((1, 1)))
    assert (everything.labels == -1).all()


def test_agreement_of_a_folded_refinement_with_the_exact_one(monkeypatch):
    monkeypatch.setattr("hf_plr.refinement.agglomeration.MAX_RELATED_PAIRS", 0)
    previous, current = churned(20_000, 60, 0.1, seed=2)
    exact = refined(previous, current)
    folded = refined(previous, current, max_cells=200)
    assert (exact.exact, folded.exact) == (True, False)
    assert adjusted_rand_score(exact.labels, folded.labels) > 0.9
