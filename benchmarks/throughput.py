"""Overhead of PLRTrainer's training loop: samples a second against a stock Trainer, stage taken out.

Both train the same model, from the same image store, with the same augmentation and batch size, for the same number of
steps. They take turns in one process, so that a drift of the machine's speed meets both; the ratio of a turn is formed
inside it. The stock Trainer classifies with a linear layer over as many classes as PLRTrainer has prototypes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from typing import Any

import numpy as np
import torch
import transformers
from transformers import PrinterCallback, Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

from hf_plr import PLRTrainer, PLRTrainingArguments
from hf_plr.data.image_augmentation import affine_augmentation
from hf_plr.data.image_store import collate_images
from hf_plr.data.loading import digits
from hf_plr.modality import ImageModality
from hf_plr.models.vision import small_vit, small_vit_processor
from hf_plr.trainer.progress_display import ProgressDisplay
from hf_plr.utils.rng import uniform

N_CLASSES = 64


class FixedClusters:
    """A clusterer that costs nothing."""

    def fit_predict(self, features: Any) -> np.ndarray:
        """Labels by position, shape (N,)."""
        return np.arange(len(features)) % N_CLASSES


class WithoutStage(PLRTrainer):
    """PLRTrainer whose stage takes random features, so that only the training loop is timed."""

    def extract_shard(self) -> torch.Tensor:
        """Random features, float32 of shape (N, D)."""
        return torch.randn(len(self.train_dataset), self.model.config.hidden_size, device=self.args.device)


class StockTrainer(Trainer):
    """A stock Trainer that augments in `compute_loss`, as a user would who has kornia."""

    geometry: Any

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Cross-entropy of a linear classifier."""
        numbers = uniform(inputs["index"], self.args.seed, 0)
        images = affine_augmentation(self.geometry.unit_range(inputs["pixel_values"]), numbers)
        output = model(pixel_values=self.geometry.normalise(images), labels=inputs["index"] % N_CLASSES)
        return (output.loss, output) if return_outputs else output.loss


def measure(steps: int, turns: int, batch_size: int) -> dict[str, Any]:
    """Train both in turns; samples a second of each turn and their ratios."""
    with tempfile.TemporaryDirectory() as folder:
        settings: dict[str, Any] = {
            "max_steps": steps,
            "per_device_train_batch_size": batch_size,
            "learning_rate": 1e-4,
            "save_strategy": "no",
            "logging_strategy": "no",
            "disable_tqdm": True,
            "report_to": "none",
        }
        plr: list[float] = []
        stock: list[float] = []
        for turn in range(turns + 1):
            torch.manual_seed(turn)
            ours = WithoutStage(
                small_vit(32, 8),
                PLRTrainingArguments(folder, **settings),
                digits(),
                processing_class=small_vit_processor(32),
                clusterer=FixedClusters(),
            )
            theirs = StockTrainer(
                ViTForImageClassification(ViTConfig(**{**ours.model.config.to_dict(), "num_labels": 64})),
                TrainingArguments(
                    folder,
                    remove_unused_columns=False,
                    dataloader_pin_memory=ours.args.dataloader_pin_memory,
                    **settings,
                ),
                train_dataset=ours.train_dataset,
                data_collator=collate_images,
            )
            assert isinstance(ours.modality, ImageModality)
            theirs.geometry = ours.modality.geometry
            order: list[tuple[Trainer, list[float]]] = [(ours, plr), (theirs, stock)]
            for trainer, _ in order:
                trainer.remove_callback(PrinterCallback if trainer is theirs else ProgressDisplay)
            for trainer, rates in order if turn % 2 else reversed(order):
                rate = trainer.train().metrics["train_samples_per_second"]
                if turn > 0:  # the first turn warms up
                    rates.append(rate)
    ratios = [a / b for a, b in zip(plr, stock, strict=True)]
    return {
        "trainer_ratio": round(statistics.median(ratios), 4),
        "trainer_ratio_min": round(min(ratios), 4),
        "trainer_ratio_max": round(max(ratios), 4),
        "plr_samples_per_second": round(statistics.median(plr), 1),
        "stock_samples_per_second": round(statistics.median(stock), 1),
        "turns": turns,
        "steps": steps,
        "batch_size": batch_size,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=120, help="steps a turn")
    parser.add_argument("--turns", type=int, default=7, help="turns, after one that is not counted")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    result = measure(arguments.steps, arguments.turns, arguments.batch_size)
    if arguments.json:
        print(json.dumps(result))
        return
    print(f"{'PLRTrainer without its stage':<32}{result['plr_samples_per_second']:>10.1f} samples/s")
    print(f"{'stock Trainer':<32}{result['stock_samples_per_second']:>10.1f} samples/s")
    low, high = result["trainer_ratio_min"], result["trainer_ratio_max"]
    print(f"{'ratio (median of turns)':<32}{result['trainer_ratio']:>10.3f} ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
