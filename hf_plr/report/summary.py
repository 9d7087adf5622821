"""What is known of a run, for everything that reports on it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hf_plr.evaluation.intervals import Interval
from hf_plr.evaluation.retrieval import RETRIEVAL_SCORES
from hf_plr.evaluation.scores import SCORES
from hf_plr.modality import Modality
from hf_plr.training_args import BaseTrainingArguments, PLRTrainingArguments, UnitTrainingArguments

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
STAGE_PREFIX = "plr/"  # of the metrics of a stage in the log
STAGE_SECONDS = f"{STAGE_PREFIX}seconds"
SCORE_PREFIX = "score/"  # of scores by true labels in the log
LABEL_SCORE_PREFIX = f"{SCORE_PREFIX}pseudo_label_"
AGREEMENT, CHANGED, SOFT = "plr/agreement_ari", "plr/changed_share", "plr/soft_share"
LOCAL_SETTINGS = ("image_cache_dir", "feature_dir", "report")  # folders of one machine, and what changes no result


@dataclass(frozen=True)
class RunSummary:
    """A run as its model card, its metrics and its last words tell it.

    Attributes:
        args: the arguments.
        modality: the kind of samples.
        architecture: class of the backbone.
        start: name or path that the backbone was loaded from, empty for random weights.
        n_samples: training samples.
        unreadable_rows: rows that were left out.
        epochs: epochs trained.
        steps: optimizer steps.
        processes: processes that trained together.
        log: the log as `Trainer` keeps it.
        scores: scores by moment, empty without a label column.
        scored_on_test: True if the scores are those of a test split.
        last_labels: what the last labels are, in words; empty before the first stage.
        label_files: files with the labels, and what is in them.
        cluster_sizes: members of each of the last clusters or units, shape (K,).
        cluster_members: what these members are called.
        source: what the start was trained on with labels, empty if on nothing.
        intervals: 95% intervals of scores that have one, (low, high), by moment.
    """

    args: BaseTrainingArguments
    modality: Modality
    architecture: str
    start: str
    n_samples: int
    unreadable_rows: list[int]
    epochs: float
    steps: int
    processes: int
    log: list[dict[str, float]]
    scores: dict[str, dict[str, float]]
    scored_on_test: bool
    last_labels: str = ""
    label_files: tuple[tuple[str, str], ...] = ()
    cluster_sizes: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    cluster_members: str = "samples"
    intervals: dict[str, dict[str, Interval]] = field(default_factory=dict)
    source: str = ""

    @property
    def stages(self) -> list[dict[str, float]]:
        """The logged metrics of every stage."""
        return select_stages(self.log)

    @property
    def epoch_scores(self) -> list[dict[str, float]]:
        """The logged scores of features, for every epoch that was scored."""
        others = (entry for entry in self.log if STAGE_SECONDS not in entry)
        return [entry for entry in others if any(name.startswith(SCORE_PREFIX) for name in entry)]

    @property
    def scored_on(self) -> str:
        """Which samples the scores are of."""
        if not any("mAP" in found for found in self.scores.values()):
            return "the test split" if self.scored_on_test else f"the training {self.modality.plural}, cross-validated"
        if self.scored_on_test:
            return "queries in the gallery under other cameras"
        return "every training image among those of other cameras"

    def score_rows(self, with_intervals: bool = False) -> list[tuple[str, ...]]:
        """Rows (name, a value for each moment) of a table of the scores; "-" where there is none.

        Args:
            with_intervals: write a value that has an interval as "0.900 (0.87 to 0.93)".
        """

        def told(moment: str, key: str) -> str:
            if key not in self.scores[moment]:
                return "-"
            interval = self.intervals.get(moment, {}).get(key) if with_intervals else None
            value = f"{self.scores[moment][key]:.3f}"
            return value if interval is None else f"{value} ({interval[0]:.2f} to {interval[1]:.2f})"

        return [
            (title, *(told(moment, key) for moment in self.scores))
            for key, title in self.score_titles().items()
            if any(key in found for found in self.scores.values())
        ]

    def last_intervals(self) -> dict[str, Interval]:
        """Intervals of the last moment's scores, by what the scores are called."""
        found = self.intervals.get(list(self.scores)[-1], {}) if self.scores else {}
        return {title: found[key] for key, title in self.score_titles().items() if key in found}

    def score_titles(self) -> dict[str, str]:
        """What each score is called."""
        return {**SCORES, **RETRIEVAL_SCORES}

    def cluster_facts(self) -> list[str]:
        """What is known of the last clusters and of how they came about, a sentence each; empty before the first."""
        facts = []
        if len(self.cluster_sizes):
            smallest, median, largest = np.percentile(self.cluster_sizes, [0, 50, 100])
            members = self.cluster_members
            facts.append(
                f"{len(self.cluster_sizes):,} clusters: the smallest has {smallest:,.0f} {members}, the median one "
                f"{median:,.0f}, the largest {largest:,.0f}."
            )
        agreement = [entry[AGREEMENT] for entry in self.stages if AGREEMENT in entry]
        if agreement:
            facts.append(
                "Agreement of the labels with those of the stage before (adjusted Rand index, 1 = nothing moved): "
                f"{agreement[0]:.2f} at the second stage, {agreement[-1]:.2f} at the last."
            )
        last = self.stages[-1] if self.stages else {}
        names = {"accuracy": "accuracy", "nmi": "NMI", "ari": "ARI", "purity": "purity"}
        agreeing = {name: last.get(f"{LABEL_SCORE_PREFIX}{score}") for score, name in names.items()}
        told = ", ".join(f"{name} {value:.2f}" for name, value in agreeing.items() if value is not None)
        if told:
            facts.append(f"Against the true labels, the last labels have: {told}.")
        changed, soft = ([entry[name] for entry in self.stages if name in entry] for name in (CHANGED, SOFT))
        if changed and (changed[-1] or not soft):
            facts.append(
                f"Refinement changed the cluster of {changed[-1]:.1%} of the {self.cluster_members} at the last stage."
            )
        if soft:
            facts.append(f"Refinement put {soft[-1]:.1%} of the targets on other clusters at the last stage.")
        return facts

    def changed_settings(self) -> list[tuple[str, Any]]:
        """Settings of method and training whose values differ from the defaults, by name."""
        kind = UnitTrainingArguments if isinstance(self.args, UnitTrainingArguments) else PLRTrainingArguments
        told = {*BaseTrainingArguments.__annotations__, *kind.__annotations__, *TRAINING_SETTINGS} - {*LOCAL_SETTINGS}
        # Read off the class: making a second TrainingArguments would reset the state that all Accelerators share.
        return [
            (field.name, getattr(self.args, field.name))
            for field in dataclasses.fields(kind)
            if field.name in told and getattr(self.args, field.name) != field.default
        ]


def select_stages(log: list[dict[str, float]]) -> list[dict[str, float]]:
    """The entries of stages in the log as `Trainer` keeps it."""
    return [entry for entry in log if STAGE_SECONDS in entry]


def select_last_stage_metrics(log: list[dict[str, float]]) -> dict[str, float]:
    """Metrics of the last stage in a log by their names without a prefix, without times; empty without a stage."""
    stages = select_stages(log)
    named = {name.removeprefix(STAGE_PREFIX): value for name, value in stages[-1].items()} if stages else {}
    left_out = ("epoch", "step", "seconds")
    return {name: value for name, value in named.items() if not name.startswith(left_out)}


def count_members(labels: np.ndarray | None) -> np.ndarray:
    """Members of each cluster that has some, shape (K,); none for None.

    Args:
        labels: label of each member, -1 = none, shape (N,).
    """
    if labels is None:
        return np.empty(0, np.int64)
    return np.unique(labels[labels >= 0], return_counts=True)[1]
