"""Overhead of PLRTrainer's training loop: samples a second against a stock Trainer, stage taken out.

Both train the same model on the same device, from the same image store, with the same augmentation, precision, batch
size, optimizer and number of steps. The images make whole batches: at the end of an epoch PLRTrainer would fill up its
last batch, where a stock Trainer has a small one. They take turns in one process, so that a drift of the machine's
speed meets both; the ratio of a turn is formed inside it. The stock Trainer classifies with a linear layer over as many
classes as PLRTrainer's first labeling has prototypes.

Timed is all that happens from the end of a turn's third step to the end of its last one, the device's work included:
loading, steps, and what both do between epochs, for PLRTrainer the order of the next epoch and the move of its targets
to the device. Not timed are the set-up of a run, its first steps, and the stage: the labels are made before training,
by two refinements of clusters that are random, and stay. From one to the other a tenth of the samples changes to the
cluster beside its own, and a thirtieth to any, so that targets are as soft as in a real run. On a machine with other
work the ratio of the processor's seconds is the one to compare; on a GPU that is the host's share alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

from benchmarks.extraction import backbone
from hf_plr import PLRTrainer, PLRTrainingArguments
from hf_plr.clustering import as_clusterer
from hf_plr.data.example_data import digits
from hf_plr.data.image_augmentation import affine_augmentation
from hf_plr.data.image_store import collate_images
from hf_plr.modality import ImageModality
from hf_plr.models.vision import small_vit, small_vit_processor
from hf_plr.trainer.progress_display import ProgressDisplay
from hf_plr.utils.rng import uniform

MODELS = {"small_vit": 32, "vit_tiny": 224, "vit_s": 224, "vit_b": 224}  # and the image sizes that they get
UNTIMED_STEPS = 3
CHURN_TO_NEXT, CHURN_TO_ANY = 0.1, 1 / 30


class DriftingClusters:
    """A clusterer that costs nothing: random clusters, of which a part changes from call to call."""

    def __init__(self, n_clusters: int):
        self.n_clusters = n_clusters
        self._rng = np.random.default_rng(n_clusters)
        self._labels = np.empty(0, np.int64)

    def fit_predict(self, features: Any) -> np.ndarray:
        """Labels by position, shape (N,)."""
        n = len(features)
        if len(self._labels) != n:
            self._labels = self._rng.permutation(np.arange(n) % self.n_clusters)
        draw = self._rng.random(n)
        anywhere = self._rng.integers(self.n_clusters, size=n)
        moved = np.where(draw < CHURN_TO_ANY, anywhere, (self._labels + 1) % self.n_clusters)
        self._labels = np.where(draw < CHURN_TO_ANY + CHURN_TO_NEXT, moved, self._labels)
        return self._labels


class WithoutStage(PLRTrainer):
    """PLRTrainer whose labels are made before training and stay, so that only the training loop is timed."""

    def make_labels(self) -> None:
        """Run two stages on random features and clusters: the labels of the second are refined."""
        for labeling in self.labelings:
            labeling.stage.clusterer = as_clusterer(
                DriftingClusters(labeling.stage.clusterer.get_params()["n_clusters"])
            )
        for epoch in range(2):
            super().refresh_labels(epoch)

    def extract_shard(self) -> torch.Tensor:
        """Random features, float32 of shape (N, D)."""
        features = torch.randn(
            len(self.train_dataset), self.extractor.width, generator=torch.Generator().manual_seed(0)
        )
        return features.to(self.args.device)  # the same on any device

    def refresh_labels(self, epoch: int) -> None:
        """Keep the labels."""
        self.keep_labels(epoch)


class StockTrainer(Trainer):
    """A stock Trainer that augments in `compute_loss`, as a user would who has kornia."""

    geometry: Any
    n_classes: int

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Cross-entropy of a linear classifier."""
        numbers = uniform(inputs["index"], self.args.seed, 0)
        images = affine_augmentation(self.geometry.unit_range(inputs["pixel_values"]), numbers)
        output = model(pixel_values=self.geometry.normalise(images), labels=inputs["index"] % self.n_classes)
        return (output.loss, output) if return_outputs else output.loss


class LoopTimer(TrainerCallback):
    """Seconds from the end of the third step to the end of the last one, by the clock and of the processor."""

    def __init__(self) -> None:
        self.seconds = self.cpu_seconds = 0.0
        self._started = self._cpu_started = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in (UNTIMED_STEPS, state.max_steps):
            if args.device.type == "cuda":
                torch.cuda.synchronize(args.device)
            now, cpu_now = time.perf_counter(), time.process_time()
            self.seconds, self._started = now - self._started, now
            self.cpu_seconds, self._cpu_started = cpu_now - self._cpu_started, cpu_now


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    result = measure(args)
    if args.json:
        print(json.dumps(result))
        return
    print(f"{'PLRTrainer without its stage':<32}{result['plr_samples_per_second']:>10.1f} samples/s")
    print(f"{'stock Trainer':<32}{result['stock_samples_per_second']:>10.1f} samples/s")
    low, high = result["trainer_ratio_min"], result["trainer_ratio_max"]
    print(f"{'ratio (median of turns)':<32}{result['trainer_ratio']:>10.3f} ({low:.3f} to {high:.3f})")
    print(f"{'ratio by processor seconds':<32}{result['trainer_ratio_cpu_seconds']:>10.3f}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `measure`."""
    parser.add_argument(
        "--model", choices=list(MODELS), default="small_vit", help="random weights (default: small_vit)"
    )
    parser.add_argument("--image_size", type=int, help="pixels a side (default: 32 for small_vit, else 224)")
    parser.add_argument("--labelings", type=int, default=3, help="clusterings at once, as by default (default: 3)")
    parser.add_argument("--samples", type=int, default=1797, help="digits, again and again; cut to whole batches")
    parser.add_argument("--clusters", type=int, help="of the first labeling (default: as PLRTrainer takes)")
    parser.add_argument("--steps", type=int, default=120, help=f"steps a turn, after {UNTIMED_STEPS} (default: 120)")
    parser.add_argument("--turns", type=int, default=7, help="turns, after one that is not counted (default: 7)")
    parser.add_argument("--batch_size", type=int, default=128, help="images a step (default: 128)")
    parser.add_argument("--bf16", action="store_true", help="train in bfloat16")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: a GPU where there is one")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Train both in turns; samples a second of each turn and their ratios."""
    with tempfile.TemporaryDirectory() as folder:
        plr: list[LoopTimer] = []
        stock: list[LoopTimer] = []
        images = many_digits(max(1, args.samples // args.batch_size) * args.batch_size)
        for turn in range(args.turns + 1):
            torch.manual_seed(turn)
            ours, theirs = trainers(args, images, folder)
            order: list[tuple[Trainer, list[LoopTimer]]] = [(ours, plr), (theirs, stock)]
            for trainer, timers in order if turn % 2 else reversed(order):
                timer = LoopTimer()
                trainer.add_callback(timer)
                trainer.train()
                if turn > 0:  # the first turn warms up
                    timers.append(timer)
    ratios = [b.seconds / a.seconds for a, b in zip(plr, stock, strict=True)]
    cpu_ratios = [b.cpu_seconds / a.cpu_seconds for a, b in zip(plr, stock, strict=True)]
    samples = args.steps * args.batch_size
    return {
        "trainer_ratio": round(statistics.median(ratios), 4),
        "trainer_ratio_min": round(min(ratios), 4),
        "trainer_ratio_max": round(max(ratios), 4),
        "trainer_ratio_cpu_seconds": round(statistics.median(cpu_ratios), 4),
        "plr_samples_per_second": round(samples / statistics.median(timer.seconds for timer in plr), 1),
        "stock_samples_per_second": round(samples / statistics.median(timer.seconds for timer in stock), 1),
        "turns": args.turns,
        "steps": args.steps,
        "batch_size": args.batch_size,
        "model": args.model,
        "image_size": args.image_size or MODELS[args.model],
        "labelings": args.labelings,
        "clusters": [labeling.pseudo_labels.n_clusters for labeling in ours.labelings],
        "samples": len(images),
        "bf16": args.bf16,
        "device": str(ours.args.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def trainers(args: argparse.Namespace, images: Dataset, folder: str) -> tuple[WithoutStage, StockTrainer]:
    """Both trainers, with labels and without what they print."""
    settings: dict[str, Any] = {
        "max_steps": args.steps + UNTIMED_STEPS,
        "per_device_train_batch_size": args.batch_size,
        "learning_rate": 1e-4,
        "weight_decay": 0.05,
        "bf16": args.bf16,
        "use_cpu": args.device == "cpu" or not torch.accelerator.is_available(),
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "report_to": "none",
    }
    size = args.image_size or MODELS[args.model]
    ours = WithoutStage(
        make_model(args.model, size),
        PLRTrainingArguments(
            folder,
            num_labelings=args.labelings,
            refinement="soft",
            num_clusters=args.clusters,
            image_cache_gib=1024,
            image_cache_dir=f"{folder}/images",  # decoded once for all turns
            report="no",
            dataloader_num_workers=0,  # decoded images are kept
            **settings,
        ),
        images,
        processing_class=small_vit_processor(size),
    )
    ours.remove_callback(ProgressDisplay)
    ours.make_labels()
    n_classes = ours.labelings[0].pseudo_labels.n_clusters
    theirs = StockTrainer(
        ViTForImageClassification(ViTConfig(**{**ours.model.config.to_dict(), "num_labels": n_classes})),
        TrainingArguments(
            folder,
            remove_unused_columns=False,
            **{name: getattr(ours.args, name) for name in vars(ours.args) if name.startswith("dataloader_")},
            **settings,
        ),
        train_dataset=ours.train_dataset,
        data_collator=collate_images,
    )
    assert isinstance(ours.modality, ImageModality)
    theirs.geometry, theirs.n_classes = ours.modality.geometry, n_classes
    theirs.remove_callback(PrinterCallback)
    return ours, theirs


def many_digits(n_samples: int) -> Dataset:
    """Handwritten digits without labels, again and again."""
    images = digits().remove_columns("label")
    return images.select(np.arange(n_samples) % len(images))


def make_model(name: str, image_size: int) -> PreTrainedModel:
    """A ViT with random weights."""
    if name == "small_vit":
        return small_vit(image_size, image_size // 4)
    return backbone({"vit_tiny": "tiny", "vit_s": "small", "vit_b": "base"}[name], image_size, 16)


if __name__ == "__main__":
    main()
