"""The scaling model's bytes against arrays that the real stage allocates."""

from __future__ import annotations

import dataclasses
import tracemalloc

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from benchmarks.scaling.limits import describe, forward_operations, limits, select_shards
from benchmarks.scaling.model import MEASURED, Size, between_stages, peak_bytes, while_clustering, while_training
from benchmarks.scaling.rates import consensus_rates, label_rates
from benchmarks.scaling.seconds import Rates, clusterings, scoring_seconds, seeding_seconds, stage_seconds
from benchmarks.scaling.worker import Stages, count_level_cells, counted_cells, make_arguments, parts
from hf_plr.clustering import as_clusterer
from hf_plr.features.centering import CenteredFeatures
from hf_plr.pseudo_labels.labeling import Labeling
from hf_plr.pseudo_labels.metrics import compute_stage_metrics
from hf_plr.pseudo_labels.stage import RefinementStage
from hf_plr.refinement import PseudoLabelRefiner, cooccurrence

RATES = Rates(
    products=1e12, scores=1e-12, entries=1e-10, mapped=1e-10, sums=1e-10, new_memory=0.0, trials=1e-9, counting=1e-8,
    locating=1e-8, cells=1e-5, related=1e-6, counting_votes=1e-7, locating_votes=1e-8, cells_of_votes=1e-6, pairs=1e-7,
    sending=1e-9,
)  # fmt: skip


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


def run_stages(tmp_path, *size, n_stages=3):
    """Stages of a run on this process."""
    size = Size(*size)
    args = make_arguments(size, tmp_path)
    stages = Stages(size, args, Accelerator(cpu=True))
    for epoch in range(n_stages):
        stages.run(epoch)
    return stages


@pytest.mark.parametrize("refinement", ["nested", "consensus", "slr"])
@pytest.mark.parametrize("shards", [1, 8])
def test_what_is_kept_between_stages_is_what_the_stage_keeps(tmp_path, refinement, shards):
    stages = run_stages(tmp_path, 3000, 12, 20, 1, refinement, shards, n_stages=6)
    size, model = stages.size, between_stages(stages.size)
    arrays, of_kmeans, tables = [], [], []
    for labeling, prototypes in zip(stages.labelings, stages.objective.memory.prototypes, strict=True):
        now, kmeans = labeling.pseudo_labels, labeling.stage.clusterer
        arrays += [now.labels, now.previous_labels, now.raw_labels, now.confidence, now.targets]
        state = labeling.stage.refiner.state_dict()
        arrays += [array for name, array in state.items() if name not in ("version", "numbers")]
        tables.append(prototypes)
        if labeling.stage.clusterers:
            of_kmeans.append(kmeans.labels_)
            tables.append(kmeans.cluster_centers_)
    assert len(stages.labelings) == len(size.numbers) == (1 if refinement == "slr" else 3)
    assert bytes_of(*arrays) == model["labels of held samples"] + model["clusterings of past epochs"]
    assert bytes_of(*of_kmeans) == model["labels of own samples"]
    row_for_noise = tables[0][0].nbytes  # of the prototypes of all labelings, for what belongs to no cluster
    dropped = sum(size.numbers) - sum(each.pseudo_labels.n_clusters for each in stages.labelings)  # of one sample each
    assert 0 <= dropped < sum(size.numbers) // 4
    assert bytes_of(*tables) == model["centroids and prototypes"] + (1 - dropped) * row_for_noise
    spaces = 1 if refinement == "slr" else 2
    assert spaces * bytes_of(stages.features(0)) == while_clustering(size)["features"]


@pytest.mark.parametrize("shards", [1, 8])
def test_training_keeps_what_the_model_says(tmp_path, shards):
    stages = run_stages(tmp_path, 3200, 12, 20, 1, "consensus", shards, n_stages=1)
    sampler = stages.begin_epoch(0)
    model = while_training(stages.size)
    assert bytes_of(stages.objective._targets) == model["targets of all labelings"]
    tracemalloc.start()
    try:
        order = iter(sampler)
        first = next(order)
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert len({first, *order}) == stages.size.samples
    assert held == pytest.approx(model["order of training"], rel=0.15, abs=20_000)


@pytest.mark.parametrize(
    ("refinement", "clusters", "fitted"),
    [
        ("nested", [40, 20, 20, 20, 20], [2000, *[1280] * 4]),
        ("consensus", [10, 20, 20, 20, 20, 20, 40], [2000, *[1280] * 4, 2000, 2000]),
    ],
)
def test_passes_are_those_of_all_clusterings_of_a_stage(tmp_path, refinement, clusters, fitted):
    stages = run_stages(tmp_path, 2000, 8, 10, 1, refinement, n_stages=1)
    passes = stages.run(1)["passes"]
    assert clusterings(stages.size) == list(zip(clusters, fitted, strict=True))
    assert len(passes) == len(clusters)
    assert min(passes) >= 1


class Given:
    """A clusterer that gives labels which were drawn before."""

    def __init__(self, labelings):
        self.labelings = iter(labelings)

    def fit_predict(self, features):
        return next(self.labelings)


class GivenMembers:
    """An ensemble that gives labels which were drawn before, by epoch."""

    def __init__(self, members):
        self.members = members

    def fit_predict_shard(self, rows, epoch, accelerator):
        return self.members[epoch]


def run_given(stage, n, n_epochs, found=None):
    """Stages of given labels: bytes of arrays that are held before the last one, and its highest; `found` its cells."""
    labeling = Labeling(stage, confidence_power=0.0)
    features = CenteredFeatures(torch.zeros(n, 0), torch.zeros(0), slice(0, n))

    def run(epoch):
        before = labeling.pseudo_labels if labeling.has_labels else None
        after = labeling.refine(labeling.cluster(features.rows, epoch), epoch, features.part)
        compute_stage_metrics(before, after, features.part, stage.accelerator)

    tracemalloc.start()  # it sees numpy's arrays
    try:
        for epoch in range(n_epochs - 1):
            run(epoch)
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        with counted_cells({} if found is None else found):
            run(n_epochs - 1)
        return labeling.pseudo_labels, held, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("n", "n_clusters"), [(400_000, 20), (200_000, 200)])
def test_labels_of_slr_take_as_much_as_the_model_says(n, n_clusters):
    rng = np.random.default_rng(0)
    labelings = [rng.integers(0, n_clusters, n, dtype=np.int32)]
    for _ in range(3):
        moved = (labelings[-1] + rng.integers(-3, 4, n, dtype=np.int32)) % n_clusters
        labelings.append(np.where(rng.random(n) < 0.05, moved, labelings[-1]))
    stage = RefinementStage(as_clusterer(Given(labelings)), PseudoLabelRefiner(), 1, Accelerator(cpu=True))
    labels, held, peak = run_given(stage, n, 4)
    cells = len(cooccurrence(labels.previous_labels, labels.raw_labels))
    size = Size(n, columns=0, clusters=n_clusters, processes=1, refinement="slr", cells=cells)
    model = between_stages(size)
    assert held == pytest.approx(model["labels of held samples"], rel=0.05)
    expected = peak_bytes(size, *MEASURED["labelling"]) - model["labels of own samples"]  # there is no k-means
    assert peak == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("refinement", ["nested", "consensus"])
@pytest.mark.parametrize(("n", "n_clusters", "noise"), [(60_000, 300, 0.05), (30_000, 20, 0.01)])
def test_a_vote_takes_as_much_as_the_model_says(n, n_clusters, noise, refinement):
    rng = np.random.default_rng(0)
    cluster = rng.integers(0, n_clusters, n, dtype=np.int32)
    position = rng.normal(size=(n, 4))

    def part():
        side = np.einsum("ij,ij->i", position, rng.normal(size=(n_clusters, 4))[cluster]) > 0
        moved = np.where(rng.random(n) < noise, rng.permutation(cluster), cluster)
        return (2 * moved + side).astype(np.int32)

    refiner = PseudoLabelRefiner.from_preset(
        refinement, **({"n_clusters": n_clusters} if refinement == "nested" else {})
    )
    members = [[part() for _ in range(4)] for _ in range(refiner.generations)]
    clusterer = as_clusterer(Given([cluster.copy() for _ in members]))
    stage = RefinementStage(clusterer, refiner, 1, Accelerator(cpu=True), ensemble=GivenMembers(members))
    found = {}
    labels, _, peak = run_given(stage, n, refiner.generations, found)
    assert len(labels.sizes) > 1
    assert found["chosen"] == found["cells"] > n_clusters  # all cells are agglomerated
    size = Size(n, columns=0, clusters=n_clusters, processes=1, refinement=refinement, **found)
    model = between_stages(size)
    finer = (2 * 20 if refinement == "consensus" else 2 * 16) * n  # there are no finer labelings, and no k-means
    expected = peak_bytes(size, *MEASURED["labelling"]) - model["labels of own samples"] - finer
    assert peak == pytest.approx(expected, rel=0.15)


def test_cells_of_each_level_are_counted():
    rng = np.random.default_rng(0)
    labelings = rng.integers(-1, 4, (5, 300))
    counts = [len(np.unique(labelings[: level + 1], axis=1).T) for level in range(1, 5)]
    assert count_level_cells(cooccurrence(*labelings)) == sum(counts)


def test_parts_of_shards_are_those_of_processes():
    size = Size(10_234, 8, 10, 2, "consensus", 8)
    halves, eighths = parts(size, 2), parts(size, 8)
    assert [halves[0][0], halves[0][1], halves[1][1]] == [0, eighths[4][0], 10_234]
    assert eighths[3][1] == eighths[4][0]


def test_more_processes_share_features_and_with_shards_labels():
    one, eight = (Size(800_000, 64, 100, processes) for processes in (1, 8))
    assert while_clustering(one)["features"] == 8 * while_clustering(eight)["features"]
    for name in ("labels of held samples", "centroids and prototypes"):
        assert between_stages(one)[name] == between_stages(eight)[name]
    sharded = dataclasses.replace(eight, label_shards=8)
    assert between_stages(sharded)["labels of held samples"] < between_stages(eight)["labels of held samples"] / 8
    assert sum(while_training(sharded).values()) < sum(while_training(eight).values()) / 4
    alone, shared = (stage_seconds(size, RATES, passes=5) for size in (one, eight))
    assert alone["k-means, products"] == 8 * shared["k-means, products"]
    assert alone["members, products"] == 8 * shared["members, products"]
    assert alone["between processes"] == 0 < shared["between processes"]
    assert alone["consensus, cells"] == shared["consensus, cells"]  # which every process refines
    of_samples = stage_seconds(sharded, RATES, passes=5)["consensus, samples"]
    assert alone["consensus, samples"] == pytest.approx(8 * of_samples)
    assert shared["consensus, samples"] > 4 * of_samples  # all processes count all samples


def test_seeding_and_scoring_count_what_they_do():
    size = Size(10**6, 384, 1500, 4, "consensus")
    seeding = seeding_seconds(size, RATES)
    assert list(seeding) == [f"k-means++, {clusters} clusters" for clusters in ("1,500", "3,000", "6,000")]
    first, second, third = seeding.values()
    # Twice the seeds among twice the samples, with one more candidate a seed; then the sample's limit holds.
    assert second == pytest.approx(first * 4 * 10 / 9)
    assert third < second * 4
    scores, of_more = (scoring_seconds(size, RATES, tested, 100, 1e11) for tested in (5_000, 10_000))
    assert of_more["kNN"] == 2 * scores["kNN"] > 0
    assert of_more["linear probe, at most"] == scores["linear probe, at most"] > 0
    assert scores["k-means of the test split, ten starts"] > 0


@pytest.mark.parametrize(("width", "layers", "giga"), [(384, 12, 9.2), (768, 12, 35.1), (1024, 24, 123.1)])
def test_a_forward_pass_counts_all_layers(width, layers, giga):
    assert forward_operations(width, layers) / 1e9 == pytest.approx(giga, rel=0.02)


def test_rates_of_a_consensus_are_found():
    rates = consensus_rates(20, n_samples=4096) | label_rates(20, n_samples=4096)
    assert all(rate >= 0 for rate in rates.values())
    assert rates["counting_votes"] > 0 < rates["locating_votes"]
    assert set(rates) < {field.name for field in dataclasses.fields(Rates)}


def test_what_does_not_fit_is_said(monkeypatch):
    of_labels = {"counting": 1e-8, "locating": 1e-8, "cells": 1e-5, "related": 1e-6}
    of_consensus = {"counting_votes": 1e-7, "locating_votes": 1e-8, "cells_of_votes": 1e-6, "pairs": 1e-7}
    for name, value in (("label_rates", of_labels), ("consensus_rates", of_consensus), ("order_seconds", 1e-7)):
        monkeypatch.setattr(f"benchmarks.scaling.limits.{name}", lambda *_, value=value: value)
    few, many = (
        limits(Size(samples, 768, 100, processes, "consensus", select_shards(samples, processes)))
        for samples, processes in ((10**6, 8), (10**10, 64))
    )
    assert few["fits"] == {"gpu": True, "machine": True}
    assert "HAS NO ROOM" not in describe(few)
    assert many["fits"] == {"gpu": False, "machine": False}
    assert describe(many).count("HAS NO ROOM") == 2
    large = limits(Size(10**6, 1024, 100, 8), hardware=None)
    assert (few["size"]["layers"], large["size"]["layers"]) == (12, 24)
    assert (
        limits(Size(10**6, 768, 100, 8), layers=24)["extraction_seconds"]["computing"]
        > 1.9 * (few["extraction_seconds"]["computing"])
    )
