"""Recordings and speech transformers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel

from hf_plr.data.audio_augmentation import AUDIO_AUGMENTATIONS, AudioAugmentation, fill_silence
from hf_plr.data.audio_store import AudioFormat, AudioStore, collate_recordings
from hf_plr.data.columns import find_audio_column
from hf_plr.data.manifest import find_manifest_folder
from hf_plr.data.sample_store import SampleStore
from hf_plr.modality.base import Modality, choose_augmentation, quote_python
from hf_plr.models.sound import load_sound_backbone
from hf_plr.models.spectrogram import NO_FRAMES
from hf_plr.models.speech import SpeechBackbone

if TYPE_CHECKING:
    from hf_plr.training_args import BaseTrainingArguments

logger = logging.getLogger(__name__)

SNIPPET = """import soundfile
import soxr
import torch
from transformers import AutoFeatureExtractor, AutoModel

extractor = AutoFeatureExtractor.from_pretrained({name})
model = {model}
channels, rate = soundfile.read("sound.wav", dtype="float32", always_2d=True)
waveform = soxr.resample(channels.mean(axis=1), rate, {rate})  # one channel, {rate:,} samples per second
inputs = extractor(waveform, sampling_rate={rate}, return_tensors="pt"{arguments})
with torch.inference_mode():
    output = model(**inputs, output_hidden_states=True)
feature = {feature}  # shape (1, {width})"""


class AudioModality(Modality):
    """Recordings, for models of waveforms (HuBERT, wav2vec 2.0, WavLM, data2vec) or of spectrograms (AST, Whisper ...).

    Waveforms are augmented; a model of spectrograms gets those that its feature extractor makes of them.

    Args:
        model: a transformer of recordings, its name or its path.
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
    classifier_name = "AutoModelForAudioClassification"
    recipe = "audio"
    collate = staticmethod(collate_recordings)

    def __init__(
        self,
        model: PreTrainedModel | str,
        args: BaseTrainingArguments,
        column: str,
        processor: Any = None,
        augmentation: AudioAugmentation | None = None,
    ):
        self.args = args
        self.column = column
        if augmentation is None:
            augmentation = choose_augmentation(args.augmentation or "waveform", AUDIO_AUGMENTATIONS, self.plural)
        self.augmentation = augmentation
        self.backbone: Any  # of waveforms or of spectrograms, with what this class needs of either
        self.model, self.processor, self.backbone = load_sound_backbone(model, processor, args.pooling, args.layer)
        self.format = AudioFormat(
            self.processor,
            self.backbone.min_samples,
            args.max_seconds,
            args.segment_seconds,
            args.segment_overlap,
            self.backbone.takes_waveforms,
        )
        if self.format.segmentation is not None:
            self.noun, self.plural = "segment", "segments"

    @property
    def row_plural(self) -> str:
        """What rows are called in messages: recordings, also where their segments are the samples."""
        return "recordings"

    @property
    def feature_size(self) -> int:
        """Width D of a feature."""
        return self.backbone.feature_size

    @property
    def frame_backbone(self) -> SpeechBackbone:
        """The backbone of frames.

        Raises:
            ValueError: if the model takes spectrograms.
        """
        if isinstance(self.backbone, SpeechBackbone):
            return self.backbone
        raise ValueError(f"{type(self.model).__name__} {NO_FRAMES}")

    def open(
        self,
        dataset: Dataset,
        label_column: str | None,
        label_names: dict[str, int],
        numbers: np.ndarray | None = None,
        has_manifest: bool = True,
    ) -> AudioStore:
        """Open a data set as samples; see `Modality.open`."""
        store = AudioStore(
            dataset,
            find_audio_column(dataset, self.column),
            self.format,
            label_column=label_column,
            label_names=label_names,
            cache_bytes=int(self.args.sound_cache_gib * 2**30),
            cache_dir=self.args.sound_cache_dir,
            skip_unreadable=self.args.skip_unreadable,
            manifest_dir=find_manifest_folder(self.args.sound_cache_dir) if has_manifest else None,
            state=self.args.distributed_state,
            numbers=numbers,
            progress=not self.args.disable_tqdm and self.args.process_index == 0,
        )
        long = store.describe_long() if store.segments is None else None
        for note in (long, self._describe_cut(store)):
            if note is not None and self.args.process_index == 0:
                logger.warning("%s.", note)
        return store

    def _describe_cut(self, store: AudioStore) -> str | None:
        """Describe clips that the model does not see as a whole; None without any."""
        longest = self.backbone.max_samples
        n_cut = 0 if longest is None else int(np.count_nonzero(store.lengths > longest))
        if longest is None or n_cut == 0:
            return None
        seconds, name = longest / self.format.sampling_rate, type(self.model).__name__
        return (
            f"{n_cut:,} of {len(store):,} {self.plural} are longer than the {seconds:.4g} s that {name} sees, and "
            f"only their beginnings count: --segment_seconds {2 * seconds / 3:.3g} cuts recordings into "
            "samples that fit"
        )

    def features(
        self, model: torch.nn.Module, batch: dict[str, torch.Tensor], numbers: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Compute features (B, D) of a batch; see `Modality.features`."""
        return self.backbone.features(model, self.waveforms(batch, numbers), batch["lengths"])

    def example(self) -> dict[str, torch.Tensor]:
        """Make a silent batch of one sample, by which a model is tried."""
        n_samples = 10 * self.backbone.min_samples
        values = torch.zeros(1, n_samples, device=self.model.device)
        return {"input_values": values, "lengths": torch.tensor([n_samples], device=self.model.device)}

    def freeze_unused(self) -> None:
        """Freeze what no feature depends on."""
        self.backbone.freeze_unused(self.model)

    def waveforms(self, batch: dict[str, torch.Tensor], numbers: torch.Tensor | None = None) -> torch.Tensor:
        """Prepare a batch's waveforms (B, T): augmented if there are numbers; normalised for a model of them.

        Where gradients are taken, silent clips get noise, see `fill_silence`; normalised, it has a deviation of 0.1.
        """
        values, lengths = batch["input_values"], batch["lengths"]
        if numbers is not None:
            values = self.augmentation(values, lengths, numbers)
        if torch.is_grad_enabled():
            values = fill_silence(values, lengths)
        return _normalise(values, lengths) if self.format.do_normalize else values

    def batches(self, store: SampleStore, positions: torch.Tensor, size: int) -> Sequence[torch.Tensor]:
        """Split positions into batches of up to `size` seconds with their padding, or of one longer recording."""
        assert isinstance(store, AudioStore)
        lengths = self._padded(store)[positions.numpy()]
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
        """Number of samples of sound that the model computes for each position; see `Modality.costs`."""
        assert isinstance(store, AudioStore)
        return self._padded(store)

    def describe_loss_of_detail(self, store: SampleStore) -> str | None:
        """Tell that recordings of a higher sampling rate are resampled, by the rates in all headers."""
        assert isinstance(store, AudioStore)
        own, (lowest, highest) = self.format.sampling_rate, store.stored_rates
        if highest <= own:
            return None
        up_to = "up to " if lowest < highest else ""
        return f"resampled from {up_to}{highest:,} to {own:,} Hz: nothing above {own // 2:,} Hz is heard"

    def _padded(self, store: AudioStore) -> np.ndarray:
        """Samples that the model computes per position: a model of a fixed length pads each clip to it."""
        fixed = self.backbone.max_samples
        return store.lengths if fixed is None else np.full_like(store.lengths, fixed)

    @property
    def usage_notes(self) -> str:
        """Tell in the model card what the backbone expects of sounds."""
        return self.backbone.usage_notes()

    def usage_snippet(self, name: str) -> str:
        """Write the Python for a model card that computes a feature; see `Modality.usage_snippet`."""
        return SNIPPET.format(
            name=quote_python(name),
            model=self.backbone.load_expression(quote_python(name)),
            rate=self.format.sampling_rate,
            arguments=self.backbone.extractor_arguments,
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
