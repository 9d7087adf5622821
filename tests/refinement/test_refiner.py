"""The refiner against independent implementations on all samples, and the facts that follow from the method."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.cluster.hierarchy import fcluster, linkage
from sklearn.metrics import adjusted_rand_score

from hf_plr import PseudoLabelRefiner

label_pairs = st.integers(1, 60).flatmap(
    lambda n: st.tuples(*(arrays(np.int64, n, elements=st.integers(-1, 6)) for _ in range(2)))
)


def refined(previous, current, **options):
    refiner = PseudoLabelRefiner(**options)
    refiner.refine(np.asarray(previous))
    return refiner.refine(np.asarray(current))


def churned(n, k, rate, seed=0, noise=0.0):
    """Labels of two epochs: a share `rate` of the samples moves to a random cluster, a share becomes noise."""
    rng = np.random.default_rng(seed)
    previous = rng.integers(0, k, n)
    current = np.where(rng.random(n) < rate, rng.integers(0, k, n), previous)
    previous = np.where(rng.random(n) < noise, -1, previous)
    return previous, np.where(rng.random(n) < noise, -1, current)


def same_partition(a, b):
    return adjusted_rand_score(a, b) == 1.0


def dense_soft_labels(previous, current, weight, normalize, noise):
    """Steps 1 to 3 by loops over samples and clusters."""
    previous_ids = sorted(set(previous) - {-1})
    current_ids = sorted(set(current) - {-1})
    iou = np.zeros((len(previous_ids), len(current_ids)))
    for i, a in enumerate(previous_ids):
        for j, b in enumerate(current_ids):
            both = sum((p == a) and (c == b) for p, c in zip(previous, current, strict=True))
            either = sum((p == a) or (c == b) for p, c in zip(previous, current, strict=True))
            iou[i, j] = both / either
    totals = iou.sum(axis=1, keepdims=True) if normalize == "row" else iou.sum(axis=0, keepdims=True)
    projection = np.divide(iou, totals, out=np.zeros_like(iou), where=totals > 0)
    rows = np.zeros((len(current), len(current_ids)))
    for i, (a, b) in enumerate(zip(previous, current, strict=True)):
        from_previous = projection[previous_ids.index(a)] if a != -1 else np.zeros(len(current_ids))
        if b == -1:
            rows[i] = from_previous if noise == "project" else 0
        else:
            onehot = np.eye(len(current_ids))[current_ids.index(b)]
            rows[i] = weight * onehot + (1 - weight) * from_previous if from_previous.any() else onehot
    return projection, rows


@pytest.mark.parametrize("normalize", ["row", "column"])
@pytest.mark.parametrize("noise", ["project", "drop"])
def test_projection_and_blend_equal_plain_loops(normalize, noise):
    previous, current = churned(150, 7, 0.4, noise=0.15)
    current[previous == 3] = -1  # a previous cluster that is all noise now: its row is empty
    result = refined(previous, current, weight=0.3, normalize=normalize, noise=noise)
    # The refiner's previous labels are its own numbers of the first call, so compare without the order of rows.
    projection, rows = dense_soft_labels(previous, current, 0.3, normalize, noise)
    np.testing.assert_allclose(result.soft_labels().toarray(), rows, atol=1e-12)
    np.testing.assert_allclose(np.sort(result.projection.toarray(), axis=0), np.sort(projection, axis=0), atol=1e-12)
    np.testing.assert_allclose(result.soft_labels(10, 20).toarray(), rows[10:20], atol=1e-12)


@pytest.mark.parametrize("method", ["average", "ward", "complete", "single"])
@pytest.mark.parametrize("n_clusters", [9, 5, 2])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_same_partition_as_scipy_on_all_samples(method, n_clusters, noise):
    previous, current = churned(600, 9, 0.25, seed=4, noise=noise)
    result = refined(previous, current, weight=0.45, linkage=method, n_clusters=n_clusters, min_cluster_size=1)
    rows = result.soft_labels().toarray()
    known = rows.any(axis=1)
    expected = fcluster(linkage(rows[known], method), n_clusters, "maxclust")
    if method == "complete":  # unrelated clusters tie exactly, and scipy breaks such ties by sample order
        assert adjusted_rand_score(expected, result.labels[known]) > 0.75
    else:
        assert same_partition(expected, result.labels[known])
    assert (result.labels[~known] == -1).all()


@pytest.mark.parametrize("method", ["average", "ward", "complete", "single"])
def test_heights_equal_scipy_where_weights_matter(method):
    from hf_plr.refinement import weighted_linkage

    rng = np.random.default_rng(0)
    points = rng.normal(size=(25, 4))
    weights = rng.integers(1, 30, 25)
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    ours = weighted_linkage(distances, weights, method)[:, 2]
    everybody = linkage(np.repeat(points, weights, axis=0), method)[:, 2]
    np.testing.assert_allclose(ours, everybody[-24:], atol=1e-9)
    if method in ("average", "ward"):  # without the weights the heights would be others
        assert np.abs(linkage(points, method)[:, 2] - ours).max() > 1e-3


def test_cut_by_distance_equals_scipy():
    previous, current = churned(500, 8, 0.3, seed=1)
    for threshold in (0.05, 0.3, 0.6):
        result = refined(
            previous, current, n_clusters=None, distance_threshold=threshold, weight=0.4, min_cluster_size=1
        )
        expected = fcluster(linkage(result.soft_labels().toarray(), "average"), threshold, "distance")
        assert same_partition(expected, result.labels)


def test_noise_cases():
    previous = np.array([0, 0, 0, -1, 1, 1, 1, -1])
    current = np.array([0, 0, -1, 0, 1, 1, 1, -1])
    rows = refined(previous, current).soft_labels().toarray()
    np.testing.assert_allclose(rows[3], [1, 0])  # b after noise: the current cluster alone
    np.testing.assert_allclose(rows[2], [1, 0])  # noise after a: what a projects
    np.testing.assert_allclose(rows[7], [0, 0])  # noise after noise
    assert refined(previous, current).labels[2] == refined(previous, current).labels[0]
    assert refined(previous, current).labels[7] == -1
    assert refined(previous, current, noise="drop").labels[2] == -1


def test_argmax_changes_nothing_above_one_half():
    previous, current = churned(400, 10, 0.5)
    assert same_partition(refined(previous, current, weight=0.51, harden="argmax", min_cluster_size=1).labels, current)
    low = refined(previous, current, weight=0.2, harden="argmax", min_cluster_size=1).labels
    assert not same_partition(low, current)


def test_distances_scale_with_the_weight():
    # Cluster 0 splits in halves; the rest stays, so that the cells' rows are easy to write down.
    previous = np.array([0] * 20 + [1] * 20)
    current = np.array([0] * 10 + [1] * 10 + [2] * 20)
    for weight in (0.2, 0.5, 0.9):
        rows = refined(previous, current, weight=weight).soft_labels().toarray()
        assert np.linalg.norm(rows[0] - rows[10]) == pytest.approx(weight * np.sqrt(2))


def test_a_merge_stays_in_the_projected_space_and_is_undone_in_the_joint_space():
    previous = np.array([0] * 30 + [1] * 30 + [2] * 30)
    current = np.array([0] * 60 + [1] * 30)
    projected = refined(previous, current, n_clusters=3)
    assert len(np.unique(projected.labels)) == 2
    joint = refined(previous, current, space="joint", n_clusters=3)
    assert same_partition(joint.labels, previous)


def test_clusters_keep_their_numbers():
    previous = np.repeat([0, 1, 2], [30, 40, 50])
    refiner = PseudoLabelRefiner()
    first = refiner.refine(previous).labels
    renamed = np.array([7, 100, 3])[previous]  # the clusterer's ids mean nothing
    renamed[:2] = 3
    second = refiner.refine(renamed).labels
    assert (second == first).mean() > 0.98
    born = renamed.copy()
    born[-20:] = 55
    third = refiner.refine(born).labels
    assert (third[:100] == second[:100]).mean() > 0.95


@given(label_pairs)
@settings(deadline=None, max_examples=60)
def test_names_and_order_mean_nothing(pair):
    previous, current = pair
    result = refined(previous, current)
    names = np.array([11, 3, 500, 7, 2, 0, 9999, -1])  # the last entry serves label -1
    assert same_partition(refined(names[previous], names[current]).labels, result.labels)
    order = np.random.default_rng(0).permutation(len(current))
    shuffled = refined(previous[order], current[order])
    np.testing.assert_allclose(shuffled.soft_labels().toarray(), result.soft_labels().toarray()[order], atol=1e-12)


def test_the_order_of_the_samples_means_nothing():
    # Without exact ties between clusters, that is: those go to the cluster that comes first.
    previous, current = churned(2000, 12, 0.3, seed=3, noise=0.05)
    order = np.random.default_rng(0).permutation(2000)
    assert same_partition(refined(previous, current).labels[order], refined(previous[order], current[order]).labels)


@given(label_pairs)
@settings(deadline=None, max_examples=60)
def test_results_are_well_formed(pair):
    previous, current = pair
    for preset in ("slr", "joint", "soft", "none"):
        refiner = PseudoLabelRefiner.from_preset(preset)
        refiner.refine(previous)
        result = refiner.refine(current)
        assert result.labels.shape == current.shape
        assert result.labels.min() >= -1
        assert ((result.confidence >= 0) & (result.confidence <= 1)).all()
        assert 0.0 <= result.changed_share <= 1.0
        rows = result.soft_labels().sum(axis=1)
        assert (rows < 1 + 1e-9).all()


@given(arrays(np.int64, 40, elements=st.integers(0, 4)))
@settings(deadline=None, max_examples=40)
def test_the_same_labels_twice_give_the_same_partition(labels):
    permuted = (labels + 3) % 5
    result = refined(labels, permuted, min_cluster_size=1)
    assert same_partition(result.labels, labels)
    assert result.changed_share == 0.0
    np.testing.assert_allclose(result.confidence, 1.0)


def test_weight_one_is_the_current_and_weight_zero_what_the_previous_projects():
    previous, current = churned(300, 6, 0.3)
    assert same_partition(refined(previous, current, weight=1.0, min_cluster_size=1).labels, current)
    rows = refined(previous, current, weight=0.0).soft_labels().toarray()
    for cluster in np.unique(previous):
        assert np.ptp(rows[previous == cluster], axis=0).max() < 1e-12


def test_edge_cases_have_defined_results():
    assert (refined([-1] * 5, [-1] * 5).labels == -1).all()
    assert (refined([0] * 5, [0] * 5).labels == 0).all()
    assert same_partition(refined([0] * 6, [0, 0, 0, 1, 1, 1], min_cluster_size=1).labels, [0, 0, 0, 1, 1, 1])
    assert (refined([10**12] * 4, [5 * 10**15] * 4).labels == 0).all()
    assert refined([0], [0], min_cluster_size=1).labels.tolist() == [0]


def test_small_clusters_become_noise():
    result = refined([0] * 9 + [1], [0] * 9 + [1], min_cluster_size=2)
    assert result.labels[-1] == -1
    assert result.confidence[-1] == 0.0


def test_too_many_cells_are_folded_and_said_to_be():
    previous, current = churned(3000, 40, 0.2, seed=2)
    exact = refined(previous, current)
    folded = refined(previous, current, max_cells=300)
    assert exact.exact
    assert not folded.exact
    assert adjusted_rand_score(exact.labels, folded.labels) > 0.9


def test_state_goes_to_another_refiner():
    previous, current = churned(200, 6, 0.3)
    one = PseudoLabelRefiner(previous="raw")
    one.refine(previous)
    other = PseudoLabelRefiner(previous="raw")
    other.load_state_dict(one.state_dict())
    np.testing.assert_array_equal(one.refine(current).labels, other.refine(current).labels)
    state = one.state_dict()
    state["version"] = np.array([99])
    with pytest.raises(ValueError, match="version 99"):
        other.load_state_dict(state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": 1.5}, r"weight=1.5 is outside \[0, 1\]"),
        ({"weight": float("nan")}, "weight=nan"),
        ({"space": "both"}, "space='both' is unknown: use one of projected, joint"),
        ({"linkage": "median"}, "linkage='median'"),
        ({"n_clusters": None}, "exactly one of them"),
        ({"distance_threshold": 0.5}, "exactly one of them"),
        ({"n_clusters": 0}, "n_clusters=0"),
        ({"n_clusters": None, "distance_threshold": -1.0}, "distance_threshold=-1.0"),
        ({"min_cluster_size": 0}, "min_cluster_size=0"),
        ({"harden": "argmax", "space": "joint"}, "needs space='projected'"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        PseudoLabelRefiner(**options)


def test_bad_labels_are_named():
    refiner = PseudoLabelRefiner()
    with pytest.raises(TypeError, match="float64"):
        refiner.refine(np.array([0.0, 1.0]))
    with pytest.raises(ValueError, match="empty"):
        refiner.refine(np.array([], dtype=int))
    with pytest.raises(ValueError, match="-2"):
        refiner.refine(np.array([0, -2]))
    with pytest.raises(ValueError, match="shape"):
        refiner.refine(np.zeros((2, 2), dtype=int))
    refiner.refine(np.arange(5))
    with pytest.raises(ValueError, match="6 labels, but the last call had 5"):
        refiner.refine(np.arange(6))
    with pytest.raises(ValueError, match="joint, none, slr"):
        PseudoLabelRefiner.from_preset("paper")


def test_refinement_needs_neither_torch_nor_transformers():
    code = (
        "import sys, hf_plr.refinement; from hf_plr import PseudoLabelRefiner; "
        "print(sorted({'torch', 'transformers', 'accelerate', 'datasets'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "[]"
