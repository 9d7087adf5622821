"""Recordings and speech transformers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel

from hf_plr.data.audio_augmentation import AUDIO_AUGMENTATIONS, AudioAugmentation
from hf_plr.data.audio_store import AudioFormat, AudioStore, collate_recordings
from hf_plr.data.columns import find_audio_column
from hf_plr.data.sample_store import SampleStore
from hf_plr.modality.base import Modality, quote_python
from hf_plr.models.speech import SpeechBackbone, load_feature_extractor, load_speech_backbone

if TYPE_CHECKING:
    from hf_plr.training_args import BaseTrainingArguments

logger = logging.getLogger(__name__)

SNIPPET = """import soundfile
import soxr
import torch
from transformers import AutoFeatureExtractor, AutoModel

extractor = AutoFeatureExtractor.from_pretrained({name})
model = AutoModel.from_pretrained({name}).eval()
channels, rate = soundfile.read("sound.wav", dtype="float32", always_2d=True)
waveform = soxr.resample(channels.mean(axis=1), rate, {rate})  # one channel, {rate:,} samples per second
inputs = extractor(waveform, sampling_rate={rate}, return_tensors="pt")
with torch.inference_mode():
    output = model(**inputs, output_hidden_states=True)
feature = {feature}  # shape (1, {width})"""


class AudioModality(Modality):
    """Recordings, for HuBERT, wav2vec 2.0, WavLM or data2vec.

    Args:
        model: a speech transformer that takes waveforms, its name or its path.
        args: the arguments.
        column: column with the recordings.
        processor: the feature extractor; None takes the one saved with the model.
        augmentation: called with waveforms (B, T), lengths (B,) and random numbers (B, 16); None takes the one that the
            arguments name, "waveform" where they name none.

    Raises:
        ValueError: if model, feature extractor and arguments do not fit together.
    """

    noun = "recording"
    plural = "recordings"
    processor_name = "feature extractor"
    pipeline_tag = "feature-extraction"
    card_template = "audio_backbone.md"
    classifier = "AutoModelForAudioClassification"
    collate = staticmethod(collate_recordings)

    def __init__(
        self,
        model: PreTrainedModel | str,
        args: BaseTrainingArguments,
        column: str,
        processor: Any = None,
        augmentation: AudioAugmentation | None = None,
    ):
        if args.pooling not in (None, "mean"):
            raise ValueError(f"pooling={args.pooling!r} does not fit recordings: use 'mean'")
        self.args = args
        self.column = column
        self.model = load_speech_backbone(model)
        self.processor = load_feature_extractor(self.model) if processor is None else processor
        self.backbone = SpeechBackbone(self.model, args.layer)
        self.format = AudioFormat(
            self.processor,
            self.backbone.receptive_field,
            args.max_seconds,
            args.segment_seconds,
            args.segment_overlap,
        )
        if self.format.segmentation is not None:
            self.noun, self.plural = "segment", "segments"
        name = args.augmentation or "waveform"
        if augmentation is None and name not in AUDIO_AUGMENTATIONS:
            raise ValueError(f"augmentation={name!r} does not fit recordings: use {' or '.join(AUDIO_AUGMENTATIONS)}")
        self.augmentation = AUDIO_AUGMENTATIONS[name] if augmentation is None else augmentation

    @property
    def row_plural(self) -> str:
        return "recordings"

    @property
    def feature_size(self) -> int:
        return self.backbone.feature_size

    def open(self, dataset: Dataset, label_column: str | None, label_names: dict[str, int]) -> AudioStore:
        store = AudioStore(
            dataset,
            find_audio_column(dataset, self.column),
            self.format,
            label_column=label_column,
            label_names=label_names,
            cache_bytes=int(self.args.sound_cache_gib * 2**30),
            skip_unreadable=self.args.skip_unreadable,
            progress=not self.args.disable_tqdm and self.args.process_index == 0,
        )
        long = store.describe_long() if store.segments is None else None
        if long is not None and self.args.process_index == 0:
            logger.warning("%s.", long)
        return store

    def features(
        self, model: torch.nn.Module, batch: dict[str, torch.Tensor], numbers: torch.Tensor | None = None
    ) -> torch.Tensor:
        return self.backbone.features(model, self.waveforms(batch, numbers), batch["lengths"])

    def example(self) -> dict[str, Any]:
        return {"input_values": torch.zeros(1, 10 * self.backbone.receptive_field, device=self.model.device)}

    def freeze_unused(self) -> None:
        self.backbone.freeze_above(self.model)

    def waveforms(self, batch: dict[str, torch.Tensor], numbers: torch.Tensor | None = None) -> torch.Tensor:
        """Prepare a batch's waveforms (B, T) for the model: augmented if there are numbers, and normalised."""
        values, lengths = batch["input_values"], batch["lengths"]
        if numbers is not None:
            values = self.augmentation(values, lengths, numbers)
        return _normalise(values, lengths) if self.format.do_normalize else values

    def batches(self, store: SampleStore, positions: torch.Tensor, size: int) -> Sequence[torch.Tensor]:
        """Split positions into batches of up to `size` seconds with their padding, or of one longer recording."""
        assert isinstance(store, AudioStore)
        lengths = store.lengths[positions.numpy()]
        max_samples = size * self.format.sampling_rate
        bounds = [0]
        longest = 0
        for i, length in enumerate(lengths.tolist()):
            longest = max(longest, length)
            if i > bounds[-1] and longest * (i + 1 - bounds[-1]) > max_samples:
                bounds.append(i)
                longest = length
        return positions.tensor_split(bounds[1:]) if len(positions) else ()

    def costs(self, store: SampleStore) -> np.ndarray | None:
        assert isinstance(store, AudioStore)
        return store.lengths

    def usage_snippet(self, name: str) -> str:
        return SNIPPET.format(
            name=quote_python(name),
            rate=self.format.sampling_rate,
            feature=self.backbone.feature_expression(),
            width=self.feature_size,
        )


def _normalise(values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Normalise each recording by its own samples, as `Wav2Vec2FeatureExtractor` does; padding stays zero."""
    is_sample = torch.arange(values.shape[1], device=values.device) < lengths[:, None]
    n = lengths[:, None]
    mean = (values * is_sample).sum(dim=1, keepdim=True) / n
    centred = (values - mean) * is_sample
    variance = centred.square().sum(dim=1, keepdim=True) / n
    return centred / (variance + 1e-7).sqrt()
