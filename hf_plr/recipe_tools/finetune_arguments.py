"""Arguments of the recipes that fine-tune a classifier."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from hf_plr.trainer.checkpoints.finding import list_checkpoints
from hf_plr.training_args.base import count_launched
from hf_plr.training_args.ignored import OF_SCHEDULES, refuse_ignored
from hf_plr.utils.run_files import BACKBONE_FILES, find_files, holds_run

LAST = "last"  # checkpoint in output_dir


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
    test_fraction: float = field(
        default=0.2, metadata={"help": "Without a test split: fraction of each class that is held out to score on."}
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
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={
            "help": "Resume from the last checkpoint in output_dir, or from the one named here; --save_strategy epoch "
            "saves them.",
            "nargs": "?",
            "const": LAST,
        },
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace the classifier in output_dir."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay False."})
    average_tokens_across_devices: bool = field(
        default=False,  # Trainer would multiply the loss of some classifiers (CLIP) by the number of processes
        metadata={"help": "Whether to divide the loss by the samples of all processes, rather than by each one's own."},
    )

    def __post_init__(self) -> None:
        if count_launched() > 1 and not torch.accelerator.is_available():
            self.use_cpu = True  # TrainingArguments does not find this out by itself
        super().__post_init__()
        refuse_ignored(self, OF_SCHEDULES)
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False  # torch warns at every loader otherwise


def adjust_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """Return defaults that depend on the given arguments.

    Raises:
        ValueError: if a required argument is missing, or the classifier would replace what `check_folder` keeps.
    """
    for name in ("model_name_or_path", "dataset_name", "output_dir"):
        if values.get(name) is None:
            raise ValueError(f"--{name} is needed")
    is_new = values.get("resume_from_checkpoint") is None and not values.get("overwrite")
    check_folder(Path(values["output_dir"]), values["model_name_or_path"], is_new)
    return {"learning_rate": 1e-3} if values.get("freeze_backbone") else {}


def check_folder(folder: Path, start: str, is_new: bool) -> None:
    """Reject a folder in which a classifier would replace something else.

    Args:
        folder: the classifier's.
        start: name or path of the backbone.
        is_new: False where an earlier classifier there is resumed or replaced.

    Raises:
        ValueError: if a backbone or a run is there, be it unfinished, or a classifier and `is_new`.
    """
    if os.path.realpath(folder) == os.path.realpath(start) or holds_run(folder):
        raise ValueError(
            f"--output_dir {folder} holds a backbone that the classifier would replace: name another folder"
        )
    for checkpoint in list_checkpoints(folder):
        if os.path.realpath(checkpoint) == os.path.realpath(start) or holds_run(checkpoint):
            raise ValueError(f"{checkpoint} in --output_dir {folder} is no classifier's to remove: name another folder")
    if is_new and find_files(folder, BACKBONE_FILES):
        raise ValueError(f"{folder} holds a model: --overwrite replaces it, another --output_dir keeps it")
    if is_new and list_checkpoints(folder):
        raise ValueError(
            f"{folder} holds an unfinished training: --resume_from_checkpoint resumes it, --overwrite starts anew"
        )


def remove_earlier(args: ClassifierArguments) -> None:
    """Remove the earlier classifier that --overwrite replaces, with its checkpoints."""
    if not args.overwrite or args.resume_from_checkpoint is not None:
        return
    folder = Path(args.output_dir)
    for checkpoint in list_checkpoints(folder):
        shutil.rmtree(checkpoint)
    for path in find_files(folder, BACKBONE_FILES):
        path.unlink()
