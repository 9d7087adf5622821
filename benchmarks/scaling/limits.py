"""What limits N samples with D columns and K clusters on P GPUs: the model with figures of machines that are not here.

Nothing was measured on such machines as a whole. Each figure of `Hardware` says where it is from; the rates of
refinement and of the order of training are measured here, on one core.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.scaling.model import FLOAT32, INT64, MEASURED, MOMENTS, Parts, Size, between_stages
from benchmarks.scaling.rates import consensus_rates, label_rates, order_seconds
from benchmarks.scaling.seconds import Rates, scoring_seconds, seeding_seconds, stage_seconds
from hf_plr.clustering.seeding import POOL_ROWS
from hf_plr.pseudo_labels.shards import MOST_SHARDS, SHARDED_FROM
from hf_plr.refinement import PseudoLabelRefiner
from hf_plr.refinement.agglomeration.coassociation import MAX_PAIRS
from hf_plr.utils.cores import MOST_WORKERS

ON_THE_GPU = (
    *("features", "whitening", "a pass over own samples", "samples that centroids are fitted on"),
    *("a block of scores", "sums", "centroids and prototypes", "targets of all labelings"),
)
TOKENS = 197  # of an image of 224 pixels in patches of 16, and the class token
LAYERS = {192: 12, 384: 12, 768: 12, 1024: 24, 1280: 32}  # of ViT-Ti, S, B, L and H, by width
ROOM = 0.9  # share of a memory that may be taken
PASSES = 5  # of a k-means that starts where the last ended; fresh members need more
FIRST_PASSES = 50
TESTED = 50_000  # samples of a test split, and its classes
CLASSES = 1_000
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
        host_products: operations a second in float64 of a processor that fits the linear probe: assumed.
        collective: seconds of a small sum over all processes, one per seed of k-means++: assumed.
        link: bytes a second between GPUs of different machines, 400 Gbit/s each; inside a machine it is more.
        decoded: images a second that one worker decodes, measured on one core here with JPEGs of 320 pixels.
        cores_per_gpu: cores of a GPU's process and of the workers that decode for it.
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
    host_products: float = 500e9
    collective: float = 1e-4
    link: float = 50e9
    decoded: float = 650
    cores_per_gpu: int = 16
    image_bytes: float = 110e3
    disk: float = 10e9

    @property
    def workers(self) -> int:
        """Workers of a process by default."""
        return min(MOST_WORKERS, self.cores_per_gpu - 1)


def select_shards(samples: int, processes: int) -> int:
    """Label shards by default, where steps can be shared out."""
    return MOST_SHARDS if samples >= SHARDED_FROM and MOST_SHARDS % processes == 0 else 1


def limits(size: Size, layers: int | None = None, hardware: Hardware | None = None) -> dict[str, Any]:
    """Bytes and seconds by part, and what they assume; for one process where the name says nothing else.

    Args:
        size: how much there is; `block_scores` are those of a GPU.
        layers: of the backbone, whose width is the number of columns; None for those of the ViT of this width, else 12.
        hardware: the machines.
    """
    hardware = Hardware() if hardware is None else hardware
    layers = LAYERS.get(size.columns, 12) if layers is None else layers
    rates = gpu_rates(size, hardware)
    at_most = max(MEASURED["clustering"], key=lambda name: sum(_on_gpu(MOMENTS[name](size)).values()))
    on_host = {
        "labels, from stage to stage": _on_host(between_stages(size)),
        "refinement, at most": max(_on_host(MOMENTS[name](size)) for name in MEASURED["labelling"]),
        "training": _on_host(MOMENTS["training"](size)),
    }
    drawing = 2 * INT64 * size.held // max(1, size.label_shards // size.processes)  # shard by shard
    on_host["training, while the order is drawn"] = on_host["training"] + drawing
    computing = forward_operations(size.columns, layers) / (hardware.bf16_products * hardware.share_of_products)
    seeding = seeding_seconds(size, rates)
    if size.processes > 1:
        seeding["k-means++, sums over processes"] = sum(size.numbers) * hardware.collective
    found = {
        "size": dataclasses.asdict(size) | {"layers": layers},
        "gpu_bytes": _on_gpu(MOMENTS[at_most](size)),
        "gpu_moment": at_most,
        "host_bytes": on_host,
        "machine_bytes": hardware.gpus_per_machine * max(on_host.values()),
        "checkpoint_bytes": _on_host(between_stages(size)) * (1 if size.label_shards == 1 else size.processes),
        "epoch_source_bytes": FLOAT32 * size.held * size.columns,
        "first_seconds": seeding
        | {f"stage, {FIRST_PASSES} passes": sum(stage_seconds(size, rates, FIRST_PASSES).values())},
        "extraction_seconds": _extraction_seconds(size.rows, computing, hardware),
        "stage_seconds": stage_seconds(size, rates, PASSES),
        "epoch_seconds": {
            "the order is drawn": order_seconds(size.clusters) * size.held,
            "training, computing alone": 3 * computing * size.rows,
            "training, decoding alone": size.rows / (hardware.decoded * hardware.workers),
        },
        "scoring_seconds": {
            "extraction of the test split": max(
                _extraction_seconds(TESTED / size.processes, computing, hardware).values()
            )
        }
        | scoring_seconds(size, rates, TESTED, CLASSES, hardware.host_products),
        "hardware": dataclasses.asdict(hardware),
        "rates": dataclasses.asdict(rates),
    }
    return found | {"fits": fits(found)}


def _on_gpu(parts: Parts) -> Parts:
    return {name: n_bytes for name, n_bytes in parts.items() if name in ON_THE_GPU}


def _on_host(parts: Parts) -> int:
    return sum(n_bytes for name, n_bytes in parts.items() if name not in ON_THE_GPU)


def _extraction_seconds(rows: float, computing: float, hardware: Hardware) -> dict[str, float]:
    """Seconds for so many rows of one process, of what goes on side by side."""
    return {
        "computing": rows * computing,
        "decoding": rows / (hardware.decoded * hardware.workers),
        "reading": rows * hardware.image_bytes * hardware.gpus_per_machine / hardware.disk,
    }


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
        f"{size['samples']:,} samples, {size['columns']} columns, {size['layers']} layers, {size['clusters']:,} "
        f"clusters, refinement {size['refinement']}, {size['label_shards']} label shards on {size['processes']} GPUs "
        f"of {hardware.gpu_bytes / 1e9:.0f} GB, {hardware.gpus_per_machine} in a machine with "
        f"{hardware.machine_bytes / 1e12:.0f} TB (calculated)"
    ]
    for title, name, unit in (
        (f"GB of a GPU at most, while {found['gpu_moment']}", "gpu_bytes", 1e9),
        ("GB of a process on the host", "host_bytes", 1e9),
        ("seconds at the first stage alone", "first_seconds", 1),
        ("seconds of extraction, an epoch (they overlap: the largest counts)", "extraction_seconds", 1),
        (f"seconds of the rest of a stage, with {PASSES} passes of each k-means", "stage_seconds", 1),
        ("seconds of an epoch beside the stage", "epoch_seconds", 1),
        (f"seconds of an evaluation with {TESTED:,} test samples of {CLASSES:,} classes", "scoring_seconds", 1),
    ):
        parts = found[name]
        lines += ["", title, *(f"  {part:<42}{value / unit:>12,.1f}" for part, value in parts.items())]
    lines += ["", "what that means", *(f"* {sentence}" for sentence in meaning(found, hardware))]
    lines += ["", "assumed: " + ", ".join(f"{name} {value:g}" for name, value in found["hardware"].items())]
    return "\n".join(lines)


def meaning(found: dict[str, Any], hardware: Hardware) -> Iterator[str]:
    """What fits, what does not, and which options help."""
    size, stage = found["size"], found["stage_seconds"]
    of_gpu, of_machine = sum(found["gpu_bytes"].values()), found["machine_bytes"]
    features = found["gpu_bytes"]["features"] * hardware.gpus_per_machine
    yield f"A GPU {'has room' if found['fits']['gpu'] else 'HAS NO ROOM'} for {of_gpu / 1e9:.0f} GB beside the model."
    if of_gpu > hardware.gpu_bytes / 2:
        yield (
            f"--feature_dir keeps features in a file, {features / 1e9:,.0f} GB a machine; k-means then runs on the CPU "
            'unless --clusterer_kwargs \'{"device": "cuda"}\' brings each block to the GPU.'
        )
    yield (
        f"A machine {'has room' if found['fits']['machine'] else 'HAS NO ROOM'} for what its processes hold of labels "
        f"and cells, {of_machine / 1e9:,.0f} GB at most. Labels "
        + ("shrink with more GPUs." if size["label_shards"] > 1 else "do not shrink with more GPUs.")
    )
    if "consensus, cells" in stage:
        refining = sum(seconds for name, seconds in stage.items() if name.startswith("consensus"))
        yield (
            "Every process has the whole table of a consensus. It is counted here with a cell for each sample, the "
            f"most that there can be, and {MAX_PAIRS:,} pairs of cells. Refinement then takes {refining:,.0f} s "
            "whatever the number of GPUs; --refinement slr has a few cells a cluster."
        )
    else:
        refining = sum(stage[name] for name in ("refinement, samples", "refinement, cells"))
        yield (
            f"Refinement takes every process {refining:,.0f} s"
            + (", and as a rule is not exact with so many clusters." if size["clusters"] >= MAX_CELLS else ".")
        )
    yield (
        "Features are kept in float32; --feature_dtype bfloat16 is arithmetic. --feature_source epoch would hold "
        f"{found['epoch_source_bytes'] / 1e9:,.0f} GB of features on every GPU."
    )
    first = found["first_seconds"]
    if max(first.values()) > 60:
        yield "--clusterer_kwargs '{\"fit_samples\": M}' fits k-means on M samples and assigns all in the end."
    slowest = max(found["extraction_seconds"], key=found["extraction_seconds"].__getitem__)
    yield (
        f"No pass over the images comes before the first extraction. It is limited by {slowest}, with "
        f"{hardware.workers} workers a process. A checkpoint has {found['checkpoint_bytes'] / 1e9:,.0f} GB of labels."
    )


def gpu_rates(size: Size, hardware: Hardware) -> Rates:
    """Rates of a GPU from the bytes that each step moves; those of labels are of one core here."""
    width = FLOAT32 * size.columns
    return Rates(
        products=hardware.fp32_products,
        scores=2 * 4 / hardware.gpu_memory,  # written and read once
        entries=60 / hardware.gpu_memory,
        mapped=2.0 * size.columns / hardware.fp32_products + 16 / hardware.gpu_memory,
        sums=40 / hardware.gpu_memory,
        new_memory=0.0,
        # A product with a pool of candidates reads the sample once; distances are written, and read for their sums.
        trials=2.0 * size.columns / hardware.fp32_products + (width / POOL_ROWS + 20) / hardware.gpu_memory,
        **label_rates(size.clusters),
        **consensus_rates(size.clusters),
        sending=1.0 / hardware.link,
    )


def forward_operations(width: int, layers: int) -> float:
    """Operations of a ViT over one image, two for a multiply-add.

    9.2e9 for ViT-S/16 (384 wide, 12 layers), 35e9 for ViT-B/16 (768, 12), 123e9 for ViT-L/16 (1024, 24).
    """
    products = TOKENS * 12 * width**2 + 2 * TOKENS**2 * width
    return 2.0 * (layers * products + (TOKENS - 1) * 3 * 16**2 * width)
