"""Summary of a run, for model card, metrics and reports."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from transformers import TrainingArguments

from hf_plr.evaluation.evaluators import Evaluator
from hf_plr.evaluation.intervals import Interval
from hf_plr.modality import Modality
from hf_plr.training_args import BaseTrainingArguments, PLRTrainingArguments, UnitTrainingArguments
from hf_plr.training_args.base import suits_bf16
from hf_plr.utils.words import count_noun

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
# Arguments that an optimizer of the user's own does not take, or only if it has no setting of this name.
OF_OPTIMIZER = {"learning_rate": None, "optim": None, "weight_decay": "weight_decay"}
STAGE_PREFIX = "plr/"  # of the metrics of a stage in the log
STAGE_SECONDS = f"{STAGE_PREFIX}seconds"
SCORE_PREFIX = "score/"  # of scores by true labels in the log
LABEL_SCORE_PREFIX = f"{SCORE_PREFIX}pseudo_label_"
AGREEMENT, CHANGED, SOFT = "plr/agreement_ari", "plr/changed_share", "plr/soft_share"
LOCAL_SETTINGS = (
    "image_cache_dir",
    "sound_cache_dir",
    "feature_dir",
    "report",
)  # folders of one machine, and what changes no result


@dataclass(frozen=True)
class RunSummary:
    """Summary of a run for its model card, its metrics and the terminal.

    Attributes:
        args: the arguments.
        modality: the kind of samples.
        architecture: class of the backbone.
        start: name or path that the backbone was loaded from, empty for random weights.
        n_samples: number of training samples.
        unreadable_rows: rows that were left out.
        epochs: number of trained epochs.
        steps: number of optimizer steps.
        processes: number of processes.
        log: log history of `Trainer`.
        scores: scores by phase, such as before and after training; empty without a label column.
        evaluator: evaluator of the scores; None without one.
        last_labels: description of the last labels; empty before the first stage.
        label_files: files with the labels, and their descriptions.
        cluster_sizes: members per cluster or unit of the last labels, shape (K,).
        cluster_members: name of these members, in the plural.
        source: labelled training data of the start, empty without any.
        continued: the run that this one continues, and what became of its clusters; empty for a first run.
        adapters: kind and size of the adapters that were trained; empty if the weights themselves were.
        intervals: 95% intervals of scores that have one, (low, high), by phase.
        next_commands: commands that take the output folder, and what they do.
        weights_epoch: epoch of the weights, where they are an earlier checkpoint's; None if they are the last.
        optimizer: class and settings of each group of an optimizer of the user's own; None without one.
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
    evaluator: Evaluator | None
    last_labels: str = ""
    label_files: tuple[tuple[str, str], ...] = ()
    cluster_sizes: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    cluster_members: str = "samples"
    intervals: dict[str, dict[str, Interval]] = field(default_factory=dict)
    source: str = ""
    continued: str = ""
    adapters: str = ""
    next_commands: tuple[tuple[str, str], ...] = ()
    weights_epoch: float | None = None
    optimizer: list[dict[str, Any]] | None = None

    @property
    def epochs_of_weights(self) -> float:
        """Number of epochs that the weights were trained for."""
        return self.epochs if self.weights_epoch is None else self.weights_epoch

    @property
    def stages(self) -> list[dict[str, float]]:
        """Logged metrics of every stage."""
        return select_stages(self.log)

    @property
    def epoch_scores(self) -> list[dict[str, float]]:
        """Logged scores of features, for every scored epoch."""
        others = (entry for entry in self.log if STAGE_SECONDS not in entry)
        return [entry for entry in others if any(name.startswith(SCORE_PREFIX) for name in entry)]

    @property
    def score_titles(self) -> Mapping[str, str]:
        """Title per score."""
        return {} if self.evaluator is None else self.evaluator.titles

    @property
    def scored_on(self) -> str:
        """Scored samples, in words."""
        return "" if self.evaluator is None else self.evaluator.describe(self.modality.plural)

    @property
    def scored_on_test(self) -> bool:
        """True if the scores are those of a test split."""
        return self.evaluator is not None and self.evaluator.scored_on_test

    def score_rows(self, with_intervals: bool = False) -> list[tuple[str, ...]]:
        """Rows (name, one value per phase) of a table of the scores; "-" for a missing one.

        Args:
            with_intervals: True for values with their intervals, as "0.900 (0.87 to 0.93)".
        """

        def format_score(phase: str, key: str) -> str:
            if key not in self.scores[phase]:
                return "-"
            interval = self.intervals.get(phase, {}).get(key) if with_intervals else None
            value = f"{self.scores[phase][key]:.3f}"
            return value if interval is None else f"{value} ({interval[0]:.2f} to {interval[1]:.2f})"

        return [
            (title, *(format_score(phase, key) for phase in self.scores))
            for key, title in self.score_titles.items()
            if any(key in phase_scores for phase_scores in self.scores.values())
        ]

    def last_intervals(self) -> dict[str, Interval]:
        """Intervals of the last phase's scores, by their titles."""
        intervals = self.intervals.get(list(self.scores)[-1], {}) if self.scores else {}
        return {title: intervals[key] for key, title in self.score_titles.items() if key in intervals}

    def cluster_facts(self) -> list[str]:
        """Facts about the last clusters and their history, one sentence each; empty before the first stage."""
        facts = []
        if len(self.cluster_sizes):
            smallest, median, largest = np.percentile(self.cluster_sizes, [0, 50, 100])
            members = self.cluster_members
            clusters = count_noun(len(self.cluster_sizes), "cluster")
            facts.append(
                f"{clusters}: the smallest has {smallest:,.0f} {members}, the median one "
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
        label_scores = {name: last.get(f"{LABEL_SCORE_PREFIX}{score}") for score, name in names.items()}
        listed = ", ".join(f"{name} {value:.2f}" for name, value in label_scores.items() if value is not None)
        if listed:
            facts.append(f"Against the true labels, the last labels have: {listed}.")
        changed, soft = ([entry[name] for entry in self.stages if name in entry] for name in (CHANGED, SOFT))
        if changed and (changed[-1] or not soft):
            facts.append(
                f"Refinement changed the cluster of {changed[-1]:.1%} of the {self.cluster_members} at the last stage."
            )
        if soft:
            facts.append(f"Refinement put {soft[-1]:.1%} of the targets on other clusters at the last stage.")
        return facts

    def changed_settings(self) -> list[tuple[str, Any]]:
        """Settings of method and training whose values differ from the defaults, by name.

        Those that nobody gave are left out, where start, cores or device decide the default. An optimizer of the user's
        own is told in place of the arguments that it does not take.
        """
        is_unit_run = isinstance(self.args, UnitTrainingArguments)
        arguments_class = UnitTrainingArguments if is_unit_run else PLRTrainingArguments
        classes = set(arguments_class.__mro__) - set(TrainingArguments.__mro__)
        method_settings = {name for declared_in in classes for name in getattr(declared_in, "__annotations__", {})}
        reported = (method_settings | {*TRAINING_SETTINGS}) - {*LOCAL_SETTINGS} - self.args.by_default
        if self.args.bf16 == suits_bf16(self.args.fp16, self.args.use_cpu):
            reported -= {"bf16"}
        groups = self.optimizer or []
        own = [("optimizer", describe_groups(groups))] if groups else []
        reported -= {name for name, key in OF_OPTIMIZER.items() if own and (key is None or key in groups[0])}
        # From the class: a second TrainingArguments would reset the state of all Accelerators.
        return [
            *(
                (field.name, getattr(self.args, field.name))
                for field in dataclasses.fields(arguments_class)
                if field.name in reported and getattr(self.args, field.name) != field.default
            ),
            *own,
        ]


def describe_groups(groups: list[dict[str, Any]]) -> str:
    """Describe an optimizer by its class and settings, such as "SGD(lr=0.1 or 0.01, momentum=0.9)"."""
    names = [name for name in dict.fromkeys(name for group in groups for name in group) if name != "class"]
    return f"{groups[0]['class']}({', '.join(f'{name}={list_values(groups, name)}' for name in names)})"


def list_values(groups: list[dict[str, Any]], name: str) -> str:
    """List the values that a setting has in the groups of an optimizer, each once."""
    return " or ".join(dict.fromkeys(str(group[name]) for group in groups if name in group))


def select_stages(log: list[dict[str, float]]) -> list[dict[str, float]]:
    """Select the entries of stages in the log history of `Trainer`."""
    return [entry for entry in log if STAGE_SECONDS in entry]


def select_last_stage_metrics(log: list[dict[str, float]]) -> dict[str, float]:
    """Select the metrics of the last stage in a log, by names without a prefix, without times."""
    stages = select_stages(log)
    named = {name.removeprefix(STAGE_PREFIX): value for name, value in stages[-1].items()} if stages else {}
    excluded = ("epoch", "step", "seconds")
    return {name: value for name, value in named.items() if not name.startswith(excluded)}
