"""Defaults that depend on the start: random weights, or a backbone that has been trained."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    from hf_plr.training_args.base import BaseTrainingArguments

logger = logging.getLogger(__name__)

FROM_SCRATCH: dict[str, Any] = {
    "learning_rate": 1e-3,
    "num_train_epochs": 30,
    "per_device_train_batch_size": 128,
    "first_units": "mfcc",
}
PRETRAINED: dict[str, dict[str, Any]] = {
    "image": {"learning_rate": 3e-5, "num_train_epochs": 10, "per_device_train_batch_size": 64},
    "audio": {
        "learning_rate": 3e-5,
        "num_train_epochs": 10,
        "per_device_train_batch_size": 16,
        "first_units": "layer",
    },
}
ADAPTERS = {"learning_rate": 1e-3}  # measured: docs/explanation/lora.md

Args = TypeVar("Args", bound="BaseTrainingArguments")


def fill_from_scratch(args: BaseTrainingArguments) -> frozenset[str]:
    """Give the arguments of `FROM_SCRATCH` that are None their value there.

    Returns:
        The names of these arguments.
    """
    names = frozenset(name for name in FROM_SCRATCH if getattr(args, name, "") is None)
    for name in names:
        setattr(args, name, FROM_SCRATCH[name])
    return names


def keep_from_scratch(args: Args) -> Args:
    """Return a copy of the arguments in which the defaults of random weights count as given."""
    kept = object.__new__(type(args))  # copy.copy would leave tokens out, see __getstate__
    by_default = args.by_default - set(FROM_SCRATCH)
    vars(kept).update({**vars(args), "by_default": by_default, "stays_from_scratch": True})
    return kept


def adapt_to_pretrained(args: Args, kind: Literal["image", "audio"], has_adapters: bool = False) -> Args:
    """Take the defaults of a pretrained backbone for the arguments that nobody gave.

    Args:
        args: the arguments; they stay as they are, also for a further trainer.
        kind: what the backbone is for.
        has_adapters: whether adapters are trained in place of its weights.

    Returns:
        A copy, or `args` itself if all of them were given.

    Raises:
        ValueError: with DeepSpeed, whose configuration was made from other values.
    """
    defaults = PRETRAINED[kind] | (ADAPTERS if has_adapters else {})
    changes = {name: value for name, value in defaults.items() if name in args.by_default}
    if not getattr(args, "stays_from_scratch", False):
        _warn_of_copies(args, defaults)
    if not changes:
        return args
    if args.deepspeed is not None:
        raise ValueError(f"deepspeed with a pretrained backbone: give {', '.join(changes)} (such as {changes})")
    adapted = object.__new__(type(args))  # copy.copy would leave tokens out, see __getstate__
    vars(adapted).update({**vars(args), **changes})
    logger.info("Defaults of a pretrained backbone: %s", changes)
    return adapted


def _warn_of_copies(args: BaseTrainingArguments, defaults: dict[str, Any]) -> None:
    """Warn where all values are those for random weights, but none counts as a default.

    That is what `dataclasses.replace` and a dictionary of all arguments make of defaults: values that were given.
    """
    names = [name for name, value in defaults.items() if hasattr(args, name) and FROM_SCRATCH[name] != value]
    if not args.by_default.intersection(names) and all(getattr(args, name) == FROM_SCRATCH[name] for name in names):
        own, wanted = ({name: values[name] for name in names} for values in (FROM_SCRATCH, defaults))
        logger.warning(
            "%s are the defaults for random weights, but given for a pretrained backbone, whose defaults are %s. If "
            "the arguments were copied by dataclasses.replace or from a dictionary, use copy.deepcopy and assign.",
            own,
            wanted,
        )
