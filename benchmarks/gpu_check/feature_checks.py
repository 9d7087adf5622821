"""Features: extraction against the card's limit, decoding by worker processes, and bfloat16."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator

import torch

from benchmarks.extraction import bare, make_trainer, ready_batches, take_turns
from benchmarks.gpu_check.data import count_vit_operations, make_pictures
from benchmarks.gpu_check.findings import Bench, Findings
from benchmarks.gpu_check.launching import share
from benchmarks.gpu_check.machine import product_rate, usable_cores
from hf_plr import KMeans, PLRTrainer, PLRTrainingArguments
from hf_plr.features.centering import center_features, compute_directions
from hf_plr.features.source import LARGEST_MOVED_SHARE, FeatureSource
from hf_plr.models.vision import small_vit, small_vit_processor

LATENT_STEPS = 2  # batches a worker has ready when the first one is asked for


def check_extraction(bench: Bench, findings: Findings) -> None:
    """Extraction by a stage against bare forward passes, and against the card's products: ViT-S and ViT-L."""
    sizes = bench.size(
        [("small", 224, 16, 8192, 256), ("large", 224, 14, 2048, 256)],
        [("small", 224, 16, 1024, 128)] if bench.is_gpu else [("tiny", 32, 8, 96, 32)],
    )
    for name, image_size, patch_size, n_images, batch_size in sizes:
        trainer = extraction_trainer(bench, name, image_size, patch_size, n_images, batch_size, "bfloat16")
        ready = ready_batches(trainer, batch_size)
        ways = {"stage": trainer.extract_shard, "bare": lambda t=trainer, r=ready: bare(t, r, torch.bfloat16)}  # type: ignore[misc]
        seconds, _ = take_turns(ways, turns=3)
        ratio = statistics.median(b / s for b, s in zip(seconds["bare"], seconds["stage"], strict=True))
        rate = n_images / min(seconds["stage"])
        findings.report(f"{name}_images_per_second", rate)
        findings.expect(f"{name}_stage_over_bare", ratio, at_least=0.92, unless=bench.no_rates)
        used = rate * count_vit_operations(name, image_size, patch_size) / 1e12 / product_rate(bench, "bf16")
        findings.expect(f"{name}_share_of_products", used, at_least=0.25, unless=bench.no_rates)
        del trainer, ready, ways


def extraction_trainer(
    bench: Bench, name: str, image_size: int, patch_size: int, n_images: int, batch_size: int, dtype: str
) -> PLRTrainer:
    """A trainer whose images are decoded and kept."""
    pictures = make_pictures(n_images, 512, image_size, image_size, "BMP", labels=False)
    args = argparse.Namespace(
        backbone=name,
        image_size=image_size,
        patch_size=patch_size,
        batch_size=batch_size,
        dtype=dtype,
        use_cpu=not bench.is_gpu,
    )
    return make_trainer(args, pictures, str(bench.new_folder("extraction")))


def check_decoding(bench: Bench, findings: Findings) -> None:
    """JPEGs decoded by the loader's workers, against one process times their number."""
    size = bench.size(224, 224 if bench.is_gpu else 64)
    n_images, n_distinct = bench.size((2000, 1000), (120, 40))
    pictures = make_pictures(n_images, n_distinct, 500, 375, labels=False)
    args = PLRTrainingArguments(
        str(bench.new_folder("decoding")),
        per_device_eval_batch_size=bench.size(64, 16),
        image_cache_gib=0,
        use_cpu=not bench.is_gpu,
        disable_tqdm=True,
        report_to="none",
    )
    default = args.dataloader_num_workers
    trainer = PLRTrainer(small_vit(size, size // 4), args, pictures, processing_class=small_vit_processor(size))
    seconds = bench.size(6.0, 0.5)
    rates: dict[int, float] = {}
    for n_workers in dict.fromkeys((0, *bench.size((4, usable_cores()), (2,)))):
        args.dataloader_num_workers = n_workers
        rates[n_workers] = decoding_rate(trainer, n_workers, seconds, rates.get(0))
        findings.report(f"images_per_second_{n_workers}_workers", rates[n_workers])
    for n_workers, rate in rates.items():
        if n_workers:
            n_cores = min(n_workers, usable_cores())
            efficiency = rate / (n_cores * rates[0])
            findings.expect(f"efficiency_{n_workers}_workers", efficiency, at_least=0.8, unless=bench.no_rates)
    unless = None if bench.is_gpu else "by default there are workers where there is a GPU"
    findings.expect("default_workers", default, at_least=1, unless=unless)


def decoding_rate(trainer: PLRTrainer, n_workers: int, seconds: float, rate_of_one: float | None) -> float:
    """Images a second that arrive at the device, once all workers are at it."""
    store, batch_size = trainer.train_dataset, trainer.args.per_device_eval_batch_size
    n_images = len(store) if rate_of_one is None else int(rate_of_one * max(n_workers, 1) * seconds)
    skipped = LATENT_STEPS * n_workers + 1
    positions = torch.arange(n_images + (skipped + 4) * batch_size) % len(store)
    batches: Iterator[dict[str, torch.Tensor]] = trainer.extractor.batches(store, positions)
    for _ in range(skipped):
        next(batches)
    began, n = time.perf_counter(), 0
    for batch in batches:
        n += len(batch["pixel_values"])
    return n / (time.perf_counter() - began)


def check_feature_dtype(bench: Bench, findings: Findings) -> None:
    """Labels of bfloat16's features at the centroids of float32's, and what the trial of `feature_dtype` decides."""
    name, image_size, patch_size, n_images, n_clusters = bench.size(
        ("small", 224, 16, 20_000, 212), ("small", 224, 16, 4096, 96) if bench.is_gpu else ("tiny", 32, 8, 256, 24)
    )
    trainer = extraction_trainer(bench, name, image_size, patch_size, n_images, bench.size(256, 64), "auto")
    store, positions = trainer.train_dataset, torch.arange(n_images)
    exact = center_features(trainer.extractor.extract(store, positions))
    fast = compute_directions(exact.center, trainer.extractor.extract(store, positions, torch.bfloat16))
    kmeans = KMeans(n_clusters, seed=0).fit(exact.rows)
    differing = share(kmeans.labels_, kmeans.predict(fast))
    findings.expect("share_of_labels_that_differ", differing, at_most=LARGEST_MOVED_SHARE)
    findings.report("mean_distance", float((exact.rows - fast).norm(dim=1).mean()))
    source = FeatureSource("extract", "auto", 0.0, None)
    source.decide_dtype(trainer.extractor, store, exact, kmeans.cluster_centers_)
    if source.moved_share is None:
        findings.note("no trial: this device emulates bfloat16")
        return
    findings.report("share_in_the_trial", source.moved_share)
    agrees = (source.dtype == "bfloat16") == (differing <= LARGEST_MOVED_SHARE)
    findings.expect("trial_decides_alike", float(agrees), at_least=1)
    findings.note(f"the trial decides for {source.dtype}")
