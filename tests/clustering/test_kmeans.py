"""k-means against scikit-learn's, its warm start, and its edges."""

from __future__ import annotations

import contextlib
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.cluster import KMeans as SklearnKMeans
from sklearn.datasets import make_blobs
from sklearn.exceptions import NotFittedError
from sklearn.metrics import adjusted_rand_score
from torch.overrides import TorchFunctionMode

from hf_plr import KMeans
from hf_plr.clustering.exact_sums import ClusterSums, get_exact_device, to_exact
from hf_plr.clustering.rows import Rows, assign_rows
from hf_plr.clustering.seeding import draw_seeds
from hf_plr.clustering.streamed_kmeans import fit_stream
from hf_plr.clustering.whitening import map_rows
from hf_plr.utils.precision import exact_products


@pytest.fixture
def blobs():
    return make_blobs(2000, n_features=16, centers=20, cluster_std=2.5, random_state=0)[0].astype(np.float32)


def test_equals_sklearn_from_the_same_start(blobs):
    start = blobs[:20]
    ours = KMeans(20, init=start, spherical=False, max_iter=300, tol=0).fit(blobs)
    theirs = SklearnKMeans(20, init=start, n_init=1, algorithm="lloyd", max_iter=300, tol=0).fit(blobs)
    assert adjusted_rand_score(ours.labels_, theirs.labels_) == 1.0
    assert ours.inertia_ == pytest.approx(theirs.inertia_, rel=1e-4)
    np.testing.assert_allclose(ours.cluster_centers_.numpy(), theirs.cluster_centers_, atol=1e-3)


def test_chunks_change_nothing(blobs, monkeypatch):
    whole = KMeans(20, seed=1).fit_predict(blobs)
    monkeypatch.setattr("hf_plr.clustering.rows.BLOCK_SCORES", {"cpu": 20 * 77})
    monkeypatch.setattr("hf_plr.clustering.exact_sums.BLOCK_ROWS", 50)
    np.testing.assert_array_equal(KMeans(20, seed=1).fit_predict(blobs), whole)


def test_warm_start_takes_fewer_iterations_and_keeps_the_ids(blobs):
    kmeans = KMeans(20, spherical=False, tol=1e-6)
    first, cold = kmeans.fit_predict(blobs), kmeans.n_iter_
    moved = blobs + np.random.default_rng(0).normal(scale=0.05, size=blobs.shape).astype(np.float32)
    second = kmeans.fit_predict(moved)
    assert kmeans.n_iter_ < cold
    assert (first == second).mean() > 0.95  # the very same ids, not just the same partition


def test_same_seed_same_labels_and_tensors_do_as_arrays(blobs):
    one = KMeans(15, seed=3).fit_predict(blobs)
    np.testing.assert_array_equal(one, KMeans(15, seed=3).fit_predict(torch.from_numpy(blobs)))
    np.testing.assert_array_equal(one, KMeans(15, seed=3).fit(blobs).predict(blobs))


@pytest.mark.parametrize(("distances", "expected"), [(1 << 30, 64 * 20), (20 * 300, 300), (1, 20)])
def test_many_clusters_are_seeded_on_fewer_samples_each(blobs, monkeypatch, distances, expected):
    seen = []
    monkeypatch.setattr("hf_plr.clustering.kmeans.SEEDING_DISTANCES", distances)
    monkeypatch.setattr(
        "hf_plr.clustering.kmeans.draw_seeds", lambda rows, *args: seen.append(len(rows)) or draw_seeds(rows, *args)
    )
    assert len(np.unique(KMeans(20, seed=0).fit_predict(blobs))) == 20
    assert seen == [expected]


def test_no_cluster_is_empty_even_with_a_bad_start(blobs):
    start = np.vstack([blobs[:5], np.full((15, 16), 1e3, dtype=np.float32)])
    labels = KMeans(20, init=start, spherical=False).fit_predict(blobs)
    assert len(np.unique(labels)) == 20


def test_duplicates_and_extreme_cluster_counts():
    same = np.ones((10, 4), dtype=np.float32)
    assert KMeans(1).fit_predict(same).tolist() == [0] * 10
    assert KMeans(3).fit_predict(same).shape == (10,)
    distinct = np.eye(6, dtype=np.float32)
    assert sorted(KMeans(6).fit_predict(distinct).tolist()) == list(range(6))


@pytest.mark.parametrize("spherical", [True, False])
def test_zero_and_nearly_identical_features_have_defined_results(spherical):
    zeros = np.zeros((12, 4), dtype=np.float32)
    assert KMeans(3, spherical=spherical).fit(zeros).labels_.shape == (12,)
    near = np.full((50, 8), 0.3, dtype=np.float32)
    near += np.random.default_rng(0).normal(scale=1e-7, size=near.shape).astype(np.float32)
    kmeans = KMeans(5, spherical=spherical).fit(near)
    assert np.isfinite(kmeans.cluster_centers_.numpy()).all()
    assert 0 <= kmeans.inertia_ < 1e-3
    np.testing.assert_array_equal(KMeans(5, spherical=spherical).fit_predict(near), kmeans.labels_)


def test_fitting_on_a_sample_assigns_everybody(blobs):
    whole = KMeans(20, seed=0).fit(blobs)
    sampled = KMeans(20, seed=0, fit_samples=500).fit(blobs)
    assert sampled.labels_.shape == (2000,)
    assert sampled.inertia_ < 1.1 * whole.inertia_
    np.testing.assert_array_equal(sampled.predict(blobs), sampled.labels_)
    assert not torch.equal(sampled.cluster_centers_, whole.cluster_centers_)
    more_than_there_are = KMeans(20, seed=0, fit_samples=5000).fit(blobs)
    assert torch.equal(more_than_there_are.cluster_centers_, whole.cluster_centers_)
    with pytest.raises(ValueError, match="fit_samples=10 must be at least n_clusters=20"):
        KMeans(20, fit_samples=10).fit(blobs)


def test_half_precision_features_and_a_device_of_its_own(blobs):
    half = torch.from_numpy(blobs).half()
    expected = KMeans(20, seed=0).fit_predict(half.float())
    np.testing.assert_array_equal(KMeans(20, seed=0, device="cpu").fit_predict(half), expected)
    np.testing.assert_array_equal(KMeans(20, seed=0).fit_predict(half.numpy()), expected)


def test_an_empty_cluster_takes_the_farthest_samples_of_the_largest():
    features = np.array([[0.0], [0.1], [0.2], [0.3], [9.0], [20.0]], dtype=np.float32)
    start = np.array([[0.0], [1e3], [20.0]], dtype=np.float32)
    kmeans = KMeans(3, init=start, spherical=False, max_iter=1).fit(features)
    # First pass: 0.0 takes five samples, 1e3 none. The farthest of the five, 9.0, begins the empty cluster.
    np.testing.assert_allclose(kmeans.cluster_centers_.numpy().ravel(), [0.15, 9.0, 20.0], atol=1e-6)


def test_what_processes_send_for_empty_clusters_is_small(monkeypatch):
    """Rows that are pickled one by one take all the memory of their tensor with them."""
    rows = np.random.default_rng(0).normal(size=(2000, 64)).astype(np.float32)
    start = np.vstack([rows[:40], np.full((400, 64), 1e3, dtype=np.float32)])
    sent = []
    monkeypatch.setattr(
        "hf_plr.clustering.empty_clusters.gather_objects",
        lambda _, item: sent.append(len(pickle.dumps(item))) or [item],
    )
    kmeans = KMeans(440, init=start, spherical=False, max_iter=1).fit(rows)
    assert len(np.unique(kmeans.labels_)) == 440
    assert 400 * 8 < max(sent) < 400 * 64 * 4  # less than the rows themselves


def test_few_rows_are_never_multiplied_alone():
    """Products of one row, on some processors of up to three, have a kernel of their own, and so other bits."""
    rows = torch.nn.functional.normalize(torch.randn(4_097, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    assert len(rows[4_096:]) == 1  # what blocks of 4,096 leave
    heights = []

    class Heights(TorchFunctionMode):
        def __torch_function__(self, function, types, arguments=(), keywords=None):
            if function in (torch.mm, torch.Tensor.matmul, torch.Tensor.__matmul__):
                heights.append(len(arguments[0]))
            return function(*arguments, **(keywords or {}))

    matrix, last = torch.eye(8), Rows(rows[-1:], True, None)
    with Heights():
        mapped, (_, scores) = map_rows(rows, matrix), assign_rows(last, rows[:60])
    assert len(mapped) == 4_097
    assert len(scores) == 1
    assert min(heights) == 16
    assert heights.count(16) == 2
    torch.testing.assert_close(mapped, rows)
    torch.testing.assert_close(scores, (rows[-1:] @ rows[:60].T).max(dim=1).values - 0.5)


@pytest.mark.parametrize("spherical", [True, False])
def test_blocks_of_one_height_give_the_same(blobs, monkeypatch, spherical):
    expected = KMeans(20, spherical=spherical).fit(blobs)
    monkeypatch.setattr("hf_plr.clustering.blocks.LOWEST_BLOCKS", {})
    monkeypatch.setattr("hf_plr.clustering.rows.BLOCK_SCORES", {})
    monkeypatch.setattr("hf_plr.clustering.rows.LARGEST_BLOCK_ROWS", 300)
    heights = set()
    read = Rows._read

    def record(self, span, height):
        block = read(self, span, height)
        heights.add(len(block))
        return block

    monkeypatch.setattr(Rows, "_read", record)
    padded = KMeans(20, spherical=spherical).fit(blobs)
    assert heights == {300}  # 2,000 is no multiple
    np.testing.assert_array_equal(padded.labels_, expected.labels_)
    torch.testing.assert_close(padded.cluster_centers_, expected.cluster_centers_)


class NoFloat64(TorchFunctionMode):
    """Raises TypeError where float32 becomes float64 or float64 changes its device, but inside `allowed`."""

    def __init__(self) -> None:
        super().__init__()
        self.is_allowed = False

    @contextlib.contextmanager
    def allowed(self):
        self.is_allowed = True
        yield
        self.is_allowed = False

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        dtypes = {value.dtype for value in args if isinstance(value, torch.Tensor)}
        is_double = isinstance(result, torch.Tensor) and result.dtype == torch.float64
        is_refused = torch.float32 in dtypes or function is torch.Tensor.to
        if is_double and is_refused and not self.is_allowed:
            raise TypeError(f"{function} gives float64")
        return result


@pytest.mark.parametrize("spherical", [True, False])
def test_a_device_without_float64_is_asked_for_none(blobs, monkeypatch, spherical):
    assert get_exact_device(torch.device("mps")) == torch.device("cpu")
    assert get_exact_device(torch.device("cuda", 1)) == torch.device("cuda", 1)
    mode = NoFloat64()
    with exact_products(torch.device("cpu")):
        pass  # its trial on the CPU takes place once

    def convert(values):
        with mode.allowed():
            return to_exact(values)

    add = ClusterSums.add

    def add_allowed(self, *args, **kwargs):  # its sums are where float64 is
        with mode.allowed():
            add(self, *args, **kwargs)

    for module in ("kmeans", "seeding"):
        monkeypatch.setattr(f"hf_plr.clustering.{module}.to_exact", convert)
    monkeypatch.setattr("hf_plr.clustering.exact_sums.ClusterSums.add", add_allowed)
    with mode:
        with pytest.raises(TypeError, match="float64"):
            torch.ones(1).double()
        KMeans(20, spherical=spherical).fit(blobs)
        KMeans(20, init=np.vstack([blobs[:10], np.full((10, 16), 1e3)]), spherical=spherical).fit(blobs)


@pytest.fixture
def tf32_allowed():
    settings = torch.backends.cuda.matmul
    if not hasattr(settings, "fp32_precision"):
        pytest.skip("torch before 2.9")
    before, settings.fp32_precision = settings.fp32_precision, "tf32"
    yield
    settings.fp32_precision = before


@pytest.mark.parametrize("init", ["k-means++", "array"])
def test_products_are_exact_whatever_the_run_allows(blobs, monkeypatch, tf32_allowed, init):
    """Each product is made where a GPU's would be in float32, also where TF32 is on."""
    seen = []

    class Products(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function in (torch.mm, torch.matmul, torch.addmm, torch.Tensor.matmul, torch.Tensor.__matmul__):
                seen.append(torch.backends.cuda.matmul.fp32_precision)
            return function(*args, **(kwargs or {}))

    for module in ("kmeans", "seeding"):
        monkeypatch.setattr(
            f"hf_plr.clustering.{module}.exact_products", lambda _: exact_products(torch.device("cuda"))
        )
    with Products():
        kmeans = KMeans(20, init=blobs[:20] if init == "array" else init).fit(blobs)
        kmeans.predict(blobs)
    assert len(seen) > kmeans.n_iter_
    assert set(seen) == {"ieee"}
    assert torch.backends.cuda.matmul.fp32_precision == "tf32"


def test_is_a_scikit_learn_estimator(blobs):
    copy = clone(KMeans(7, seed=5).fit(blobs))
    assert copy.get_params()["n_clusters"] == 7
    assert not hasattr(copy, "cluster_centers_")


def test_state_carries_the_warm_start(blobs):
    one = KMeans(20, seed=0)
    one.fit(blobs)
    other = KMeans(20, seed=99)
    other.load_state_dict(one.state_dict())
    np.testing.assert_array_equal(one.fit_predict(blobs + 0.01), other.fit_predict(blobs + 0.01))


@pytest.mark.parametrize(
    ("kmeans", "features", "message"),
    [
        (KMeans(11), np.ones((10, 2)), "n_clusters=11 but there are 10 samples"),
        (KMeans(2), np.array([[0.0, np.nan], [1, 1]]), "NaN"),
        (KMeans(2), np.ones(10), "shape"),
        (KMeans(2, init="random"), np.ones((10, 2)), "init='random'"),
        (KMeans(2, init=np.ones((3, 2))), np.ones((10, 2)), r"\(3, 2\)"),
    ],
)
def test_bad_input_is_named(kmeans, features, message):
    with pytest.raises(ValueError, match=message):
        kmeans.fit(features)


class Blocks:
    """Rows that are read in blocks of 300."""

    def __init__(self, rows):
        self.rows, self.width, self.device = torch.from_numpy(rows), rows.shape[1], torch.device("cpu")

    def __len__(self):
        return len(self.rows)

    def __iter__(self):
        return iter(self.rows.split(300))

    def take(self, positions):
        return self.rows[positions]


@pytest.mark.parametrize("offset", [0.0, 1e3, 3e3, 1e4])
def test_an_offset_of_all_features_changes_no_cluster(offset):
    features, truth = make_blobs(2000, n_features=32, centers=5, cluster_std=1.0, random_state=0)
    features = (features + offset).astype(np.float32)
    kmeans = KMeans(5, spherical=False).fit(features)
    assert adjusted_rand_score(kmeans.labels_, truth) == 1.0
    means = np.stack([features[kmeans.labels_ == k].mean(axis=0, dtype=np.float64) for k in range(5)])
    np.testing.assert_allclose(kmeans.cluster_centers_.numpy(), means, rtol=1e-6, atol=1e-4)
    inertia = np.square(features - means[kmeans.labels_]).sum()
    assert kmeans.inertia_ == pytest.approx(inertia, rel=1e-4)
    np.testing.assert_array_equal(kmeans.predict(features), kmeans.labels_)
    again = KMeans(5, init=kmeans.cluster_centers_, spherical=False).fit(features)
    np.testing.assert_array_equal(again.labels_, kmeans.labels_)


@pytest.mark.parametrize("fit_samples", [None, 700])
@pytest.mark.parametrize("offset", [0.0, 3e3])
def test_a_stream_has_the_centers_of_all_rows_at_once(blobs, offset, fit_samples):
    rows = blobs + np.float32(offset)
    whole, streamed = (KMeans(20, spherical=False, fit_samples=fit_samples, max_iter=5) for _ in range(2))
    whole.fit(rows)
    fit_stream(streamed, Blocks(rows))
    assert torch.equal(streamed.cluster_centers_, whole.cluster_centers_)
    labels = np.concatenate([streamed.predict(block) for block in np.array_split(rows, 7)])
    np.testing.assert_array_equal(labels, whole.labels_)


def test_features_of_other_kinds(blobs):
    expected = KMeans(20).fit_predict(blobs)
    np.testing.assert_array_equal(KMeans(20).fit_predict(torch.from_numpy(blobs).requires_grad_()), expected)
    frame = pd.DataFrame(blobs, columns=[f"feature_{i}" for i in range(16)])
    kmeans = KMeans(20).fit(frame)
    np.testing.assert_array_equal(kmeans.labels_, expected)
    np.testing.assert_array_equal(kmeans.predict(frame), expected)
    with pytest.raises(ValueError, match="features are no numbers, but <U1"):
        KMeans(2).fit(np.array([["a", "b"]]))


def test_what_predict_cannot_do_is_named(blobs):
    with pytest.raises(NotFittedError, match="not fitted yet"):
        KMeans(20).predict(blobs)
    kmeans = KMeans(20).fit(blobs)
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="features of 1 samples are NaN or infinite, the first is sample 3"):
            kmeans.predict(np.where(np.arange(9)[:, None] == 3, np.float32(bad), blobs[:9]))
    with pytest.raises(ValueError, match="features have 3 columns, but the centroids have 16"):
        kmeans.predict(blobs[:, :3])


@pytest.mark.parametrize("spherical", [True, False])
def test_features_whose_lengths_are_no_numbers_are_refused(blobs, spherical):
    with pytest.raises(ValueError, match="features of 2000 samples are too large for float32, the first is sample 0"):
        KMeans(20, spherical=spherical).fit(blobs * np.float32(1e25))


def test_no_iteration_leaves_the_start_and_fewer_are_refused(blobs):
    kmeans = KMeans(20, init=blobs[:20], spherical=False, max_iter=0).fit(blobs)
    assert kmeans.n_iter_ == 0
    np.testing.assert_allclose(kmeans.cluster_centers_.numpy(), blobs[:20], atol=1e-5)
    with pytest.raises(ValueError, match="max_iter=-1 must be at least 0"):
        KMeans(20, max_iter=-1).fit(blobs)


@pytest.mark.parametrize("dtype", ["uint16", "uint32", "uint64", "bool", "int8", ">f4", "longdouble"])
@pytest.mark.parametrize("spherical", [True, False])
def test_arrays_of_numpy_that_torch_does_not_take_as_they_are(dtype, spherical):
    rows = np.random.default_rng(0).integers(0, 2, (40, 6)) * (1 if dtype == "bool" else 100)
    expected = KMeans(3, spherical=spherical).fit_predict(rows.astype(np.float32))
    np.testing.assert_array_equal(KMeans(3, spherical=spherical).fit_predict(rows.astype(dtype)), expected)
    backwards = KMeans(3, spherical=spherical).fit_predict(rows.astype(dtype)[::-1])
    np.testing.assert_array_equal(backwards, KMeans(3, spherical=spherical).fit_predict(rows[::-1].astype(np.float32)))


def test_the_tolerance_is_of_the_mean_variance_of_the_features():
    rows = torch.tensor([[0.0, 0, 0, 0], [4.0, 0, 0, 0]])  # variances 4, 0, 0, 0: one on the average
    shifts = {}
    for tol in (0.9, 1.1):
        kmeans = KMeans(1, init=torch.tensor([[3.0, 0, 0, 0]]), spherical=False, tol=tol)  # one away from the mean
        shifts[tol] = kmeans.fit(rows).n_iter_
    assert shifts == {0.9: 2, 1.1: 1}


@pytest.mark.parametrize("dtype", [np.float64, np.int64])
@pytest.mark.parametrize("offset", [1e6, 3e7, 1e9])
def test_features_far_from_zero_keep_the_precision_of_their_type(offset, dtype):
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(3), 50)
    features = (rng.integers(0, 9, (150, 2)) + 40 * truth[:, None] + offset).astype(dtype)
    for arguments in ({}, {"fit_samples": 60}, {"init": features[[0, 50, 100]]}):
        kmeans = KMeans(3, spherical=False, **arguments).fit(features)
        assert len({*zip(truth.tolist(), kmeans.labels_.tolist(), strict=True)}) == 3
        np.testing.assert_array_equal(kmeans.predict(features), kmeans.labels_)
        assert kmeans.cluster_centers_.dtype == torch.float64
        again = KMeans(3, spherical=False)
        again.load_state_dict(kmeans.state_dict())
        np.testing.assert_array_equal(again.fit(features).labels_, kmeans.labels_)
        assert again.n_iter_ <= 2
