"""Members of an ensemble: they differ from each other and from epoch to epoch, and repeat themselves otherwise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from sklearn.cluster import AgglomerativeClustering

from hf_plr import KMeans, ReciprocalDBSCAN, ReciprocalHDBSCAN
from hf_plr.clustering import make_ensemble
from hf_plr.clustering.ensemble import MEMBERS, FreshKMeans


@pytest.fixture
def rows():
    return F.normalize(torch.randn(240, 8, generator=torch.Generator().manual_seed(0)), dim=1)


def cluster(ensemble, rows, epoch):
    return ensemble.fit_predict_shard(rows, epoch, Accelerator(cpu=True))


def test_members_are_twice_as_fine_and_differ(rows):
    members = cluster(FreshKMeans(KMeans(10), len(rows), seed=0), rows, epoch=0)
    assert len(members) == MEMBERS
    assert {labels.dtype for labels in members} == {np.dtype(np.int32)}  # three epochs of them are remembered
    assert [len(np.unique(labels)) for labels in members] == [20] * MEMBERS
    assert len({labels.tobytes() for labels in members}) == MEMBERS


def test_they_follow_seed_and_epoch_alone(rows):
    first, again, other_epoch, other_seed = (
        np.stack(cluster(FreshKMeans(KMeans(10), len(rows), seed), rows, epoch))
        for seed, epoch in ((0, 3), (0, 3), (0, 4), (1, 3))
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other_epoch).any()
    assert (first != other_seed).any()


def test_few_samples_make_coarser_members():
    assert FreshKMeans(KMeans(10), 30, seed=0).n_clusters == 15
    assert FreshKMeans(KMeans(10), 12, seed=0).n_clusters == 10  # never coarser than what is sought


def test_many_samples_are_fitted_on_a_part(monkeypatch, rows):
    seen = []

    def fit(self, rows, accelerator):
        seen.append(self.fit_samples)
        return np.zeros(len(rows), np.int64)

    monkeypatch.setattr(KMeans, "fit_predict_shard", fit)
    cluster(FreshKMeans(KMeans(3), 384, seed=0, n_members=1), rows, epoch=0)
    cluster(FreshKMeans(KMeans(10), 1281, seed=0, n_members=1), rows, epoch=0)
    assert seen == [None, 1280]


def test_each_clusterer_has_the_ensemble_that_fits_it():
    own = make_ensemble(KMeans(10, max_iter=3, fit_samples=40), 300, seed=4)
    assert (own.n_clusters, own.kmeans.max_iter, own.fit_samples) == (20, 3, 40)
    density = make_ensemble(ReciprocalDBSCAN(eps=0.4, k1=8), 300, seed=0)
    assert [each.eps for each in density.clusterers] == pytest.approx([0.34, 0.46])
    assert {each.k1 for each in density.clusterers} == {8}
    lax = [each.eps for each in make_ensemble(ReciprocalDBSCAN(eps=0.95), 300, 0).clusterers]
    assert lax == pytest.approx([0.85 * 0.95, 0.975])  # at 1 all samples would be one cluster
    assert make_ensemble(ReciprocalHDBSCAN(), 300, seed=0) is None
    assert make_ensemble(AgglomerativeClustering(3), 300, seed=0) is None


def test_density_members_take_samples_in_and_leave_them_out(rows):
    own = ReciprocalDBSCAN(eps=0.6, k1=12)
    labels = own.fit_predict(rows)
    strict, lax = cluster(make_ensemble(own, len(rows), seed=0), rows, epoch=0)
    assert (strict == -1).sum() > (labels == -1).sum() > (lax == -1).sum()


def test_an_epoch_has_four_fresh_members(rows):
    assert len(cluster(FreshKMeans(KMeans(3), len(rows), seed=0), rows, epoch=0)) == 4
