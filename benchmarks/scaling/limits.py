"""What limits N samples with D columns and K clusters on P GPUs: the model with figures of machines that are not here.

Nothing was measured on such machines as a whole. Each figure of `Hardware` says where it is from; the rates of
refinement and of the order of training are measured here, on one core.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.scaling.model import (
    FLOAT32,
    INT32,
    INT64,
    Rates,
    Size,
    between_stages,
    stage_seconds,
    while_clustering,
    while_labelling,
    while_training,
)
from benchmarks.scaling.rates import label_rates, order_seconds
from hf_plr import KMeans
from hf_plr.clustering.kmeans import OTHER_BLOCK_SCORES
from hf_plr.clustering.seeding import POOL_ROWS
from hf_plr.refinement import PseudoLabelRefiner

ON_THE_GPU = ("features", "a pass over own samples", "a block of scores", "sums", "centroids and prototypes")
TOKENS = 197  # of an image of 224 pixels in patches of 16, and the class token
LAYERS = 12
STATE_ARRAYS = 7  # of all samples, in a checkpoint
ROOM = 0.9  # share of a memory that may be taken
MAX_CELLS = PseudoLabelRefiner().max_cells


@dataclass(frozen=True)
class Hardware:
    """Machines of eight H100.

    Attributes:
        gpus_per_machine: GPUs, and processes, of a machine.
        gpu_bytes: memory of a GPU, 80 GB.
        machine_bytes: memory of a machine, 2 TB.
        bf16_products: operations a second of a bf16 product, measured on one H100 (8192 x 8192 x 8192).
        share_of_products: share of it that a forward pass reaches: assumed.
        fp32_products: operations a second of a float32 product without TF32; 67e12 on the data sheet, less assumed.
        gpu_memory: bytes a second to and from a GPU's memory, data sheet.
        collective: seconds of a small sum over all processes, one per seed of k-means++: assumed.
        link: bytes a second between GPUs of different machines, 400 Gbit/s each; inside a machine it is more.
        decoded: images a second that one core decodes with the stock image processor, measured on a CPU at small sizes.
        cores_per_gpu: cores that decode for one GPU (`--dataloader_num_workers`).
        image_bytes: bytes of an encoded image.
        disk: bytes a second that one machine reads.
    """

    gpus_per_machine: int = 8
    gpu_bytes: float = 80e9
    machine_bytes: float = 2e12
    bf16_products: float = 790e12
    share_of_products: float = 0.4
    fp32_products: float = 50e12
    gpu_memory: float = 3.35e12
    collective: float = 1e-4
    link: float = 50e9
    decoded: float = 623
    cores_per_gpu: int = 16
    image_bytes: float = 110e3
    disk: float = 10e9


def limits(
    samples: int, columns: int, clusters: int, processes: int, hardware: Hardware | None = None
) -> dict[str, Any]:
    """Bytes and seconds by part, and what they assume; for one process where the name says nothing else."""
    hardware = Hardware() if hardware is None else hardware
    size = Size(samples, columns, clusters, processes, block_scores=OTHER_BLOCK_SCORES)
    rates = gpu_rates(size, hardware)
    clustering = while_clustering(size)
    on_gpu = {name: clustering[name] for name in ON_THE_GPU}
    on_gpu["targets, and labels on their way"] = 2 * INT32 * samples
    kept = between_stages(size)["labels of all samples"]
    on_host = {
        "labels of all samples, kept": kept,
        "labels of all samples, at a stage's end": kept + while_labelling(size)["new labels of all samples"],
        "order of training, kept for the epoch": while_training(size)["order of training"],
        "order of training, while it is drawn": while_training(size)["order of training"] + 2 * INT64 * samples,
    }
    together = max(on_host["labels of all samples, at a stage's end"], kept + max(list(on_host.values())[2:]))
    computing = size.rows * forward_operations(columns) / (hardware.bf16_products * hardware.share_of_products)
    found = {
        "size": {"samples": samples, "columns": columns, "clusters": clusters, "processes": processes},
        "gpu_bytes": on_gpu,
        "host_bytes": on_host,
        "machine_bytes": hardware.gpus_per_machine * together,
        "checkpoint_bytes": STATE_ARRAYS * INT32 * samples,
        "epoch_source_bytes": FLOAT32 * samples * columns,
        "first_seconds": {
            "every image is read, by one thread": samples / hardware.decoded,
            "k-means++": seeding_seconds(size, hardware),
            "k-means, 50 passes": sum(
                seconds for name, seconds in stage_seconds(size, rates, 50).items() if name.startswith("k-means")
            ),
        },
        "extraction_seconds": {
            "computing": computing,
            "decoding": size.rows / (hardware.decoded * hardware.cores_per_gpu),
            "reading": size.rows * hardware.image_bytes * hardware.gpus_per_machine / hardware.disk,
        },
        "stage_seconds": stage_seconds(size, rates, 5),
        "epoch_seconds": {
            "the order is drawn": order_seconds(clusters) * samples,
            "training, computing alone": 3 * computing,
        },
        "hardware": dataclasses.asdict(hardware),
        "rates": dataclasses.asdict(rates),
    }
    return found | {"fits": fits(found)}


def fits(found: dict[str, Any]) -> dict[str, bool]:
    """Whether GPU and machine are large enough."""
    hardware = found["hardware"]
    return {
        "gpu": sum(found["gpu_bytes"].values()) <= ROOM * hardware["gpu_bytes"],
        "machine": found["machine_bytes"] <= ROOM * hardware["machine_bytes"],
    }


def describe(found: dict[str, Any]) -> str:
    """The same in words, with what can be done."""
    size, hardware = found["size"], Hardware(**found["hardware"])
    lines = [
        f"{size['samples']:,} samples, {size['columns']} columns, {size['clusters']:,} clusters on {size['processes']} "
        f"GPUs of {hardware.gpu_bytes / 1e9:.0f} GB, {hardware.gpus_per_machine} in a machine with "
        f"{hardware.machine_bytes / 1e12:.0f} TB (calculated)"
    ]
    for title, name, unit in (
        ("GB of a GPU while clustering", "gpu_bytes", 1e9),
        ("GB of a process on the host", "host_bytes", 1e9),
        ("seconds at the beginning, once", "first_seconds", 1),
        ("seconds of extraction, an epoch (they overlap: the largest counts)", "extraction_seconds", 1),
        ("seconds of the rest of a stage, with 5 passes of k-means", "stage_seconds", 1),
        ("seconds of an epoch beside the stage", "epoch_seconds", 1),
    ):
        parts = found[name]
        lines += ["", title, *(f"  {part:<42}{value / unit:>12,.1f}" for part, value in parts.items())]
    lines += ["", "what that means", *(f"* {sentence}" for sentence in meaning(found, hardware))]
    lines += ["", "assumed: " + ", ".join(f"{name} {value:g}" for name, value in found["hardware"].items())]
    return "\n".join(lines)


def meaning(found: dict[str, Any], hardware: Hardware) -> Iterator[str]:
    """What fits, what does not, and which options help."""
    size, first = found["size"], found["first_seconds"]
    of_gpu, of_machine = sum(found["gpu_bytes"].values()), found["machine_bytes"]
    features = found["gpu_bytes"]["features"] * hardware.gpus_per_machine
    yield f"A GPU {'has room' if found['fits']['gpu'] else 'HAS NO ROOM'} for {of_gpu / 1e9:.0f} GB beside the model."
    if of_gpu > hardware.gpu_bytes / 2:
        yield (
            f"--feature_dir keeps features in a file, {features / 1e9:,.0f} GB a machine; k-means then runs on the CPU "
            'unless --clusterer_kwargs \'{"device": "cuda"}\' brings each block to the GPU.'
        )
    yield (
        f"A machine {'has room' if found['fits']['machine'] else 'HAS NO ROOM'} for its processes' labels and orders, "
        f"{of_machine / 1e9:,.0f} GB. They grow with the samples and do not shrink with more GPUs."
    )
    yield (
        "Features are kept in float32; --feature_dtype bfloat16 is arithmetic. --feature_source epoch would hold all "
        f"features on every GPU, {found['epoch_source_bytes'] / 1e9:,.0f} GB."
    )
    hours = first["every image is read, by one thread"] / 3600
    if hours > 1:
        pixels = 3 * 224**2 * size["samples"] / 1e12
        yield (
            f"Before all that every process reads every image, {hours:,.0f} hours. --image_cache_dir lets one process "
            f"do it for all, into {pixels:,.1f} TB; --max_samples takes a share."
        )
    if first["k-means, 50 passes"] > 60:
        yield "--clusterer_kwargs '{\"fit_samples\": M}' fits k-means on M samples and assigns all in the end."
    refining = sum(found["stage_seconds"][name] for name in ("refinement, samples", "refinement, cells"))
    yield (
        f"Every process refines all labels, {refining:,.0f} s whatever the number of GPUs"
        + (", and as a rule not exactly with so many clusters." if size["clusters"] >= MAX_CELLS else ".")
    )
    slowest = max(found["extraction_seconds"], key=found["extraction_seconds"].__getitem__)
    yield (
        f"Extraction is limited by {slowest}; decoding takes --dataloader_num_workers {hardware.cores_per_gpu}. "
        f"A checkpoint has {found['checkpoint_bytes'] / 1e9:,.0f} GB of labels."
    )


def gpu_rates(size: Size, hardware: Hardware) -> Rates:
    """Rates of a GPU from the bytes that each step moves; those of labels are of one core here."""
    return Rates(
        products=hardware.fp32_products,
        scores=2 * 4 / hardware.gpu_memory,  # written and read once
        entries=100 / hardware.gpu_memory,
        sums=40 / hardware.gpu_memory,
        new_memory=0.0,
        **label_rates(size.clusters),
        sending=1.0 / hardware.link,
    )


def forward_operations(width: int) -> float:
    """Operations of a ViT over one image, two for a multiply-add: 9.2e9 for ViT-S/16 (384), 35e9 for ViT-B/16 (768)."""
    products = TOKENS * 12 * width**2 + 2 * TOKENS**2 * width
    return 2.0 * (LAYERS * products + (TOKENS - 1) * 3 * 16**2 * width)


def seeding_seconds(size: Size, hardware: Hardware) -> float:
    """Seconds of k-means++: a pool of candidates reads the sample once, each seed takes a small sum over processes."""
    sample = min(size.samples, KMeans(size.clusters)._seeding_samples()) / size.processes
    trials = 2 + int(math.log(size.clusters))
    pools = size.clusters * trials / POOL_ROWS
    reading = sample * size.columns * FLOAT32 / hardware.gpu_memory
    computing = 2.0 * POOL_ROWS * sample * size.columns / hardware.fp32_products
    return pools * (reading + computing) + size.clusters * hardware.collective * (size.processes > 1)
