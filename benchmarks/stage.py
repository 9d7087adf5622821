"""What the parts of a stage cost: the space, k-means, the ensemble, the finer labelings, the consensus, the means.

Features are blobs that keep their places from stage to stage but for noise, and every stage draws them anew. Timed is
the last of some stages, when all epochs vote; seconds are those of the clock, beside the processors'.
Memory is what the process needs above its features. Extraction by a backbone is not in it.

With `--against nested` whole stages of the default and of that refinement take turns in one process, on the same
features.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator

from benchmarks.measuring import PeakMemory
from hf_plr.clustering import KMeans, make_clusterers, make_ensemble
from hf_plr.clustering.cluster_means import average_clusters
from hf_plr.clustering.whitening import whiten
from hf_plr.pseudo_labels.assembly import make_labelings, select_clusterers
from hf_plr.pseudo_labels.holding import AllLabels
from hf_plr.pseudo_labels.labeling import Labeling
from hf_plr.pseudo_labels.stage import RefinementStage
from hf_plr.refinement import PRESETS, PseudoLabelRefiner
from hf_plr.training_args import AUTO, PLRTrainingArguments

EPOCHS = max(PRESETS[name]["generations"] for name in ("consensus", "nested"))  # then all of them vote
NOISE = 1.5  # deviation of a feature from its blob's centre, against the centre's own length of 1


def main() -> None:
    """Run stages, and print what the last of them cost."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.stage", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=50_000, help="number of samples (default: %(default)s)")
    parser.add_argument("--dimension", type=int, default=384, help="size of a feature (default: %(default)s)")
    parser.add_argument("--clusters", type=int, default=335, help="number of clusters (default: %(default)s)")
    parser.add_argument(
        "--stages", type=int, default=EPOCHS, help="stages, of which the last is timed (default: %(default)s)"
    )
    parser.add_argument("--against", choices=list(PRESETS), help="compare the default's stage with this refinement's")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    args = parser.parse_args()
    if args.against is not None:
        compared = compare_stages(args.samples, args.dimension, args.clusters, args.stages, args.against)
        print(json.dumps(compared) if args.json else json.dumps(compared, indent=1))
        return
    result = run_stages(args.samples, args.dimension, args.clusters, args.stages)
    if args.json:
        print(json.dumps(result))
        return
    print(f"{args.samples:,} samples of {args.dimension} columns, {args.clusters:,} clusters, stage {args.stages}")
    for name, part in result["parts"].items():
        seconds, of_processors = part["seconds"], part["processor_seconds"]
        print(f"{name:<12} {seconds:8.2f} s, {of_processors:8.2f} s of processors, {part['mib']:8.0f} MiB")


def run_stages(n_samples: int, dimension: int, n_clusters: int, n_stages: int) -> dict[str, Any]:
    """Run stages as the default does, without a backbone.

    Returns:
        Seconds, processor seconds and MiB by part of the last stage, and whether its consensus was exact.
    """
    accelerator = Accelerator(cpu=True)
    coarse, *finer = make_clusterers(3, "kmeans", n_clusters, n_samples=n_samples, seed=0)
    ensemble = make_ensemble(coarse, n_samples, seed=0)
    assert ensemble is not None
    stage = RefinementStage(coarse, PseudoLabelRefiner.from_preset("consensus"), 1, accelerator)
    part = slice(0, n_samples)
    labels = None
    for epoch in range(n_stages):
        rows = draw_features(n_samples, dimension, n_clusters, epoch)
        parts: dict[str, dict[str, float]] = {}
        with measured(parts, "whitening"):
            space = whiten(rows, 1.0, accelerator)
        with measured(parts, "k-means"):
            own = stage.cluster(space, epoch)
        with measured(parts, "ensemble"):
            members = [torch.from_numpy(each) for each in ensemble.fit_predict_shard(space, epoch, accelerator)]
        with measured(parts, "2K and 4K"):
            for clusterer in finer:
                clusterer.fit_predict_shard(space, accelerator)
        del space
        clusters = torch.stack([torch.from_numpy(own).long(), *(each.long() for each in members)], dim=1).numpy()
        with measured(parts, "consensus"):
            labels = stage.refine(clusters, epoch, part, labels)
        with measured(parts, "means"):
            average_clusters(rows, torch.from_numpy(labels.targets), labels.n_clusters, accelerator)
    return {
        "samples": n_samples,
        "dimension": dimension,
        "clusters": n_clusters,
        "passes": coarse.n_iter_ if isinstance(coarse, KMeans) else 0,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "parts": parts,
    }


def compare_stages(n_samples: int, dimension: int, n_clusters: int, n_stages: int, against: str) -> dict[str, Any]:
    """Let whole stages of the default and of another refinement take turns, each on all of its labelings.

    Returns:
        Processor seconds of each stage from that on in which all epochs vote, by refinement; and the
        median, smallest and largest of the ratios of one stage's to the default's of the same features.
    """
    labelings: dict[str, list[Labeling]] = {}
    with tempfile.TemporaryDirectory() as folder:
        settings: dict[str, Any] = {"num_clusters": n_clusters, "use_cpu": True, "disable_tqdm": True}
        all_args = [PLRTrainingArguments(folder, **{**settings, "refinement": name}) for name in (AUTO, against)]
    holder = AllLabels(Accelerator(cpu=True))  # made last: arguments reset what it shares
    for args in all_args:
        clusterers = select_clusterers(args, n_samples)
        labelings[args.refinement] = make_labelings(args, clusterers, None, n_samples, holder)
    part = slice(0, n_samples)
    seconds: dict[str, list[float]] = {name: [] for name in labelings}
    for epoch in range(n_stages):
        rows = draw_features(n_samples, dimension, n_clusters, epoch)
        names = list(labelings)
        for name in names if epoch % 2 else names[::-1]:
            began = time.process_time()
            for labeling in labelings[name]:
                labeling.refine(labeling.cluster(rows, epoch), epoch, part)
            if epoch >= EPOCHS - 1:
                seconds[name].append(round(time.process_time() - began, 3))
    ratios = [other / default for default, other in zip(seconds[AUTO], seconds[against], strict=True)]
    return {
        "samples": n_samples,
        "dimension": dimension,
        "clusters": n_clusters,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "processor_seconds": seconds,
        "medians": {name: round(statistics.median(each), 3) for name, each in seconds.items()},
        "ratio": [round(each(ratios), 3) for each in (statistics.median, min, max)],
    }


def draw_features(n_samples: int, dimension: int, n_clusters: int, epoch: int) -> torch.Tensor:
    """Draw unit features, float32 of shape (N, D), of blobs that are the same in every epoch."""
    fixed = torch.Generator().manual_seed(0)
    centers = torch.randn(n_clusters, dimension, generator=fixed) / dimension**0.5
    member = torch.randint(n_clusters, (n_samples,), generator=fixed)
    features = torch.randn(n_samples, dimension, generator=torch.Generator().manual_seed(epoch + 1))
    return F.normalize(features.mul_(NOISE / dimension**0.5).add_(centers[member]), dim=1)


@contextmanager
def measured(parts: dict[str, dict[str, float]], name: str) -> Iterator[None]:
    """Measure what happens inside the context."""
    began, on_processors = time.perf_counter(), time.process_time()
    with PeakMemory() as memory:
        yield
    parts[name] = {
        "seconds": round(time.perf_counter() - began, 2),
        "processor_seconds": round(time.process_time() - on_processors, 2),
        "mib": memory.peak_mib,
    }


if __name__ == "__main__":
    main()
