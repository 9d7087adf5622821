"""Arguments that `PLRTrainer` and `UnitTrainer` have in common."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from transformers import TrainingArguments

from hf_plr.training_args.backbone import BackboneArguments
from hf_plr.training_args.choices import LOWER_IS_BETTER, Augmentation, Refinement
from hf_plr.training_args.defaults import fill_from_scratch
from hf_plr.training_args.ignored import OF_ALL, refuse_ignored
from hf_plr.utils.argument_checks import (
    AboveZero,
    AtLeastZero,
    Count,
    CountOrZero,
    Fraction,
    FractionBelowOne,
    NumberRange,
    check_segments,
    check_values,
)
from hf_plr.utils.cores import count_default_workers
from hf_plr.utils.unsupported_args import refuse_unsupported

logger = logging.getLogger(__name__)
LAUNCHED_PRECISION = "ACCELERATE_MIXED_PRECISION"  # set by `accelerate launch`


class InheritedLimits:
    """Limits of arguments that stay as `TrainingArguments` declares them."""

    gradient_accumulation_steps: Count
    max_grad_norm: AtLeastZero | None
    adam_beta1: FractionBelowOne
    adam_beta2: FractionBelowOne
    adam_epsilon: AtLeastZero
    seed: CountOrZero
    data_seed: CountOrZero | None
    eval_accumulation_steps: Count | None


@dataclass
class BaseTrainingArguments(BackboneArguments, TrainingArguments):
    """`transformers.TrainingArguments` with what `PLRTrainer` and `UnitTrainer` have in common.

    Defaults that differ from `TrainingArguments`: `num_train_epochs` 30, `per_device_train_batch_size` 128,
    `per_device_eval_batch_size` 256, `learning_rate` 1e-3, `weight_decay` 0.05, `lr_scheduler_type` "cosine",
    `warmup_steps` 0.1 (a fraction), `logging_strategy` "epoch", `save_strategy` "epoch", `save_total_limit` 2,
    `remove_unused_columns` False. With `load_best_model_at_end`, the default of `metric_for_best_model` is
    "knn_accuracy"; without labels it takes a score that needs none, such as "plr/effective_rank", see
    `PLRTrainer.evaluate`. `bf16` or `fp16` is what `accelerate launch --mixed_precision` says, if it says one of them;
    otherwise `bf16` is True on GPUs that compute in it. `dataloader_num_workers` is the number of cores
    for this process without its own, up to 16, and 0 for samples that are kept decoded; each worker decodes 4 batches
    in advance.

    With a backbone that is given by name or path, or that has been trained, a trainer takes a copy of the arguments
    in which those of `by_default` have other values: `learning_rate` 3e-5 (with adapters 1e-3), `num_train_epochs` 10
    and `per_device_train_batch_size` 64 (sounds: 16). Values that are given or assigned are never changed. Copy
    arguments by `copy.deepcopy`: `dataclasses.replace` and a dictionary of them give all values, and leave no default.

    Attributes:
        is_bf16_by_default: True if `bf16` was not given and the device decided.
        by_default: names of the arguments that depend on the start, see `hf_plr.training_args.defaults`, or on the
            cores and the samples (`dataloader_num_workers`), and that were not given.

    Raises:
        ValueError: if a value is outside its range, naming the argument.
    """

    num_train_epochs: AboveZero = field(
        default=None,  # type: ignore[assignment]  # None only until __post_init__
        metadata={
            "help": "Epochs; labels are made anew before each (frames: before each round). Default: 30, from a "
            "pretrained backbone 10."
        },
    )
    per_device_train_batch_size: Count = field(
        default=None,  # type: ignore[assignment]
        metadata={
            "help": "Views per training batch and device: two of each sample unless pair_weight is 0 (frames: one). "
            "Default: 128, from a pretrained backbone 64 (sounds: 16)."
        },
    )
    per_device_eval_batch_size: Count = field(
        default=256,
        metadata={"help": "Images, or seconds of sound, per batch and device for features and evaluation."},
    )
    learning_rate: AtLeastZero = field(
        default=None,  # type: ignore[assignment]
        metadata={"help": "Peak learning rate. Default: 1e-3, from a pretrained backbone 3e-5, of its adapters 1e-3."},
    )
    weight_decay: AtLeastZero = field(default=0.05, metadata={"help": "Weight decay of AdamW."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning-rate schedule."})
    warmup_steps: AtLeastZero = field(
        default=0.1, metadata={"help": "Warm-up: steps, or a fraction of all steps if below 1."}
    )
    logging_strategy: str = field(default="epoch", metadata={"help": "When to log: epoch, steps or no."})
    save_strategy: str = field(
        default="epoch", metadata={"help": "When to save a checkpoint: epoch, steps, best or no."}
    )
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints to keep."})
    bf16: bool | None = field(  # type: ignore[assignment]  # None only until __post_init__
        default=None,
        metadata={
            "help": "Compute in bfloat16 where that is precise enough (autocast). Default: on GPUs that have it.",
            "nargs": "?",
            "const": True,
        },
    )
    dataloader_num_workers: CountOrZero = field(
        default=None,  # type: ignore[assignment]  # None only until __post_init__
        metadata={
            "help": "Processes that decode samples for this one, in the stage and in training. Default: as many as "
            "there are cores for this process, without its own, up to 16; none where decoded samples are kept."
        },
    )
    dataloader_persistent_workers: bool | None = field(  # type: ignore[assignment]
        default=None,
        metadata={
            "help": "Keep the workers of training from epoch to epoch. Default: where they are not forked, since "
            "starting them takes seconds there.",
            "nargs": "?",
            "const": True,
        },
    )
    dataloader_prefetch_factor: Count | None = field(
        default=None, metadata={"help": "Batches that each worker decodes in advance. Default: 4."}
    )
    exact_resume: bool = field(
        default=False,
        metadata={
            "help": "GPUs: use only arithmetic that gives the same bits each time, so that a resumed run is equal to "
            "one that was never interrupted, as it is on CPUs. Slower, and position embeddings that are interpolated "
            "to another image size are not trained."
        },
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay False: the trainer picks its columns itself."}
    )

    image_column: str | None = field(
        default=None, metadata={"help": "Column with the images. Default: the only one there is."}
    )
    audio_column: str | None = field(
        default=None, metadata={"help": "Column with the sounds. Default: the only one there is."}
    )
    label_column: str | None = field(
        default=None, metadata={"help": "Column with true labels, for scoring only. Default: the only one there is."}
    )
    score_every: CountOrZero = field(
        default=0,
        metadata={
            "help": "Score by true labels every so many epochs, logged as score/...; has no effect on training. "
            "0: only before and after training."
        },
    )
    max_seconds: AboveZero | None = field(
        default=None, metadata={"help": "Sounds: use only the first so many seconds. Default: all."}
    )
    segment_seconds: AboveZero | None = field(
        default=None,
        metadata={
            "help": "Sounds: cut recordings into segments of so many seconds, each a sample, with start and end in all "
            "tables. A rest under half the step from one segment to the next belongs to the segment before it. "
            "Default: whole recordings."
        },
    )
    segment_overlap: AtLeastZero = field(
        default=0.0, metadata={"help": "Sounds: seconds that neighbouring segments have in common."}
    )
    augmentation: Augmentation | None = field(
        default=None,
        metadata={
            "help": "Images: affine (the default; small rotations, shifts and shears; nothing is mirrored), photo "
            "(crops, mirroring, colour) or reid (mirroring, small shifts, erasing). Sounds: waveform (the default; "
            "gain, noise, shift, speed, silenced spans). Or none."
        },
    )
    num_clusters: Count | None = field(
        default=None,
        metadata={
            "help": "Clusters of kmeans and agglomerative. Default: 1.5 times the square root of the number of samples "
            "(frames: 100 units)."
        },
    )
    refinement: Refinement = field(
        default="auto",
        metadata={
            "help": "auto (consensus, or soft with dbscan, beside two finer labelings where the clusterer allows it; "
            "slr for frames) or a preset: consensus (several clusterings of three epochs, re-clustered by how often "
            "samples are in one), nested (the same of five epochs on a finer clustering, cut into three nested "
            "levels that are all trained on; kmeans alone), slr (projection, this library's reading of arXiv "
            "2410.14242), soft (soft targets by projection), joint (both epochs side by side), rlcc (soft targets in "
            "the proportions of RLCC, without its similarity of clusters) or none."
        },
    )
    refinement_weight: Fraction | None = field(
        default=None,
        metadata={"help": "Weight of the current labels in the blend, in [0, 1]. Default: the preset's."},
    )
    steps_per_epoch: Count | None = field(
        default=None,
        metadata={"help": "Optimizer steps per epoch. Default: as many views as there are samples."},
    )
    ema_decay: FractionBelowOne = field(
        default=0.0,
        metadata={
            "help": "Decay of an EMA teacher, in [0, 1), such as 0.98: an exponential moving average of the weights, "
            "which is clustered, scored and saved in their place. 0: no teacher."
        },
    )
    image_cache_gib: AtLeastZero = field(
        default=2.0,
        metadata={"help": "GiB of decoded images to keep in memory per process; more are decoded at every use."},
    )
    image_cache_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder for decoded images in a memory-mapped file of any size; all processes of a machine fill it "
            "as they decode, and later runs share it. Default: in memory, up to image_cache_gib."
        },
    )
    image_size: Count | None = field(
        default=None,
        metadata={
            "help": "Images: pixels of the shorter edge that the model sees. More show detail, fewer are quicker: 84 "
            "take a seventh of the time of 224. Default: the size of the backbone's image processor."
        },
    )
    decoded_size: Count | None = field(
        default=None,
        metadata={
            "help": "Images: pixels of the shorter edge of decoded images, such as 288 for a model of 224, so that "
            "zoomed crops have detail. Costs memory by its square. Default: the model's size."
        },
    )
    pixel_range: NumberRange | None = field(
        default=None,
        metadata={
            "help": "Images of more than 8 bits: LOW HIGH, the pixels that become 0 and 255. Default: as kept with the "
            "backbone, otherwise from a sample of the images (0 4095 for a camera of 12 bits)."
        },
    )
    transparency_background: str | None = field(
        default=None,
        metadata={
            "help": "Colour behind transparent pixels, a name or #rrggbb. Default: as kept with the backbone, or white."
        },
    )
    sound_cache_gib: AtLeastZero = field(
        default=2.0,
        metadata={
            "help": "GiB of decoded sounds to keep in memory per process, 2 for 18 hours at 16 kHz; more are decoded "
            "at every use."
        },
    )
    sound_cache_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder for decoded sounds in a memory-mapped file of any size; all processes of a machine fill it "
            "as they decode, and later runs share it. Default: in memory, up to sound_cache_gib."
        },
    )
    feature_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder for a memory-mapped file of features per process, removed afterwards: for features that do "
            "not fit in memory. Default: on the device."
        },
    )
    skip_unreadable: bool = field(
        default=False, metadata={"help": "Leave unreadable samples out and report them, instead of stopping."}
    )
    on_nan: Literal["stop", "skip_epoch"] = field(
        default="stop",
        metadata={
            "help": "What to do where features are NaN or infinite: stop, or skip_epoch (train on the labels of the "
            "last epoch)."
        },
    )
    report: Literal["epoch", "end", "no"] = field(
        default="epoch",
        metadata={"help": "When to write report.html: epoch (whenever labels are made, and at the end), end, or no."},
    )

    @property
    def empties_output_dir(self) -> bool:
        """Whether an earlier run in `output_dir` is removed before training begins; recipes can be told to."""
        return False

    def __post_init__(self) -> None:
        self.by_default = fill_from_scratch(self)
        if self.dataloader_num_workers is None:
            self.dataloader_num_workers = count_default_workers()
            self.by_default |= {"dataloader_num_workers"}
        self._check_values()  # before transformers computes with them
        self._complete_best_metric()  # transformers takes the loss
        if torch.backends.mps.is_available() and not self.use_cpu:
            self.use_cpu = True  # sums that decide labels are exact in float64, which Apple's GPUs lack
            logger.warning("Training on the CPU: sums are exact in float64, which Apple's GPUs (MPS) do not have.")
        if self.bf16 is None and not self.fp16:
            launched_in = os.environ.get(LAUNCHED_PRECISION, "no").lower()
            self.bf16 = True if launched_in == "bf16" else None
            self.fp16 = launched_in == "fp16"
        self.is_bf16_by_default = self.bf16 is None and suits_bf16(self.fp16, self.use_cpu)
        self.bf16 = bool(self.bf16 or self.is_bf16_by_default)
        launched = count_launched()
        if (self.bf16 or self.fp16 or launched > 1) and not torch.accelerator.is_available():
            self.use_cpu = True  # TrainingArguments does not find this out by itself
        super().__post_init__()
        if self.mixed_precision in ("bf16", "fp16") and not (self.bf16 or self.fp16):  # bf16=False is given
            self.mixed_precision = "no"
        if launched > 1 and self.world_size == 1:  # each would train by itself, and all write to one folder
            raise ValueError(
                f"{launched} processes were launched, but they cannot talk to each other on {self.device}: "
                "use_cpu=True (--use_cpu true) trains on CPUs"
            )
        if self.n_gpu > 1:  # transformers would wrap the model in nn.DataParallel, which is slow and mixes up lengths
            raise ValueError(
                f"one process sees {self.n_gpu} GPUs: start one per GPU by accelerate launch --num_processes "
                f"{self.n_gpu} SCRIPT (hf-plr train does so by itself), or show it one by CUDA_VISIBLE_DEVICES=0"
            )
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False  # torch warns at every loader otherwise
        self.check()

    def check(self) -> None:
        """Check all values, and read those that are JSON; trainers do so again, for what was assigned since.

        Raises:
            ValueError: if a value is outside its range, or has no effect beside others, naming the argument.
        """
        self._check_values()
        self._complete_best_metric()
        refuse_ignored(self, OF_ALL)
        check_segments(self.segment_seconds, self.segment_overlap)
        refuse_unsupported(self)

    def _complete_best_metric(self) -> None:
        """Choose the metric of the best model where none is named, and whether more of it is better."""
        self.metric_for_best_model: str | None
        self.greater_is_better: bool | None
        if self.load_best_model_at_end and self.metric_for_best_model is None:
            self.metric_for_best_model = "knn_accuracy"
        metric = (self.metric_for_best_model or "").removeprefix("eval_")
        if metric and self.greater_is_better is None:
            self.greater_is_better = metric.removeprefix("plr/") not in LOWER_IS_BETTER and not metric.endswith("loss")

    def _check_values(self) -> None:
        for declared_in in (BackboneArguments, BaseTrainingArguments, InheritedLimits):
            check_values(self, declared_in)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an argument; one that is assigned later counts as given."""
        super().__setattr__(name, value)
        if name in vars(self).get("by_default", ()):
            self.by_default = self.by_default - {name}

    @property
    def is_exact_gpu(self) -> bool:
        """True if a GPU must give the same bits each time."""
        return self.exact_resume and self.device.type != "cpu"

    def __getstate__(self) -> dict[str, Any]:
        """Everything but tokens, for pickles and copies: Trainer pickles its arguments beside the weights."""
        return {name: None if name.endswith("_token") else value for name, value in vars(self).items()}


def count_launched() -> int:
    """Count the processes that were launched together, as their environment tells."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "LOCAL_RANK" in os.environ else 1


def suits_bf16(fp16: bool, use_cpu: bool) -> bool:
    """True where bfloat16 is the better default: on a GPU that computes in it, unless float16 is asked for."""
    if fp16 or use_cpu or not torch.cuda.is_available():
        return False
    return torch.cuda.is_bf16_supported(including_emulation=False)
