"""Whitened features: what whitening is, what shrinkage does, and that blocks and files change nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hf_plr.clustering import whitening
from hf_plr.clustering.whitening import Whitening, draw_rows_to_fit, map_rows, whiten


@pytest.fixture
def rows():
    """Rows whose first two directions hold nearly all of the variance."""
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(800, 12, generator=generator) * torch.tensor([9.0, 5.0, *([1.0] * 10)])
    turn = torch.linalg.qr(torch.randn(12, 12, generator=generator))[0]
    return F.normalize(mixed @ turn, dim=1)


def test_the_covariance_becomes_the_identity(rows):
    matrix = Whitening(rows.double()).matrix(shrinkage=1e-6).double()
    assert torch.equal(matrix, matrix.T)
    mapped = rows.double() @ matrix
    covariance = torch.cov(mapped.T)
    covariance /= covariance.diagonal().mean()
    torch.testing.assert_close(covariance, torch.eye(12, dtype=torch.float64), atol=2e-3, rtol=0)


def test_the_formula(rows):
    covariance = torch.cov(rows.double().T, correction=0)
    values, vectors = torch.linalg.eigh(covariance + 0.3 * covariance.trace() / 12 * torch.eye(12))
    expected = vectors @ torch.diag(values**-0.5) @ vectors.T
    torch.testing.assert_close(
        Whitening(rows.double()).matrix(0.3).double(), expected / expected.abs().max(), atol=2e-5, rtol=0
    )
    torch.testing.assert_close(Whitening(rows.double()).metric(0.3).double(), expected, atol=0, rtol=1e-4)


def test_much_shrinkage_changes_nothing(rows):
    assert torch.allclose(whiten(rows, 1e6), rows, atol=1e-4)
    assert (F.cosine_similarity(whiten(rows, 0.1), rows) < 0.99).any()


def test_mapped_rows_have_unit_length_and_blocks_do_not_matter(rows, monkeypatch):
    expected = whiten(rows, 0.1)
    torch.testing.assert_close(expected.norm(dim=1), torch.ones(800))
    monkeypatch.setattr(whitening, "BLOCK_ROWS", 37)
    out = torch.empty_like(rows)
    assert whiten(rows, 0.1, out=out) is out
    torch.testing.assert_close(out, expected)


def test_rows_are_drawn_where_there_are_many(rows, monkeypatch):
    assert torch.equal(draw_rows_to_fit(rows), rows.double())
    monkeypatch.setattr(whitening, "FIT_ROWS", 100)
    monkeypatch.setattr(whitening, "FIT_ROWS_PER_DIMENSION", 10)
    drawn = draw_rows_to_fit(rows)
    assert drawn.shape == (120, 12)
    assert torch.equal(drawn, draw_rows_to_fit(rows))
    assert np.isin(drawn.numpy()[:, 0], rows.double().numpy()[:, 0]).all()


def test_rows_without_variance_stay_finite():
    rows = F.normalize(torch.ones(20, 4), dim=1)
    assert torch.isfinite(map_rows(rows, Whitening(rows.double()).matrix(0.1))).all()
