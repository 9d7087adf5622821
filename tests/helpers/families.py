"""A tiny random model of every family of backbones, and what is tried with each."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as tf
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage
from transformers import set_seed

from helpers import spectrograms
from helpers.runs import StopAt, assert_same_weights, weights
from hf_plr import PLRTrainer, PLRTrainingArguments
from hf_plr.data.example_data import make_synthetic_recordings
from hf_plr.models.pooling import POOLINGS
from hf_plr.models.speech import small_hubert_extractor

SIDE = 32
RATE = 8_000
TRANSFORMER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VIT = {**TRANSFORMER, "intermediate_size": 64, "image_size": SIDE, "patch_size": 8}
NO_MLP = {name: value for name, value in VIT.items() if name != "intermediate_size"}
TEXT = {**TRANSFORMER, "num_hidden_layers": 1, "intermediate_size": 64, "vocab_size": 99}
SWIN = {"image_size": SIDE, "patch_size": 2, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
HIERA = {
    **{"image_size": [SIDE, SIDE], "embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "num_query_pool": 1},
    **{"patch_size": [7, 7], "masked_unit_size": [2, 2], "query_stride": [2, 2]},
}
SAM = {
    **TRANSFORMER,
    **{"image_size": SIDE, "patch_size": 8, "output_channels": 16, "window_size": 2, "global_attn_indexes": [1]},
}


def _towers(whole: type[Any], config: type[Any]) -> Any:
    return whole(config(text_config=TEXT, vision_config=VIT))


IMAGE_FAMILIES: dict[str, Callable[[], Any]] = {
    "ViT": lambda: tf.ViTModel(tf.ViTConfig(**VIT)),
    "DeiT": lambda: tf.DeiTModel(tf.DeiTConfig(**VIT)),
    "DINOv2": lambda: tf.Dinov2Model(tf.Dinov2Config(**NO_MLP)),
    "DINOv2 with registers": lambda: tf.Dinov2WithRegistersModel(
        tf.Dinov2WithRegistersConfig(**NO_MLP, num_register_tokens=4)
    ),
    "DINOv3 ViT": lambda: tf.DINOv3ViTModel(tf.DINOv3ViTConfig(**VIT, num_register_tokens=4)),
    "BEiT": lambda: tf.BeitModel(tf.BeitConfig(**VIT)),
    "Data2VecVision": lambda: tf.Data2VecVisionModel(tf.Data2VecVisionConfig(**VIT)),
    "MAE": lambda: tf.ViTMAEModel(tf.ViTMAEConfig(**VIT)),
    "MSN": lambda: tf.ViTMSNModel(tf.ViTMSNConfig(**VIT)),
    "I-JEPA": lambda: tf.IJepaModel(tf.IJepaConfig(**VIT)),
    "CLIP": lambda: _towers(tf.CLIPModel, tf.CLIPConfig),
    "SigLIP, SigLIP 2": lambda: _towers(tf.SiglipModel, tf.SiglipConfig),
    "SigLIP 2 of any aspect ratio (NaFlex)": lambda: tf.Siglip2VisionModel(
        tf.Siglip2VisionConfig(**TRANSFORMER, intermediate_size=64, patch_size=8, num_patches=16)
    ),
    "AIMv2": lambda: tf.Aimv2VisionModel(tf.Aimv2VisionConfig(**VIT)),
    "MLCD": lambda: tf.MLCDVisionModel(tf.MLCDVisionConfig(**VIT)),
    "InternVL": lambda: tf.InternVLVisionModel(
        tf.InternVLVisionConfig(**{**VIT, "image_size": [SIDE, SIDE], "patch_size": [8, 8]})
    ),
    "Pixio": lambda: tf.PixioModel(tf.PixioConfig(**VIT)),
    "DPT": lambda: tf.DPTModel(tf.DPTConfig(**VIT, is_hybrid=False, backbone_out_indices=[0, 0, 1, 1])),
    "YOLOS": lambda: tf.YolosModel(tf.YolosConfig(**{**VIT, "image_size": [SIDE, SIDE]}, num_detection_tokens=5)),
    "SAM": lambda: tf.SamVisionModel(tf.SamVisionConfig(**SAM)),
    "VitDet": lambda: tf.VitDetModel(tf.VitDetConfig(**NO_MLP, pretrain_image_size=SIDE)),
    "Swin": lambda: tf.SwinModel(tf.SwinConfig(**SWIN)),
    "Swin v2": lambda: tf.Swinv2Model(tf.Swinv2Config(**SWIN)),
    "Hiera": lambda: tf.HieraModel(tf.HieraConfig(**HIERA)),
    "ConvNeXt": lambda: tf.ConvNextModel(tf.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2)),
    "ConvNeXt v2": lambda: tf.ConvNextV2Model(tf.ConvNextV2Config(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2)),
    "DINOv3 ConvNeXt": lambda: tf.DINOv3ConvNextModel(
        tf.DINOv3ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1])
    ),
    "ResNet": lambda: tf.ResNetModel(tf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])),
    "VideoMAE": lambda: tf.VideoMAEModel(tf.VideoMAEConfig(**VIT, num_frames=2)),
}


WAVEFORM = {
    **{**TRANSFORMER, "intermediate_size": 64, "conv_dim": (16, 32), "conv_kernel": (10, 8), "conv_stride": (5, 4)},
    **{"num_feat_extract_layers": 2, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2},
    **{"feat_extract_norm": "layer"},
}
WAVEFORM_FAMILIES: dict[str, Callable[[], Any]] = {
    "HuBERT": lambda: tf.HubertModel(tf.HubertConfig(**WAVEFORM)),
    "wav2vec 2.0": lambda: tf.Wav2Vec2Model(tf.Wav2Vec2Config(**WAVEFORM)),
    "WavLM": lambda: tf.WavLMModel(tf.WavLMConfig(**WAVEFORM, num_buckets=8)),
    "data2vec-audio": lambda: tf.Data2VecAudioModel(tf.Data2VecAudioConfig(**WAVEFORM)),
}
SPECTROGRAM_FAMILIES = {"AST": "ast", "wav2vec2-BERT": "wav2vec2-bert", "Whisper's encoder": "whisper"}
FAMILIES = (*IMAGE_FAMILIES, *WAVEFORM_FAMILIES, *SPECTROGRAM_FAMILIES)


@dataclass
class Tried:
    """What came of a family.

    Attributes:
        refused: why it is refused, otherwise empty.
        failed: the end of a traceback, otherwise empty.
        trained: class that is trained.
        poolings: size of the feature by pooling; the default comes first.
        checkpointing: True if the model has gradient checkpointing.
        output: folder of the trained backbone.
        code: how plain AutoModel gets `feature` of `sample` from `folder`.
        feature: of `probe`, as the trainer has it.
    """

    refused: str = ""
    failed: str = ""
    trained: str = ""
    poolings: dict[str, int] = field(default_factory=dict)
    checkpointing: bool = False
    output: str = ""
    code: str = ""
    feature: np.ndarray | None = None


IMAGE_CODE = """
model = AutoModel.from_pretrained(folder).eval()
output = model(torch.from_numpy(sample){arguments})
tokens = {tokens}
feature = {feature}
"""
SOUND_CODE = """
waveform = sample[0]
extractor = AutoFeatureExtractor.from_pretrained(folder)
model = {load}
output = model(**extractor(waveform, sampling_rate={rate}, return_tensors="pt"), output_hidden_states=True)
feature = {feature}
"""


def probe(name: str) -> torch.Tensor:
    """A sample for a family: a normalised image (1, 3, 32, 32), or a waveform of 0.9 s (1, 7200)."""
    generator = torch.Generator().manual_seed(1)
    if name in IMAGE_FAMILIES:
        return torch.rand((1, 3, SIDE, SIDE), generator=generator) * 2 - 1
    return torch.randn((1, int(0.9 * RATE)), generator=generator)


@functools.cache
def make_data(name: str) -> Dataset:
    """Data for a family."""
    return few_images() if name in IMAGE_FAMILIES else make_synthetic_recordings(n_per_class=4)


def few_images() -> Dataset:
    """24 images of three classes: a square in one of three corners."""
    rng = np.random.default_rng(0)
    images = []
    for i in range(24):
        pixels = rng.integers(0, 80, (SIDE, SIDE, 3), dtype=np.uint8)
        row, column = ((0, 0), (0, 16), (16, 0))[i % 3]
        pixels[row : row + 16, column : column + 16] += 150
        images.append(PILImage.fromarray(pixels))
    features = Features({"image": Image(), "label": ClassLabel(names=["a", "b", "c"])})
    return Dataset.from_dict({"image": images, "label": [i % 3 for i in range(24)]}, features=features)


def make_model(name: str) -> tuple[Any, Any]:
    """A new model of a family, and its processor."""
    set_seed(0)
    if name in IMAGE_FAMILIES:
        return IMAGE_FAMILIES[name](), tf.ViTImageProcessorPil(size={"height": SIDE, "width": SIDE})
    if name in WAVEFORM_FAMILIES:
        return WAVEFORM_FAMILIES[name](), small_hubert_extractor(RATE)
    kind = SPECTROGRAM_FAMILIES[name]
    return spectrograms.make_model(kind), spectrograms.make_extractor(kind)


def make_trainer(name: str, out: Path, data: Dataset, **arguments: Any) -> PLRTrainer:
    """A trainer of a new model of a family; `arguments` go to its arguments."""
    settings = {
        **{"num_train_epochs": 2, "per_device_train_batch_size": 12, "num_clusters": 4, "learning_rate": 1e-3},
        **{"weight_decay": 0.0, "disable_tqdm": True, "use_cpu": True, "report": "no", "refinement": "slr"},
        **{"cluster_space": "centered", "feature_dtype": "float32"},
        **arguments,
    }
    model, processor = make_model(name)
    return PLRTrainer(model, PLRTrainingArguments(str(out), **settings), data, processing_class=processor)


def try_family(name: str, folder: Path, data: Dataset) -> Tried:
    """Train, resume, save, check gradient checkpointing and bfloat16, and every pooling."""
    tried = Tried(output=str(folder / "whole"))
    try:
        trainer = make_trainer(name, folder / "whole", data)
    except ValueError as error:
        return Tried(refused=str(error))
    try:
        tried.trained = type(trainer.modality.model).__name__
        tried.checkpointing = bool(trainer.model.supports_gradient_checkpointing)
        after = try_training(trainer)
        trainer.save_model()
        tried.feature, tried.code = read_feature(name, trainer)
        tried.poolings = try_poolings(name, folder, data, getattr(trainer.modality.backbone, "pooling", "mean"))
        try_resuming(name, folder, data, trainer.state.max_steps // 2 + 1, after)
        for number, settings in enumerate(({"bf16": True}, {"gradient_checkpointing": True})):
            if "bf16" in settings or tried.checkpointing:
                other = make_trainer(
                    name, folder / str(number), data, num_train_epochs=1, save_strategy="no", **settings
                )
                other.train()
                not_finite = [key for key, value in weights(other).items() if not bool(torch.isfinite(value).all())]
                assert not not_finite, f"{settings}: {not_finite} are not finite, {other.state.log_history}"
    except Exception:  # told by the test
        tried.failed = traceback.format_exc()[-1500:]
    return tried


def try_poolings(name: str, folder: Path, data: Dataset, default: str) -> dict[str, int]:
    """Sizes of the features by those poolings that the family has."""
    sizes = {}
    for pooling in (default, *(other for other in POOLINGS if other != default)):
        try:
            trainer = make_trainer(name, folder / "pooling", data, pooling=pooling)
        except ValueError:
            continue
        sizes[pooling] = trainer.extract_features().shape[1]
        assert sizes[pooling] == trainer.modality.feature_size
    return sizes


def try_training(trainer: PLRTrainer) -> dict[str, torch.Tensor]:
    """Train, and check that all that is trained got gradients; returns the weights."""
    before = weights(trainer)
    trainer.train()
    optimizer: Any = trainer.optimizer
    optimizer = getattr(optimizer, "optimizer", optimizer)
    trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    assert all(parameter in optimizer.state for parameter in trained), "a parameter that is trained got no gradient"
    after = weights(trainer)
    assert sum(not torch.equal(after[key], before[key]) for key in before) >= len(trained) / 2
    return after


def try_resuming(name: str, folder: Path, data: Dataset, step: int, expected: dict[str, torch.Tensor]) -> None:
    """Stop within an epoch, and resume in a new trainer: the same bits."""
    stopped = make_trainer(name, folder / "resumed", data)
    stopped.add_callback(StopAt(step))
    stopped.train()
    resumed = make_trainer(name, folder / "resumed", data)
    resumed.train(resume_from_checkpoint=True)
    assert_same_weights(weights(resumed), expected)


def read_feature(name: str, trainer: PLRTrainer) -> tuple[np.ndarray, str]:
    """The feature of the family's sample as the trainer has it, and the code for it without hf_plr."""
    backbone: Any = trainer.modality.backbone
    model, sample = trainer.backbone.eval(), probe(name)
    with torch.no_grad():
        if name in IMAGE_FAMILIES:
            code = IMAGE_CODE.format(
                arguments=backbone.forward_expression(),
                tokens=backbone.tokens_expression(),
                feature=backbone.feature_expression(),
            )
            return backbone.features(model, sample).numpy(), code
        batch = {"input_values": sample, "lengths": torch.tensor([sample.shape[1]])}
        code = SOUND_CODE.format(
            load=backbone.load_expression("folder"), rate=RATE, feature=backbone.feature_expression()
        )
        return trainer.modality.features(model, batch).numpy(), code
