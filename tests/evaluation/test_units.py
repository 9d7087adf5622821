"""Scores of units against hand-worked cases and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import mutual_info_score

from hf_plr.evaluation.units import UNIT_SCORES, score_units


def test_a_hand_worked_table():
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    units = np.array([0, 0, 1, 1, 2, 2, 2, 1])
    scores = score_units(units, labels)
    assert scores["class_purity"] == pytest.approx((2 + 2 + 3) / 8)
    assert scores["cluster_purity"] == pytest.approx((2 + 3) / 8)
    # Given unit 1 (3 of 8 frames) the class has the entropy of (2/3, 1/3), otherwise none; without units it is log 2.
    left = 3 / 8 * -(2 / 3 * np.log(2 / 3) + 1 / 3 * np.log(1 / 3))
    assert scores["pnmi"] == pytest.approx(1 - left / np.log(2))
    assert list(scores) == list(UNIT_SCORES)


@given(st.integers(1, 300), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_scores_are_those_of_the_frames_that_have_both(n, n_units, n_labels, seed):
    rng = np.random.default_rng(seed)
    units, labels = rng.integers(-1, n_units, n), rng.integers(-1, n_labels, n)
    units[0], labels[0] = 0, 0
    both = (units >= 0) & (labels >= 0)
    scores = score_units(units.astype(np.int16), labels)
    assert scores == pytest.approx(score_units(units[both], labels[both]))
    table = np.zeros((n_labels, n_units))
    np.add.at(table, (labels[both], units[both]), 1)
    share = table.sum(axis=1) / table.sum()
    entropy = -(share[share > 0] * np.log(share[share > 0])).sum()
    expected = mutual_info_score(labels[both], units[both]) / entropy if entropy > 0 else 1.0
    assert scores["pnmi"] == pytest.approx(expected, abs=1e-9)
    assert scores["class_purity"] == pytest.approx(table.max(axis=0).sum() / table.sum())
    assert scores["cluster_purity"] == pytest.approx(table.max(axis=1).sum() / table.sum())


def test_units_that_are_the_labels_by_other_names_score_one():
    labels = np.random.default_rng(0).integers(0, 5, 100)
    assert score_units((labels + 3) % 5, labels) == pytest.approx(dict.fromkeys(UNIT_SCORES, 1.0))
    assert score_units(np.arange(100), labels)["pnmi"] == pytest.approx(1.0)
    assert score_units(np.zeros(100, dtype=int), labels)["pnmi"] == pytest.approx(0.0)


def test_memory_maps_are_taken(tmp_path):
    rng = np.random.default_rng(0)
    units, labels = rng.integers(-1, 50, 300_000, dtype=np.int32), rng.integers(-1, 40, 300_000, dtype=np.int32)
    for name, array in (("units", units), ("labels", labels)):
        np.save(tmp_path / f"{name}.npy", array)
    mapped = [np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("units", "labels")]
    assert score_units(*mapped) == score_units(units, labels)


def test_frames_without_both_and_arguments_that_do_not_fit():
    with pytest.raises(ValueError, match="none of 3 frames has both"):
        score_units(np.array([0, -1, -1]), np.array([-1, 1, -1]))
    with pytest.raises(ValueError, match="3"):
        score_units(np.array([0, 1]), np.array([0, 1, 2]))
    with pytest.raises(TypeError, match="must be integers"):
        score_units(np.array([0.0, 1.0]), np.array([0, 1]))
