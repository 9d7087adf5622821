"""Shared parts of the recipes that fine-tune a classifier: arguments, a few labels per class, training."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sklearn.metrics import accuracy_score, f1_score
from torch import nn
from transformers import EvalPrediction, PreTrainedModel, Trainer, TrainingArguments, default_data_collator, set_seed

from hf_plr.data.columns import find_label_column
from hf_plr.data.loading import load_train_and_test
from hf_plr.data.media_kinds import Kind
from hf_plr.data.sample_store import SKIP_HINT, select_undecoded
from hf_plr.data.true_labels import encode_labels
from hf_plr.data.unreadable import UnreadableSample
from hf_plr.models.frozen import hold_frozen
from hf_plr.models.spectrogram_inputs import SpectrogramInputs, makes_spectrograms
from hf_plr.training_args.base import count_launched

logger = logging.getLogger(__name__)

HEADS = ("classifier", "fc", "head", "projector")  # parts of classifiers that have no base model of their own
DEFAULT_MAX_SECONDS = 10
Read = Callable[[Any, int], object]  # of a stored value and its row


@dataclass
class FinetuneArguments:
    """Arguments for the data, the backbone and the number of labels."""

    model_name_or_path: str = field(
        default=None,  # type: ignore[assignment]
        metadata={"help": "Backbone to start from: an output folder or a Hub id."},
    )
    dataset_name: str = field(
        default=None,  # type: ignore[assignment]
        metadata={"help": "Hub id, folder of files, archive or table."},
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of a Hub data set."})
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    label_column: str | None = field(default=None, metadata={"help": "Column with the classes. Default: the only one."})
    labels_per_class: int | None = field(
        default=None, metadata={"help": "Use only this many labels per class, drawn by the seed. Default: all."}
    )
    freeze_backbone: bool = field(
        default=False, metadata={"help": "Train the head alone; no dropout or masks before it."}
    )
    skip_unreadable: bool = field(
        default=False, metadata={"help": "Leave samples that cannot be read out and list them, rather than stop."}
    )


@dataclass
class ClassifierArguments(TrainingArguments):
    """`TrainingArguments` with defaults for few labels."""

    output_dir: str = field(default=None, metadata={"help": "Folder for the classifier."})  # type: ignore[assignment]
    num_train_epochs: float = field(default=30, metadata={"help": "Passes over the labelled samples."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Samples per batch and device."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Samples per batch and device for scoring."})
    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate; 1e-3 with a frozen backbone."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning-rate schedule."})
    warmup_steps: float = field(
        default=0.1, metadata={"help": "Warm-up: steps, or a fraction of all steps if below 1."}
    )
    logging_strategy: str = field(default="no", metadata={"help": "When to log: epoch, steps or no."})
    save_strategy: str = field(default="no", metadata={"help": "When to save a checkpoint: epoch, steps or no."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay False."})
    average_tokens_across_devices: bool = field(
        default=False,  # Trainer would multiply the loss of some classifiers (CLIP) by the number of processes
        metadata={"help": "Whether to divide the loss by the samples of all processes, rather than by each one's own."},
    )

    def __post_init__(self) -> None:
        if count_launched() > 1 and not torch.accelerator.is_available():
            self.use_cpu = True  # TrainingArguments does not find this out by itself
        super().__post_init__()
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False  # torch warns at every loader otherwise


def adjust_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """Return defaults that depend on the given arguments.

    Raises:
        ValueError: if a required argument is missing.
    """
    for name in ("model_name_or_path", "dataset_name", "output_dir"):
        if values.get(name) is None:
            raise ValueError(f"--{name} is needed")
    return {"learning_rate": 1e-3} if values.get("freeze_backbone") else {}


@dataclass
class LabelledData:
    """Splits of a data set with classes.

    Attributes:
        train: samples to train on.
        test: samples to score on.
        train_labels, test_labels: class of each sample, (N,).
        train_rows, test_rows: row of each sample in its split, (N,).
        names: names of the classes.
    """

    train: Dataset
    test: Dataset
    train_labels: np.ndarray
    test_labels: np.ndarray
    train_rows: np.ndarray
    test_rows: np.ndarray
    names: list[str]

    def keep_readable(self, column: str, read: Callable[[Dataset], Read], skip_unreadable: bool) -> LabelledData:
        """Read every sample once, and leave out those that cannot be read.

        Args:
            column: column of the samples.
            read: makes, for a split, what reads a stored value; it is called with the value and its row.
            skip_unreadable: leave them out with a warning, rather than raise.

        Raises:
            UnreadableSample: naming the row and what is wrong with it.
            ValueError: if no sample of a split can be read.
        """
        train = _find_readable(self.train, self.train_rows, column, read(self.train), skip_unreadable)
        test = _find_readable(self.test, self.test_rows, column, read(self.test), skip_unreadable)
        return LabelledData(
            self.train.select(train),
            self.test.select(test),
            self.train_labels[train],
            self.test_labels[test],
            self.train_rows[train],
            self.test_rows[test],
            self.names,
        )


def _find_readable(samples: Dataset, rows: np.ndarray, column: str, read: Read, skip_unreadable: bool) -> np.ndarray:
    """Positions of the samples that can be read."""
    stored = select_undecoded(samples, column)
    kept, errors = [], []
    for position, row in enumerate(rows.tolist()):
        try:
            read(stored[position][column], row)
        except UnreadableSample as error:
            if not skip_unreadable:
                raise type(error)(f"{error}. {SKIP_HINT}") from error
            errors.append(str(error))
        else:
            kept.append(position)
    if not kept:
        raise ValueError(f"none of {len(rows)} samples can be read: {errors[0] if errors else 'there are none'}")
    if errors:
        logger.warning("%d of %d samples are left out: %s", len(errors), len(rows), "; ".join(errors[:10]))
    return np.asarray(kept)


def load_labelled(args: FinetuneArguments, seed: int, kind: Kind) -> LabelledData:
    """Load both splits, without samples that have no class, and draw `args.labels_per_class` samples per class.

    Raises:
        ValueError: if the test split or the label column is missing, a split has no class, the one to train on has one
            alone, or a class has too few samples.
    """
    train, test = load_train_and_test(args.dataset_name, args.dataset_config_name, args.train_split, kind)
    if test is None:
        raise ValueError(f"dataset_name={args.dataset_name!r} has no test split to score on: add a split named test")
    column = find_label_column(train, args.label_column)
    if column is None:
        raise ValueError("no column holds classes: name it with --label_column")
    train_labels, test_labels, names = number_classes(train, test, column)
    if not names:
        raise ValueError(f"no sample of the {args.train_split} split has a class in column {column!r}")
    if len(names) == 1:
        raise ValueError(
            f"in the {args.train_split} split, column {column!r} holds one class only, {names[0]!r} (-1 means "
            "no label): name another with --label_column, or number its classes from 0"
        )
    if not (test_labels >= 0).any():
        raise ValueError(f"no sample of the test split has a class in column {column!r} that samples to train on have")
    rows = draw_per_class(train_labels, args.labels_per_class, seed)
    labelled_rows = np.flatnonzero(test_labels >= 0)
    return LabelledData(
        train.select(rows),
        test.select(labelled_rows),
        train_labels[rows],
        test_labels[labelled_rows],
        rows,
        labelled_rows,
        names,
    )


def number_classes(train: Dataset, test: Dataset, column: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Number the classes that training samples have from 0 on; returns those of both splits, -1 = none, and the names.

    Whole numbers keep their order, and so do the names of class labels. What a warning says: how many rows have no
    class, and which classes of the test split no training sample has; both are -1.
    """
    numbers: dict[str, int] = {}
    train_labels, test_labels = (encode_labels(split, column, numbers) for split in (train, test))
    for labels, use in ((train_labels, "train"), (test_labels, "score")):
        n_missing = int((labels == -1).sum())
        if n_missing:
            logger.warning(
                "%d of %d rows to %s on have no class in column %r (missing, or -1)",
                *(n_missing, len(labels), use, column),
            )
    texts = {number: name for name, number in numbers.items()}
    values = np.unique(train_labels[train_labels != -1])
    absent = test_labels[(test_labels != -1) & ~np.isin(test_labels, values)]
    if len(absent):
        names = [texts.get(value, str(value)) for value in np.unique(absent).tolist()]
        logger.warning(
            "%d of %d rows to score on are left out: no sample to train on has their classes in %r (%s)",
            *(len(absent), len(test_labels), column, ", ".join(names[:10]) + ", ..." * (len(names) > 10)),
        )
    train_labels, test_labels = (
        np.where(np.isin(labels, values), np.searchsorted(values, labels), -1) for labels in (train_labels, test_labels)
    )
    return train_labels, test_labels, [texts.get(value, str(value)) for value in values.tolist()]


def draw_per_class(labels: np.ndarray, count: int | None, seed: int) -> np.ndarray:
    """Draw `count` samples per class by the seed; for None, take all that have a class. Returns rows, ascending.

    Raises:
        ValueError: if a class has fewer.
    """
    if count is None:
        return np.flatnonzero(labels >= 0)
    rng = np.random.default_rng(seed)
    drawn = []
    for label in np.unique(labels[labels >= 0]):
        rows = np.flatnonzero(labels == label)
        if not 1 <= count <= len(rows):
            raise ValueError(
                f"labels_per_class={count}, but class {label} has {len(rows)} samples: use 1 to {len(rows)}"
            )
        drawn.append(rng.choice(rows, count, replace=False))
    return np.sort(np.concatenate(drawn))


def train_classifier(
    make_model: Callable[[dict[str, Any]], PreTrainedModel],
    add_inputs: Callable[[Dataset, np.ndarray], Dataset],
    data: LabelledData,
    processor: Any,
    recipe: FinetuneArguments,
    args: ClassifierArguments,
) -> dict[str, float]:
    """Train by the stock Trainer, save the classifier, and return its scores on the test split.

    Args:
        make_model: makes the classifier from num_labels, id2label and label2id.
        add_inputs: converts samples and their classes to inputs of the model.
        data: the samples.
        processor: saved with the classifier.
        recipe, args: the arguments.
    """
    set_seed(args.seed)
    id2label = dict(enumerate(data.names))
    model = make_model(
        {
            "num_labels": len(data.names),
            "id2label": id2label,
            "label2id": {name: number for number, name in id2label.items()},
        }
    )
    if recipe.freeze_backbone:
        freeze_backbone(model)
    train_dataset = add_inputs(data.train, data.train_labels)
    trainer = Trainer(
        model,
        args,
        train_dataset=train_dataset,
        eval_dataset=add_inputs(data.test, data.test_labels),
        data_collator=default_data_collator,
        processing_class=processor,
        compute_metrics=compute_metrics,
    )
    with contextlib.nullcontext() if recipe.freeze_backbone else _without_long_masks(model, train_dataset[:1]):
        trainer.train()
    metrics = trainer.evaluate()
    trainer.save_model()
    if trainer.is_world_process_zero():
        print(
            f"\nTrained on {len(data.train):,} labels of {len(data.names)} classes. Test split of {len(data.test):,}: "
            f"accuracy {metrics['eval_accuracy']:.3f}, macro F1 {metrics['eval_f1']:.3f}. "
            f"Classifier in {args.output_dir}."
        )
    return {"accuracy": metrics["eval_accuracy"], "f1": metrics["eval_f1"]}


def freeze_backbone(classifier: PreTrainedModel) -> None:
    """Freeze all of a classifier but its head."""
    backbone: list[nn.Module] = [classifier.base_model]
    if classifier.base_model is classifier:  # CLIP, SigLIP, Whisper, HGNetV2 and others: parts side by side
        backbone = [part for name, part in classifier.named_children() if name not in HEADS]
    for part in backbone:
        part.requires_grad_(False)
        hold_frozen(part)


@contextlib.contextmanager
def _without_long_masks(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> Iterator[None]:
    """Switch the time masking of sounds off for a while, with a warning, where a span is longer than the inputs."""
    config: Any = model.config
    probability, length = getattr(config, "mask_time_prob", 0.0), getattr(config, "mask_time_length", 0)
    if not probability or not getattr(config, "apply_spec_augment", True):
        yield
        return
    n_frames = _count_frames(model, inputs[model.main_input_name])
    if length > n_frames:
        logger.warning(
            "Time masking is off: the spans of %d frames (mask_time_length) do not fit into the %d of a clip of "
            "--max_seconds",
            *(length, n_frames),
        )
        config.mask_time_prob = 0.0
    try:
        yield
    finally:
        config.mask_time_prob = probability  # as it is saved


def _count_frames(model: PreTrainedModel, values: torch.Tensor) -> int:
    """Count the frames that a model masks in inputs (B, T), (B, T, bins) or, of Whisper, (B, bins, T)."""
    if values.ndim == 3:
        return values.shape[2 if model.config.model_type == "whisper" else 1]
    base: Any = model.base_model
    settings = {"add_adapter": False} if getattr(model.config, "add_adapter", False) else {}  # adapters come later
    return int(base._get_feat_extract_output_lengths(values.shape[1], **settings))


def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Compute accuracy and macro F1."""
    answers = np.argmax(prediction.predictions, axis=-1)
    return {
        "accuracy": float(accuracy_score(prediction.label_ids, answers)),
        "f1": float(f1_score(prediction.label_ids, answers, average="macro")),
    }


def count_needed_samples(extractor: Any) -> int:
    """Count the samples of the shortest clip that a feature extractor takes."""
    name = extractor.model_input_names[0]
    return SpectrogramInputs(extractor, name).receptive_field if makes_spectrograms(extractor, name) else 1


def choose_length(lengths: Sequence[int], sampling_rate: int, max_seconds: float | None) -> int:
    """Choose the length that recordings are cut or padded to, in samples; tells in a warning how many it cuts.

    Args:
        lengths: of the recordings, in samples.
        sampling_rate: samples per second (Hz).
        max_seconds: the length, if it was given; None takes that of the longest, at most 10 seconds.
    """
    if max_seconds is not None:
        return round(max_seconds * sampling_rate)
    limit = DEFAULT_MAX_SECONDS * sampling_rate
    n_longer = sum(length > limit for length in lengths)
    if n_longer:
        logger.warning(
            "%d of %d recordings are cut to their first %d seconds: --max_seconds takes more of them",
            *(n_longer, len(lengths), DEFAULT_MAX_SECONDS),
        )
    return min(max(lengths), limit)


def extract_sounds(
    extractor: Any, waveforms: list[np.ndarray], sampling_rate: int, max_samples: int
) -> dict[str, torch.Tensor]:
    """Make a model's inputs of waveforms, cut or padded to one length, by any feature extractor.

    Args:
        extractor: of waveforms or of spectrograms.
        waveforms: float32 of shape (T,) each.
        sampling_rate: samples per second (Hz).
        max_samples: the length.
    """
    if not makes_spectrograms(extractor, extractor.model_input_names[0]):
        return extractor(
            waveforms,
            sampling_rate=sampling_rate,
            padding="max_length",
            max_length=max_samples,
            truncation=True,
            return_tensors="pt",
        )
    # Lengths are in frames there, so a clip of the full length stretches the others.
    clips = [waveform[:max_samples] for waveform in waveforms] + [np.ones(max_samples, np.float32)]
    inputs = extractor(clips, sampling_rate=sampling_rate, return_tensors="pt")
    return {name: values[:-1] for name, values in inputs.items()}


def show_first_answer(answers: list[dict[str, Any]], truth: str, call: str) -> None:
    """Print a pipeline's answers for the first test sample."""
    listed = ", ".join(f"{answer['label']} {answer['score']:.2f}" for answer in answers)
    print(f"{call}: {listed} (it is {truth})")


def label_tensor(labels: list[int]) -> torch.Tensor:
    """Convert classes to the type that models need."""
    return torch.tensor(labels, dtype=torch.int64)
