"""Features of all images, without augmentation, over all processes."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from hf_plr.data.images import ImageStore, collate_images
from hf_plr.models.backbone import VisionBackbone


def extract_features(
    model: torch.nn.Module,
    backbone: VisionBackbone,
    images: ImageStore,
    accelerator: Accelerator,
    batch_size: int,
    num_workers: int = 0,
    positions: torch.Tensor | None = None,
    progress: bool = False,
) -> torch.Tensor:
    """Pooled features of a store's images in their order.

    The batches are the same for any number of processes, each of which takes every world-size-th batch; features are
    gathered with their positions and put where these say. The model's mode is left as it was.

    Args:
        model: the backbone, wrapped or not.
        backbone: how it turns images into features.
        images: the images.
        accelerator: places batches and gathers features.
        batch_size: images a batch.
        num_workers: worker processes that decode images which are not kept in memory.
        positions: positions in the store, shape (M,); None takes all.
        progress: show a progress bar on the main process.

    Returns:
        float32 tensor of shape (M, D) on the accelerator's device, the same on every process.
    """
    positions = torch.arange(len(images)) if positions is None else positions
    batches = torch.arange(len(positions)).split(batch_size)
    mine = batches[accelerator.process_index :: accelerator.num_processes]
    was_training = model.training
    model.eval()
    slots: list[torch.Tensor] = []
    rows: list[torch.Tensor] = []
    loader = DataLoader(
        images,
        batch_sampler=[positions[batch].tolist() for batch in mine],
        num_workers=0 if images.is_cached else num_workers,
        collate_fn=collate_images,
        generator=torch.Generator(),  # its own: opening a loader draws a number
    )
    bar = tqdm(
        loader,
        desc="Extracting features",
        unit="batch",
        leave=False,
        disable=not (progress and accelerator.is_main_process),
    )
    for slot_of_rows, batch in zip(mine, bar, strict=True):
        pixels = batch["pixel_values"].to(accelerator.device)
        with torch.inference_mode(), accelerator.autocast():
            rows.append(backbone.features(model, images.geometry.normalise(images.geometry.unit_range(pixels))))
        slots.append(slot_of_rows)
    model.train(was_training)
    slot = torch.cat(slots).to(accelerator.device) if slots else torch.empty(0, dtype=torch.int64)
    local = torch.cat(rows) if rows else torch.empty(0, 0)
    if accelerator.num_processes > 1:
        slot, local = _gather_padded(slot, local, accelerator, backbone_width(model))
    features = torch.empty(len(positions), local.shape[1], device=accelerator.device)
    features[slot] = local
    return features


def backbone_width(model: Any) -> int:
    """Size D of a backbone's features."""
    inner = getattr(model, "module", model)
    return int(inner.config.hidden_size)


def _gather_padded(
    slot: torch.Tensor, rows: torch.Tensor, accelerator: Accelerator, width: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gather (slot, row) pairs of all processes; padding carries slot -1 and is dropped."""
    device = accelerator.device
    rows = rows.reshape(-1, width).to(device)
    longest = int(accelerator.gather(torch.tensor([len(slot)], device=device)).max())
    padded_slot = torch.full((longest,), -1, dtype=torch.int64, device=device)
    padded_slot[: len(slot)] = slot
    padded_rows = torch.zeros(longest, width, device=device)
    padded_rows[: len(rows)] = rows
    all_slots, all_rows = accelerator.gather((padded_slot, padded_rows))
    real = all_slots >= 0
    return all_slots[real], all_rows[real]
