"""Centered features: the common part is gone, the caller's features stay as they are unless they are the output."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from hf_plr.features.centering import center_features


def test_centering_removes_the_common_part_and_leaves_its_input_alone():
    features = torch.randn(50, 8) + 100.0
    before = features.clone()
    centered = center_features(features)
    assert torch.equal(features, before)
    assert centered.part == slice(0, 50)
    assert centered.rows.mean(dim=0).norm() < 0.3
    np.testing.assert_allclose(centered.rows.norm(dim=1), 1.0, atol=1e-5)
    torch.testing.assert_close(centered.center, before.mean(dim=0))
    torch.testing.assert_close(centered.rows, F.normalize(before - before.mean(dim=0), dim=1), atol=1e-4, rtol=1e-4)


def test_centering_can_write_to_its_input():
    features = torch.randn(50, 8) + 100.0
    expected = center_features(features).rows
    centered = center_features(features, out=features)
    assert centered.rows is features
    assert torch.equal(features, expected)
