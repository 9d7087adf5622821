"""One process of a measurement: real stages on drawn features, after what this machine does in a second was measured.

It is started by `benchmarks.scaling`, with others under torch.distributed, and writes what it found to a file.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import itertools
import json
import os
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from accelerate import Accelerator

from benchmarks.measuring import PeakMemory, anonymous_kib
from benchmarks.scaling.model import Size
from benchmarks.scaling.rates import measure_rates
from hf_plr import KMeans, PLRTrainingArguments
from hf_plr.features.centering import center_features, check_finite
from hf_plr.features.cluster_space import ClusterSpace
from hf_plr.pseudo_labels.assembly import make_labelings, select_clusterers
from hf_plr.pseudo_labels.epoch_labels import PseudoLabels
from hf_plr.pseudo_labels.holding import make_holder
from hf_plr.pseudo_labels.metrics import compare_labelings, compute_stage_metrics
from hf_plr.pseudo_labels.objective import ClusterObjective
from hf_plr.pseudo_labels.prototypes import PrototypeMemory
from hf_plr.pseudo_labels.sampler import ClusterSampler
from hf_plr.pseudo_labels.shards import ShardSampler, make_cluster_sampler
from hf_plr.refinement import CooccurrenceTable
from hf_plr.refinement.agglomeration.coassociation import CoassociatedClusters
from hf_plr.refinement.agglomeration.related import RelatedClusters
from hf_plr.utils.rng import isolate_rng

DRAWN_TOGETHER = 100  # samples are drawn and shared in such batches
WARM_UP_SAMPLES = 10_000  # of each process: what is allocated once is there before memory is measured
STEP_SAMPLES = 128  # of all processes
SHRINKAGE = 1.0
NOISE = 1.2

Note = Callable[[str], None]


class Stages:
    """Stages of one run, epoch after epoch, as PLRTrainer runs them; features are drawn and not extracted.

    Args:
        size: how much there is.
        args: output of `make_arguments`, which come before the accelerator: they reset its state.
        accelerator: connects the processes.
    """

    def __init__(self, size: Size, args: PLRTrainingArguments, accelerator: Accelerator):
        self.size = size
        self.args = args
        self.accelerator = accelerator
        self.mine = share(size, accelerator)
        self.positions = np.arange(self.mine.start, self.mine.stop)
        self.centers = torch.randn(size.clusters, size.columns, generator=torch.Generator().manual_seed(0))
        self.holder = make_holder(size.label_shards, accelerator, args.output_dir)
        clusterers = select_clusterers(self.args, size.samples)
        self.labelings = make_labelings(self.args, clusterers, None, size.samples, self.holder)
        shrinkage = SHRINKAGE if size.is_whitened else None
        self.space = ClusterSpace("white" if size.is_whitened else "centered", shrinkage, None, seed=0)
        self.objective = ClusterObjective(self.labelings, PrototypeMemory(temperature=0.05, momentum=0.2))
        self.counted: dict[str, int] = {}

    @property
    def current(self) -> PseudoLabels:
        """The last stage's labels, of the first labeling."""
        return self.labelings[0].pseudo_labels

    def run(self, epoch: int, note: Note = lambda moment: None) -> dict[str, Any]:
        """One stage: its passes of k-means and its seconds, without those in which features are drawn.

        Args:
            epoch: number of the stage.
            note: called with the name of a moment that ends.
        """
        features = self.features(epoch)
        self.accelerator.wait_for_everyone()
        started, on_clock = time.thread_time(), time.perf_counter()  # memory is watched by another thread
        passes: list[int] = []
        with isolate_rng(epoch), counted_passes(passes), counted_cells(self.counted):
            check_finite(features, epoch, self.positions, self.accelerator)
            centered = center_features(features, self.accelerator, out=features)
            rows = self.space.map(centered, self.accelerator)
            before = self.labelings[0].pseudo_labels if self.labelings[0].has_labels else None
            for labeling in self.labelings:
                clusters = labeling.cluster(rows, epoch)
                note("clustering")
                labeling.refine(clusters, epoch, self.mine)
                note("labelling")
            del rows
            means = self.objective.rebuild_prototypes(centered)
            labels = [labeling.pseudo_labels for labeling in self.labelings]
            compute_stage_metrics(before, labels[0], self.mine, self.accelerator, self.holder)
            self.labelings[0].score(centered, means[0])
            compare_labelings(labels, self.mine, self.accelerator, self.holder)
        note("labelling")
        return {
            "passes": passes,
            "seconds": time.thread_time() - started,
            "seconds_on_clock": time.perf_counter() - on_clock,
        }

    def begin_epoch(self, epoch: int) -> ClusterSampler | ShardSampler:
        """What an epoch of training keeps: targets where the loss looks them up, and the sampler of the order."""
        size = self.size
        self.objective.to(torch.device("cpu"))
        sampler = make_cluster_sampler(self.args, size.samples, size.label_shards, views=1)
        if isinstance(sampler, ShardSampler):
            sampler.set_bounds(np.array([*(first for first, _ in parts(size, size.label_shards)), size.samples]))
        sampler.set_targets(self.current.targets, epoch)
        return sampler

    def features(self, epoch: int) -> torch.Tensor:
        """Own rows of an epoch, the same whatever the number of processes; from epoch to epoch they move a little."""
        features = torch.empty(len(self.positions), self.size.columns)
        for start in range(0, len(features), DRAWN_TOGETHER):
            rows = features[start : start + DRAWN_TOGETHER]
            batch = (self.mine.start + start) // DRAWN_TOGETHER
            lasting, passing = (torch.Generator().manual_seed(1000 * batch + part) for part in (0, 1 + epoch))
            member = torch.randint(self.size.clusters, (len(rows),), generator=lasting)
            rows.normal_(generator=lasting).mul_(NOISE).add_(self.centers[member])
            rows.add_(torch.randn(rows.shape, generator=passing), alpha=0.3)
        return features


@contextlib.contextmanager
def counted_passes(found: list[int]) -> Iterator[None]:
    """Count the passes of each clustering in the context, in the order of a stage."""
    original = KMeans.fit_predict_shard

    def fit(kmeans: KMeans, features: Any, accelerator: Accelerator) -> np.ndarray:
        labels = original(kmeans, features, accelerator)
        found.append(kmeans.n_iter_)
        return labels

    with mock.patch.object(KMeans, "fit_predict_shard", fit):
        yield


@contextlib.contextmanager
def counted_cells(found: dict[str, int]) -> Iterator[None]:
    """Count the cells of the first table that is refined in the context, and what is agglomerated.

    Args:
        found: where the numbers go: `cells`, `level_cells` summed over the labelings in turn, `pairs` of related cells
            and for a consensus the `chosen` cells.
    """
    found.clear()
    make, relate, locate = CoassociatedClusters.__init__, RelatedClusters.__init__, CooccurrenceTable.locate

    def count_pairs(clusters: CoassociatedClusters, *args: Any) -> None:
        make(clusters, *args)
        found.update(chosen=len(clusters.weights), pairs=clusters._sums.nnz)

    def count_related_pairs(clusters: RelatedClusters, *args: Any) -> None:
        relate(clusters, *args)
        found.update(pairs=len(clusters._first))

    def count_cells(table: CooccurrenceTable, *labelings: Any) -> np.ndarray:
        if "cells" not in found:
            found.update(cells=len(table), level_cells=count_level_cells(table))
        return locate(table, *labelings)

    with (
        mock.patch.object(CoassociatedClusters, "__init__", count_pairs),
        mock.patch.object(RelatedClusters, "__init__", count_related_pairs),
        mock.patch.object(CooccurrenceTable, "locate", count_cells),
    ):
        yield


def count_level_cells(table: CooccurrenceTable) -> int:
    """Count the cells of the first two labelings, of the first three and so on, all together."""
    is_new = np.zeros(max(len(table) - 1, 0), dtype=bool)
    total = 0
    for level, codes in enumerate(table.codes.T):
        is_new |= np.diff(codes) != 0
        total += (int(is_new.sum()) + 1) * (level > 0)
    return total


def main() -> None:
    """Read the arguments, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("samples", "columns", "clusters", "label_shards"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--refinement", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    processes = int(os.environ["WORLD_SIZE"])
    size = Size(args.samples, args.columns, args.clusters, processes, args.refinement, args.label_shards)
    run_args = make_arguments(size, args.folder)
    accelerator = Accelerator(cpu=True)
    found = measure(size, run_args, accelerator)
    (args.folder / f"{accelerator.process_index}.json").write_text(json.dumps(found))
    accelerator.end_training()


def measure(size: Size, args: PLRTrainingArguments, accelerator: Accelerator) -> dict[str, Any]:
    """What this process found: rates, seconds and memory of the first stage with all epochs, and memory in training."""
    small = dataclasses.replace(size, samples=WARM_UP_SAMPLES * size.processes)
    warm_up = Stages(small, args, accelerator)
    for epoch in range(size.full_stage + 1):
        warm_up.run(epoch)
    next(iter(warm_up.begin_epoch(0)))
    del warm_up
    rates = measure_rates(size)
    stages = Stages(size, args, accelerator)
    gc.collect()
    at_first = anonymous_kib()
    for epoch in range(size.full_stage):
        stages.run(epoch)
    gc.collect()
    peaks: dict[str, float] = {}
    with PeakMemory() as memory:
        held = (anonymous_kib() - at_first) / 1024

        def note_peak(moment: str) -> None:
            peaks[moment] = max(peaks.get(moment, 0.0), held + memory.lap_mib())

        timed = stages.run(size.full_stage, note_peak)
    gc.collect()
    peaks["between stages"] = (anonymous_kib() - at_first) / 1024
    sampler = stages.begin_epoch(size.full_stage)
    order = iter(sampler)
    first = next(order)
    gc.collect()
    peaks["training"] = (anonymous_kib() - at_first) / 1024
    assert sum(1 for _ in order) + 1 == len(sampler) >= size.samples > first
    labels = stages.holder.collect(stages.current.labels.astype(np.int32))
    return {
        "rates": rates,
        "stage": timed,
        "peak_mib": peaks,
        "counted": stages.counted,
        "labels": 0 if labels is None else zlib.crc32(labels.tobytes()),
    }


def make_arguments(size: Size, folder: Path) -> PLRTrainingArguments:
    """Arguments of a run of this size, with everything else as it is by default."""
    return PLRTrainingArguments(
        output_dir=os.fspath(folder),
        refinement=size.refinement,  # type: ignore[arg-type]  # checked there
        num_labelings=len(size.numbers),
        num_clusters=size.clusters,
        label_shards=size.label_shards,
        per_device_train_batch_size=STEP_SAMPLES // size.processes,
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
    )


def parts(size: Size, n: int) -> list[tuple[int, int]]:
    """First sample and end of n parts of the samples: whole batches, as many in each, give or take one."""
    n_batches = -(-size.samples // DRAWN_TOGETHER)
    bounds = [min(n_batches * part // n * DRAWN_TOGETHER, size.samples) for part in range(n + 1)]
    return list(itertools.pairwise(bounds))


def share(size: Size, accelerator: Accelerator) -> slice:
    """This process's samples."""
    return slice(*parts(size, accelerator.num_processes)[accelerator.process_index])


if __name__ == "__main__":
    main()
