"""Arguments of `UnitTrainer`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from hf_plr.training_args.base import BaseTrainingArguments
from hf_plr.training_args.ignored import OF_FRAMES, refuse_ignored
from hf_plr.utils.argument_checks import AboveZero, AtLeastZero, Count, CountOrZero, FractionAboveZero, check_values


@dataclass
class UnitTrainingArguments(BaseTrainingArguments):
    """Arguments of `UnitTrainer`: `BaseTrainingArguments` with the settings of HuBERT's objective.

    `num_clusters` is the number of units, 100 by default. `first_units` is "mfcc" by default, and "layer" from a
    backbone that is given by name or path, or that has been trained.

    Raises:
        ValueError: if a value is outside its range, naming the argument.
    """

    relabel_every: Count = field(
        default=10, metadata={"help": "Frames: epochs per round; each round begins with new units."}
    )
    first_units: Literal["mfcc", "layer"] = field(
        default=None,  # type: ignore[arg-type]  # None only until __post_init__
        metadata={
            "help": "Frames: what to cluster in the first round, mfcc or the backbone's layer. Default: mfcc, from a "
            "pretrained backbone layer."
        },
    )
    unit_layer: CountOrZero | None = field(
        default=None,
        metadata={"help": "Frames: layer to cluster from the second round on. Default: two thirds of the way up."},
    )
    fit_frames: Count = field(
        default=200_000,
        metadata={"help": "Frames: how many frames, of recordings drawn at random, to fit the centroids on."},
    )
    frame_scaling: Literal["none", "global", "recording", "speaker"] = field(
        default="global",
        metadata={
            "help": "Frames: whose mean and standard deviation the frames are standardised by before k-means: none, "
            "global (those of all frames), recording, or speaker (takes a further pass over the frames each round)."
        },
    )
    speaker_column: str | None = field(
        default=None, metadata={"help": "Frames: column with the speakers, for frame_scaling speaker."}
    )
    whitening_shrinkage: AboveZero | None = field(
        default=None, metadata={"help": "Frames: whiten them before k-means, with this shrinkage. Default: not."}
    )
    mask_probability: FractionAboveZero = field(
        default=0.65,
        metadata={
            "help": "Frames: fraction of the frames that would be hidden if hidden spans never overlapped, in (0, 1]."
        },
    )
    mask_length: Count = field(default=10, metadata={"help": "Frames: length of a hidden span."})
    unmasked_weight: AtLeastZero = field(
        default=0.0, metadata={"help": "Frames: weight of the loss on frames that are not hidden, at least 0."}
    )
    unit_temperature: AboveZero = field(
        default=0.1, metadata={"help": "Frames: divisor of the cosines in the loss, above 0."}
    )

    def check(self) -> None:
        """Check all values as `BaseTrainingArguments` does, and those of frames."""
        super().check()
        check_values(self, UnitTrainingArguments)
        refuse_ignored(self, OF_FRAMES)
