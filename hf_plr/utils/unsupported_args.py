"""Arguments of `transformers.TrainingArguments` that would have no effect here, or a harmful one, and are refused."""

from __future__ import annotations

from typing import Any

from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy

# Names whose default alone is taken, and why another value cannot work.
WITHOUT_EFFECT = {
    "label_smoothing_factor": "pseudo-labels have soft targets of their own, by refinement=soft",
    "neftune_noise_alpha": "images and recordings have no token embeddings; augmentation makes noise",
    "use_liger_kernel": "its kernels are for language models",
    "include_num_input_tokens_seen": "samples are images or recordings, not tokens",
    "fp16_full_eval": "features are extracted as feature_dtype says",
    "bf16_full_eval": "features are extracted as feature_dtype says",
    "train_sampling_strategy": "the sampler draws clusters, and recordings by their length",
    "enable_jit_checkpoint": "SIGTERM saves a checkpoint as it is",
    "eval_do_concat_batches": "scores take the features of all samples at once",
    "batch_eval_metrics": "scores take the features of all samples at once",
    "remove_unused_columns": "the trainer picks its columns itself",
    "label_names": "label_column names the column of the true labels",
    "prediction_loss_only": "an evaluation scores features, and computes no loss",
}
TAKEN: dict[str, tuple[Any, ...]] = {  # values that are taken, where it is not False alone
    "train_sampling_strategy": ("random",),
    "include_num_input_tokens_seen": ("no", False),
    "neftune_noise_alpha": (None, False),
    "eval_do_concat_batches": (True,),
    "label_names": (None, ["labels"]),  # as a batch has them
}


def refuse_unsupported(args: TrainingArguments) -> None:
    """Refuse arguments that would be ignored.

    Raises:
        ValueError: naming the argument and what to do instead.
    """
    for name, reason in WITHOUT_EFFECT.items():
        value = getattr(args, name)
        if value not in TAKEN.get(name, (False,)):
            raise ValueError(f"{name}={_plain(value)!r} is not supported: {reason}")
    if "loss" in (args.include_for_metrics or ()):
        raise ValueError(
            f"include_for_metrics={args.include_for_metrics!r} is not supported: an evaluation computes no loss, leave "
            "'loss' out"
        )
    if args.fp16 and args.device.type == "cpu":
        raise ValueError("fp16=True needs a GPU: on CPUs use bf16=True, or neither")
    if getattr(args.accelerator_config, "split_batches", False) and args.world_size > 1:
        raise ValueError(
            "accelerator_config with split_batches=True is not supported in several processes: it would tear the two "
            "views of a sample apart; divide per_device_train_batch_size by the number of processes"
        )
    if args.push_to_hub and args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
        raise ValueError(
            f"hub_strategy={_plain(args.hub_strategy)!r} would push optimizer, random states and pickled arguments, "
            "which are of no use to others: use every_save or end. To resume elsewhere, copy the last checkpoint"
        )


def _plain(value: Any) -> Any:
    """The value of a member of an enumeration."""
    return getattr(value, "value", value)
