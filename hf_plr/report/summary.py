"""What is known of a run, for everything that reports on it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from hf_plr.evaluation.retrieval import RETRIEVAL_SCORES
from hf_plr.evaluation.scores import SCORES
from hf_plr.stage import PseudoLabels
from hf_plr.training_args import PLRTrainingArguments

TRAINING_SETTINGS = (
    "seed",
    "max_steps",
    "gradient_accumulation_steps",
    "bf16",
    "fp16",
    "optim",
    "max_grad_norm",
    "torch_compile",
)


@dataclass(frozen=True)
class RunSummary:
    """A run as its model card, its metrics and its last words tell it.

    Attributes:
        args: the arguments.
        architecture: class of the backbone.
        start: name or path that the backbone was loaded from, empty for random weights.
        hidden_size: size D of a feature.
        feature: Python expression that makes the feature out of `tokens`, the backbone's last hidden state.
        interpolates: whether the backbone must be told to interpolate its position embeddings.
        n_samples: training images.
        unreadable_rows: rows that were left out.
        epochs: epochs trained.
        steps: optimizer steps.
        processes: processes that trained together.
        labels: the last pseudo-labels, None before the first stage.
        stages: the logged figures of every stage.
        scores: scores by moment, empty without a label column.
        scored_on_test: whether the scores are those of a test split.
        source: what the start was trained on with labels, empty if on nothing.
    """

    args: PLRTrainingArguments
    architecture: str
    start: str
    hidden_size: int
    feature: str
    interpolates: bool
    n_samples: int
    unreadable_rows: list[int]
    epochs: float
    steps: int
    processes: int
    labels: PseudoLabels | None
    stages: list[dict[str, float]]
    scores: dict[str, dict[str, float]]
    scored_on_test: bool
    source: str = ""

    @property
    def noise_share(self) -> float:
        """Share of the images in no cluster, in [0, 1]."""
        return 0.0 if self.labels is None else float((self.labels.labels == -1).mean())

    @property
    def scored_on(self) -> str:
        """Which images the scores are of."""
        if not any("mAP" in found for found in self.scores.values()):
            return "the test split" if self.scored_on_test else "the training images, cross-validated"
        if self.scored_on_test:
            return "queries in the gallery under other cameras"
        return "every training image among those of other cameras"

    def score_rows(self) -> list[tuple[str, ...]]:
        """Rows (name, a value for each moment) of a table of the scores; "-" where there is none."""
        return [
            (title, *(f"{found[key]:.3f}" if key in found else "-" for found in self.scores.values()))
            for key, title in {**SCORES, **RETRIEVAL_SCORES}.items()
            if any(key in found for found in self.scores.values())
        ]

    def changed_settings(self) -> list[tuple[str, Any]]:
        """Settings of method and training whose values differ from the defaults, by name."""
        told = {*PLRTrainingArguments.__annotations__, *TRAINING_SETTINGS}
        # Read off the class: making a second TrainingArguments would reset the state that all Accelerators share.
        return [
            (field.name, getattr(self.args, field.name))
            for field in dataclasses.fields(PLRTrainingArguments)
            if field.name in told and getattr(self.args, field.name) != field.default
        ]
