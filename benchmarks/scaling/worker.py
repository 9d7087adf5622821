"""One process of a measurement: real stages on drawn features, after what this machine does in a second was measured.

It is started by `benchmarks.scaling`, with others under torch.distributed, and writes what it found to a file.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from benchmarks.measuring import PeakMemory, anonymous_kib
from benchmarks.scaling.model import Rates, Size
from benchmarks.scaling.rates import GROUP_SIZE, feature_rates, label_rates
from hf_plr import KMeans
from hf_plr.features.centering import center_features, check_finite
from hf_plr.pseudo_labels.labeling import Labeling
from hf_plr.pseudo_labels.metrics import compute_stage_metrics
from hf_plr.pseudo_labels.objective import ClusterObjective
from hf_plr.pseudo_labels.prototypes import PrototypeMemory
from hf_plr.pseudo_labels.sampler import ClusterSampler
from hf_plr.pseudo_labels.stage import PseudoLabels, RefinementStage
from hf_plr.refinement import PseudoLabelRefiner, cooccurrence

DRAWN_TOGETHER = 500  # samples are drawn and shared in such batches
WARM_UP_SAMPLES = 20 * DRAWN_TOGETHER  # of each process: what is allocated once is there before memory is measured


class WatchedKMeans(KMeans):
    """k-means that says when it is done."""

    after_clustering: Callable[[], None] | None = None

    def fit_predict_shard(self, features: np.ndarray | torch.Tensor, accelerator: Accelerator) -> np.ndarray:
        labels = super().fit_predict_shard(features, accelerator)
        if self.after_clustering is not None:
            self.after_clustering()
        return labels


class Stages:
    """Stages of one run, epoch after epoch, as PLRTrainer runs them; features are drawn and not extracted."""

    def __init__(self, size: Size, accelerator: Accelerator):
        self.size = size
        self.accelerator = accelerator
        self.mine = share(size.samples, accelerator)
        self.positions = np.arange(self.mine.start, self.mine.stop)
        self.centers = torch.randn(size.clusters, size.columns, generator=torch.Generator().manual_seed(0))
        self.kmeans = WatchedKMeans(size.clusters)
        stage = RefinementStage(self.kmeans, PseudoLabelRefiner(), 1, accelerator)
        self.labeling = Labeling(stage, confidence_power=0.0)
        self.objective = ClusterObjective([self.labeling], PrototypeMemory(temperature=0.05, momentum=0.2))

    @property
    def current(self) -> PseudoLabels:
        """The last stage's labels."""
        return self.labeling.pseudo_labels

    def run(self, epoch: int, after_clustering: Callable[[], None] | None = None) -> dict[str, float]:
        """One stage: its passes of k-means and its seconds, without those in which features are drawn."""
        features = self.features(epoch)
        self.accelerator.wait_for_everyone()
        started, on_clock = time.process_time(), time.perf_counter()
        check_finite(features, epoch, self.positions, self.accelerator)
        centered = center_features(features, self.accelerator, out=features)
        self.kmeans.after_clustering = after_clustering
        before = self.labeling.pseudo_labels if self.labeling.has_labels else None
        after = self.labeling.refine(self.labeling.cluster(centered.rows, epoch), epoch, self.mine)
        self.objective.rebuild_prototypes(centered)
        compute_stage_metrics(before, after, self.mine, self.accelerator)
        return {
            "passes": self.kmeans.n_iter_,
            "seconds": time.process_time() - started,
            "seconds_on_clock": time.perf_counter() - on_clock,
        }

    def features(self, epoch: int) -> torch.Tensor:
        """Own rows of an epoch, the same whatever the number of processes; from epoch to epoch they move a little."""
        features = torch.empty(len(self.positions), self.size.columns)
        for start in range(0, len(features), DRAWN_TOGETHER):
            rows = features[start : start + DRAWN_TOGETHER]
            batch = (self.mine.start + start) // DRAWN_TOGETHER
            lasting, passing = (torch.Generator().manual_seed(1000 * batch + part) for part in (0, 1 + epoch))
            member = torch.randint(self.size.clusters, (len(rows),), generator=lasting)
            rows.normal_(generator=lasting).mul_(1.2).add_(self.centers[member])
            rows.add_(torch.randn(rows.shape, generator=passing), alpha=0.3)
        return features


def main() -> None:
    """Read the arguments, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("samples", "columns", "clusters"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    size = Size(args.samples, args.columns, args.clusters, accelerator.num_processes)
    found = measure(size, accelerator)
    (args.folder / f"{accelerator.process_index}.json").write_text(json.dumps(found))
    accelerator.end_training()


def measure(size: Size, accelerator: Accelerator) -> dict[str, Any]:
    """What this process found: rates, seconds of two stages, and memory in a third and after it."""
    warm_up = Stages(dataclasses.replace(size, samples=WARM_UP_SAMPLES * size.processes), accelerator)
    for epoch in range(3):
        warm_up.run(epoch)
    del warm_up
    rates = Rates(**feature_rates(size), **label_rates(size.clusters))
    stages = Stages(size, accelerator)
    gc.collect()
    at_first = anonymous_kib()
    for epoch in range(2):  # the first refines nothing, the second is the first that does
        stages.run(epoch)
    timed = [stages.run(epoch) for epoch in (2, 3)]
    with PeakMemory() as memory:
        held = (anonymous_kib() - at_first) / 1024
        peaks = {}

        def note_peak() -> None:
            peaks["clustering"] = held + memory.lap_mib()

        stages.run(4, after_clustering=note_peak)
        peaks["labelling"] = held + memory.lap_mib()
    now = stages.current
    sampler = ClusterSampler(size.samples, GROUP_SIZE, seed=0)
    sampler.set_targets(now.targets, epoch=0)
    order = iter(sampler)
    gc.collect()
    peaks["training"] = (anonymous_kib() - at_first) / 1024
    assert len(list(order)) == size.samples
    return {
        "rates": dataclasses.asdict(rates),
        "stages": timed,
        "peak_mib": peaks,
        "cells": len(cooccurrence(now.previous_labels, now.raw_labels)),
        "labels": zlib.crc32(now.labels.tobytes()),
    }


def share(n_samples: int, accelerator: Accelerator) -> slice:
    """This process's samples: whole batches, as many as the others have, give or take one."""
    n_batches = -(-n_samples // DRAWN_TOGETHER)
    index, processes = accelerator.process_index, accelerator.num_processes
    first, last = (n_batches * part // processes * DRAWN_TOGETHER for part in (index, index + 1))
    return slice(first, min(last, n_samples))


if __name__ == "__main__":
    main()
