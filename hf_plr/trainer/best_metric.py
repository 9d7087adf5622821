"""Metrics of stages as `metric_for_best_model`: which of them an evaluation gives, and from when on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import TrainingArguments

from hf_plr.evaluation.label_free import LABEL_FREE_SCORES
from hf_plr.refinement import NOISE, ClusterEvents
from hf_plr.report.summary import LABEL_SCORE_PREFIX, STAGE_PREFIX, select_last_stage_metrics
from hf_plr.training_args import UnitTrainingArguments

if TYPE_CHECKING:
    from hf_plr.trainer.base_trainer import BaseTrainer

OF_SAMPLES = (  # in every evaluation that a stage has gone before
    *("clusters", "clusters_raw", "noise_share", "left_out_share", "changed_share", "mean_confidence"),
    *("size_entropy", "largest_share", *LABEL_FREE_SCORES),
)
OF_FRAMES = ("round", "units", "frames", "changed_share")
OF_CHANGES = ("agreement_ari", "churn", *ClusterEvents.KINDS)  # from the second stage on; of frames the first alone
LABEL_SCORES = tuple(
    f"{LABEL_SCORE_PREFIX}{name}"
    for name in ("accuracy", "nmi", "ari", "purity", "pair_precision", "pair_recall", "pair_f1", "coverage")
)
LABEL_SCORES_OF_FRAMES = ("pnmi", "cluster_purity", "class_purity")
SOFT, LABELINGS = "soft_share", "labelings_ari"
LATER = (*OF_CHANGES, SOFT)  # may be missing at the first evaluations


def check_stage_metric(trainer: BaseTrainer) -> None:
    """Refuse a best model, or a schedule, by a metric of stages that no evaluation of this run gives.

    A subclass, or a `compute_metrics`, of the user's that gives scores of its own may give any.

    Raises:
        ValueError: naming the metric.
    """
    args, name = trainer.args, _name_in_stage(trainer.args)
    if name is None or (args.eval_strategy == "no" and not args.load_best_model_at_end):
        return
    compute_metrics = getattr(trainer.compute_metrics, "func", trainer.compute_metrics)
    sources = (type(trainer).label_free_scores, type(trainer).score_labels, compute_metrics)
    if any(source is not None and not source.__module__.startswith("hf_plr.") for source in sources):
        return
    is_of_frames = isinstance(args, UnitTrainingArguments)
    known = OF_FRAMES if is_of_frames else (*OF_SAMPLES, SOFT, LABELINGS)
    known += OF_CHANGES[:1] if is_of_frames else OF_CHANGES
    scores = LABEL_SCORES_OF_FRAMES if is_of_frames else LABEL_SCORES
    if name in (*known, *scores):
        reason = _find_obstacle(trainer, name, is_of_score=name in scores)
    else:
        reason = f"no stage gives it; those that need no labels are {', '.join(known)}"
    if reason:
        instead = "changed_share" if is_of_frames else "silhouette"
        raise ValueError(f"metric_for_best_model={args.metric_for_best_model!r}: {reason}. Take plr/{instead}, say")


def is_still_missing(args: TrainingArguments, log: list[dict[str, float]]) -> bool:
    """Whether the metric of the best model is one of `LATER` that the last stage in the log history lacks."""
    name = _name_in_stage(args)
    return name in LATER and name not in select_last_stage_metrics(log)


def _name_in_stage(args: TrainingArguments) -> str | None:
    """Name of the metric of the best model without prefixes; None if it is no metric of a stage."""
    metric = (args.metric_for_best_model or "").removeprefix("eval_")
    return metric.removeprefix(STAGE_PREFIX) if metric.startswith(STAGE_PREFIX) else None


def _find_obstacle(trainer: Any, name: str, is_of_score: bool) -> str:
    """Why a known metric is missing in evaluations that need it; empty if it is not."""
    args: Any = trainer.args
    if is_of_score:
        truth = None if trainer.evaluator is None else trainer.evaluator.true_labels(trainer)
        return "" if truth is not None and (truth != NOISE).any() else "it needs true labels, and there are none"
    if name in OF_CHANGES and getattr(args, "labels", None) is not None:
        return f"it compares epochs, and the labels of {args.labels} are the same in all of them"
    if name == SOFT and trainer.labelings[0].stage.refiner.assignment != "soft":
        return "refinement makes no soft targets"
    if name == LABELINGS and len(trainer.labelings) == 1:
        return "there is one labeling"
    return ""
