"""Adapters of low rank (LoRA) in a backbone, and other adapters of peft that can be merged into its weights.

A backbone with adapters stays the model that it was, as after `add_adapter` of transformers: its linear layers are
wrapped, and `peft_config` has the configurations by name. So everything that takes a backbone takes an adapted one.
`hf_plr.models.adapter_files` saves, loads and merges adapters.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_plr.models.frozen import freeze
from hf_plr.models.initial_weights import is_untrained
from hf_plr.training_args.backbone import BackboneArguments
from hf_plr.utils.rng import isolate_rng

if TYPE_CHECKING:
    from peft import PeftConfig

logger = logging.getLogger(__name__)

ADAPTER_NAME = "default"
SHOWN = 8


def require_peft(purpose: str) -> None:
    """Check that peft is installed.

    Args:
        purpose: what needs it, for the message.

    Raises:
        ImportError: if it is not.
    """
    if importlib.util.find_spec("peft") is None:
        raise ImportError(f"{purpose} needs peft: pip install peft")


def has_adapters(model: Any) -> bool:
    """True for a backbone or a whole model with adapters of peft inside."""
    return bool(getattr(model, "peft_config", None))


# ---- new adapters ----------------------------------------------------------------------------------------------------


def add_lora(backbone: PreTrainedModel, args: BackboneArguments, forward: Callable[[], object], seed: int) -> None:
    """Put new adapters of low rank into the linear layers of a backbone, and freeze all of its other weights.

    They change no feature before training. A layer gets one if the feature depends on it: if it is called, and if its
    weight has not been frozen.

    Args:
        backbone: a bare backbone; weights that no feature depends on are frozen already.
        args: rank, alpha and targets.
        forward: computes a feature of one sample.
        seed: seed of the adapters, so that all processes have the same.

    Raises:
        ValueError: if no linear layer is left to adapt, or `lora_targets` names none.
    """
    from peft import LoraConfig, inject_adapter_in_model

    alpha: Any = 2 * args.lora_rank if args.lora_alpha is None else args.lora_alpha
    config = LoraConfig(
        r=args.lora_rank,
        lora_alpha=int(alpha) if alpha == int(alpha) else alpha,
        target_modules=_choose_targets(backbone, args.lora_targets, forward),
        base_model_name_or_path=backbone.name_or_path or None,
    )
    if is_untrained(backbone):
        logger.warning(
            "lora=True with random weights: they stay random, and only the adapters learn. Start from trained ones."
        )
    with isolate_rng(seed):
        inject_adapter_in_model(config, backbone, ADAPTER_NAME)
    mark_adapted(backbone, dict(backbone.peft_config))
    train_adapters_alone(backbone)


def _choose_targets(backbone: PreTrainedModel, chosen: list[str] | None, forward: Callable[[], object]) -> list[str]:
    names = _list_called_linears(backbone, forward)
    if not any(isinstance(module, nn.Linear) for module in backbone.modules()):
        raise ValueError(
            f"lora=True but {type(backbone).__name__} has no linear layer: train its weights, without lora"
        )
    if not names:
        raise ValueError(f"lora=True but no linear layer of {type(backbone).__name__} is left to adapt: freeze fewer")
    if chosen is None:
        return names
    for target in chosen:
        if not any(_ends_with(name, target) for name in names):
            ends = sorted({name.rsplit(".", 1)[-1] for name in names})
            raise ValueError(
                f"lora_targets: {target!r} names no linear layer of {type(backbone).__name__} that the feature depends "
                f"on: use {', '.join(ends[:SHOWN])}, or a longer name such as {names[0]}"
            )
    return [name for name in names if any(_ends_with(name, target) for target in chosen)]


def _ends_with(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


@torch.no_grad()
def _list_called_linears(backbone: PreTrainedModel, forward: Callable[[], object]) -> list[str]:
    """List the linear layers that are called and not frozen.

    WavLM's attention takes the weights of its linear layers without calling them: adapters would have no effect there.
    """
    candidates = {
        name: module
        for name, module in backbone.named_modules()
        if type(module) is nn.Linear and module.weight.requires_grad
    }
    called: set[nn.Module] = set()

    def note(module: nn.Module, *_: Any) -> None:
        called.add(module)

    hooks = [module.register_forward_hook(note) for module in candidates.values()]
    modes = {module: module.training for module in backbone.modules()}
    try:
        backbone.eval()
        forward()
    finally:
        for hook in hooks:
            hook.remove()
        for module, was_training in modes.items():
            module.training = was_training
    return [name for name, module in candidates.items() if module in called]


# ---- adapters that a model brings ------------------------------------------------------------------------------------


def get_adapted_model(model: Any) -> PreTrainedModel:
    """Get the model of transformers with adapters inside out of a `PeftModel`; such a model is returned as it is.

    Raises:
        ValueError: if the adapters cannot be merged, or the model is not one of transformers.
    """
    kind = type(model).__name__
    whole = model
    if hasattr(model, "get_base_model"):  # a PeftModel
        config = model.peft_config[model.active_adapter]
        if config.is_prompt_learning:
            raise ValueError(
                f"the {kind} has prompts ({config.peft_type.value}), which cannot be merged into a backbone: use LoRA"
            )
        whole = model.get_base_model()
    if not isinstance(whole, PreTrainedModel):
        raise ValueError(f"the {kind} holds a {type(whole).__name__}: give adapters of a model of transformers")
    return whole


def claim_adapters(model: Any, whole: PreTrainedModel, backbone: Any) -> None:
    """Make adapters inside a backbone the backbone's own, and train them alone.

    The modules stay those of the model that was given, so that it sees what is trained.

    Args:
        model: the model as it was given.
        whole: output of `get_adapted_model`.
        backbone: `whole`, or a part of it.

    Raises:
        ValueError: if the adapters are not inside the backbone, or cannot be merged into it.
    """
    kind = type(model).__name__
    layers = list_adapter_layers(backbone)
    if not layers:
        raise ValueError(
            f"the {kind} has no adapters inside its backbone ({type(backbone).__name__}) that can be merged: use LoRA "
            "in layers of the backbone"
        )
    active = _check_layers(kind, [layer for _, layer in layers])
    prefix = next((f"{name}." for name, module in whole.named_modules() if name and module is backbone), "")
    configs = dict(model.peft_config)
    configs[active] = fit_config(configs[active], backbone, prefix)
    mark_adapted(backbone, configs)
    try:
        train_adapters_alone(backbone)
    except (ValueError, KeyError) as error:  # VeRA: what its layers share belongs to the whole model
        raise ValueError(f"the adapters of the {kind} cannot be saved with its backbone ({error}): use LoRA") from error


def _check_layers(kind: str, layers: list[Any]) -> str:
    """Check adapters in memory: one is active, and it can be merged. Returns its name."""
    active = sorted({name for layer in layers for name in layer.active_adapters})
    if len(active) != 1:
        raise ValueError(f"the {kind} has {len(active)} active adapters ({', '.join(active)}): activate one")
    if any(layer.disable_adapters for layer in layers):
        raise ValueError(f"the adapters of the {kind} are switched off: enable them")
    if any(layer.merged for layer in layers):
        raise ValueError(f"the adapters of the {kind} are merged: call unmerge_adapter() first")
    for layer in {type(layer): layer for layer in layers}.values():
        try:
            copy.deepcopy(layer).merge(safe_merge=True)
        except Exception as error:  # each kind of adapter has its own
            words = f"{type(error).__name__}: {error}".rstrip(": ")
            raise ValueError(f"the adapters of the {kind} cannot be merged into its weights ({words})") from error
    return active[0]


def fit_config(config: PeftConfig, backbone: PreTrainedModel, prefix: str) -> PeftConfig:
    """Copy a configuration so that it fits the bare backbone.

    Args:
        config: that of the whole model.
        backbone: the backbone, with the adapters inside.
        prefix: what the names of its modules begin with in the whole model, empty for a bare backbone.
    """
    fitted: Any = copy.deepcopy(config)
    fitted.task_type = None  # other tasks have forward methods for token ids
    if not prefix:
        return fitted
    targets = getattr(fitted, "target_modules", None)
    if isinstance(targets, str):  # a pattern for the names in the whole model
        fitted.target_modules = {name for name, _ in list_adapter_layers(backbone)} or targets
    elif targets is not None:
        fitted.target_modules = {name.removeprefix(prefix) for name in targets}
    for name in ("layers_to_transform", "layers_pattern", "exclude_modules"):
        if getattr(fitted, name, None) is not None:
            setattr(fitted, name, None)
    for name in ("rank_pattern", "alpha_pattern"):
        pattern = getattr(fitted, name, None)
        if pattern:
            setattr(fitted, name, {key.removeprefix(prefix): value for key, value in pattern.items()})
    if getattr(fitted, "modules_to_save", None):
        names = {name for name, _ in backbone.named_modules()}
        fitted.modules_to_save = [
            saved for saved in fitted.modules_to_save if any(_ends_with(name, saved) for name in names)
        ] or None
    return fitted


def mark_adapted(backbone: Any, configs: dict[str, Any]) -> None:
    """Make a backbone with adapters one that transformers knows as such."""
    backbone.peft_config = configs
    backbone._hf_peft_config_loaded = True


# ---- what is trained -------------------------------------------------------------------------------------------------


def list_adapter_layers(backbone: nn.Module) -> list[tuple[str, Any]]:
    """List the layers with adapters, by name."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [(name, module) for name, module in backbone.named_modules() if isinstance(module, BaseTunerLayer)]


def active_adapter(backbone: Any) -> str:
    """Name of the adapter that is trained."""
    name: str = list_adapter_layers(backbone)[0][1].active_adapters[0]
    return name


def adapter_state(backbone: Any) -> dict[str, torch.Tensor]:
    """Tensors of the adapter by name; they share their memory with the backbone's."""
    from peft import get_peft_model_state_dict

    state: dict[str, torch.Tensor] = get_peft_model_state_dict(
        backbone, adapter_name=active_adapter(backbone), save_embedding_layers=False
    )
    return state


def train_adapters_alone(backbone: Any) -> None:
    """Freeze all weights that are not the adapter's; an adapter that was loaded for inference is trained again."""
    from peft.functional import set_adapter

    own = {value.data_ptr() for value in adapter_state(backbone).values()}
    adapters = [parameter for parameter in backbone.parameters() if parameter.data_ptr() in own]
    if not any(parameter.requires_grad for parameter in adapters):
        set_adapter(backbone, active_adapter(backbone))
    for parameter in backbone.parameters():
        if parameter.data_ptr() not in own:
            freeze(parameter)


def prepare_adapters(backbone: PreTrainedModel, args: Any, forward: Callable[[], object]) -> None:
    """Add the adapters that the arguments ask for; called once all weights that no feature depends on are frozen.

    Adapters that the backbone has already are trained on.

    Args:
        backbone: a bare backbone, with or without adapters.
        args: arguments of LoRA, and the seed.
        forward: computes a feature of one sample.

    Raises:
        ValueError: if the arguments do not fit the backbone.
    """
    if not args.lora:
        return
    if not has_adapters(backbone):
        add_lora(backbone, args, forward, args.seed)
        return
    config: Any = backbone.peft_config[active_adapter(backbone)]
    rank, alpha = getattr(config, "r", None), getattr(config, "lora_alpha", None)
    asked = {"lora_rank": (args.lora_rank, rank)}
    asked |= {} if args.lora_alpha is None else {"lora_alpha": (args.lora_alpha, alpha)}
    for name, (value, own) in asked.items():
        if value != own:
            raise ValueError(
                f"{name}={value}, but the model has adapters already, {describe_kind(backbone)}: leave lora out to "
                "train them on as they are"
            )


def describe_kind(backbone: Any) -> str:
    """Describe the kind of the adapters, such as "LoRA, rank 16, alpha 32"."""
    config: Any = backbone.peft_config[active_adapter(backbone)]
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if kind == "LORA":
        return f"LoRA, rank {config.r}, alpha {config.lora_alpha:g}"
    return f"adapters of peft ({kind})"


def describe_adapters(backbone: nn.Module) -> str:
    """Describe the adapters and the number of trained parameters; empty for a backbone without adapters."""
    if not has_adapters(backbone):
        return ""
    counts = [(parameter.numel(), parameter.requires_grad) for parameter in backbone.parameters()]
    n_trained, n_all = sum(n for n, is_trained in counts if is_trained), sum(n for n, _ in counts)
    return f"{describe_kind(backbone)}: {n_trained:,} of {n_all:,} parameters were trained"
