"""Features of all images, without augmentation, over all processes."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from hf_plr.data.images import ImageStore, collate_images
from hf_plr.models.backbone import VisionBackbone
from hf_plr.precision import fast_fp32_products
from hf_plr.processes import gather_rows


@dataclass
class FeatureExtractor:
    """How features are taken: everything but the images.

    Attributes:
        model: the backbone, wrapped or not.
        backbone: how it turns images into features.
        accelerator: places batches and shares them among processes.
        batch_size: images a batch.
        num_workers: worker processes that decode images which are not cached.
        progress: show a progress bar on the main process.
    """

    model: torch.nn.Module
    backbone: VisionBackbone
    accelerator: Accelerator
    batch_size: int
    num_workers: int = 0
    progress: bool = False

    def all(self, images: ImageStore, positions: torch.Tensor | None = None) -> torch.Tensor:
        """Features of a store's images in their order, on every process.

        Args:
            images: the images.
            positions: positions in the store, shape (M,); None takes all.

        Returns:
            float32 tensor of shape (M, D) on the accelerator's device.
        """
        positions = torch.arange(len(images)) if positions is None else positions
        return gather_rows(self.accelerator, self.of(images, positions[self.shard(len(positions))]))

    def shard(self, n: int) -> slice:
        """This process's part of n images: whole batches, so that batches are the same for any number of processes."""
        n_batches = -(-n // self.batch_size)
        processes, index = self.accelerator.num_processes, self.accelerator.process_index
        start, stop = (min(n_batches * part // processes * self.batch_size, n) for part in (index, index + 1))
        return slice(start, stop)

    def of(
        self,
        images: ImageStore,
        positions: torch.Tensor,
        dtype: torch.dtype | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Features of these images on this process alone.

        The model's mode is left as it was. Products in float32 on a CPU go through `fast_fp32_products`.

        Args:
            images: the images.
            positions: positions in the store, shape (n,).
            dtype: torch.bfloat16 for products in it; None for the precision of training.
            out: float32 tensor of shape (n, D) to write to, on any device.

        Returns:
            `out`, or a float32 tensor of shape (n, D) on the accelerator's device.
        """
        device = self.accelerator.device
        features = torch.empty(len(positions), self.width, device=device) if out is None else out
        batches = positions.split(self.batch_size) if len(positions) else ()
        was_training = self.model.training
        self.model.eval()
        start = 0
        with torch.inference_mode(), fast_fp32_products(), self._autocast(dtype):
            for pixels in self._bar(self._pixels(images, batches), len(batches)):
                pixels = images.geometry.normalise(images.geometry.unit_range(pixels.to(device, non_blocking=True)))
                rows = self.backbone.features(self.model, pixels)
                features[start : start + len(rows)] = rows.to(features.device)
                start += len(rows)
        self.model.train(was_training)
        return features

    @property
    def width(self) -> int:
        """Size D of a feature."""
        inner: Any = getattr(self.model, "module", self.model)
        return int(inner.config.hidden_size)

    def _pixels(self, images: ImageStore, batches: Any) -> Iterator[torch.Tensor]:
        if images.is_cached:
            for batch in batches:
                yield images.pixels(batch)
            return
        loader = DataLoader(
            images,
            batch_sampler=[batch.tolist() for batch in batches],
            num_workers=self.num_workers,
            collate_fn=collate_images,
            generator=torch.Generator(),  # its own: opening a loader draws a number
        )
        for loaded in loader:
            yield loaded["pixel_values"]

    def _bar(self, batches: Iterator[torch.Tensor], n_batches: int) -> Iterator[torch.Tensor]:
        hidden = not (self.progress and self.accelerator.is_main_process)
        bar = tqdm(batches, desc="Extracting features", total=n_batches, unit="batch", leave=False, disable=hidden)
        return iter(bar)

    def _autocast(self, dtype: torch.dtype | None) -> contextlib.AbstractContextManager[Any]:
        if dtype is None:
            return self.accelerator.autocast()
        return torch.autocast(self.accelerator.device.type, dtype)  # one for all batches: weights are cast once


def empty_in_file(n_rows: int, width: int, folder: str | os.PathLike[str]) -> torch.Tensor:
    """Room for features, float32 of shape (n_rows, width), in a memory-mapped file without a name.

    The file is gone as soon as nothing refers to it, also if the process is killed.
    """
    if n_rows == 0:
        return torch.empty(0, width)
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder, prefix="features-") as file:
        file.truncate(n_rows * width * 4)
        return torch.from_numpy(np.memmap(file, np.float32, "r+", shape=(n_rows, width)))
