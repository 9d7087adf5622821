"""Assignment of new images to known clusters: images a second against bare extraction of their features.

Two ways take turns over the same images, which lie encoded in a table, with the same backbone, batches and workers:

  bare    the limit: a loop of decoding and `inference_mode`, with the model ready, that keeps nothing
  assign  everything that `hf-plr assign` does after the data set is loaded: the model is loaded, images are decoded,
          their clusters, novelty and p-values found, new ones grouped, previews made, table and page written

The known clusters are those of k-means on the first 2,000 of other images of the same kind.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from datasets import Dataset

import hf_plr
from benchmarks.extraction import SIZES, backbone, patterns
from hf_plr.clustering.novelty import KNOWN_CLUSTERS_FILE, KnownClusters, draw_references
from hf_plr.features.extractor import FeatureExtractor
from hf_plr.jobs.assignment import KEEPS_NOTHING
from hf_plr.jobs.embedding import embed, make_extractor
from hf_plr.models.vision import small_vit_processor
from hf_plr.utils.precision import fast_fp32_products

KNOWN, CLUSTERS = 2_000, 60


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000, help="number of images (default: %(default)s)")
    parser.add_argument("--image_size", type=int, default=64, help="pixels a side (default: %(default)s)")
    parser.add_argument("--patch_size", type=int, default=8, help="pixels a side of a patch (default: %(default)s)")
    parser.add_argument("--backbone", choices=list(SIZES), default="tiny", help="size of the ViT (default: tiny)")
    parser.add_argument("--batch_size", type=int, default=256, help="images a batch (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=3, help="turns (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON and nothing else")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    result = compare(args)
    if args.json:
        print(json.dumps(result))
        return
    for name in ("bare", "assign"):
        print(f"{name:<8}{result[f'{name}_images_per_second']:>10.1f} images/s")
    low, high = result["assign_over_bare_min"], result["assign_over_bare_max"]
    print(f"assign / bare   {result['assign_over_bare']:.3f} ({low:.3f} to {high:.3f}), {result['new']} images are new")
    print(
        f"by CPU seconds  {result['assign_over_bare_cpu']:.3f}, without workers: other work on the machine counts less"
    )


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Figures by name; ratios are formed inside each turn."""
    with tempfile.TemporaryDirectory() as folder:
        images = patterns(args.images + KNOWN, args.image_size)
        out = make_run(args, images.select(range(args.images, args.images + KNOWN)), folder)
        data = images.select(range(args.images))
        extractor = make_extractor(data, out, args.batch_size, KEEPS_NOTHING)
        times: dict[str, list[float]] = {"bare": [], "assign": []}
        cpu: dict[str, list[float]] = {"bare": [], "assign": []}
        n_new = 0
        for turn in range(args.turns):
            start, cpu_start = time.perf_counter(), time.process_time()
            extract_bare(extractor, data)
            middle, cpu_middle = time.perf_counter(), time.process_time()
            assigned = hf_plr.assign(out, data, batch_size=args.batch_size)
            assigned.write(Path(folder) / f"assigned-{turn}.parquet")
            times["bare"].append(middle - start)
            times["assign"].append(time.perf_counter() - middle)
            cpu["bare"].append(cpu_middle - cpu_start)
            cpu["assign"].append(time.process_time() - cpu_middle)
            n_new = assigned.n_new
    ratios = [bare / ours for bare, ours in zip(times["bare"], times["assign"], strict=True)]
    return {
        **{
            f"{name}_images_per_second": round(args.images / statistics.median(each), 1) for name, each in times.items()
        },
        "assign_over_bare": round(statistics.median(ratios), 3),
        "assign_over_bare_min": round(min(ratios), 3),
        "assign_over_bare_max": round(max(ratios), 3),
        "assign_over_bare_cpu": round(statistics.median(cpu["bare"]) / statistics.median(cpu["assign"]), 3),
        "new": n_new,
        "images": args.images,
        "image_size": args.image_size,
        "backbone": args.backbone,
        "batch_size": args.batch_size,
        "turns": args.turns,
        "device": str(extractor.accelerator.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def make_run(args: argparse.Namespace, images: Dataset, folder: str) -> str:
    """Write what `hf-plr assign` needs of a run: a ViT with random weights, and clusters of its features."""
    out = Path(folder) / "out"
    backbone(args.backbone, args.image_size, args.patch_size).save_pretrained(out)
    small_vit_processor(args.image_size).save_pretrained(out)
    table = embed(make_extractor(images, str(out), args.batch_size, KEEPS_NOTHING), images, has_manifest=False)
    features = torch.from_numpy(table["feature"].combine_chunks().flatten().to_numpy().reshape(len(images), -1).copy())
    center = features.mean(dim=0)
    rows = F.normalize(features - center, dim=1)
    labels = torch.from_numpy(hf_plr.KMeans(CLUSTERS, seed=0).fit_predict(rows.numpy()).astype(np.int64))
    ids, sizes = labels.unique(return_counts=True)
    prototypes = F.normalize(torch.stack([rows[labels == label].mean(dim=0) for label in ids]), dim=1)
    known = KnownClusters.fit(draw_references(features), center, prototypes, ids.numpy(), sizes.numpy())
    known.save(out / KNOWN_CLUSTERS_FILE)
    return str(out)


def extract_bare(extractor: FeatureExtractor, images: Dataset) -> None:
    """Decode and compute, and do nothing with the features."""
    modality, model = extractor.modality, extractor.model.eval()
    store = modality.open(images, None, {}, has_manifest=False)
    batches = modality.batches(store, torch.arange(len(store)), extractor.batch_size)
    with torch.inference_mode(), fast_fp32_products(extractor.accelerator.device):
        for batch in extractor.loader.load(store, batches):
            batch.pop("fault", None)
            modality.features(
                model, {name: values.to(extractor.accelerator.device) for name, values in batch.items()}
            ).sum().item()


if __name__ == "__main__":
    main()
