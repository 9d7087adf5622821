"""Interface between a trainer and its samples, images or recordings."""

from __future__ import annotations

import logging
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel

from hf_plr.data.media_columns import flatten_nested
from hf_plr.data.sample_store import SampleStore
from hf_plr.data.true_labels import describe_few_classes
from hf_plr.models.auto_classes import find_auto_class

logger = logging.getLogger(__name__)

Augmentation = TypeVar("Augmentation")


class Modality(ABC):
    """Modality of samples: reads, augments and names them, and turns them into features.

    Attributes:
        args: the arguments, `BaseTrainingArguments`.
        column: column of the data set that holds the samples.
        model: the bare backbone, in float32.
        backbone: how a feature is computed with it.
        processor: the image processor or feature extractor that is saved with the backbone.
        noun, plural: name of a sample in messages.
        processor_name: name of the processor in messages.
        pipeline_tag: its task on the Hub.
        card_template: file of its model card's template.
        classifier_name: class that fine-tunes backbones of most kinds with labels.
        recipe: name of the recipe that does so, for `hf-plr finetune`.
    """

    noun: str
    plural: str
    processor_name: ClassVar[str]
    pipeline_tag: ClassVar[str]
    card_template: ClassVar[str]
    classifier_name: ClassVar[str]
    recipe: ClassVar[str]

    args: Any
    column: str
    model: PreTrainedModel
    backbone: Any
    processor: Any

    @property
    def row_plural(self) -> str:
        """Name of what the rows of the data set hold, in the plural: samples, or recordings of several."""
        return self.plural

    @property
    def classifier(self) -> str | None:
        """What loads the backbone into a stock classifier; None if transformers has none for this kind."""
        is_known = find_auto_class(self.model, self.classifier_name) is not None
        return f"{self.classifier_name}.from_pretrained" if is_known else None

    @property
    @abstractmethod
    def feature_size(self) -> int:
        """Size D of a feature."""

    @abstractmethod
    def open(
        self,
        dataset: Dataset,
        label_column: str | None,
        label_names: dict[str, int],
        numbers: np.ndarray | None = None,
        has_manifest: bool = True,
    ) -> SampleStore:
        """Open the samples of a data set; called on every process.

        Args:
            dataset: the data set.
            label_column, label_names, numbers: see `SampleStore`.
            has_manifest: know the rows by the manifest of an earlier run, and leave one.
        """

    @staticmethod
    @abstractmethod
    def collate(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Stack items of a store to a batch."""

    @abstractmethod
    def features(
        self, model: torch.nn.Module, batch: dict[str, torch.Tensor], numbers: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Compute the features of a batch.

        Args:
            model: the backbone, or its wrapper.
            batch: output of `collate`, on the model's device.
            numbers: random numbers (B, 16), uniform in [0, 1), to augment by; None leaves the samples as they are.

        Returns:
            float32 tensor of shape (B, D).
        """

    @abstractmethod
    def example(self) -> dict[str, torch.Tensor]:
        """Batch of one sample without contents, as `collate` makes it, on the model's device."""

    @abstractmethod
    def freeze_unused(self) -> None:
        """Freeze the parameters that no feature depends on: several processes would wait for their gradients."""

    @abstractmethod
    def batches(self, store: SampleStore, positions: torch.Tensor, size: int) -> Sequence[torch.Tensor]:
        """Split positions (M,), in their order, into batches of up to `size`.

        A batch ends by its own positions alone. Positions that are cut at the beginning of a batch therefore fall into
        the same batches as before.
        """

    @abstractmethod
    def costs(self, store: SampleStore) -> np.ndarray | None:
        """Return the relative work per sample (len(store),) in extraction; None if all are alike."""

    def describe_loss_of_detail(self, store: SampleStore) -> str | None:
        """What the backbone cannot perceive of these samples, for the plan of a run; None where it is all of them."""
        return None

    @property
    def usage_notes(self) -> str:
        """Sentences below the snippet, in Markdown."""
        return ""

    @abstractmethod
    def usage_snippet(self, name: str) -> str:
        """Write Python code that loads the published backbone by its name and computes the feature of one sample."""


class SampleOpener:
    """Opener of data sets: each is opened once, with one number per class in all of them.

    A store lives as long as its data set, or as somebody holds it.

    Args:
        modality: reads the samples.
        label_column: column of true labels in those data sets that have it; None leaves labels out.

    Attributes:
        latest: the store that it returned last.
        label_numbers: number of each class that has a name.
        check: called with every store that is returned and not checked; None for nothing.
    """

    latest: SampleStore
    check: Callable[[SampleStore], None] | None = None

    def __init__(self, modality: Modality, label_column: str | None):
        self.modality = modality
        self.label_column = label_column
        self.label_numbers: dict[str, int] = {}
        self._stores: dict[int, SampleStore] = {}  # by the id of a data set, which is unique as long as that lives

    def __call__(self, dataset: Dataset | SampleStore) -> SampleStore:
        """Open a data set, with true labels if it has the label column; a store is returned as it is."""
        if isinstance(dataset, SampleStore):
            self.latest = dataset
        elif id(dataset) not in self._stores:
            flat = flatten_nested(dataset)
            has_labels = self.label_column is not None and self.label_column in flat.column_names
            store = self.modality.open(flat, self.label_column if has_labels else None, self.label_numbers)
            if not self._stores:  # the samples to train on are opened first
                self._warn_of_few_classes(store)
            self._stores[id(dataset)] = store
            weakref.finalize(dataset, _forget, weakref.ref(self), id(dataset)).atexit = False
            self.latest = store
        else:
            self.latest = self._stores[id(dataset)]
        if self.check is not None and not self.latest.is_checked:
            self.check(self.latest)
        return self.latest

    def _warn_of_few_classes(self, store: SampleStore) -> None:
        if store.labels is None or self.label_column is None or self.modality.args.process_index:
            return
        complaint = describe_few_classes(store.labels, self.label_column)
        if complaint is not None:
            logger.warning("%s.", complaint)


def _forget(opener: weakref.ref[SampleOpener], key: int) -> None:
    """Let a data set's store go with it; the data set may outlive the opener, which is not to be held until then."""
    held = opener()
    if held is not None:
        held._stores.pop(key, None)


def choose_augmentation(name: str, augmentations: Mapping[str, Augmentation], plural: str) -> Augmentation:
    """Choose an augmentation of a modality by its name.

    Args:
        name: its name.
        augmentations: all of the modality, two or more, by name.
        plural: name of the samples in the message.

    Raises:
        ValueError: if the modality has none of this name.
    """
    if name not in augmentations:
        *others, last = augmentations
        raise ValueError(f"augmentation={name!r} does not fit {plural}: use {', '.join(others)} or {last}")
    return augmentations[name]


def quote_python(text: str) -> str:
    """Quote text as a Python literal of one line, in double quotes if it has no quotes itself."""
    literal = repr(text)
    return literal if "'" in text or '"' in text else f'"{literal[1:-1]}"'
