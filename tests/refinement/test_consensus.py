"""Consensus of several labelings an epoch: average linkage of the co-association, against dense references."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
from helpers.labels import refined, same_partition
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform
from sklearn.metrics import adjusted_rand_score

from hf_plr import PseudoLabelRefiner
from hf_plr.refinement import cooccurrence
from hf_plr.refinement.agglomeration import Cut, coassociation
from hf_plr.refinement.blending import blend_joint

seeds = st.integers(0, 2**32 - 1)


def noisy_copies(n_samples, n_clusters, n_members, error, seed, noise=0.0, epochs=3):
    """A true clustering, and per epoch some copies of it, shape (N, M), in which a share of the samples strays."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, n_clusters, n_samples)
    shape = (epochs, n_samples, n_members)
    labels = np.where(rng.random(shape) < error, rng.integers(0, n_clusters, shape), truth[:, None])
    return truth, list(np.where(rng.random(shape) < noise, -1, labels))


def consensus(epochs, **options):
    refiner = PseudoLabelRefiner.from_preset("consensus", **options)
    return [refiner.refine(labels) for labels in epochs][-1]


def dense_coassociation(epochs, weight=1 / 3):
    """Weighted share of the labelings in which two samples are together, for all pairs, shape (N, N)."""
    current, earlier = weight, (1 - weight) / 2
    total, shares = 0.0, 0.0
    for share, labels in zip((earlier, earlier, current), epochs, strict=True):
        for member in labels.T:
            if (member >= 0).any():
                total = total + share * ((member[:, None] == member) & (member >= 0))
                shares += share
    return total / shares


def has_ties(similarity):
    """True if average linkage of some samples meets two pairs that are equally near."""
    clusters = [[i] for i in range(len(similarity))]
    while len(clusters) > 1:
        pairs = list(itertools.combinations(range(len(clusters)), 2))
        means = [similarity[np.ix_(clusters[a], clusters[b])].mean() for a, b in pairs]
        best = int(np.argmax(means))
        if means[best] <= 1e-9:
            return False
        if sum(mean > means[best] - 1e-9 for mean in means) > 1 and means[best] < 1 - 1e-9:
            return True
        a, b = pairs[best]
        clusters = [c for i, c in enumerate(clusters) if i not in (a, b)] + [clusters[a] + clusters[b]]
    return False


def cut_tree(similarity, n_clusters=1, threshold=1 - 1e-6):
    """Clusters of scipy's average linkage of all samples; those that nothing relates never merge."""
    n = len(similarity)
    distances = 1 - similarity
    np.fill_diagonal(distances, 0.0)
    tree = linkage(squareform(distances.clip(0), checks=False), "average")
    members = {i: [i] for i in range(n)}
    for row, (a, b, height, _) in enumerate(tree[: n - n_clusters]):
        if height > threshold + 1e-9:
            break
        members[n + row] = members.pop(int(a)) + members.pop(int(b))
    labels = np.empty(n, dtype=int)
    for label, samples in enumerate(members.values()):
        labels[samples] = label
    return labels


@given(seeds, st.integers(2, 9), st.integers(1, 5), st.integers(1, 8), st.sampled_from([0.1, 0.33, 0.5, 0.7, 0.95]))
def test_clusters_are_those_of_scipy_on_all_samples(seed, n_samples, n_members, n_clusters, threshold):
    weight = 419 / 1024
    _, epochs = noisy_copies(n_samples, 3, n_members, 0.5, seed)
    epochs = [np.concatenate([labels, labels[: n_samples // 2]]) for labels in epochs]  # cells of two samples too
    similarity = dense_coassociation(epochs, weight)
    assume(not has_ties(similarity))
    result = consensus(epochs, weight=weight, n_clusters=n_clusters, min_cluster_size=1)
    n_distinct = len(np.unique(np.concatenate(epochs, axis=1), axis=0))
    assert same_partition(result.labels, cut_tree(similarity, min(n_clusters, n_distinct)))
    options = {"n_clusters": None, "distance_threshold": threshold, "min_cluster_size": 1}
    result = consensus(epochs, weight=weight, **options)
    assert same_partition(result.labels, cut_tree(similarity, threshold=threshold))
    assert result.exact


@given(seeds, st.integers(1, 5), st.sampled_from([0.0, 0.3]))
def test_each_merge_is_of_a_nearest_pair_of_clusters(seed, n_members, noise):
    """Also where many pairs are equally near."""
    _, epochs = noisy_copies(25, 4, n_members, 0.4, seed, noise)
    table = cooccurrence(*np.concatenate(epochs, axis=1).T, np.zeros(25, dtype=int))
    soft = blend_joint(table, None, "project")
    clusters = coassociation.CoassociatedClusters(soft, table.counts.astype(float), coassociation.count_votes(soft))
    clusters.merge_until(Cut(1, None))
    merges = clusters.merges
    rows = np.sqrt(soft.rows().toarray())
    sums = (rows @ rows.T) * np.outer(table.counts, table.counts)  # of pairs of samples
    cluster = np.arange(len(table))
    assert len(merges) == len(table) - 1
    for merge in merges.order()[0]:
        ids = np.unique(cluster)
        membership = (cluster[:, None] == ids).astype(float)
        sizes = table.counts @ membership
        means = membership.T @ sums @ membership / np.outer(sizes, sizes)
        np.fill_diagonal(means, -1.0)
        first, second = cluster[merges.first[merge]], cluster[merges.second[merge]]
        assert means[ids == first, ids == second] == pytest.approx(means.max())
        assert merges.heights[merge] == pytest.approx(1 - means.max())
        cluster[cluster == second] = first


@given(seeds, st.integers(2, 9), st.sampled_from([0.3, 0.5, 0.8]))
def test_with_a_threshold_noise_is_that_of_scipy_on_all_samples(seed, n_samples, threshold):
    """A sample that is noise in too many labelings is at most that near to itself, and stays alone."""
    _, epochs = noisy_copies(n_samples, 3, 4, 0.3, seed, noise=0.3)
    epochs = [np.concatenate([labels, labels[: n_samples // 2]]) for labels in epochs]
    similarity = dense_coassociation(epochs, 419 / 1024)
    distinct = np.sort(np.unique(np.concatenate(epochs, axis=1), axis=0, return_index=True)[1])
    assume(not has_ties(similarity[np.ix_(distinct, distinct)]))
    result = consensus(epochs, weight=419 / 1024, n_clusters=None, distance_threshold=threshold)
    expected = cut_tree(similarity, threshold=threshold)
    is_alone = (np.bincount(expected) == 1)[expected]
    np.testing.assert_array_equal(result.labels == -1, is_alone)
    if not is_alone.all():
        assert same_partition(result.labels[~is_alone], expected[~is_alone])


@given(seeds, st.booleans(), st.sampled_from([0.0, 0.3]))
def test_confidence_is_the_mean_coassociation_with_the_others(seed, has_threshold, noise):
    _, epochs = noisy_copies(14, 3, 3, 0.4, seed, noise)
    cut = {"n_clusters": None, "distance_threshold": 0.6} if has_threshold else {"n_clusters": 3}
    result = consensus(epochs, min_cluster_size=1, **cut)
    similarity = dense_coassociation(epochs)
    for i, label in enumerate(result.labels):
        others = np.flatnonzero((result.labels == label) & (np.arange(14) != i))
        expected = similarity[i, others].mean() if len(others) else similarity[i, i]
        assert result.confidence[i] == pytest.approx(0.0 if label == -1 else expected, abs=1e-12)


@given(seeds, st.sampled_from([0.0, 0.2]))
def test_names_of_clusters_and_order_of_further_members_change_nothing(seed, noise):
    _, epochs = noisy_copies(40, 4, 4, 0.4, seed, noise)  # with ties
    rng = np.random.default_rng(seed)
    names = np.append(rng.permutation(30), -1)
    order = [0, *rng.permutation([1, 2, 3])]
    first, second = consensus(epochs), consensus([names[labels][:, order] for labels in epochs])
    assert same_partition(first.labels, second.labels)
    np.testing.assert_array_equal(first.labels == -1, second.labels == -1)
    np.testing.assert_array_equal(first.confidence, second.confidence)


@given(seeds)
def test_order_of_samples_changes_nothing_without_ties(seed):
    _, epochs = noisy_copies(9, 3, 5, 0.5, seed)
    assume(not has_ties(dense_coassociation(epochs, 419 / 1024)))
    order = np.random.default_rng(seed).permutation(9)
    first = consensus(epochs, weight=419 / 1024)
    second = consensus([labels[order] for labels in epochs], weight=419 / 1024)
    assert same_partition(first.labels[order], second.labels)
    np.testing.assert_allclose(first.confidence[order], second.confidence, atol=1e-12)


def test_ties_do_not_chain_clusters_together():
    """Of a chain in which each sample is with the next one in half of the labelings, pairs merge, not all at once."""
    chain = np.arange(8)
    labels = np.stack([chain // 2, (chain + 1) // 2], axis=1)
    result = consensus([labels], n_clusters=None, distance_threshold=0.5, min_cluster_size=1)
    assert np.bincount(result.labels).max() == 2


def test_an_example_by_hand():
    """Four labelings: 0, 1 are together in all, 2 joins them in three, 3, 4 are together in three, 5 is torn."""
    labels = np.array([[0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 0], [0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 2, 3]]).T
    result = consensus([labels])
    np.testing.assert_array_equal(result.labels, [0, 0, 0, 1, 1, 1])
    # 0 is with 1 in 4 labelings and with 2 in 3; 3 is with 4 in 3 and with 5 in 1, as 4 is.
    np.testing.assert_allclose(result.confidence, [7 / 8, 7 / 8, 6 / 8, 4 / 8, 4 / 8, 2 / 8])
    kept = consensus([labels], n_clusters=None, distance_threshold=0.5)
    np.testing.assert_array_equal(kept.labels, [0, 0, 0, 1, 1, -1])
    assert kept.cells.changed_share == pytest.approx(1 / 6)
    wide = consensus([labels], n_clusters=None, distance_threshold=0.75)
    np.testing.assert_array_equal(wide.labels, [0, 0, 0, 1, 1, 1])


def test_a_consensus_repairs_the_errors_of_its_members():
    truth, epochs = noisy_copies(600, 12, 5, 0.3, seed=1)
    result = consensus(epochs)
    assert adjusted_rand_score(truth, epochs[-1][:, 0]) < 0.6
    assert adjusted_rand_score(truth, result.labels) > 0.99
    is_wrong = epochs[-1][:, 0] != truth
    assert result.changed_share == pytest.approx(is_wrong.mean(), abs=0.01)


def test_one_labeling_an_epoch_is_enough():
    truth, epochs = noisy_copies(300, 6, 1, 0.2, seed=2, epochs=5)
    result = consensus(epochs, generations=5)
    assert adjusted_rand_score(truth, result.labels) > adjusted_rand_score(truth, epochs[-1][:, 0])
    flat = consensus([labels[:, 0] for labels in epochs], generations=5)
    np.testing.assert_array_equal(flat.labels, result.labels)
    first = consensus(epochs[:1])
    assert same_partition(first.labels, epochs[0][:, 0])
    assert (first.confidence == 1.0).all()


def test_noise_is_taken_back_in_where_neighbours_agree():
    members = np.tile(np.repeat([0, 1], 6)[:, None], (1, 4))
    members[0] = [-1, 0, 0, 0]  # noise now, and with its neighbours elsewhere
    members[1] = [0, -1, -1, -1]  # noise in most labelings
    members[6] = [-1, -1, 1, 1]  # in half of them
    members[11] = [-1, 2, 3, 4]  # labelled, but with nobody
    for options in ({"n_clusters": None, "distance_threshold": 0.5}, {}):
        result = consensus([members], min_cluster_size=4, **options)
        np.testing.assert_array_equal(result.labels, [0, -1, *[0] * 4, *[1] * 5, -1])
    dropped = consensus([members], noise="drop").labels
    np.testing.assert_array_equal(np.flatnonzero(dropped == -1), [0, 1, 6, 11])
    assert (consensus([np.full((5, 3), -1)]).labels == -1).all()


def test_clusters_that_no_labeling_relates_stay_apart():
    labels = np.repeat([[0, 0], [1, 1], [2, 2]], 4, axis=0)
    assert same_partition(consensus([labels], n_clusters=2).labels, labels[:, 0])
    labels[8:, 0] = -1  # noise now, but a cluster in the other labeling
    result = consensus([labels], n_clusters="current")
    np.testing.assert_array_equal(result.labels, np.repeat([0, 1, 2], 4))


def test_labelings_of_missing_epochs_do_not_count():
    _, (labels, *_) = noisy_copies(60, 5, 6, 0.3, seed=3)
    alone = consensus([labels], n_clusters=None, distance_threshold=0.5)
    twice = consensus([labels, labels], n_clusters=None, distance_threshold=0.5)
    np.testing.assert_array_equal(alone.labels, twice.labels)
    np.testing.assert_allclose(alone.confidence, twice.confidence)


def test_equal_weights_are_those_of_as_many_generations():
    _, epochs = noisy_copies(40, 5, 1, 0.4, seed=9)
    given_weight = consensus(epochs, weight=1 / 3)
    np.testing.assert_array_equal(consensus(epochs).confidence, given_weight.confidence)
    pair = [labels[:, 0] for labels in epochs[:2]]
    np.testing.assert_array_equal(refined(*pair, weight=None).confidence, refined(*pair, weight=0.5).confidence)


def test_weight_shifts_the_consensus_to_the_current_epoch():
    before = np.tile(np.repeat([0, 1], 10)[:, None], (1, 3))
    now = np.tile(np.arange(20)[:, None] % 2, (1, 3))
    assert same_partition(consensus([before, before, now], n_clusters=2).labels, before[:, 0])
    assert same_partition(consensus([before, before, now], n_clusters=2, weight=0.7).labels, now[:, 0])


def test_numbers_persist_and_events_tell_what_happened():
    _, epochs = noisy_copies(800, 10, 3, 0.2, seed=4, epochs=6)
    refiner = PseudoLabelRefiner.from_preset("consensus")
    results = [refiner.refine(labels) for labels in epochs]
    for last, now in itertools.pairwise(results[1:]):
        assert now.events.counts()["kept"] == 10
        assert (last.labels == now.labels).mean() > 0.97
    table = results[-1].table
    assert len(table.current_ids) == 10
    cell = results[-1].cell_of_sample(100, 300)
    np.testing.assert_array_equal(results[-1].cells.labels[cell], results[-1].labels[100:300])
    order = [epochs[e][:, m] for e in (3, 4, 5) for m in (2, 1)] + [epochs[e][:, 0] for e in (3, 4, 5)]
    np.testing.assert_array_equal(table.locate(*(labels[100:300] for labels in order)), cell)
    np.testing.assert_array_equal(results[-1].soft_labels(0, 5).sum(axis=1), pytest.approx(np.ones(5)))
    whole = PseudoLabelRefiner.from_preset("consensus").refine_cells(cooccurrence(*order))
    assert same_partition(whole.labels[whole.table.locate(*order)], results[-1].labels)


@pytest.mark.parametrize("n_members", [1, 4])
def test_state_goes_to_another_refiner(n_members):
    _, epochs = noisy_copies(200, 6, n_members, 0.3, seed=5, epochs=6)
    one, other = (PseudoLabelRefiner.from_preset("consensus") for _ in range(2))
    for labels in epochs[:4]:
        one.refine(labels)
    other.load_state_dict({name: value.copy() for name, value in one.state_dict().items()})
    for labels in epochs[4:]:
        ours, theirs = one.refine(labels), other.refine(labels)
        np.testing.assert_array_equal(ours.labels, theirs.labels)
        np.testing.assert_array_equal(ours.confidence, theirs.confidence)
        assert ours.events == theirs.events


def test_damaged_state_is_refused():
    _, epochs = noisy_copies(50, 4, 3, 0.3, seed=6)
    refiner = PseudoLabelRefiner.from_preset("consensus")
    for labels in epochs:
        refiner.refine(labels)
    state = refiner.state_dict()
    further = [f"history.{age}.{member}" for age in (1, 2) for member in (1, 2)]
    assert set(state) == {"version", "numbers", "refined", "history.1", "history.2", *further}
    fresh = PseudoLabelRefiner.from_preset("consensus")
    with pytest.raises(ValueError, match="damaged: it has 5 labelings of 2 epochs"):
        fresh.load_state_dict({name: value for name, value in state.items() if name != "history.2.1"})
    with pytest.raises(ValueError, match=r"lengths \[20, 50\]"):
        fresh.load_state_dict({**state, "history.1.2": state["history.1.2"][:20]})
    with pytest.raises(ValueError, match=r"history\.2\.1"):
        fresh.load_state_dict({**state, "history.2.1": np.full(50, 0.5)})
    with pytest.raises(ValueError, match="3 labelings an epoch need space='joint', not 'projected'"):
        PseudoLabelRefiner().load_state_dict(state)


def test_what_makes_no_sense_is_refused():
    for name, value in (("space", "projected"), ("assignment", "soft"), ("linkage", "ward")):
        with pytest.raises(ValueError, match=f"metric='coassociation' needs {name}="):
            PseudoLabelRefiner.from_preset("consensus", **{"generations": 2, name: value})
    with pytest.raises(ValueError, match="metric='cosine' is unknown: use one of euclidean, coassociation"):
        PseudoLabelRefiner(metric="cosine")
    with pytest.raises(ValueError, match=r"distance_threshold=1\.0 must be below 1"):
        PseudoLabelRefiner.from_preset("consensus", n_clusters=None, distance_threshold=1.0)
    labels = np.zeros((6, 3), dtype=int)
    with pytest.raises(ValueError, match="3 labelings an epoch need space='joint', not 'projected'"):
        PseudoLabelRefiner().refine(labels)
    with pytest.raises(ValueError, match="3 labelings an epoch need previous='raw', not 'refined'"):
        PseudoLabelRefiner(space="joint").refine(labels)
    refiner = PseudoLabelRefiner.from_preset("consensus")
    with pytest.raises(ValueError, match=r"not \(6, 0\)"):
        refiner.refine(labels[:, :0])
    refiner.refine(labels)
    with pytest.raises(ValueError, match="2 labelings, but the last call had 3"):
        refiner.refine(labels[:, :2])
    refiner.forget()
    refiner.refine(labels[:, :2])
    with pytest.raises(ValueError, match="table has 4 labelings, but generations=3"):
        refiner.refine_cells(cooccurrence(*labels[:, [0, 0, 0, 0]].T))


def test_memory_mapped_members_give_the_same(tmp_path):
    _, epochs = noisy_copies(300, 5, 3, 0.3, seed=7)
    maps = []
    for i, labels in enumerate(epochs):
        np.save(tmp_path / f"{i}.npy", labels.astype(np.int16))
        maps.append(np.load(tmp_path / f"{i}.npy", mmap_mode="r"))
    np.testing.assert_array_equal(consensus(maps).labels, consensus(epochs).labels)


@pytest.mark.parametrize("cut", [{}, {"n_clusters": None, "distance_threshold": 0.6}])
def test_too_many_pairs_are_agglomerated_in_part(monkeypatch, cut):
    truth, epochs = noisy_copies(1500, 12, 4, 0.2, seed=8)
    exact = consensus(epochs, **cut)
    chosen = []
    original = coassociation.CoassociatedClusters.__init__

    def record(self, soft, weights, votes):
        original(self, soft, weights, votes)
        chosen.append((len(weights), self._sums.nnz))

    monkeypatch.setattr(coassociation.CoassociatedClusters, "__init__", record)
    monkeypatch.setattr(coassociation, "MAX_PAIRS", 100_000)
    bounded = consensus(epochs, **cut)
    assert (exact.exact, bounded.exact) == (True, False)
    n_cells, n_pairs = chosen[-1]
    assert 100 < n_cells < 800
    assert n_pairs < 110_000
    assert adjusted_rand_score(exact.labels, bounded.labels) > 0.98
    assert adjusted_rand_score(truth, bounded.labels) > 0.98
    np.testing.assert_array_equal(consensus(epochs, **cut).labels, bounded.labels)
    names = np.random.default_rng(0).permutation(12)
    assert same_partition(consensus([names[labels] for labels in epochs], **cut).labels, bounded.labels)


def test_pairs_of_cells_take_twelve_bytes_each_and_merging_as_much_again_at_most(monkeypatch):
    """Pairs are what a large consensus' memory goes for: their sums in float64, and their names in int32."""
    monkeypatch.setattr(coassociation, "BLOCK", 1 << 14)  # what is looked at together does not count here
    _, epochs = noisy_copies(1500, 3, 4, 0.3, seed=0)
    table = cooccurrence(*np.concatenate(epochs, axis=1).T)
    soft = blend_joint(table, None, "project")
    tracemalloc.start()
    try:
        clusters = coassociation.CoassociatedClusters(soft, table.counts.astype(float), coassociation.count_votes(soft))
        n_pairs = clusters._sums.nnz
        assert n_pairs > 500_000
        assert clusters._sums.data.nbytes + clusters._sums.indices.nbytes == 12 * n_pairs
        tracemalloc.reset_peak()
        clusters.merge_until(Cut(3, None))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(clusters.merges) > 0
    assert peak < 24 * n_pairs


def test_a_cell_beside_the_chosen_ones_joins_as_far_as_the_threshold_allows(monkeypatch):
    monkeypatch.setattr(coassociation, "MAX_PAIRS", 30)
    labels = np.tile(np.repeat([0, 1], 50)[:, None], (1, 4))
    labels[49], labels[50] = [2, 2, 2, 0], [1, 1, 1, 0]
    labels[:49, 3] = np.arange(49) % 7 + 3  # cells of seven samples
    forced = consensus([labels])
    assert not forced.exact
    np.testing.assert_array_equal(forced.labels[51:], forced.labels[50])
    cautious = consensus([labels], n_clusters=None, distance_threshold=0.5)
    assert cautious.labels[49] == -1
    assert cautious.labels[50] == cautious.labels[51]


def test_many_labelings_need_memory_for_the_cases_that_occur():
    rng = np.random.default_rng(0)
    labelings = np.where(rng.random((40, 100)) < 0.2, -1, rng.integers(0, 3, (40, 100)))
    table = cooccurrence(*labelings)
    soft = blend_joint(table, None, "project")
    assert soft.shares_of_case.shape[0] <= 100
    expected = [(labels[:, None] == np.unique(labels[labels >= 0])) / 40 for labels in labelings[::-1]]
    rows = soft.rows(table.locate(*labelings)).toarray()
    np.testing.assert_allclose(rows, np.concatenate(expected, axis=1), atol=1e-15)
