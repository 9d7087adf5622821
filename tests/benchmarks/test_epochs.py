"""Refinements of the same clusterings, compared over epochs."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.epochs import WAYS, compare, describe, follow
from hf_plr import PseudoLabelRefiner


def test_ways_refine_the_same_clusterings():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 5, 150)
    centers = rng.normal(size=(5, 8))
    rows = [torch.from_numpy(centers[truth] + rng.normal(size=(150, 8))).float() for _ in range(8)]
    found = compare(rows, truth, 10, seed=0)
    assert list(found) == list(WAYS)
    assert all(0.0 < value <= 1.0 for scores in found.values() for value in scores.values())
    assert len({tuple(scores.values()) for scores in found.values()}) > len(WAYS) // 2  # ties are for chance to say
    table = describe(found).splitlines()
    assert len(table) == 2 + len(WAYS)
    assert table[2].startswith("| consensus, 3 epochs alike | 0.")


def test_scores_are_of_the_labels_that_come_out():
    truth = np.repeat([0, 1, 2], 20)
    refiner = PseudoLabelRefiner.from_preset("nested", n_clusters=3, n_levels=1)
    found = follow(refiner, [np.stack([truth] * 3, axis=1)] * 6, truth)
    assert found == dict.fromkeys(found, 1.0)
