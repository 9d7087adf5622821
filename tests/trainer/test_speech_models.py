"""Both objectives with every kind of speech transformer, and with recordings that hold nothing."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile
import torch
from datasets import Audio, Dataset
from transformers import (
    AutoModel,
    Data2VecAudioConfig,
    Data2VecAudioModel,
    HubertConfig,
    HubertForSequenceClassification,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
)

from hf_plr import PLRTrainer, UnitTrainer

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "conv_dim": (16, 16, 16),
    "conv_kernel": (10, 8, 5),
    "conv_stride": (5, 8, 4),
    "num_conv_pos_embedding_groups": 4,
    "layerdrop": 0.1,
}
MODELS = {
    "hubert with a head": lambda: HubertForSequenceClassification(HubertConfig(**TINY, num_conv_pos_embeddings=8)),
    "wav2vec2": lambda: Wav2Vec2Model(Wav2Vec2Config(**TINY, num_conv_pos_embeddings=8, mask_time_prob=0.0)),
    "wavlm": lambda: WavLMModel(WavLMConfig(**TINY, num_conv_pos_embeddings=8)),
    "data2vec": lambda: Data2VecAudioModel(
        Data2VecAudioConfig(**TINY, conv_pos_kernel_size=5, num_conv_pos_embeddings=2)
    ),
}


@pytest.mark.parametrize("kind", [PLRTrainer, UnitTrainer])
@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_model_trains_and_loads_again(make_sound_trainer, name, kind):
    torch.manual_seed(0)
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=8_000, return_attention_mask=False)
    parts = {"model": MODELS[name](), "processing_class": extractor}
    trainer = make_sound_trainer(kind, parts, num_train_epochs=2)
    before = {key: value.clone() for key, value in trainer.backbone.state_dict().items()}
    trainer.train()
    trainer.save_model()
    model, report = AutoModel.from_pretrained(trainer.args.output_dir, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    trained = model.state_dict()
    assert all(torch.equal(trained[key], value) for key, value in trainer.backbone.state_dict().items())
    assert sum(not torch.equal(trained[key], value) for key, value in before.items()) >= len(before) - 1
    assert model.config.layerdrop == 0.0


def test_silence_and_clips_shorter_than_a_frame_have_features(make_sound_trainer, some_sounds):
    rng = np.random.default_rng(0)
    waves = [np.zeros(4_000), np.zeros(3), np.full(2_000, 0.5), 0.5 * rng.normal(size=20)]
    rows = some_sounds.cast_column("audio", Audio(decode=False))["audio"][:40]
    for wave in waves:
        buffer = io.BytesIO()
        soundfile.write(buffer, wave, 8_000, format="WAV")
        rows.append({"bytes": buffer.getvalue(), "path": None})
    sounds = Dataset.from_dict({"audio": rows}).cast_column("audio", Audio())
    for kind in (PLRTrainer, UnitTrainer):
        trainer = make_sound_trainer(
            kind, {"train_dataset": sounds}, num_train_epochs=2, logging_strategy="steps", logging_steps=1
        )
        trainer.train()
        assert torch.isfinite(trainer.extract_features()).all()
        logged = [entry for entry in trainer.state.log_history if "loss" in entry]
        assert np.isfinite([entry["loss"] for entry in logged]).all()
        assert max(entry["grad_norm"] for entry in logged) < 1e5, "silence decides no step"
        assert trainer.summary().scores == {}
    assert trainer.modality.backbone.n_frames(torch.from_numpy(trainer.train_dataset.lengths[:2])).tolist() == [1, 1]
