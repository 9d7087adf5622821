"""The backbone of recordings: one of waveforms or one of spectrograms, with one interface."""

from __future__ import annotations

import os
from typing import Any

from transformers import PreTrainedModel

from hf_plr.models.spectrogram import SpectrogramBackbone, prepare_spectrogram_model
from hf_plr.models.spectrogram_inputs import makes_spectrograms
from hf_plr.models.speech import (
    MODEL_TYPES,
    SOUND_INPUTS,
    SpeechBackbone,
    load_feature_extractor,
    load_sound_model,
    load_speech_backbone,
)

SUPPORTED = "a HuBERT, wav2vec 2.0, WavLM or data2vec-audio model"
SoundBackbone = SpeechBackbone | SpectrogramBackbone


def load_sound_backbone(
    model: PreTrainedModel | str | os.PathLike[str],
    extractor: Any = None,
    pooling: str | None = None,
    layer: int | None = None,
) -> tuple[PreTrainedModel, Any, SoundBackbone]:
    """Load a model of recordings in float32: of waveforms if its kind is known, otherwise of spectrograms.

    Args:
        model: the model, its name or its path; a head is left out.
        extractor: its feature extractor; None takes the one saved with the model.
        pooling: see `SpectrogramBackbone`; a model of waveforms has "mean" alone.
        layer: hidden states that are the features, None for the last.

    Returns:
        The model, its feature extractor, and what computes features with them.

    Raises:
        ValueError: if the model is missing, damaged or takes no sound, or does not fit pooling, layer and extractor.
    """
    loaded = load_sound_model(model)
    if loaded.config.model_type not in MODEL_TYPES and loaded.main_input_name in SOUND_INPUTS:
        extractor = load_feature_extractor(loaded) if extractor is None else extractor
        if makes_spectrograms(extractor, loaded.main_input_name):
            loaded = prepare_spectrogram_model(loaded)
            return loaded, extractor, SpectrogramBackbone(loaded, extractor, pooling, layer)
        kind = f"{type(loaded).__name__} (model_type={loaded.config.model_type!r})"
        if hasattr(loaded.config, "conv_stride"):
            raise ValueError(f"{kind} takes waveforms, but is not among the supported ones: use {SUPPORTED}")
        raise ValueError(
            f"{kind} is not a speech transformer backbone that takes waveforms, and {type(extractor).__name__} makes "
            f"no spectrograms for it: use the feature extractor that is saved with the model, or {SUPPORTED}"
        )
    if pooling not in (None, "mean"):
        raise ValueError(f"pooling={pooling!r} does not fit recordings of {type(loaded).__name__}: use 'mean'")
    loaded = load_speech_backbone(loaded)
    extractor = load_feature_extractor(loaded) if extractor is None else extractor
    return loaded, extractor, SpeechBackbone(loaded, layer)
