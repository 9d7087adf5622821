"""Modalities: images and recordings with one interface for the trainers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from datasets import Dataset

from hf_plr.data.columns import find_modality_column
from hf_plr.modality.audio import AudioModality
from hf_plr.modality.base import Modality, SampleOpener
from hf_plr.modality.image import ImageModality
from hf_plr.training_args.ignored import OF_IMAGES, OF_RECORDINGS, refuse_ignored

if TYPE_CHECKING:
    from hf_plr.training_args import BaseTrainingArguments

__all__ = ["AudioModality", "ImageModality", "Modality", "SampleOpener", "find_modality"]


def find_modality(
    dataset: Dataset, model: Any, args: BaseTrainingArguments, processor: Any = None, augmentation: Any = None
) -> Modality:
    """Find the modality by the columns of a data set; arguments as in `ImageModality` and `AudioModality`.

    Raises:
        ValueError: if it is not clear which column is meant, model, processor and arguments do not fit together, such
            as lengths of sounds with images, or one process would share out batches of recordings.
    """
    kind, column = find_modality_column(dataset, args.image_column, args.audio_column)
    if kind == "image":
        refuse_ignored(args, OF_IMAGES)
        return ImageModality(model, args, dataset, column, processor, augmentation)
    refuse_ignored(args, OF_RECORDINGS)
    if getattr(args.accelerator_config, "dispatch_batches", None) and args.world_size > 1:
        raise ValueError(
            "accelerator_config with dispatch_batches=True is not supported for recordings in several processes: their "
            "lengths differ from batch to batch; leave dispatch_batches out"
        )
    return AudioModality(model, args, column, processor, augmentation)
