"""`score_retrieval` as a metric of the evaluate library."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np

from hf_plr.evaluation.retrieval import score_retrieval

DESCRIPTION = """Mean average precision and cumulative matching characteristics of re-identification, by the protocol of
Market-1501: same identity under the same camera is left out, identity -1 is junk, camera -1 unknown."""
INPUTS = """predictions: feature per image. references: identity per image. cameras: camera per image. is_query: True
for a query, False for the gallery."""
CITATION = "Zheng et al., Scalable Person Re-identification: A Benchmark, ICCV 2015."


class RetrievalMetric(evaluate.Metric):
    """Mean average precision and CMC of all added images, queries and gallery in any order.

    `RetrievalMetric().compute(predictions=features, references=identities, cameras=cameras, is_query=is_query)` returns
    the scores of `score_retrieval`; `add_batch` takes the same columns.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.List(datasets.Value("float32")),
                    "references": datasets.Value("int64"),
                    "cameras": datasets.Value("int64"),
                    "is_query": datasets.Value("bool"),
                }
            ),
        )

    def _compute(self, predictions: Any, references: Any, cameras: Any, is_query: Any) -> dict[str, float]:
        features, ids, cameras = np.asarray(predictions, dtype=np.float32), np.asarray(references), np.asarray(cameras)
        query_mask = np.asarray(is_query, dtype=bool)
        return score_retrieval(
            features[query_mask],
            features[~query_mask],
            ids[query_mask],
            ids[~query_mask],
            cameras[query_mask],
            cameras[~query_mask],
        )
