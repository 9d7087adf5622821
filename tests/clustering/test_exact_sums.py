"""Sums by cluster are exact, so that neither order nor process matters."""

from __future__ import annotations

import numpy as np
import pytest
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


@pytest.mark.parametrize("n_threads", [1, 2, 5])
def test_other_algorithms_and_any_number_of_threads_give_the_same_bits(n_threads, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(3000, 70, generator=generator)
    labels = torch.randint(-1, 11, (3000,), generator=generator)
    monkeypatch.setattr("hf_plr.clustering.exact_sums.BLOCK_ROWS", 64)
    threads_before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        found = sums_of(rows, labels, 11)
    finally:
        torch.set_num_threads(threads_before)
    on_grid = (rows.double() + found._shift) - found._shift
    assert not torch.equal(on_grid, rows.double())  # the grid does round these
    put = torch.zeros(12, 70, dtype=torch.float64).index_put_((labels % 12,), on_grid, accumulate=True)
    product = torch.nn.functional.one_hot(labels % 12).double().T @ on_grid
    in_order = torch.stack([on_grid[labels == k].sum(dim=0) for k in range(11)])
    for other in (put[:-1], product[:-1], in_order):
        assert torch.equal(found.sums, other)
