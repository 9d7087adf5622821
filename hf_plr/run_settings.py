"""The settings of a run, which a resumed one must share."""

from __future__ import annotations

import dataclasses
import json
import logging
from typing import Any

from transformers import TrainingArguments

logger = logging.getLogger(__name__)

SHARED = (
    "seed",
    "data_seed",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "dataloader_drop_last",
    "optim",
    "learning_rate",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "lr_scheduler_type",
    "warmup_steps",
    "bf16",
    "fp16",
)
LENGTHS = ("num_train_epochs", "max_steps")
FREE = (  # where data lie, how they are scored and kept in memory, what happens at faults
    "image_column",
    "audio_column",
    "label_column",
    "score_every",
    "image_cache_gib",
    "image_cache_dir",
    "sound_cache_gib",
    "feature_dir",
    "skip_unreadable",
    "on_nan",
    "report",
)
SHOWN = 6


def settings_of(args: TrainingArguments, arguments_class: type[TrainingArguments]) -> dict[str, Any]:
    """The arguments that decide what a run learns: our own, and those of `TrainingArguments` that do."""
    of_trainer = {field.name for field in dataclasses.fields(TrainingArguments)}
    own = [field.name for field in dataclasses.fields(arguments_class) if field.name not in of_trainer]
    names = [name for name in own if name not in FREE] + [*SHARED, *LENGTHS]
    return as_stored({name: getattr(args, name) for name in names})


def estimator_settings(estimator: Any) -> dict[str, Any]:
    """Class and parameters of an object that follows scikit-learn, as far as they decide what it finds."""
    parameters = estimator.get_params(deep=False) if hasattr(estimator, "get_params") else {}
    quiet = {name: value for name, value in parameters.items() if name not in ("verbose", "n_jobs", "copy")}
    return {"class": type(estimator).__name__, **quiet}


def as_stored(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as they are when they have been to a file and back."""
    stored: dict[str, Any] = json.loads(json.dumps(settings, default=str))
    return stored


def check_same(checkpoint: str, stored: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to go on from a checkpoint with settings other than its own.

    Args:
        checkpoint: its folder, for the message.
        stored: settings that it was written with.
        now: settings of this run.

    Raises:
        ValueError: naming each setting that differs; another length of the run is only warned of.
    """
    differing = [name for name in {**now, **stored} if stored.get(name) != now.get(name)]
    lengths = [name for name in differing if name in LENGTHS]
    refused = [name for name in differing if name not in LENGTHS]
    if lengths:
        logger.warning(
            "%s: %s. The run goes on, but not as one that had this length from the start: its learning rate was "
            "planned for the other.",
            checkpoint,
            _told(lengths, stored, now),
        )
    if refused:
        raise ValueError(
            f"{checkpoint} was written with other settings: {_told(refused, stored, now)}. Resume with the settings "
            "that the run was started with, or start a new run with this checkpoint as its model"
        )


def _told(names: list[str], stored: dict[str, Any], now: dict[str, Any]) -> str:
    told = [f"{name} was {stored.get(name)!r} and is {now.get(name)!r}" for name in names[:SHOWN]]
    return "; ".join(told) + (f"; and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
