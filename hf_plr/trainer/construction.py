"""What a trainer decides and refuses when it is made."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from hf_plr.modality import AudioModality, Modality
from hf_plr.models.initial_weights import is_untrained
from hf_plr.models.layers import freeze_first_layers
from hf_plr.models.lora import has_adapters
from hf_plr.training_args import BaseTrainingArguments
from hf_plr.training_args.defaults import adapt_to_pretrained

if TYPE_CHECKING:
    from hf_plr.trainer.base_trainer import BaseTrainer

logger = logging.getLogger(__name__)

Args = TypeVar("Args", bound=BaseTrainingArguments)
OF_LAYERS = {"every_n_layers", "offload"}  # arguments of gradient checkpointing that torch does not see
ONE_MODEL = "labels, prototypes and random numbers of a run belong to one model"


def check_arguments(kind: type[Args], args: Args | None, model: Any, others: dict[str, Any]) -> Args:
    """Check the kind of the arguments and their values, also of those assigned since, and that there is a model.

    Args:
        kind: class of the arguments.
        args: the arguments; None takes all defaults.
        model: the model, its name or its path.
        others: further arguments of `Trainer`.

    Raises:
        TypeError: if the arguments are of another class, or there is no model.
        ValueError: if there is a `model_init` or a `compute_loss_func`; and as `BaseTrainingArguments.check`.
    """
    if others.get("model_init") is not None:
        raise ValueError(f"model_init is not supported: {ONE_MODEL}. Pass model=, and make a trainer for each trial")
    if others.get("compute_loss_func") is not None:
        raise ValueError(
            "compute_loss_func is not supported: the loss is that of the pseudo-labels. Override compute_loss in a "
            "subclass of the trainer, where self.modality.features(model, inputs) are the features of a batch"
        )
    if model is None:
        raise TypeError("model is missing: pass a backbone, its name on the Hub, or its path")
    if args is None:
        return kind("plr_output")
    if not isinstance(args, kind):
        raise TypeError(f"args must be {kind.__name__}, not {type(args).__name__}")
    args.check()
    return args


def adapt_to_start(args: Args, model: Any, modality: Modality) -> Args:
    """Take the defaults of a pretrained backbone for one that has a name or a path, or that has been trained.

    Args:
        args: the arguments, which stay as they are.
        model: the model as the user gave it.
        modality: holds the backbone.

    Returns:
        `args`, or a copy with these defaults.
    """
    if not isinstance(model, (str, os.PathLike)) and is_untrained(modality.model):
        return args
    kind: Literal["image", "audio"] = "audio" if isinstance(modality, AudioModality) else "image"
    return adapt_to_pretrained(args, kind, args.lora or has_adapters(modality.model))


def freeze_as_told(args: BaseTrainingArguments, backbone: nn.Module) -> None:
    """Freeze the first layers, as many as the arguments say.

    Raises:
        ValueError: if none would be left.
    """
    if args.freeze_layers:
        freeze_first_layers(backbone, args.freeze_layers)


def check_trained(
    args: BaseTrainingArguments, backbone: nn.Module, compute_example: Callable[[], torch.Tensor]
) -> None:
    """Check that some weight is trained, and that a gradient checkpointing that is asked for exists and trains.

    Args:
        args: the arguments.
        backbone: the bare backbone, with frozen what is frozen.
        compute_example: computes a feature with it.

    Raises:
        ValueError: if not.
    """
    name = type(backbone).__name__
    if not any(parameter.requires_grad for parameter in backbone.parameters()):
        raise ValueError(
            f"all weights of {name} that the feature depends on are frozen: call requires_grad_(True) on those to "
            "train (lora=True freezes them itself)"
        )
    if not args.gradient_checkpointing:
        return
    if not getattr(backbone, "supports_gradient_checkpointing", True):
        raise ValueError(f"gradient_checkpointing=True but {name} has none: leave it out")
    kwargs: Any = args.gradient_checkpointing_kwargs or {}
    is_default = set(kwargs) <= OF_LAYERS  # transformers' default is no reentrant checkpoint, torch's is one
    is_reentrant = kwargs.get("use_reentrant", not is_default)
    # Inputs of layers with adapters are given gradients.
    if is_reentrant and not has_adapters(backbone) and _has_layer_after_frozen(backbone, compute_example):
        raise ValueError(
            f"gradient_checkpointing_kwargs={kwargs} would train no layer of {name} whose embeddings, or first layers, "
            "are frozen: use use_reentrant=False"
        )


def _has_layer_after_frozen(backbone: nn.Module, compute_example: Callable[[], torch.Tensor]) -> bool:
    """True if a layer is trained whose input needs no gradient."""
    found: list[bool] = []

    def look(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        found.append(not any(isinstance(value, torch.Tensor) and value.requires_grad for value in inputs))

    trained = (
        layer
        for layer in backbone.modules()
        if isinstance(layer, GradientCheckpointingLayer) and any(weight.requires_grad for weight in layer.parameters())
    )
    hooks = [layer.register_forward_pre_hook(look) for layer in trained]
    try:
        compute_example()
    finally:
        for hook in hooks:
            hook.remove()
    return any(found)


def check_optimizer(args: BaseTrainingArguments, backbone: nn.Module, optimizers: Any) -> None:
    """Check an optimizer that the user made.

    Args:
        args: the arguments.
        backbone: the bare backbone, in float32 and with frozen what is frozen.
        optimizers: optimizer and scheduler, each may be None; or None.

    Raises:
        ValueError: if it trains no parameter of the backbone, or rates by layer are asked for.
    """
    optimizer = None if optimizers is None else optimizers[0]
    if optimizer is None:
        return
    if args.layer_decay != 1.0:
        raise ValueError(
            f"layer_decay={args.layer_decay} has no effect on an optimizer of your own: set its groups' rates instead"
        )
    trained = {id(parameter) for parameter in backbone.parameters() if parameter.requires_grad}
    name = type(optimizer).__name__
    if any(id(parameter) in trained for group in optimizer.param_groups for parameter in group["params"]):
        return
    if args.lora:
        raise ValueError(
            f"optimizers: {name} holds none of the adapters, which lora=True makes after it: pass a PeftModel and an "
            "optimizer of its parameters(), without lora"
        )
    raise ValueError(
        f"optimizers: {name} holds no trained parameter of this {type(backbone).__name__}: load the model first, make "
        "the optimizer of its parameters(), and pass that model"
    )


def check_whole_weights(trainer: BaseTrainer) -> None:
    """Check that weights are whole on every process, where something needs them so.

    Raises:
        ValueError: naming the argument that FSDP or DeepSpeed do not fit.
    """
    args = trainer.args
    needs = {"ema_decay": args.ema_decay, "layer_decay": args.layer_decay != 1.0, "lora": trainer.has_adapters}
    for name, is_used in needs.items():
        if is_used and (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
            value = getattr(args, name)
            raise ValueError(f"{name}={value} needs whole weights on every process: no FSDP, no DeepSpeed")


def check_evaluation_sets(trainer: BaseTrainer, eval_dataset: Any) -> Any:
    """Open evaluation sets, without a sample, after the samples to train on have been, and return them.

    Sets without the column of the true labels, which are not scored by them, are warned of.

    Raises:
        ValueError, TypeError: if one has no samples that the model takes, naming it.
    """
    sets = eval_dataset if isinstance(eval_dataset, Mapping) else {None: eval_dataset}
    for name, dataset in sets.items():
        if dataset is None:
            continue
        called = "eval_dataset" if name is None else f"eval_dataset[{name!r}]"
        try:
            store = trainer.open_samples(dataset)
        except (ValueError, TypeError) as error:
            raise type(error)(f"{called}: {error}") from error
        if trainer.label_column is not None and store.labels is None and trainer.is_world_process_zero():
            logger.warning(
                "%s has no column %r, by which the training samples are scored: it is not scored by labels. It has %s.",
                *(called, trainer.label_column, ", ".join(map(repr, dataset.column_names))),
            )
    return eval_dataset
