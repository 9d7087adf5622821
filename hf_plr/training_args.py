"""Arguments of `PLRTrainer` and `UnitTrainer`."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy

from hf_plr.clustering import CLUSTERERS
from hf_plr.data.audio_augmentation import AUDIO_AUGMENTATIONS
from hf_plr.data.image_augmentation import IMAGE_AUGMENTATIONS
from hf_plr.evaluation.label_free import LOWER_IS_BETTER
from hf_plr.features.source import DTYPES, SOURCES
from hf_plr.models.pooling import POOLINGS
from hf_plr.refinement import PRESETS

ALL_AUGMENTATIONS = list(dict.fromkeys([*IMAGE_AUGMENTATIONS, *AUDIO_AUGMENTATIONS]))

AUTO = "auto"  # as good as any that was tried: this preset, on so many labelings where the clusterer allows it
AUTO_PRESET = "soft"
AUTO_LABELINGS = 3
ON_NAN = ("stop", "skip_epoch")
REPORTS = ("epoch", "end", "no")


@dataclass
class PLRTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments` with the settings of clustering, refinement and the objective.

    Defaults that differ from `TrainingArguments`: `num_train_epochs` 30, `per_device_train_batch_size` 128,
    `per_device_eval_batch_size` 256, `learning_rate` 1e-3 (use about 3e-5 for a pretrained backbone), `weight_decay`
    0.05, `lr_scheduler_type` "cosine", `warmup_steps` 0.1 (a share), `logging_strategy` "epoch", `save_strategy`
    "epoch", `save_total_limit` 2, `remove_unused_columns` False. With `load_best_model_at_end`, the default of
    `metric_for_best_model` is "knn_accuracy"; without labels it takes a score that needs none, such as
    "plr/effective_rank", see `PLRTrainer.evaluate`.

    Raises:
        ValueError: if a value is outside its range, naming the argument.
    """

    num_train_epochs: float = field(default=30, metadata={"help": "Epochs, each on labels made afresh."})
    per_device_train_batch_size: int = field(default=128, metadata={"help": "Samples a training batch and device."})
    per_device_eval_batch_size: int = field(
        default=256, metadata={"help": "Images, or seconds of sound, a batch and device for features and evaluation."}
    )
    learning_rate: float = field(
        default=1e-3, metadata={"help": "Peak learning rate; about 3e-5 for a pretrained backbone."}
    )
    weight_decay: float = field(default=0.05, metadata={"help": "Weight decay of AdamW."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning-rate schedule."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Warm-up: steps, or a share of all steps if below 1."})
    logging_strategy: str = field(default="epoch", metadata={"help": "When to log: epoch, steps or no."})
    save_strategy: str = field(
        default="epoch", metadata={"help": "When to save a checkpoint: epoch, steps, best or no."}
    )
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints to keep."})
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay False: the trainer picks its columns itself."}
    )

    image_column: str | None = field(
        default=None, metadata={"help": "Column with the images. By default the only one there is."}
    )
    audio_column: str | None = field(
        default=None, metadata={"help": "Column with the sounds. By default the only one there is."}
    )
    label_column: str | None = field(
        default=None, metadata={"help": "Column with true labels, for scoring only. By default the only one there is."}
    )
    score_every: int = field(
        default=0,
        metadata={
            "help": "Epochs from one scoring by true labels to the next, logged as score/...; changes nothing of what "
            "is trained. 0: the recipes score before and after."
        },
    )
    pooling: str | None = field(
        default=None,
        metadata={
            "help": "Feature of a sample: cls (class token, the default for images) or mean (over patches, or over the "
            "frames of a sound).",
            "choices": list(POOLINGS),
        },
    )
    layer: int | None = field(
        default=None,
        metadata={
            "help": "Sounds: layer whose frames make the feature, 0 for the first layer's input. Default: the last."
        },
    )
    max_seconds: float | None = field(
        default=None, metadata={"help": "Sounds: only the first so many seconds are used. Default: all."}
    )
    augmentation: str | None = field(
        default=None,
        metadata={
            "help": "Images: affine (the default; small rotations, shifts and shears; nothing is mirrored), photo "
            "(crops, mirroring, colour) or reid (mirroring, small shifts, erasing). Sounds: waveform (the default; "
            "gain, noise, shift, speed, silenced spans). Or none.",
            "choices": ALL_AUGMENTATIONS,
        },
    )
    clusterer: str = field(
        default="kmeans",
        metadata={
            "help": "kmeans, dbscan (on k-reciprocal neighbours, as in re-identification), reciprocal_hdbscan (the "
            "same without an eps), hdbscan or agglomerative.",
            "choices": list(CLUSTERERS),
        },
    )
    clusterer_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": """Arguments of the clusterer as JSON, such as '{"eps": 0.5, "k1": 20}' for dbscan."""},
    )
    num_clusters: int | None = field(
        default=None,
        metadata={
            "help": "Clusters of kmeans and agglomerative. Default: 1.5 times the square root of the number of samples."
        },
    )
    num_labelings: int | None = field(
        default=None,
        metadata={
            "help": "Clusterings of every epoch that are trained on at once, each with prototypes and refinement of "
            "its own and twice as many clusters as the one before (dbscan: three quarters of its eps). The first is "
            "reported and saved. Default: 3 with refinement auto where the clusterer has a number of clusters or an "
            "eps, otherwise 1."
        },
    )
    refinement: str = field(
        default=AUTO,
        metadata={
            "help": "auto (soft, on several labelings at once where the clusterer allows it: as good as any that was "
            "tried; slr for frames), or a preset: slr (projection, as published), soft (soft targets by projection), "
            "joint (both epochs side by side), rlcc (soft targets as in RLCC) or none.",
            "choices": [AUTO, *PRESETS],
        },
    )
    refinement_weight: float | None = field(
        default=None, metadata={"help": "Share of the current labels in the blend, in [0, 1]. Default: the preset's."}
    )
    confidence_power: float = field(
        default=0.0,
        metadata={
            "help": "A sample's loss is weighted by the confidence of its label to this power; 0 for equal weights."
        },
    )
    min_confidence: float = field(
        default=0.0,
        metadata={"help": "Samples whose refined label has less confidence are left out of the epoch, in [0, 1]."},
    )
    refine_start_epoch: int = field(default=1, metadata={"help": "First epoch whose labels are refined."})
    steps_per_epoch: int | None = field(
        default=None,
        metadata={"help": "Optimizer steps between two stages. Default: as many as it takes to see N images."},
    )
    samples_per_cluster: int = field(
        default=4, metadata={"help": "Samples of one cluster in a row (K of batches of P clusters x K samples)."}
    )
    temperature: float = field(default=0.05, metadata={"help": "Divisor of the cosines in the loss, above 0."})
    prototype_momentum: float = field(
        default=0.2, metadata={"help": "Share of the old prototype that stays at an update, in [0, 1]."}
    )
    ema_decay: float = field(
        default=0.0,
        metadata={
            "help": "Share that stays at every step of a copy of the weights that follows them, such as 0.98; the copy "
            "is what is clustered, scored and saved. 0 for no copy."
        },
    )
    image_cache_gib: float = field(
        default=2.0,
        metadata={"help": "Room for decoded images in GiB a process; what needs more is decoded again every time."},
    )
    image_cache_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder for decoded images in memory-mapped files, up to image_cache_gib for each data set; all "
            "processes of a machine and later runs read them. Default: in memory."
        },
    )
    sound_cache_gib: float = field(
        default=2.0,
        metadata={
            "help": "Room for decoded sounds in GiB a process, 18 hours at 16 kHz; what needs more is decoded again "
            "every time."
        },
    )
    feature_source: str = field(
        default="extract",
        metadata={
            "help": "What is clustered: extract (a pass over all samples without augmentation) or epoch (what the last "
            "epoch's training steps saw, averaged by sample: no pass, older features).",
            "choices": list(SOURCES),
        },
    )
    feature_momentum: float = field(
        default=0.2,
        metadata={"help": "With feature_source epoch: share of a sample's old feature that stays, in [0, 1)."},
    )
    feature_dtype: str = field(
        default="auto",
        metadata={
            "help": "Arithmetic of the features that are clustered: float32, bfloat16, or auto (bfloat16 where the "
            "device has it and a trial on 2,048 samples gives the same clusters).",
            "choices": list(DTYPES),
        },
    )
    feature_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder for a memory-mapped file of features for each process, removed by itself: for more "
            "features than memory. Default: on the device."
        },
    )
    skip_unreadable: bool = field(
        default=False, metadata={"help": "Leave unreadable samples out and report them, rather than stop."}
    )

    on_nan: str = field(
        default="stop",
        metadata={
            "help": "Where features are NaN or infinite: stop, or skip_epoch (train on with the labels of the last "
            "epoch).",
            "choices": list(ON_NAN),
        },
    )

    report: str = field(
        default="epoch",
        metadata={
            "help": "When report.html is written: epoch (at every stage and at the end), end, or no.",
            "choices": list(REPORTS),
        },
    )

    def __post_init__(self) -> None:
        self.metric_for_best_model: str | None
        self.greater_is_better: bool | None
        metric = (self.metric_for_best_model or "").removeprefix("eval_")
        if metric.startswith("plr/") and self.greater_is_better is None:
            self.greater_is_better = metric.removeprefix("plr/") not in LOWER_IS_BETTER
        if self.load_best_model_at_end and self.metric_for_best_model is None:
            self.metric_for_best_model = "knn_accuracy"
            self.greater_is_better = True
        launched = int(os.environ.get("WORLD_SIZE", 1)) if "LOCAL_RANK" in os.environ else 1
        if (self.bf16 or self.fp16 or launched > 1) and not torch.accelerator.is_available():
            self.use_cpu = True  # Trainer wants to be told
        super().__post_init__()
        if launched > 1 and self.world_size == 1:  # each would train by itself, and all write to one folder
            raise ValueError(
                f"{launched} processes were launched, but they cannot talk to each other on {self.device}: "
                "use_cpu=True (--use_cpu true) trains on CPUs"
            )
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False  # torch warns at every loader otherwise
        if self.refinement_weight is not None and not 0.0 <= self.refinement_weight <= 1.0:
            raise ValueError(f"refinement_weight={self.refinement_weight} is outside [0, 1]")
        if not 0.0 <= self.min_confidence <= 1.0:
            raise ValueError(f"min_confidence={self.min_confidence} is outside [0, 1]")
        if self.confidence_power < 0.0:
            raise ValueError(f"confidence_power={self.confidence_power} must be at least 0")
        if not 0.0 <= self.prototype_momentum <= 1.0:
            raise ValueError(f"prototype_momentum={self.prototype_momentum} is outside [0, 1]")
        if self.temperature <= 0.0:
            raise ValueError(f"temperature={self.temperature} must be above 0")
        if self.num_clusters is not None and self.num_clusters < 1:
            raise ValueError(f"num_clusters={self.num_clusters} must be at least 1")
        if self.score_every < 0:
            raise ValueError(f"score_every={self.score_every} must be at least 0")
        if self.num_labelings is not None and self.num_labelings < 1:
            raise ValueError(f"num_labelings={self.num_labelings} must be at least 1")
        if self.samples_per_cluster < 1:
            raise ValueError(f"samples_per_cluster={self.samples_per_cluster} must be at least 1")
        if not 0.0 <= self.ema_decay < 1.0:
            raise ValueError(f"ema_decay={self.ema_decay} is outside [0, 1)")
        if not 0.0 <= self.feature_momentum < 1.0:
            raise ValueError(f"feature_momentum={self.feature_momentum} is outside [0, 1)")
        for name in ("image_cache_gib", "sound_cache_gib"):
            if getattr(self, name) < 0.0:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0")
        if self.max_seconds is not None and not self.max_seconds > 0.0:
            raise ValueError(f"max_seconds={self.max_seconds} must be above 0")
        if self.steps_per_epoch is not None and self.steps_per_epoch < 1:
            raise ValueError(f"steps_per_epoch={self.steps_per_epoch} must be at least 1")
        self.clusterer_kwargs = _read_json_object("clusterer_kwargs", self.clusterer_kwargs)
        for name, allowed in (
            ("clusterer", CLUSTERERS),
            ("pooling", (None, *POOLINGS)),
            ("feature_source", SOURCES),
            ("feature_dtype", DTYPES),
            ("augmentation", (None, *ALL_AUGMENTATIONS)),
            ("refinement", (AUTO, *PRESETS)),
            ("on_nan", ON_NAN),
            ("report", REPORTS),
        ):
            if getattr(self, name) not in allowed:
                choices = ", ".join(choice for choice in allowed if choice is not None)
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown: use one of {choices}")
        if self.push_to_hub and self.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            raise ValueError(
                f"hub_strategy={self.hub_strategy.value!r} would push optimizer, random states and pickled arguments, "
                "which are of no use to others: use every_save or end. To go on elsewhere, copy the last checkpoint"
            )
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns=True is not supported: PLRTrainer picks its columns itself")

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled or copied: everything but tokens, since Trainer pickles its arguments beside the weights."""
        return {name: None if name.endswith("_token") else value for name, value in vars(self).items()}


def _read_json_object(argument: str, value: dict[str, Any] | str | None) -> dict[str, Any] | None:
    if value is None or isinstance(value, dict):
        return value
    try:
        read = json.loads(value)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{argument}={value!r} is no JSON: {error}") from error
    if not isinstance(read, dict):
        raise ValueError(f"{argument}={value!r} must be a JSON object, such as '{{\"eps\": 0.5}}'")
    return read


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
