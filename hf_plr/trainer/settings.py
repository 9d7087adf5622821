"""Settings of a run, which a run that is resumed must share with its checkpoint."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from typing import Any

import torch
from transformers import TrainingArguments

from hf_plr.utils.parameters import describe_value

logger = logging.getLogger(__name__)

SHARED = (
    "seed",
    "data_seed",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "dataloader_drop_last",
    "optim",
    "optim_args",
    "learning_rate",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "bf16",
    "fp16",
)
BOUNDS = ("per_device_eval_batch_size",)  # decides where the parts of the processes begin
LENGTHS = ("num_train_epochs", "max_steps")
FREE = (  # where data lie, how they are scored and kept in memory, what happens at faults
    "image_column",
    "audio_column",
    "label_column",
    "levels",
    "labels",  # their contents are among the clusterer's parameters
    "score_every",
    "image_cache_gib",
    "image_cache_dir",
    "sound_cache_gib",
    "sound_cache_dir",
    "feature_dir",
    "skip_unreadable",
    "on_nan",
    "report",
)
FOLDERS = ("continue_from",)
WHOLE = ("optimizer",)  # whose parts have no defaults
SHOWN = 6
OF_GROUPS = ("params", "param_names", "initial_lr", "model", "optimizer_dict")  # no settings of an optimizer


def own_names(arguments_class: type[TrainingArguments]) -> list[str]:
    """Names of the arguments of a class that are ours, and not those of `TrainingArguments`."""
    of_trainer = {field.name for field in dataclasses.fields(TrainingArguments)}
    return [field.name for field in dataclasses.fields(arguments_class) if field.name not in of_trainer]


def settings_of(
    args: TrainingArguments, arguments_class: type[TrainingArguments], has_parts: bool = False
) -> dict[str, Any]:
    """The arguments that decide what a run learns: our own, and those of `TrainingArguments` that do.

    Args:
        args: the arguments.
        arguments_class: class of the arguments.
        has_parts: True if labels belong to parts of the samples, which consist of whole batches of extraction.
    """
    names = [name for name in own_names(arguments_class) if name not in FREE] + [
        *SHARED,
        *LENGTHS,
        *(BOUNDS if has_parts else ()),
    ]
    return as_stored({name: getattr(args, name) for name in names})


def default_settings_of(arguments_class: type[TrainingArguments]) -> dict[str, Any]:
    """The arguments of a class as they are where nothing is given, as JSON can hold them."""
    fields = dataclasses.fields(arguments_class)
    return as_stored({field.name: field.default for field in fields if field.default is not dataclasses.MISSING})


def describe_optimizer(optimizer: torch.optim.Optimizer | None, made_of: Any = None) -> list[dict[str, Any]] | None:
    """Describe the user's own optimizer as it was given: a dict per group of parameters, as JSON can hold it.

    Args:
        optimizer: the optimizer; None where none was given.
        made_of: class and keywords of one that `Trainer` makes, or None.

    Returns:
        Class and settings of each group, but for those that are None or False, which releases of torch add; None where
        neither is given. Learning rates are those before warm-up.
    """
    if optimizer is not None:
        kind: Any = type(optimizer)
        groups = [{**group, "lr": group.get("initial_lr", group.get("lr"))} for group in optimizer.param_groups]
    elif made_of is not None:
        kind, groups = made_of[0], [dict(made_of[1])]
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer):
            groups[0].pop("weight_decay", None)  # `Trainer` gives that of the arguments to each group
    else:
        return None

    def is_setting(name: str, value: Any) -> bool:
        return name not in OF_GROUPS and value is not None and value is not False

    def as_number(value: Any) -> Any:  # a rate may be a tensor
        return value.tolist() if isinstance(value, torch.Tensor) else value

    kept = [{name: as_number(value) for name, value in group.items() if is_setting(name, value)} for group in groups]
    name = getattr(kind, "__name__", "") or describe_value(kind)
    return [as_stored({"class": name, **group}) for group in kept]


def as_stored(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as they are after they have been written to a file and read."""
    stored: dict[str, Any] = json.loads(json.dumps(settings, default=describe_value))
    return stored


def check_same_settings(
    checkpoint: str, stored: dict[str, Any], current: dict[str, Any], defaults: dict[str, Any], warns: bool = True
) -> None:
    """Refuse to resume from a checkpoint with settings other than its own.

    Args:
        checkpoint: its folder, for the message.
        stored: settings that it was written with.
        current: settings of this run.
        defaults: settings where nothing is given. A checkpoint that is older than a setting counts as written with its
            default: whoever adds a setting gives it a default that leaves runs as they were.
        warns: False to leave the warning out.

    Raises:
        ValueError: naming each setting that differs; another length of the run is only warned of.
    """
    stored = _normalize_folders(_add_defaults(stored, current, defaults))
    current = _normalize_folders(current)
    differing = [name for name in {**current, **stored} if stored.get(name) != current.get(name)]
    lengths = [name for name in differing if name in LENGTHS]
    refused = [name for name in differing if name not in LENGTHS]
    if lengths and warns:
        logger.warning(
            "%s: %s. The run is resumed, but not as one that had this length from the start: its learning rate was "
            "planned for the other.",
            checkpoint,
            _describe_differences(lengths, stored, current),
        )
    if refused:
        raise ValueError(
            f"{checkpoint} was written with other settings: {_describe_differences(refused, stored, current)}. Resume "
            "with the settings that the run was started with, or start a new run with this checkpoint as its model"
        )


def _normalize_folders(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings in which a folder is the same however it is written."""
    folders = {name: os.path.realpath(settings[name]) for name in FOLDERS if settings.get(name) is not None}
    return settings | folders


def _add_defaults(stored: Any, current: Any, defaults: Any) -> Any:
    """Stored settings with the defaults of those that they lack, in dicts and in lists of dicts too."""
    if isinstance(stored, dict) and isinstance(current, dict) and isinstance(defaults, dict):
        absent = {name: defaults[name] for name in defaults if name in current and name not in stored}
        parts = {name: value for name, value in stored.items() if name not in WHOLE}
        both = stored | {name: _add_defaults(parts[name], current.get(name), defaults.get(name)) for name in parts}
        return {**both, **absent}
    lists = (stored, current, defaults)
    if all(isinstance(each, list) for each in lists) and len(stored) == len(current) == len(defaults):
        return [_add_defaults(*each) for each in zip(*lists, strict=True)]
    return stored


def _describe_differences(names: list[str], stored: dict[str, Any], current: dict[str, Any]) -> str:
    """Describe settings that differ; of one with parts, such as a clusterer's parameters, the parts that differ."""
    differences: dict[tuple[str, str], str] = {}  # by the last name and the values: several clusterers share most parts
    for name in names:
        for part, was, now in _list_differences(name, stored.get(name), current.get(name)):
            last, words = part.rpartition(", ")[2], f"was {was!r} and is {now!r}"
            if last == name or last not in names:  # a clusterer's seed follows from the run's
                differences.setdefault((last, words), f"{part} {words}")
    shown = list(differences.values())[:SHOWN]
    more = len(differences) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more else "")


def _list_differences(name: str, was: Any, now: Any) -> list[tuple[str, Any, Any]]:
    """List what differs in two values, down to the entries of dicts and of lists of equal length: (name, was, is)."""
    if isinstance(was, dict) and isinstance(now, dict):
        pairs = [(f"{name}, {key}", was.get(key), now.get(key)) for key in {**now, **was}]
    elif isinstance(was, list) and isinstance(now, list) and len(was) == len(now) and {type(x) for x in was} == {dict}:
        pairs = [(name, *pair) for pair in zip(was, now, strict=True)]
    else:
        return [] if was == now else [(name, was, now)]
    return [difference for pair in pairs for difference in _list_differences(*pair)]
