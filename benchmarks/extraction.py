"""Extraction of the stage's features: images a second against the machine's limit and against the usual way.

Three ways take turns over the same images with the same backbone and batch size:

  stage   what PLRTrainer does from the second epoch on: decoded images from the cache, in the precision asked for
  bare    the limit: `inference_mode` over batches that are already normalised, in the same precision
  stock   the usual way: decode, the stock image processor, eager float32

The adjusted Rand index compares k-means clusterings of the features of `stage` and of `stock`, the second started from
the first one's centroids. The share of an epoch that the whole stage takes is measured in a run of PLRTrainer.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset, Features, Image
from PIL import Image as PILImage
from sklearn.metrics import adjusted_rand_score
from transformers import ViTConfig, ViTModel

from hf_plr import KMeans, PLRTrainer, PLRTrainingArguments
from hf_plr.features.centering import center_features
from hf_plr.modality import ImageModality
from hf_plr.models.vision import pass_class_token_through_pooler, small_vit_processor
from hf_plr.trainer.progress_display import ProgressDisplay
from hf_plr.utils.precision import fast_fp32_products

# Width, layers and heads of ViT-Ti, ViT-S, ViT-B and ViT-L.
SIZES = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}
DTYPES = {"float32": None, "bfloat16": torch.bfloat16}


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512, help="number of images (default: %(default)s)")
    parser.add_argument("--image_size", type=int, default=64, help="pixels a side (default: %(default)s)")
    parser.add_argument("--patch_size", type=int, default=8, help="pixels a side of a patch (default: %(default)s)")
    parser.add_argument("--backbone", choices=list(SIZES), default="tiny", help="size of the ViT (default: tiny)")
    parser.add_argument("--dtype", choices=list(DTYPES), default="bfloat16", help="of the stage (default: bfloat16)")
    parser.add_argument("--batch_size", type=int, default=64, help="images a batch (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=5, help="turns, after one that is not counted (default: 5)")
    parser.add_argument("--use_cpu", action="store_true", help="stay on the CPU where there is a GPU")
    parser.add_argument("--json", action="store_true", help="print one line of JSON and nothing else")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    result = compare(args)
    if args.json:
        print(json.dumps(result))
        return
    for name in ("stage", "bare", "stock"):
        print(f"{name:<8}{result[f'{name}_images_per_second']:>10.1f} images/s")
    print(f"stage / bare   {result['stage_over_bare']:.3f}")
    print(f"stage / stock  {result['stage_over_stock']:.2f}, ARI of their clusterings {result['ari']:.3f}")
    print(f"the whole stage takes {result['stage_share_of_epoch']:.1%} of an epoch")


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Figures by name; ratios are formed inside each turn."""
    with tempfile.TemporaryDirectory() as folder:
        images = patterns(args.images, args.image_size)
        trainer = make_trainer(args, images, folder)
        share = stage_share(trainer)
        ready = ready_batches(trainer, args.batch_size)
        ways = {
            "stage": trainer.extract_shard,
            "bare": lambda: bare(trainer, ready, DTYPES[args.dtype]),
            "stock": lambda: stock(trainer, images, trainer.processing_class, args.batch_size),
        }
        seconds, features = take_turns(ways, args.turns)
    result: dict[str, Any] = {
        f"{name}_images_per_second": round(args.images / statistics.median(times), 1) for name, times in seconds.items()
    }
    for other in ("bare", "stock"):
        ratios = [theirs / ours for theirs, ours in zip(seconds[other], seconds["stage"], strict=True)]
        result[f"stage_over_{other}"] = round(statistics.median(ratios), 3)
        result[f"stage_over_{other}_min"], result[f"stage_over_{other}_max"] = (
            round(extreme(ratios), 3) for extreme in (min, max)
        )
    return result | {
        "ari": round(same_clusters(features["stage"], features["stock"]), 4),
        "stage_share_of_epoch": round(share, 4),
        "images": args.images,
        "image_size": args.image_size,
        "backbone": args.backbone,
        "dtype": args.dtype,
        "turns": args.turns,
        "device": str(trainer.args.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def make_trainer(args: argparse.Namespace, images: Dataset, folder: str) -> PLRTrainer:
    """A trainer that shows nothing, of a ViT with random weights."""
    trainer = PLRTrainer(
        backbone(args.backbone, args.image_size, args.patch_size),
        PLRTrainingArguments(
            folder,
            num_train_epochs=2,
            per_device_train_batch_size=args.batch_size,
            per_device_eval_batch_size=args.batch_size,
            feature_dtype=args.dtype,
            bf16=False,  # it would decide the precision of all ways
            image_cache_gib=1024,
            use_cpu=args.use_cpu,
            save_strategy="no",
            disable_tqdm=True,
            report_to="none",
        ),
        images,
        processing_class=small_vit_processor(args.image_size),
    )
    trainer.remove_callback(ProgressDisplay)
    trainer.check_samples(extract=False)  # decodes them; features that are kept would not be computed
    return trainer


def take_turns(
    ways: dict[str, Callable[[], torch.Tensor]], turns: int
) -> tuple[dict[str, list[float]], dict[str, torch.Tensor]]:
    """Seconds of each turn and the last features, by way; the first turn is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    features: dict[str, torch.Tensor] = {}
    for turn in range(turns + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            features[name] = way().cpu()
            if turn > 0:
                seconds[name].append(time.perf_counter() - started)
    return seconds, features


def patterns(n_images: int, size: int) -> Dataset:
    """JPEG-free colour images: 16 random low-frequency patterns, each shifted and brightened anew."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, size=(16, 6, 6, 3), dtype=np.uint8)
    images = []
    for i in range(n_images):
        rows, columns = rng.integers(0, 3, size=2)
        crop = PILImage.fromarray(coarse[i % 16, rows : rows + 4, columns : columns + 4]).resize((2 * size, 2 * size))
        noisy = np.asarray(crop, dtype=np.int16) + rng.integers(-20, 21, size=(2 * size, 2 * size, 1))
        images.append(PILImage.fromarray(noisy.clip(0, 255).astype(np.uint8)))
    return Dataset.from_dict({"image": images}, features=Features({"image": Image()}))


def backbone(name: str, image_size: int, patch_size: int) -> ViTModel:
    """A ViT of a usual size with random weights."""
    width, layers, heads = SIZES[name]
    torch.manual_seed(0)
    model = ViTModel(
        ViTConfig(
            image_size=image_size,
            patch_size=patch_size,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=4 * width,
            initializer_range=width**-0.5,
        )
    )
    pass_class_token_through_pooler(model)
    return model


def stage_share(trainer: PLRTrainer) -> float:
    """Share of the second epoch that its stage takes, in a run of two."""
    trainer.train()
    history = trainer.state.log_history
    stage_seconds = [entry["plr/seconds"] for entry in history if "plr/seconds" in entry]
    whole = history[-1]["train_runtime"]
    training = whole - sum(stage_seconds)
    return stage_seconds[1] / (stage_seconds[1] + training / 2)


def ready_batches(trainer: PLRTrainer, batch_size: int) -> list[torch.Tensor]:
    """All images, normalised, on the device."""
    modality, store = trainer.modality, trainer.train_dataset
    assert isinstance(modality, ImageModality)
    geometry = modality.geometry
    return [
        geometry.normalise(geometry.unit_range(store.batch(part)["pixel_values"].to(trainer.args.device)))
        for part in torch.arange(len(store)).split(batch_size)
    ]


def bare(trainer: PLRTrainer, batches: list[torch.Tensor], dtype: torch.dtype | None) -> torch.Tensor:
    """Class tokens of ready batches, in the stage's precision."""
    model = trainer.model.eval()
    autocast = torch.autocast(trainer.args.device.type, dtype or torch.bfloat16, enabled=dtype is not None)
    with torch.inference_mode(), fast_fp32_products(trainer.args.device), autocast:
        return torch.cat([model(pixel_values=batch).last_hidden_state[:, 0].float() for batch in batches])


def stock(trainer: PLRTrainer, images: Dataset, processor: Any, batch_size: int) -> torch.Tensor:
    """Class tokens by the stock image processor and eager float32."""
    model = trainer.model.eval()
    rows = []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]["image"]
        with torch.no_grad():
            inputs = processor(batch, return_tensors="pt").to(trainer.args.device)
            rows.append(model(**inputs).last_hidden_state[:, 0])
    return torch.cat(rows)


def same_clusters(first: torch.Tensor, second: torch.Tensor) -> float:
    """Adjusted Rand index of k-means on two versions of the features, as many clusters as PLRTrainer would take."""
    first, second = (center_features(features).rows for features in (first, second))
    kmeans = KMeans(max(2, round(1.5 * len(first) ** 0.5)), seed=0).fit(first)
    again = KMeans(kmeans.n_clusters, init=kmeans.cluster_centers_).fit(second)
    return float(adjusted_rand_score(kmeans.labels_, again.labels_))


if __name__ == "__main__":
    main()
