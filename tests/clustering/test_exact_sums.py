"""Sums by cluster are exact, so that neither order nor process matters."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_plr.clustering.exact_sums import ClusterSums


def sums_of(rows: torch.Tensor, labels: torch.Tensor, n_clusters: int) -> ClusterSums:
    largest = float(rows.abs().max()) if len(rows) else 0.0
    sums = ClusterSums(n_clusters, rows.shape[1], len(rows), largest, rows.device)
    sums.add(rows, labels)
    return sums


@given(st.integers(0, 2**31), st.integers(1, 3000), st.integers(1, 9), st.sampled_from([1e-20, 1e-3, 1.0, 3.7e6]))
def test_order_does_not_matter_and_what_was_added_can_be_taken_out(seed, n, k, scale):
    generator = torch.Generator().manual_seed(seed)
    rows = scale * torch.randn(n, 5, generator=generator)
    labels = torch.randint(-1, k, (n,), generator=generator)
    order = torch.randperm(n, generator=generator)
    one, other = sums_of(rows, labels, k), sums_of(rows[order], labels[order], k)
    assert torch.equal(one.sums, other.sums)
    assert torch.equal(one.counts, torch.bincount(labels[labels >= 0], minlength=k))
    exact = np.zeros((k, 5))
    np.add.at(exact, labels[labels >= 0].numpy(), rows[labels >= 0].double().numpy())
    np.testing.assert_allclose(one.sums.numpy(), exact, atol=1e-8 * scale * n**0.5)
    half = labels.clone()
    half[: n // 2] = -1
    one.add(rows[: n // 2], labels[: n // 2], sign=-1)
    expected = sums_of(rows, half, k)
    assert torch.equal(one.sums, expected.sums)
    assert torch.equal(one.counts, expected.counts)


def test_means_of_nothing_are_zero():
    assert torch.equal(ClusterSums(2, 3, 0, 0.0, torch.device("cpu")).means(), torch.zeros(2, 3).double())
