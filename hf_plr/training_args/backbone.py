"""Arguments of the backbone: which feature it gives, and which of its weights are trained."""

from __future__ import annotations

from dataclasses import dataclass, field

from hf_plr.training_args.choices import Pooling
from hf_plr.utils.argument_checks import AboveZero, Count, CountOrZero, FractionAboveZero


@dataclass
class BackboneArguments:
    """Arguments of the backbone, for subclasses of `TrainingArguments`."""

    pooling: Pooling | None = field(
        default=None,
        metadata={
            "help": "Feature of a sample: cls (class token), mean (over patches, or over the frames of a sound), "
            "cls+mean (both, side by side) or pooler (the model's own). Default: cls where there is a class token, "
            "otherwise the model's own pooler where it has a trained one, otherwise mean."
        },
    )
    layer: CountOrZero | None = field(
        default=None,
        metadata={
            "help": "Layer whose tokens or frames make the feature, 0 for the first layer's input. Default: the last."
        },
    )
    freeze_layers: CountOrZero = field(
        default=0,
        metadata={"help": "Freeze the embeddings and so many of the first layers of a pretrained backbone."},
    )
    layer_decay: FractionAboveZero = field(
        default=1.0,
        metadata={
            "help": "Factor of the learning rate from each layer to the one below it, in (0, 1], such as 0.75 for a "
            "pretrained backbone. 1: one rate for all."
        },
    )
    lora: bool = field(
        default=False,
        metadata={
            "help": "Train adapters of low rank (LoRA, needs peft) and leave the weights of the backbone as they are: "
            "for large backbones."
        },
    )
    lora_rank: Count = field(default=16, metadata={"help": "Rank of the adapters."})
    lora_alpha: AboveZero | None = field(
        default=None,
        metadata={"help": "Scale of the adapters: they are multiplied by alpha / rank. Default: twice the rank."},
    )
    lora_targets: list[str] | None = field(
        default=None,
        metadata={"help": "Names of the linear layers that get adapters. Default: all that the feature depends on."},
    )
