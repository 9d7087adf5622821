"""Retrieval scores against a plain implementation of the protocol."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_plr.evaluation.retrieval import score_retrieval
from hf_plr.evaluation.retrieval_metric import RetrievalMetric


def plain_scores(query, gallery, query_ids, gallery_ids, query_cameras, gallery_cameras):
    """Query by query, with lists."""
    precisions, firsts = [], []
    unit = [features / np.linalg.norm(features, axis=1, keepdims=True) for features in (query, gallery)]
    for features, identity, camera in zip(unit[0], query_ids, query_cameras, strict=True):
        ranking = []
        for similarity, other, where in zip(unit[1] @ features, gallery_ids, gallery_cameras, strict=True):
            if other != -1 and not (other == identity and where == camera):
                ranking.append((-similarity, other == identity))
        hits = [is_match for _, is_match in sorted(ranking)]
        found = [(n, rank) for n, rank in enumerate((i + 1 for i, hit in enumerate(hits) if hit), start=1)]
        if found:
            precisions.append(np.mean([n / rank for n, rank in found]))
            firsts.append(found[0][1])
    return np.mean(precisions), [np.mean(np.array(firsts) <= rank) for rank in (1, 5, 10)], len(firsts)


@given(st.integers(0, 10_000), st.floats(0.0005, 0.01))
def test_scores_equal_a_plain_implementation_in_blocks(seed, block_mib):
    rng = np.random.default_rng(seed)
    query, gallery = rng.normal(size=(12, 6)), rng.normal(size=(60, 6))
    ids = rng.integers(0, 8, 12), rng.integers(-1, 8, 60)
    cameras = rng.integers(0, 3, 12), rng.integers(0, 3, 60)
    mean_precision, characteristics, queries = plain_scores(query, gallery, *ids, *cameras)
    scores = score_retrieval(query, gallery, *ids, *cameras, block_mib=block_mib)
    assert scores["mAP"] == pytest.approx(mean_precision, abs=1e-6)
    assert [scores[f"rank_{rank}"] for rank in (1, 5, 10)] == pytest.approx(characteristics)
    assert scores["queries"] == queries
    assert scores["queries_without_match"] == 12 - queries


def test_the_protocol_by_hand():
    axis = np.eye(3)
    gallery = np.array([axis[0], axis[0], axis[0] + 0.1 * axis[1], axis[0] + 0.2 * axis[1], axis[0] + 0.3 * axis[1]])
    gallery_ids = [5, -1, 0, 5, 5]  # the match under the same camera, junk, a distractor, two matches
    gallery_cameras = [1, 2, 2, 2, 3]
    scores = score_retrieval(axis[:1], gallery, [5], gallery_ids, [1], gallery_cameras, ranks=(1, 2))
    assert scores["mAP"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert (scores["rank_1"], scores["rank_2"]) == (0.0, 1.0)


def test_without_cameras_every_match_counts():
    features = torch.eye(3)
    assert score_retrieval(features, features, [0, 1, 2], [0, 1, 2])["mAP"] == 1.0


def test_images_of_unknown_cameras_are_not_of_the_same():
    scores = score_retrieval(np.eye(3), np.eye(3), [0, 1, 2], [0, 1, 2], [-1, 4, -1], [-1, 4, -1])
    assert (scores["mAP"], scores["queries"], scores["queries_without_match"]) == (1.0, 2, 1)


def test_constant_features_score_nothing():
    ones = torch.ones(50, 4)
    ids = np.arange(50)
    scores = score_retrieval(ones, ones, ids, ids)
    assert scores["rank_10"] == 0.0
    assert scores["mAP"] == pytest.approx(1 / 50)


@pytest.mark.parametrize("n_queries", [1, 2, 17])
@pytest.mark.parametrize("n_gallery", [5, 10, 33])
def test_a_match_that_is_exactly_as_similar_ranks_behind(n_queries, n_gallery):
    for width in (10, 37, 64, 384, 768):
        row = np.random.default_rng(width).normal(size=(1, width)).astype(np.float32)
        query, gallery = row.repeat(n_queries, axis=0), row.repeat(n_gallery, axis=0)
        for match in range(n_gallery - 5, n_gallery):
            ids = np.arange(n_gallery) != match
            scores = score_retrieval(query, gallery, np.zeros(n_queries, int), ids.astype(int), ranks=(n_gallery - 1,))
            assert scores[f"rank_{n_gallery - 1}"] == 0, (width, match)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query_cameras": [0, 0]}, "give both or none"),
        ({"query_ids": [0]}, "query_ids must be 2 integers"),
        ({"gallery_ids": [0.5, 1.0]}, "gallery_ids must be 2 integers, not float64"),
        ({"gallery_ids": ["a", "b"]}, r"gallery_ids must be 2 integers, not <U1 of shape \(2,\)"),
        ({"query_ids": [2**70, 1]}, "query_ids must be 2 integers, not object"),
        ({"query_ids": np.array([2**64 - 1, 1], np.uint64)}, "query_ids must be 2 integers below 2"),
        (
            {"query": torch.full((2, 3), torch.nan)},
            "query features of 2 samples are NaN or infinite, the first is sample 0",
        ),
        ({"gallery": torch.ones(2, 5)}, "query features have 3 columns, gallery features 5"),
        ({"gallery": torch.ones(0, 3)}, r"gallery features have shape \(0, 3\)"),
        ({"gallery_ids": [7, 8]}, "none of the 2 queries has a match"),
    ],
)
def test_input_that_does_not_fit_is_named(change, message):
    arguments = {"query": torch.ones(2, 3), "gallery": torch.ones(2, 3), "query_ids": [0, 1], "gallery_ids": [0, 1]}
    with pytest.raises(ValueError, match=message):
        score_retrieval(**{**arguments, **change})


def test_the_metric_of_the_evaluate_library_gives_the_same():
    rng = np.random.default_rng(0)
    features, ids, cameras = rng.normal(size=(40, 5)), rng.integers(0, 4, 40), rng.integers(0, 3, 40)
    is_query = np.arange(40) % 4 == 0
    expected = score_retrieval(
        features[is_query], features[~is_query], ids[is_query], ids[~is_query], cameras[is_query], cameras[~is_query]
    )
    metric = RetrievalMetric()
    for half in (slice(0, 17), slice(17, 40)):
        metric.add_batch(
            predictions=features[half], references=ids[half], cameras=cameras[half], is_query=is_query[half]
        )
    assert metric.compute() == pytest.approx(expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.int8])
def test_codes_of_any_integer_type_are_those_numbers(dtype):
    rng = np.random.default_rng(0)
    features, last = rng.normal(size=(40, 5)), np.iinfo(dtype).max
    ids = np.array([last, 3], dtype)[np.arange(40) % 2]
    expected = score_retrieval(features[:10], features[10:], *np.split(np.where(ids == 3, 3, 9), [10]))
    assert score_retrieval(features[:10], features[10:], *np.split(ids, [10])) == expected


def test_features_that_float32_cannot_hold_are_refused():
    query, ids = np.full((3, 4), 1e20, np.float32), np.arange(3)
    with pytest.raises(ValueError, match="query features of 3 samples are too large for float32"):
        score_retrieval(query, np.ones((3, 4), np.float32), ids, ids)
