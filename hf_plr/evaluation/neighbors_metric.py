"""Votes of nearest neighbours, weighted by similarity, as a metric of the evaluate library."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np
import torch
import torch.nn.functional as F

from hf_plr.clustering.checks import check_finite, check_lengths
from hf_plr.evaluation.neighbors import N_WEIGHTED_NEIGHBORS, TEMPERATURE, find_labeled_neighbors

DESCRIPTION = """Accuracy of the weighted nearest neighbours: the 20 samples of the gallery that are most similar by
cosine vote for their class with exp(cosine / 0.07)."""
INPUTS = """predictions: feature per sample. references: class per sample, -1 = unknown (left out). is_query: True for a
tested sample, False for the gallery. n_neighbors, temperature: other numbers than 20 and 0.07."""
CITATION = """Wu et al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination, CVPR 2018;
Caron et al., Emerging Properties in Self-Supervised Vision Transformers, ICCV 2021."""


class WeightedKnnMetric(evaluate.Metric):
    """Weighted-kNN accuracy of all added samples, queries and gallery in any order.

    Features are compared as given: subtract their mean first if they share one.
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
                    "is_query": datasets.Value("bool"),
                }
            ),
        )

    def _compute(
        self,
        predictions: Any,
        references: Any,
        is_query: Any,
        n_neighbors: int = N_WEIGHTED_NEIGHBORS,
        temperature: float = TEMPERATURE,
        cameras: Any = None,  # retrieval's, which this may be combined with
    ) -> dict[str, float]:
        rows, labels = torch.tensor(np.asarray(predictions, np.float32)), np.asarray(references)
        check_finite(rows)
        check_lengths(rows)
        features = F.normalize(rows, dim=1)
        query_mask = np.asarray(is_query, bool)
        gallery, query = ~query_mask & (labels != -1), query_mask & (labels != -1)
        if not gallery.any() or not query.any():
            raise ValueError(f"{query.sum()} queries and {gallery.sum()} samples of the gallery have a known class")
        neighbors = find_labeled_neighbors(features[gallery], labels[gallery], features[query], n_neighbors)
        predicted = neighbors.vote_by_similarity(n_neighbors, temperature)
        return {"weighted_knn_accuracy": float((predicted == labels[query]).mean())}
