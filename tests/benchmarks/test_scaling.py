"""The scaling model's bytes against arrays that the real stage allocates."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from benchmarks.scaling.limits import describe, limits
from benchmarks.scaling.model import Rates, Size, between_stages, peak_bytes, stage_seconds, while_clustering
from benchmarks.scaling.worker import Stages
from hf_plr.clustering import as_clusterer
from hf_plr.features.centering import CenteredFeatures
from hf_plr.pseudo_labels.labeling import Labeling
from hf_plr.pseudo_labels.metrics import compute_stage_metrics
from hf_plr.pseudo_labels.stage import RefinementStage
from hf_plr.refinement import PseudoLabelRefiner, cooccurrence


def bytes_of(*arrays):
    """Bytes of arrays and tensors, each piece of memory counted once."""
    pieces = {}
    for array in arrays:
        if isinstance(array, torch.Tensor):
            storage = array.untyped_storage()
            pieces[storage.data_ptr()] = storage.nbytes()
        else:
            pieces[array.__array_interface__["data"][0]] = array.nbytes
    return sum(pieces.values())


def test_what_is_kept_between_stages_is_what_the_stage_keeps():
    size = Size(samples=3000, columns=12, clusters=20, processes=1)
    stages = Stages(size, Accelerator(cpu=True))
    for epoch in range(3):
        stages.run(epoch)
    model, now = between_stages(size), stages.current
    labels = [now.labels, now.previous_labels, now.raw_labels, now.confidence, now.targets]
    refiner = [array for array in stages.labeling.stage.refiner.state_dict().values() if len(array) == size.samples]
    assert len(refiner) == 2
    assert bytes_of(*labels) == model["labels of all samples"]
    assert bytes_of(*labels, *refiner) == model["labels of all samples"]  # the refiner's are the same arrays
    assert bytes_of(stages.kmeans.labels_) == model["labels of own samples"]
    (prototypes,) = stages.objective.memory.prototypes
    one_row = prototypes[0].nbytes  # for what belongs to no cluster
    assert bytes_of(stages.kmeans.cluster_centers_, prototypes) == model["centroids and prototypes"] + one_row
    assert bytes_of(stages.features(0)) == while_clustering(size)["features"]


class Given:
    """A clusterer that gives labels which were drawn before."""

    def __init__(self, labelings):
        self.labelings = iter(labelings)

    def fit_predict(self, features):
        return next(self.labelings)


@pytest.mark.parametrize(("n", "n_clusters"), [(400_000, 20), (200_000, 200)])
def test_labels_take_as_much_as_the_model_says_at_the_stages_peak(n, n_clusters):
    rng = np.random.default_rng(0)
    labelings = [rng.integers(0, n_clusters, n, dtype=np.int32)]
    for _ in range(3):
        moved = (labelings[-1] + rng.integers(-3, 4, n, dtype=np.int32)) % n_clusters
        labelings.append(np.where(rng.random(n) < 0.05, moved, labelings[-1]))
    clusterer = as_clusterer(Given(labelings))
    stage = RefinementStage(clusterer, PseudoLabelRefiner(), 1, Accelerator(cpu=True))
    labeling = Labeling(stage, confidence_power=0.0)
    features = CenteredFeatures(torch.zeros(n, 0), torch.zeros(0), slice(0, n))

    def run(epoch):
        before = labeling.pseudo_labels if labeling.has_labels else None
        after = labeling.refine(labeling.cluster(features.rows, epoch), epoch, features.part)
        compute_stage_metrics(before, after, features.part, stage.accelerator)

    tracemalloc.start()  # it sees numpy's arrays
    try:
        for epoch in range(3):
            run(epoch)
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        run(3)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    labels = labeling.pseudo_labels
    cells = len(cooccurrence(labels.previous_labels, labels.raw_labels))
    size = Size(n, columns=0, clusters=n_clusters, processes=1, cells=cells)
    model = between_stages(size)
    assert held == pytest.approx(model["labels of all samples"], rel=0.05)
    expected = peak_bytes(size, "refining", "labelling") - model["labels of own samples"]  # there is no k-means
    assert peak == pytest.approx(expected, rel=0.1)


def test_more_processes_share_features_and_not_labels():
    one, eight = (Size(800_000, 64, 100, processes) for processes in (1, 8))
    assert while_clustering(one)["features"] == 8 * while_clustering(eight)["features"]
    for name in ("labels of all samples", "centroids and prototypes"):
        assert between_stages(one)[name] == between_stages(eight)[name]
    rates = Rates(1e12, 1e-12, 1e-10, 1e-10, 0.0, 1e-8, 1e-8, 1e-5, sending=1e-9)
    alone, shared = (stage_seconds(size, rates, passes=5) for size in (one, eight))
    assert alone["k-means, products"] == 8 * shared["k-means, products"]
    assert alone["between processes"] == 0 < shared["between processes"]
    assert shared["refinement, samples"] > alone["refinement, samples"] / 2  # all processes look up all samples


def test_what_does_not_fit_is_said(monkeypatch):
    rates = {"counting": 1e-8, "locating": 1e-8, "cells": 1e-5}
    for name, value in (("label_rates", rates), ("order_seconds", 1e-7)):
        monkeypatch.setattr(f"benchmarks.scaling.limits.{name}", lambda *_, value=value: value)
    few, many = (limits(samples, 768, 100, processes) for samples, processes in ((10**6, 8), (10**10, 64)))
    assert few["fits"] == {"gpu": True, "machine": True}
    assert "HAS NO ROOM" not in describe(few)
    assert many["fits"] == {"gpu": False, "machine": False}
    assert describe(many).count("HAS NO ROOM") == 2
