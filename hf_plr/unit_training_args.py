"""Arguments of `UnitTrainer`."""

from __future__ import annotations

from dataclasses import dataclass, field

from hf_plr.training_args import PLRTrainingArguments

FIRST_UNITS = ("mfcc", "layer")


@dataclass
class UnitTrainingArguments(PLRTrainingArguments):
    """`PLRTrainingArguments` with the settings of HuBERT's objective, for `UnitTrainer`.

    `num_clusters` is the number of units, 100 by default. What only `PLRTrainer` does (`temperature`,
    `samples_per_cluster`, `clusterer`, ...) is refused by `UnitTrainer` if it is set.

    Raises:
        ValueError: if a value is outside its range, naming the argument.
    """

    relabel_every: int = field(default=10, metadata={"help": "Frames: epochs of a round, each on units made afresh."})
    first_units: str = field(
        default="mfcc",
        metadata={
            "help": "Frames: what the first round's units are clusters of, mfcc or the backbone's layer.",
            "choices": list(FIRST_UNITS),
        },
    )
    unit_layer: int | None = field(
        default=None,
        metadata={
            "help": "Frames: layer that is clustered from the second round on. Default: two thirds of the way up."
        },
    )
    fit_frames: int = field(
        default=200_000,
        metadata={"help": "Frames: how many frames, of recordings drawn at random, the centroids are fitted on."},
    )
    mask_probability: float = field(
        default=0.65,
        metadata={
            "help": "Frames: share of the frames that would be hidden if hidden spans never overlapped, in (0, 1]."
        },
    )
    mask_length: int = field(default=10, metadata={"help": "Frames: length of a hidden span."})
    unmasked_weight: float = field(
        default=0.0, metadata={"help": "Frames: weight of the loss on frames that are not hidden, at least 0."}
    )
    unit_temperature: float = field(
        default=0.1, metadata={"help": "Frames: divisor of the cosines in the loss, above 0."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("relabel_every", "fit_frames", "mask_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.first_units not in FIRST_UNITS:
            raise ValueError(f"first_units={self.first_units!r} is unknown: use one of {', '.join(FIRST_UNITS)}")
        if not 0.0 < self.mask_probability <= 1.0:
            raise ValueError(f"mask_probability={self.mask_probability} is outside (0, 1]")
        if self.unmasked_weight < 0.0:
            raise ValueError(f"unmasked_weight={self.unmasked_weight} must be at least 0")
        if self.unit_temperature <= 0.0:
            raise ValueError(f"unit_temperature={self.unit_temperature} must be above 0")
