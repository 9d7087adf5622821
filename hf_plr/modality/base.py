"""What a trainer must know of its samples, whether they are images or sounds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel

from hf_plr.data.sample_store import SampleStore


class Modality(ABC):
    """One kind of samples: how they are read, augmented and turned into features, and what they are called.

    Attributes:
        column: column of the data set that holds the samples.
        model: the bare backbone, in float32.
        processor: the image processor or feature extractor that is saved with the backbone.
        noun, plural: what a sample is called in messages.
        processor_name: what the processor is called in messages.
        pipeline_tag: its task on the Hub.
        card_template: file of its model card's template.
        classifier: class that fine-tunes it with labels.
    """

    noun: ClassVar[str]
    plural: ClassVar[str]
    processor_name: ClassVar[str]
    pipeline_tag: ClassVar[str]
    card_template: ClassVar[str]
    classifier: ClassVar[str]

    column: str
    model: PreTrainedModel
    processor: Any

    @abstractmethod
    def open(self, dataset: Dataset, label_column: str | None, label_names: dict[str, int]) -> SampleStore:
        """The samples of a data set, each read once."""

    @staticmethod
    @abstractmethod
    def collate(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Stack items of a store to a batch."""

    @abstractmethod
    def features(
        self, model: torch.nn.Module, batch: dict[str, torch.Tensor], numbers: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Features of a batch.

        Args:
            model: the backbone, or what wraps it.
            batch: what `collate` made, on the model's device.
            numbers: random numbers (B, 16), uniform in [0, 1), to augment by; None leaves the samples as they are.

        Returns:
            float32 tensor of shape (B, D).
        """

    @abstractmethod
    def freeze_unused(self) -> None:
        """Take no gradient for parameters that no feature depends on: several processes would wait for it."""

    @abstractmethod
    def batches(self, store: SampleStore, positions: torch.Tensor, size: int) -> Sequence[torch.Tensor]:
        """Positions (M,), in their order, in batches of up to `size`.

        Where a batch begins depends on the positions before it in the same batch alone: positions that are cut at the
        beginning of a batch fall into the same batches as before.
        """

    @abstractmethod
    def costs(self, store: SampleStore) -> np.ndarray | None:
        """Relative work of each sample (len(store),) in extraction; None where all are alike."""

    @abstractmethod
    def usage_snippet(self, name: str) -> str:
        """Python that loads the published backbone by its name and makes the feature of one sample."""


class SampleOpener:
    """Opens each data set once, with one number per class for all of them.

    Args:
        modality: how samples are read.
        label_column: column of true labels in those data sets that have it; None for none.
    """

    def __init__(self, modality: Modality, label_column: str | None):
        self.modality = modality
        self.label_column = label_column
        self._numbers: dict[str, int] = {}
        self._opened: dict[int, tuple[Dataset, SampleStore]] = {}  # the data set is held, so that its id stays its own

    def __call__(self, dataset: Dataset | SampleStore) -> SampleStore:
        """Samples of a data set, with true labels where it has the label column; a store is returned as it is."""
        if isinstance(dataset, SampleStore):
            return dataset
        if id(dataset) not in self._opened:
            has_labels = self.label_column is not None and self.label_column in dataset.column_names
            store = self.modality.open(dataset, self.label_column if has_labels else None, self._numbers)
            self._opened[id(dataset)] = dataset, store
        return self._opened[id(dataset)][1]


def quote_python(text: str) -> str:
    """A Python literal of one line, in double quotes where it has no quotes itself."""
    literal = repr(text)
    return literal if "'" in text or '"' in text else f'"{literal[1:-1]}"'
