"""Tiny models of spectrograms, with random weights, and their feature extractors, for sounds at 8 kHz."""

from __future__ import annotations

from typing import Any

from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTModel,
    PreTrainedModel,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2BertConfig,
    Wav2Vec2BertModel,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
    set_seed,
)

RATE, BINS = 8_000, 20
SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
MODELS = ("ast", "wav2vec2-bert", "whisper")


def ast(**settings: Any) -> PreTrainedModel:
    """An AST for 1.25 s: 3 bands of 9 patches, which see 8 frames of 25 ms (at 16 kHz) each."""
    patches = {"patch_size": 8, "frequency_stride": 6, "time_stride": 6, "max_length": 60, "num_mel_bins": BINS}
    return ASTModel(ASTConfig(**{**SIZE, **patches, **settings}))


def wav2vec2_bert(**settings: Any) -> PreTrainedModel:
    """A wav2vec2-BERT, for clips of any length."""
    size = {**SIZE, "feature_projection_input_dim": 2 * BINS, "conv_depthwise_kernel_size": 5}
    return Wav2Vec2BertModel(Wav2Vec2BertConfig(**{**size, **settings}))


def whisper_config(**settings: Any) -> WhisperConfig:
    size: dict[str, Any] = {"d_model": 32, "vocab_size": 16, "max_source_positions": 50, "num_mel_bins": BINS}
    size |= {"max_target_positions": 8, "suppress_tokens": [], "begin_suppress_tokens": []}
    size |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    for part, layers in (("encoder", 2), ("decoder", 2)):
        size |= {f"{part}_layers": layers, f"{part}_attention_heads": 2, f"{part}_ffn_dim": 64}
    return WhisperConfig(**{**size, **settings})


def whisper(**settings: Any) -> PreTrainedModel:
    """A Whisper for 1 s: 50 tokens of 20 ms."""
    return WhisperModel(whisper_config(**settings))


def make_model(name: str, seed: int = 0, **settings: Any) -> PreTrainedModel:
    set_seed(seed)
    return {"ast": ast, "wav2vec2-bert": wav2vec2_bert, "whisper": whisper}[name](**settings)


def make_extractor(name: str) -> Any:
    return {
        "ast": lambda: ASTFeatureExtractor(sampling_rate=RATE, num_mel_bins=BINS, max_length=60),
        "wav2vec2-bert": lambda: SeamlessM4TFeatureExtractor(sampling_rate=RATE, feature_size=BINS, num_mel_bins=BINS),
        "whisper": lambda: WhisperFeatureExtractor(
            sampling_rate=RATE, feature_size=BINS, chunk_length=1, hop_length=80, n_fft=200
        ),
    }[name]()
