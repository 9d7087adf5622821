"""Exact searches for neighbours: in tiles, with ties, and as before on small data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_plr.clustering import neighbors
from hf_plr.clustering.neighbors import find_nearest_neighbors, search_gallery
from hf_plr.utils.precision import exact_products


def integers(seed: int, n: int, values: int) -> torch.Tensor:
    """Features whose products are exact, so that equal ones are equal however they are computed, shape (n, 3)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-values, values + 1, (n, 3), generator=generator).float()


@given(
    st.integers(0, 9_999), st.integers(0, 20), st.integers(1, 90), st.integers(1, 100), st.sampled_from([0, 1, 2, 30])
)
def test_of_equally_similar_samples_the_first_are_found_first(seed, n_queries, n, k, values):
    queries, gallery = integers(seed, n_queries, values), integers(seed + 1, n, values)
    expected = (queries @ gallery.T).sort(dim=1, descending=True, stable=True)
    for width, chunk, block in ((7, 64, 1), (8, 4, 40), (64, 2, 1 << 20), (1 << 14, 1, 200)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(neighbors, "TILE_COLUMNS", width)
            patch.setattr(neighbors, "CHUNK_COLUMNS", chunk)
            patch.setattr(neighbors, "BLOCK_ELEMENTS", block)
            similarities, positions = search_gallery(queries, gallery, k)
        assert torch.equal(similarities, expected.values[:, :k])
        assert torch.equal(positions, expected.indices[:, :k])


@given(st.integers(0, 9_999), st.integers(13, 90), st.integers(1, 90), st.sampled_from([0, 1, 2, 30]))
def test_many_samples_find_themselves_first_and_then_the_first_of_equal_ones(seed, n, k, values):
    features = integers(seed, n, values)
    similarities = (features @ features.T).fill_diagonal_(torch.inf)
    expected = similarities.sort(dim=1, descending=True, stable=True).indices[:, :k]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbors, "FULL_ROWS", 12)
        patch.setattr(neighbors, "TILE_COLUMNS", 12)
        patch.setattr(neighbors, "CHUNK_COLUMNS", 3)
        patch.setattr(neighbors, "BLOCK_ELEMENTS", 20)
        found = find_nearest_neighbors(features, min(k, n))
    np.testing.assert_array_equal(found, expected.numpy())


@given(st.integers(0, 9_999), st.integers(1, 90), st.integers(1, 90), st.sampled_from([0, 1, 2, 30]))
def test_few_samples_find_the_first_of_equal_ones_as_many_do(seed, n, k, values):
    features = integers(seed, n, values)
    similarities = (features @ features.T).fill_diagonal_(torch.inf)
    expected = similarities.sort(dim=1, descending=True, stable=True).indices[:, :k]
    np.testing.assert_array_equal(find_nearest_neighbors(features, min(k, n)), expected.numpy())


@pytest.mark.parametrize("n", [5, 900, 5001])
def test_few_samples_are_searched_in_blocks_of_full_rows_and_the_first_of_equal_ones_are_found(n):
    features = torch.nn.functional.normalize(torch.randn(n, 8, generator=torch.Generator().manual_seed(n)), dim=1)
    features[n // 2 :] = features[: n - n // 2].clone()
    height, expected = max(1, 2**24 // n), []
    for start in range(0, n, height):
        with exact_products(features.device):
            similarities = features[start : start + height] @ features.T
        rows = torch.arange(len(similarities))
        similarities[rows, rows + start] = torch.inf
        expected.append(similarities.sort(dim=1, descending=True, stable=True).indices[:, :5])
    np.testing.assert_array_equal(find_nearest_neighbors(features, 5), torch.cat(expected))


def test_a_gallery_beyond_one_tile_is_searched_as_by_float64():
    generator = torch.Generator().manual_seed(0)
    queries, gallery = torch.randn(40, 24, generator=generator), torch.randn(20_000, 24, generator=generator)
    similarities, positions = search_gallery(queries, gallery, 20)
    expected = (queries.double() @ gallery.double().T).topk(20, dim=1)
    torch.testing.assert_close(similarities.double(), expected.values, rtol=1e-5, atol=1e-5)
    assert (positions == expected.indices).float().mean() > 0.999
    found = find_nearest_neighbors(gallery, 3)
    assert (found[:, 0] == np.arange(20_000)).all()
    nearest = (gallery[:40].double() @ gallery.double().T).fill_diagonal_(torch.inf).topk(3, dim=1).indices
    np.testing.assert_array_equal(found[:40], nearest)


def test_a_gallery_without_samples_is_refused():
    with pytest.raises(ValueError, match="k=3 and the 0 samples of the gallery must be at least 1"):
        search_gallery(torch.ones(2, 4), torch.ones(0, 4), 3)
