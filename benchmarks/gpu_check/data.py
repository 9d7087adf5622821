"""What the checks compute on: drawn features, drawn pictures, ViTs with random weights."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage

from benchmarks.extraction import SIZES, backbone
from hf_plr.models.vision import small_vit_processor

N_CLASSES = 20
DRAWN_AT_ONCE = 1 << 12  # few rows, so that drawing takes no more memory than what is measured


def draw_features(n_samples: int, dimension: int, n_groups: int, device: torch.device, seed: int = 0) -> torch.Tensor:
    """Unit features as a ViT has them, groups whose spread falls by a power law: float32 (n_samples, dimension).

    They are drawn on the device; on another one they differ.
    """
    generator = torch.Generator(device).manual_seed(seed)
    scales = torch.arange(1, dimension + 1, device=device).float() ** -0.5
    centers = torch.randn(n_groups, dimension, generator=generator, device=device) * scales
    features = torch.empty(n_samples, dimension, device=device)
    for block in features.split(DRAWN_AT_ONCE):
        member = torch.randint(n_groups, (len(block),), generator=generator, device=device)
        torch.randn(block.shape, generator=generator, device=device, out=block)
        block.mul_(0.7 * scales).add_(centers[member])
        block.div_(torch.linalg.vector_norm(block, dim=1, keepdim=True))
    return features


def draw_pictures(n_distinct: int, width: int, height: int, file_format: str, seed: int = 0) -> list[bytes]:
    """Files of pictures: soft patterns of 20 kinds, each cut, brightened and grained anew."""
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, 256, size=(N_CLASSES, 8, 8, 3), dtype=np.uint8)
    files = []
    for i in range(n_distinct):
        rows, columns = rng.integers(0, 3, size=2)
        part = PILImage.fromarray(kinds[i % N_CLASSES, rows : rows + 6, columns : columns + 6])
        pixels = np.asarray(part.resize((width, height), PILImage.Resampling.BICUBIC), dtype=np.int16)
        grain = rng.integers(-12, 13, size=(height, width, 1), dtype=np.int16) + rng.integers(-30, 31)
        buffer = io.BytesIO()
        options = {"quality": 90} if file_format == "JPEG" else {}
        PILImage.fromarray((pixels + grain).clip(0, 255).astype(np.uint8)).save(buffer, file_format, **options)
        files.append(buffer.getvalue())
    return files


def make_pictures(
    n_samples: int, n_distinct: int, width: int, height: int, file_format: str = "JPEG", labels: bool = True
) -> Dataset:
    """A data set of pictures, of which each occurs several times; its label is the kind of pattern."""
    files = draw_pictures(min(n_distinct, n_samples), width, height, file_format)
    rows = np.arange(n_samples) % len(files)
    columns: dict[str, list[Any]] = {"image": [{"bytes": file, "path": None} for file in files]}
    features: dict[str, Any] = {"image": Image()}
    if labels:
        columns["label"] = [i % N_CLASSES for i in range(len(files))]
        features["label"] = ClassLabel(names=[f"kind {i}" for i in range(N_CLASSES)])
    return Dataset.from_dict(columns, features=Features(features)).select(rows)


def save_parquet(pictures: Dataset, folder: Path) -> Path:
    """Write a data set as a user has it, in a folder with train.parquet; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures.to_parquet(str(folder / "train.parquet"))
    return folder


def save_vit(folder: Path, name: str, image_size: int, patch_size: int) -> Path:
    """Save a ViT with random weights and its image processor; returns the folder."""
    backbone(name, image_size, patch_size).save_pretrained(folder)
    small_vit_processor(image_size).save_pretrained(folder)
    return folder


def count_vit_operations(name: str, image_size: int, patch_size: int) -> float:
    """Floating-point operations of a ViT for one image, forward: products of weights and of the attention."""
    width, layers, _ = SIZES[name]
    tokens = (image_size // patch_size) ** 2 + 1
    per_layer = 2 * tokens * 12 * width**2 + 4 * tokens**2 * width
    return float(layers * per_layer + 2 * tokens * 3 * patch_size**2 * width)
