"""The read-out: on features whose scores are known, and in spaces that are fitted on training rows alone."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.evidence.readout import SHRINKAGE, fit_centering, fit_whitening, read_out


def _draw_classes(n_per_class: int, seed: int, distance: float = 8.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(4), n_per_class)
    return (distance * np.eye(4)[labels] @ np.eye(4, 6) + rng.normal(size=(len(labels), 6)) + 5).astype("f"), labels


@pytest.mark.parametrize("has_test_split", [True, False])
def test_separable_classes_are_found(has_test_split):
    test = _draw_classes(15, seed=1) if has_test_split else (None, None)
    for scores in read_out(*_draw_classes(30, seed=0), *test).values():
        rank = scores.pop("effective_rank")
        assert 1 < rank <= 6
        assert set(scores) == {"knn", "weighted_knn", "linear", "few", "nmi", "ari", "accuracy"}
        assert all(value == pytest.approx(1.0) for value in scores.values())


def test_noise_scores_as_chance():
    features, labels = _draw_classes(50, seed=0, distance=0.0)
    for scores in read_out(features, labels).values():
        assert all(0.1 < scores[name] < 0.4 for name in ("knn", "weighted_knn", "linear", "few"))
        assert scores["nmi"] < 0.1


def test_a_probe_on_few_labels_needs_twice_as_many_in_each_class():
    features, labels = _draw_classes(19, seed=0)
    assert all("few" not in scores for scores in read_out(features, labels, features, labels).values())


def test_whitening_gives_directions_about_equal_variance():
    rows = np.random.default_rng(0).normal(size=(5_000, 3)) * [10.0, 1.0, 0.1] + 3.0
    rows = rows.astype(np.float32)
    center, values = rows.mean(axis=0), rows.var(axis=0)
    expected = (rows - center) / np.sqrt(values + SHRINKAGE * values.mean())
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert fit_whitening(rows)(rows) == pytest.approx(expected, abs=0.05)
    assert np.linalg.norm(fit_centering(rows)(rows), axis=1) == pytest.approx(np.ones(5_000), abs=1e-5)


def test_tested_rows_do_not_move_the_space():
    features, labels = _draw_classes(30, seed=0)
    few, many = _draw_classes(5, seed=1), _draw_classes(5, seed=1)
    shifted = np.concatenate([many[0], many[0] + 100.0]).astype("f")
    first = read_out(features, labels, *few)["centered"]["knn"]
    both = read_out(features, labels, shifted, np.tile(many[1], 2))["centered"]["knn"]
    assert first == 1.0
    assert both >= 0.5  # the first half is found as before
