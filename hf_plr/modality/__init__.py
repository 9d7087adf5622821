"""Images and sounds: everything that a trainer asks of its samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from datasets import Dataset

from hf_plr.data.columns import find_media_column
from hf_plr.modality.audio import Sounds
from hf_plr.modality.base import Medium
from hf_plr.modality.image import Images

if TYPE_CHECKING:
    from hf_plr.training_args import PLRTrainingArguments

__all__ = ["Images", "Medium", "Sounds", "medium_of"]

MEDIA = {"image": Images, "audio": Sounds}


def medium_of(
    dataset: Dataset, model: Any, args: PLRTrainingArguments, processor: Any = None, augmentation: Any = None
) -> Medium:
    """Images or sounds, by the columns of a data set; the arguments are those of `Images` and `Sounds`.

    Raises:
        ValueError: if it is not clear which column is meant, or something does not fit together.
    """
    kind, column = find_media_column(dataset, args.image_column, args.audio_column)
    return MEDIA[kind](model, args, column, processor, augmentation)
