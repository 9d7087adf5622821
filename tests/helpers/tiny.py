"""Tiny models, and trainers of them that take a fraction of a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage
from transformers import set_seed

from hf_plr import PLRTrainer, PLRTrainingArguments, UnitTrainer
from hf_plr.models.speech import small_hubert, small_hubert_extractor
from hf_plr.models.vision import small_vit, small_vit_processor
from hf_plr.trainer.base_trainer import BaseTrainer


def tiny_vit(seed: int = 0) -> torch.nn.Module:
    """A ViT of one layer for images of 16 x 16."""
    set_seed(seed)
    return small_vit(16, 8, hidden_size=32, num_hidden_layers=1)


def deep_images(n: int = 60) -> Dataset:
    """Images of 12 bits in 16, of three classes, each third one much darker; the range is that of all of them."""
    rng = np.random.default_rng(0)
    images = []
    for i in range(n):
        pixels = rng.integers(0, 1200, (16, 16))
        pixels[4 * (i % 3) :: 2, 4:12] += 2800
        pixels[0, 0] = 4095
        images.append(PILImage.fromarray((pixels // (5 if i % 3 == 0 else 1)).astype(np.uint16)))
    features = Features({"image": Image(), "label": ClassLabel(names=["a", "b", "c"])})
    return Dataset.from_dict({"image": images, "label": [i % 3 for i in range(n)]}, features=features)


def tiny_hubert(seed: int = 0) -> torch.nn.Module:
    """A HuBERT of two layers for sounds at 8 kHz."""
    set_seed(seed)
    return small_hubert(8_000, hidden_size=32, num_hidden_layers=2)


def image_trainer(out: Path, data: Dataset, trainer: dict[str, Any] | None = None, **arguments: Any) -> PLRTrainer:
    """A trainer of a tiny ViT; `trainer` holds keywords of the trainer, others go to the arguments."""
    parts = {
        "model": tiny_vit(),
        "train_dataset": data,
        "processing_class": small_vit_processor(16),
        **(trainer or {}),
    }
    is_given = arguments.get("labels") is not None
    settings = {
        "output_dir": str(out),
        "num_train_epochs": 3,
        "per_device_train_batch_size": 32,
        **({} if is_given or "clusterer" in parts else {"num_clusters": 12}),
        **({} if is_given or "refiner" in parts else {"refinement": "slr"}),
        "disable_tqdm": True,
        "use_cpu": True,
        **arguments,
    }
    return PLRTrainer(args=PLRTrainingArguments(**settings), **parts)


def sound_trainer(
    out: Path,
    data: Dataset,
    kind: type[BaseTrainer] = UnitTrainer,
    trainer: dict[str, Any] | None = None,
    **arguments: Any,
) -> BaseTrainer:
    """A trainer of a tiny HuBERT; `trainer` holds keywords of the trainer, others go to the arguments."""
    settings = {
        "output_dir": str(out),
        "num_train_epochs": 3,
        "per_device_train_batch_size": 32,
        "per_device_eval_batch_size": 8,
        **({} if arguments.get("labels") is not None or "clusterer" in (trainer or {}) else {"num_clusters": 12}),
        "disable_tqdm": True,
        "use_cpu": True,
        **({"relabel_every": 1, "mask_length": 4} if kind is UnitTrainer else {}),
        **arguments,
    }
    parts = {
        "model": tiny_hubert(),
        "train_dataset": data,
        "processing_class": small_hubert_extractor(8_000),
        **(trainer or {}),
    }
    return kind(args=kind.arguments_class(**settings), **parts)
