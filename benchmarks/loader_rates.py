"""Images a second of extraction and of training that decode, against bare loops of torch's DataLoader.

Four ways take turns in one process, for each number of workers:

  extract        `trainer.extract_features`
  bare_extract   a DataLoader over the same store, with the forward pass in inference mode
  train          an epoch of the trainer, from the end of its first step to the end of its last
  bare_train     a DataLoader over the same store in random order, with forward and backward pass and AdamW, likewise

The bare loops decode as the store does, and have workers, prefetching and batch sizes of the trainer's. Ratios are of
the two rates in the same turn.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from typing import Any

import torch
import transformers
from torch.utils.data import DataLoader

from benchmarks.loader_model import BATCH_SIZE, IMAGE_SIZE, PATCH_SIZE
from hf_plr import PLRTrainer, PLRTrainingArguments
from hf_plr.data.loading import load_splits
from hf_plr.models.vision import small_vit, small_vit_processor
from hf_plr.trainer.progress_display import ProgressDisplay

PREFETCH = 4
EXTRACTION_BATCH = 256


class StepTimes(transformers.TrainerCallback):
    """When each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ends = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ends.append(time.perf_counter())


def measure_rates(folder: str, n_images: int, workers: list[int], turns: int) -> dict[str, Any]:
    """Images a second of each way by number of workers: medians over turns, and ratios with their range."""
    transformers.logging.set_verbosity_error()
    images = load_splits(folder, kind="image")["train"]
    images = images.shuffle(seed=0).select(range(min(n_images, len(images))))
    rates: dict[str, Any] = {"images": len(images), "threads": torch.get_num_threads(), "turns": turns}
    with tempfile.TemporaryDirectory() as output_dir:
        times = StepTimes()
        trainer = make_trainer(images, output_dir, times)
        found: dict[int, list[dict[str, float]]] = {number: [] for number in workers}
        for _ in range(turns):
            for number in workers:
                found[number].append(one_turn(trainer, times, number))
    for number, rows in found.items():
        summary: dict[str, Any] = {name: round(statistics.median(row[name] for row in rows), 1) for name in rows[0]}
        for name in ("extract", "train"):
            ratios = [row[name] / row[f"bare_{name}"] for row in rows]
            summary[f"{name}_over_bare"] = round(statistics.median(ratios), 3)
            summary[f"{name}_over_bare_range"] = [round(min(ratios), 3), round(max(ratios), 3)]
        rates[f"{number} workers"] = summary
    return rates


def one_turn(trainer: PLRTrainer, times: StepTimes, workers: int) -> dict[str, float]:
    """Images a second of the four ways, one after the other."""
    trainer.args.dataloader_num_workers = workers
    n = len(trainer.train_dataset)
    started = time.perf_counter()
    trainer.extract_features()
    extract = n / (time.perf_counter() - started)
    started = time.perf_counter()
    bare_extract(trainer, workers)
    bare = n / (time.perf_counter() - started)
    trainer.train()
    ends = times.ends
    train = (len(ends) - 1) * BATCH_SIZE / (ends[-1] - ends[0])
    return {"extract": extract, "bare_extract": bare, "train": train, "bare_train": bare_train(trainer, workers)}


def make_trainer(images: Any, output_dir: str, times: StepTimes) -> PLRTrainer:
    """A trainer that decodes each image at every use, and trains for one epoch without augmentation."""
    transformers.set_seed(0)
    trainer = PLRTrainer(
        small_vit(IMAGE_SIZE, PATCH_SIZE),
        PLRTrainingArguments(
            output_dir,
            num_train_epochs=1,
            per_device_train_batch_size=BATCH_SIZE,
            per_device_eval_batch_size=EXTRACTION_BATCH,
            augmentation="none",
            refinement="slr",
            num_clusters=50,
            image_cache_gib=0,
            report="no",
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        ),
        images,
        processing_class=small_vit_processor(IMAGE_SIZE),
        callbacks=[times],
    )
    trainer.remove_callback(ProgressDisplay)
    return trainer


def bare_loader(trainer: PLRTrainer, batch_size: int, workers: int, **order: Any) -> DataLoader:
    """A plain loader over the trainer's store."""
    return DataLoader(
        trainer.train_dataset,
        batch_size=batch_size,
        num_workers=workers,
        prefetch_factor=PREFETCH if workers else None,
        collate_fn=trainer.modality.collate,
        pin_memory=trainer.args.device.type == "cuda",
        **order,
    )


def bare_extract(trainer: PLRTrainer, workers: int) -> None:
    """Features of all images in a plain loop."""
    model = trainer.model.eval()
    with torch.inference_mode():
        for batch in bare_loader(trainer, EXTRACTION_BATCH, workers):
            trainer.modality.features(model, to_device(batch, trainer.args.device)).cpu()


def bare_train(trainer: PLRTrainer, workers: int) -> float:
    """Images a second of a plain loop that trains a linear classifier above the backbone."""
    device = trainer.args.device
    model: torch.nn.Module = small_vit(IMAGE_SIZE, PATCH_SIZE)
    model = model.to(device).train()
    head = torch.nn.Linear(trainer.modality.feature_size, 50).to(device)
    optimizer = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=1e-3)
    ends: list[float] = []
    precision = torch.autocast(device.type, torch.bfloat16) if trainer.args.bf16 else contextlib.nullcontext()
    for batch in bare_loader(trainer, BATCH_SIZE, workers, shuffle=True):
        moved = to_device(batch, device)
        with precision:
            logits = head(trainer.modality.features(model, moved))
        torch.nn.functional.cross_entropy(logits.float(), moved["index"] % 50).backward()
        optimizer.step()
        optimizer.zero_grad()
        ends.append(time.perf_counter())
    return (len(ends) - 1) * BATCH_SIZE / (ends[-1] - ends[0])


def to_device(batch: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """A batch on the device."""
    return {name: values.to(device, non_blocking=True) for name, values in batch.items()}
