"""Scores of `score_clusters` as metrics of the evaluate library."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np

from hf_plr.evaluation.clusters import score_clusters

INPUTS = """predictions: cluster per sample, -1 = none. references: true label per sample, -1 = unknown. Samples with -1
in either are left out."""


class ClusterMetric(evaluate.Metric):
    """Metric `cluster_NAME`; the subclass names the score and describes it.

    Attributes:
        score: name in `hf_plr.evaluation.clusters.CLUSTER_SCORES`.
        description: description of the score.
        citation: source of the score.
    """

    score: str
    description: str
    citation: str = ""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.description,
            citation=self.citation,
            inputs_description=INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")},
            ),
        )

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
        """Add one sample, as the base does.

        Raises:
            ValueError: if its cluster or label is not whole, which the base would cut off.
        """
        _check_whole(predictions=prediction, references=reference)
        super().add(prediction=prediction, reference=reference, **kwargs)

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Add samples, as the base does; `compute` gives its own to it.

        Raises:
            ValueError: if a cluster or label is not whole, which the base would cut off.
        """
        _check_whole(predictions=predictions, references=references)
        super().add_batch(predictions=predictions, references=references, **kwargs)

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        scores = score_clusters(np.asarray(predictions, np.int64), np.asarray(references, np.int64))
        return {f"cluster_{self.score}": scores[self.score]}


def _check_whole(**given: Any) -> None:
    for name, values in given.items():
        numbers = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)  # a tensor of any device
        if numbers.dtype.kind == "f" and not (numbers == np.rint(numbers)).all():
            first = numbers[numbers != np.rint(numbers)].flat[0]
            raise ValueError(f"{name} must be integers, but {first} is among them: give clusters and labels, no scores")
