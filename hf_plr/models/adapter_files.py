"""Files of adapters: save and load them, find the model that they belong to, and merge them into a copy of it."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from hf_plr.models.lora import (
    ADAPTER_NAME,
    active_adapter,
    adapter_state,
    fit_config,
    list_adapter_layers,
    mark_adapted,
    require_peft,
    train_adapters_alone,
)
from hf_plr.utils.files import replacing

ADAPTER_FOLDER = "adapter"  # below the output folder
CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PEFT_PREFIX = "base_model.model."  # of all names in files of peft
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
SHOWN = 3


def find_base_model(name: str) -> str:
    """Find the model to load: that of the adapters, if `name` is a folder of adapters, otherwise `name` itself.

    Raises:
        ImportError: if peft is not installed.
        ValueError: if the folder does not tell its model.
    """
    if not is_adapter_folder(name):
        return name
    require_peft(f"the folder of adapters {name!r}")
    path = os.path.join(name, CONFIG_FILE)
    try:
        base = json.loads(Path(path).read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not base or not isinstance(base, str):
        raise ValueError(
            f"the adapters in {name!r} do not tell the model that they belong to, which had no name: load it, and pass "
            f"peft.PeftModel.from_pretrained(model, {name!r})"
        )
    return base


def is_adapter_folder(name: str) -> bool:
    """True for a folder that has adapters and no model."""
    folder = Path(name)
    return (folder / CONFIG_FILE).is_file() and not (folder / "config.json").is_file()


def find_processor(model: PreTrainedModel) -> str:
    """Find where the model's processor is saved: with its adapters, or with the model."""
    folder = getattr(model, "adapter_folder", None)
    if folder is not None and any(os.path.isfile(os.path.join(folder, name)) for name in PROCESSOR_FILES):
        return str(folder)
    return str(model.name_or_path)


def load_adapter_of(model: Any, backbone: PreTrainedModel) -> None:
    """Put the adapters of a folder into the backbone that was loaded for it; does nothing for any other model."""
    if isinstance(model, (str, os.PathLike)) and is_adapter_folder(os.fspath(model)):
        load_adapter(backbone, os.fspath(model))


def load_adapter(backbone: PreTrainedModel, folder: str) -> None:
    """Put the adapters of a folder into their backbone; they are trained on, all other weights are frozen.

    Adapters of a model with a head are taken as far as they are in its backbone.

    Raises:
        ValueError: if they are damaged, do not fit, or are not of a kind that can be merged.
    """
    from peft import PeftConfig, inject_adapter_in_model

    module: Any = backbone
    try:
        config: Any = PeftConfig.from_pretrained(folder)
        if config.is_prompt_learning:
            raise ValueError(f"prompts ({config.peft_type.value}) cannot be merged into a backbone")
        weights = read_adapter(folder)
        prefix = _find_prefix(weights, backbone)
        weights = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
        config = fit_config(config, backbone, prefix)
        config.inference_mode = False
        inject_adapter_in_model(config, module, ADAPTER_NAME)
        mark_adapted(module, {ADAPTER_NAME: config})
        fill_adapter(module, weights)
    except Exception as error:  # of peft, safetensors or the file system
        raise ValueError(f"the adapters in {folder!r} do not fit {type(backbone).__name__}: {error}") from error
    module.adapter_folder = folder
    train_adapters_alone(module)


def _find_prefix(weights: dict[str, torch.Tensor], backbone: PreTrainedModel) -> str:
    """Find what the names of a backbone's adapted layers begin with in its adapters: empty, or its name in a model."""
    layers = tuple(f"{name}." for name, module in backbone.named_modules() if name and not list(module.children()))
    for key in weights:
        parts = key.split(".")
        for n in range(len(parts)):
            if ".".join(parts[n:]).startswith(layers):
                return "".join(f"{part}." for part in parts[:n])
    return ""


def read_adapter(folder: str) -> dict[str, torch.Tensor]:
    """Read the tensors of a folder of adapters, by their names in the model.

    Raises:
        ValueError: if the file is missing or damaged, naming it.
    """
    path = os.path.join(folder, WEIGHTS_FILE)
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    return {name.removeprefix(PEFT_PREFIX): value for name, value in weights.items()}


@torch.no_grad()
def fill_adapter(backbone: Any, weights: dict[str, torch.Tensor]) -> None:
    """Set the adapter of a backbone to these tensors, all of which it must have in these shapes.

    Raises:
        ValueError: naming some that do not fit; the adapter is then as it was.
    """
    own = adapter_state(backbone)
    differing = [name for name in {**own, **weights} if name not in own or name not in weights]
    differing += [name for name in own if name in weights and own[name].shape != weights[name].shape]
    if differing:
        more = f" and {len(differing) - SHOWN} more" if len(differing) > SHOWN else ""
        raise ValueError(f"it has other adapters: {', '.join(differing[:SHOWN])}{more}")
    for name, value in own.items():
        value.copy_(weights[name])


def save_adapter(backbone: PreTrainedModel, folder: str | os.PathLike[str]) -> None:
    """Write the adapter as peft does, `adapter_config.json` and `adapter_model.safetensors`.

    The configuration names the model that the backbone was loaded from, and none if it had no name.
    """
    os.makedirs(folder, exist_ok=True)
    module: Any = backbone
    config: Any = copy.deepcopy(module.peft_config[active_adapter(backbone)])
    config.base_model_name_or_path = backbone.name_or_path or None
    config.inference_mode = True  # as peft saves it: whoever trains it on says so
    if isinstance(getattr(config, "target_modules", None), set):
        config.target_modules = sorted(config.target_modules)  # the same file each time
    names = {"base_model_class": type(backbone).__name__, "parent_library": type(backbone).__module__}
    config.save_pretrained(os.fspath(folder), auto_mapping_dict=names)
    weights = {f"{PEFT_PREFIX}{name}": value.contiguous() for name, value in adapter_state(backbone).items()}
    with replacing(os.path.join(folder, WEIGHTS_FILE)) as temporary:
        save_file(weights, temporary, metadata={"format": "pt"})


def merge_adapters(backbone: PreTrainedModel) -> PreTrainedModel:
    """Copy a backbone, with its adapters merged into the weights of the copy, which has none.

    Raises:
        ValueError: if weights are not finite.
    """
    from peft.utils.other import AuxiliaryTrainingWrapper

    merged: Any = copy.deepcopy(backbone)
    name = active_adapter(backbone)
    wrappers = [(path, each) for path, each in merged.named_modules() if isinstance(each, AuxiliaryTrainingWrapper)]
    layers = list_adapter_layers(merged)
    done: list[str] = []
    for path, module in sorted([*wrappers, *layers], key=lambda item: item[0]):
        if any(path.startswith(f"{outer}.") for outer in done):
            continue
        if isinstance(module, AuxiliaryTrainingWrapper):
            plain = module.unload_and_optionally_merge_module(merge=True, safe_merge=True, adapter_names=[name])
        else:
            module.merge(safe_merge=True, adapter_names=[name])
            plain = module.get_base_layer()
        merged.set_submodule(path, plain)
        done.append(path)
    del merged.peft_config
    merged._hf_peft_config_loaded = False
    merged.adapter_folder = None
    plain_copy: PreTrainedModel = merged
    return plain_copy


def hash_frozen_weights(backbone: PreTrainedModel) -> str:
    """Hash all weights that are not the adapter's: those of a resumed run must be the same."""
    own = {value.data_ptr() for value in adapter_state(backbone).values()}
    digest = hashlib.sha256()
    for name, value in sorted(backbone.state_dict().items()):
        if value.data_ptr() not in own:
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
