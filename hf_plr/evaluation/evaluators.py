"""Evaluators: objects that score a trainer's features, called by the trainer at each evaluation."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from transformers import EvalPrediction, TrainingArguments

from hf_plr.data.sample_store import SampleStore
from hf_plr.evaluation.intervals import Scored
from hf_plr.evaluation.scores import SCORES, assess_features, score_features

logger = logging.getLogger(__name__)

BY_METRIC = ("reduce_lr_on_plateau", "greedy")  # learning rate schedules that look at a score
GALLERY_SAMPLES = 10_000  # training samples in the gallery of an evaluation set


class PartExtractor(Protocol):
    """Interface of the extractor of a trainer, see `hf_plr.features.extractor.FeatureExtractor`."""

    def local_slice(self, store: SampleStore, positions: torch.Tensor | None = None) -> slice:
        """Slice of a store, or of some positions in it, for this process; the slices follow each other."""

    def extract(self, store: SampleStore, positions: torch.Tensor) -> torch.Tensor:
        """Extract features of the samples at these positions on this process alone, float32 (n, D), on its device."""


class StoreOpener(Protocol):
    """Interface of the opener of a trainer's data sets, see `hf_plr.modality.SampleOpener`."""

    latest: SampleStore

    def __call__(self, dataset: Dataset) -> SampleStore:
        """Open a data set; it is then `latest`."""


class ScoredTrainer(Protocol):
    """Interface of a trainer for its evaluator."""

    accelerator: Accelerator
    train_dataset: SampleStore
    eval_dataset: Any
    label_column: str | None

    def extract_features(
        self, dataset: Dataset | SampleStore | None = None, positions: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Extract features of a data set, by default of the training samples, float32 (N, D), on every process."""

    @property
    def extractor(self) -> PartExtractor:
        """Extractor of features with the weights as they are."""

    @property
    def open_samples(self) -> StoreOpener:
        """Opener of the samples of a data set, with true labels where it has the label column."""

    def score_labels(self) -> dict[str, float]:
        """Score the pseudo-labels against the true labels; empty without labels."""


class Evaluator(ABC):
    """Base of evaluators; `select_evaluator` adapts a plain function of the trainer that returns scores by name.

    Attributes:
        titles: title per score, in the order of tables; scores without one are in metrics.json alone.
        scored_on_test: True if the scores are of held-out data.
        scored_by_recording: True if samples are segments of recordings, which have the class of most of their segments.
    """

    titles: Mapping[str, str] = {}
    scored_on_test: bool = False
    scored_by_recording: bool = False

    @abstractmethod
    def __call__(self, trainer: ScoredTrainer) -> Scored:
        """Score the current backbone; called on every process, returns the same on each."""

    def describe(self, samples: str) -> str:
        """Describe what is scored, in words; `samples` are "images" or "recordings"."""
        return f"by {type(self).__name__}"

    def true_labels(self, trainer: ScoredTrainer) -> np.ndarray | None:
        """True label per training sample, -1 = unknown, shape (N,), for scoring alone; None if there are none."""
        return None if trainer.label_column is None else trainer.train_dataset.true_labels()


class FeatureEvaluator(Evaluator):
    """Evaluator of features against true labels: nearest neighbours, linear probe, k-means.

    With an evaluation set (a single one) that has labels, all training samples are the gallery. Otherwise the training
    samples are cross-validated. Scores are those of `hf_plr.evaluation.scores.SCORES`.
    """

    titles = SCORES

    def describe(self, samples: str) -> str:
        """Describe what is scored, in words."""
        words = "the test split" if self.scored_on_test else f"the training {samples}, cross-validated"
        return f"{words}; kNN and probe by recording, of most of its segments" if self.scored_by_recording else words

    def __call__(self, trainer: ScoredTrainer) -> Scored:
        """Score the features of the training samples, or of the evaluation set with these as the gallery."""
        features, labels, groups = extract_part(trainer, trainer.train_dataset)
        self.scored_by_recording, self.scored_on_test = groups is not None, False
        test_features = test_labels = test_groups = None
        dataset = trainer.eval_dataset
        if isinstance(dataset, Dataset) and trainer.label_column in dataset.column_names:
            test = trainer.open_samples(dataset)
            if (test.true_labels() >= 0).any():
                self.scored_on_test = True
                test_features, test_labels, test_groups = extract_part(trainer, test)
        return assess_features(
            features,
            labels,
            test_features,
            test_labels,
            accelerator=trainer.accelerator,
            groups=groups,
            test_groups=test_groups,
        )


class FunctionEvaluator(Evaluator):
    """Adapter for a function of the trainer.

    Args:
        function: called on every process with the trainer; returns scores by name, or a `Scored`.
    """

    def __init__(self, function: Callable[[Any], dict[str, float] | Scored]):
        self.function = function

    def describe(self, samples: str) -> str:
        """Name the function."""
        return f"by {getattr(self.function, '__name__', type(self.function).__name__)}"

    def __call__(self, trainer: ScoredTrainer) -> Scored:
        """Call the function; every score is in the tables under its own name."""
        scores = self.function(trainer)
        scored = scores if isinstance(scores, Scored) else Scored(dict(scores))
        self.titles = {name: name for name in scored.values}
        return scored


def select_evaluator(evaluator: Any, has_labels: bool) -> Evaluator | None:
    """Select the evaluator: an `Evaluator` unchanged, any other callable in an adapter, and for None the default.

    Args:
        evaluator: the user's, or None.
        has_labels: True with a label column: the default is then a `FeatureEvaluator`, else None.

    Raises:
        TypeError: if it is not callable.
    """
    if evaluator is None:
        return FeatureEvaluator() if has_labels else None
    if isinstance(evaluator, Evaluator):
        return evaluator
    if not callable(evaluator):
        raise TypeError(f"evaluator={evaluator!r} is not callable: give an Evaluator or a function of the trainer")
    return FunctionEvaluator(evaluator)


def extract_part(
    trainer: ScoredTrainer, store: SampleStore, positions: torch.Tensor | None = None
) -> tuple[torch.Tensor, np.ndarray, np.ndarray | None]:
    """Extract this process's part of a store's features.

    Args:
        trainer: called on every process.
        store: samples with true labels.
        positions: positions of some of them, shape (M,); None takes all.

    Returns:
        Features, float32 of shape (n, D), and true labels, shape (n,), of samples that no other process extracts, and
        their recordings, shape (n,), where they are segments; None where they are whole.
    """
    positions = torch.arange(len(store)) if positions is None else positions
    local = positions[trainer.extractor.local_slice(store, positions)]
    groups = None if store.segments is None else store.rows[local.numpy()]
    return trainer.extractor.extract(store, local), store.true_labels()[local.numpy()], groups


def score_against_gallery(trainer: ScoredTrainer, prediction: EvalPrediction) -> dict[str, float]:
    """Score predicted features against up to 10,000 labelled training samples, evenly spaced: a `compute_metrics`."""
    store = trainer.train_dataset
    labelled = np.flatnonzero(store.true_labels() >= 0)
    drawn = np.linspace(0, len(labelled) - 1, min(len(labelled), GALLERY_SAMPLES)).astype(np.int64)
    gallery, labels, groups = extract_part(trainer, store, torch.from_numpy(labelled[np.unique(drawn)]))
    accelerator = trainer.accelerator
    tested = trainer.open_samples.latest
    is_cut = tested.segments is not None and len(tested) == len(prediction.predictions)
    features, true_labels, rows = (  # every process has all predictions and gives its part
        np.array_split(np.asarray(values), accelerator.num_processes)[accelerator.process_index]
        for values in (prediction.predictions, prediction.label_ids, tested.rows)
    )
    test_groups = rows if is_cut else None
    return score_features(
        gallery, labels, features, true_labels, accelerator=accelerator, groups=groups, test_groups=test_groups
    )


def check_best_metric(
    args: TrainingArguments,
    label_column: str | None,
    eval_dataset: Any,
    compute_metrics: Any,
    has_own_evaluator: bool = False,
) -> None:
    """Reject a best model, or a schedule, by a score that no evaluation gives.

    A `compute_metrics` that is never called, since there is no label column, is warned of.

    Args:
        args: the arguments.
        label_column: column of the true labels; None where there is none.
        eval_dataset: an evaluation set, several by name, or None.
        compute_metrics: the user's, which may give any name, `score_against_gallery` of a trainer, or None.
        has_own_evaluator: True if the scores are those of an evaluator that was given, as for retrieval.

    Raises:
        ValueError: naming the score.
    """
    if compute_metrics is not None and label_column is None and not args.process_index:
        logger.warning("compute_metrics is never called: there is no label column. Name one with label_column.")
    metric = (args.metric_for_best_model or "").removeprefix("eval_")
    if not metric or (args.eval_strategy == "no" and not args.load_best_model_at_end):
        return
    what = f"metric_for_best_model={args.metric_for_best_model!r}"
    if args.load_best_model_at_end:
        what = f"load_best_model_at_end with {what}"
    instead = "take a score that needs no labels, such as plr/silhouette"
    if metric not in SCORES:
        is_own = compute_metrics is not None and getattr(compute_metrics, "func", None) is not score_against_gallery
        sets = eval_dataset if isinstance(eval_dataset, Mapping) else {}
        if sets and is_own and not metric.startswith(("plr/", *(f"{name}_" for name in sets))):
            logger.warning(
                "%s: compute_metrics gives %s, one for each evaluation set.", what, _name_by_set(metric, sets)
            )
        if is_own or metric.startswith("plr/") or metric in {f"{name}_{score}" for name in sets for score in SCORES}:
            return
        scheduler = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
        default = f", the default of lr_scheduler_type={scheduler!r}" if scheduler in BY_METRIC else ""
        with_labels = f", or with labels one of {', '.join(SCORES)}"
        without = "; scores that score_every logs pick no checkpoint"
        raise ValueError(
            f"{what}{default if metric == 'loss' else ''}: no evaluation gives it. {instead.capitalize()}"
            f"{without if has_own_evaluator and label_column is None else with_labels}"
        )
    if compute_metrics is None:
        raise ValueError(f"{what} needs a label column to score by, and there is none: {instead}")
    if not eval_dataset:
        raise ValueError(f"{what} needs an eval_dataset with labels, whose samples are scored: give one, or {instead}")
    if isinstance(eval_dataset, Mapping):
        names = _name_by_set(metric, eval_dataset)
        raise ValueError(f"{what}, but there are several evaluation sets: name one of {names}")
    columns = getattr(eval_dataset, "column_names", None)
    if label_column is not None and columns is not None and label_column not in columns:
        raise ValueError(f"{what} needs the column {label_column!r} in eval_dataset, which has none: {instead}")


def _name_by_set(metric: str, sets: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}_{metric}" for name in sets)
