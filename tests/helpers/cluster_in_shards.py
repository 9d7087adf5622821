"""Cluster features that several processes share; run by the tests under `accelerate launch`, writes what came out."""

from __future__ import annotations

import sys

import numpy as np
import torch
from accelerate import Accelerator
from sklearn.datasets import make_blobs

from hf_plr import KMeans, ReciprocalDBSCAN
from hf_plr.clustering.cluster_means import average_clusters
from hf_plr.clustering.ensemble import FreshKMeans
from hf_plr.clustering.seeding import draw_seeds
from hf_plr.features.centering import center_features
from hf_plr.pseudo_labels.epoch_labels import PseudoLabels
from hf_plr.pseudo_labels.holding import AllLabels, OwnLabels, is_of_samples
from hf_plr.pseudo_labels.metrics import compute_stage_metrics
from hf_plr.pseudo_labels.stage import RefinementStage
from hf_plr.refinement import PRESETS, PseudoLabelRefiner
from hf_plr.utils.distributed import gather_objects, gather_rows, run_on_main


def refine_in_shards(features: np.ndarray, mine: slice, accelerator: Accelerator) -> dict[str, np.ndarray]:
    """Labels of three epochs by every preset, and how many of their values differ where each process holds its own."""
    results = {}
    for name in PRESETS:
        refiners = [PseudoLabelRefiner.from_preset(name) for _ in range(2)]
        holders = [AllLabels(accelerator), OwnLabels(accelerator)]
        kmeans = [KMeans(40, seed=3, max_iter=5) for _ in range(2)]
        stages = [
            RefinementStage(
                *(kmeans[i], refiners[i], 1, accelerator, 0.6),
                ensemble=FreshKMeans(kmeans[i], len(features), 3) if refiners[i].takes_members else None,
                holder=holders[i],
            )
            for i in range(2)
        ]
        before: list[PseudoLabels | None] = [None, None]
        n_different = 0
        for epoch in range(3):
            noise = np.random.default_rng(epoch).normal(size=features.shape).astype(np.float32)
            rows = torch.from_numpy((features + noise)[mine])
            now = [
                stage.refine(stage.cluster(rows, epoch), epoch, mine, last)
                for stage, last in zip(stages, before, strict=True)
            ]
            whole, own = (each.state_dict() for each in now)
            for key, expected in whole.items():
                found = own[key]
                if is_of_samples(key):
                    assert len(found) == mine.stop - mine.start
                    found = gather_rows(accelerator, torch.from_numpy(found.astype(expected.dtype))).numpy()
                n_different += int((found != expected).sum())
            assert now[0].sizes.tolist() == now[1].sizes.tolist()
            metrics = [
                compute_stage_metrics(last, labels, mine, accelerator, holder)
                for last, labels, holder in zip(before, now, holders, strict=True)
            ]
            assert metrics[0] == metrics[1]
            before = [*now]
            results[f"{name}.labels.{epoch}"] = now[0].labels
        results[f"{name}.different"] = np.array(n_different)
    return results


def main(output: str) -> None:
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    features = make_blobs(3001, n_features=24, centers=40, cluster_std=2.0, random_state=0)[0].astype(np.float32)
    features[100:110] = features[100]  # duplicates
    lengths = {1: [3001], 2: [1201, 1800], 3: [2501, 0, 500]}[accelerator.num_processes]  # one holds nothing
    mine = slice(sum(lengths[: accelerator.process_index]), sum(lengths[: accelerator.process_index + 1]))
    shard = features[mine]

    results: dict[str, np.ndarray] = {}
    for n_clusters in (1, 40, 600):
        results[f"seeds.{n_clusters}"] = draw_seeds(torch.from_numpy(shard), n_clusters, 0, accelerator).numpy()
    coarse = torch.from_numpy(features[:, :2]).div(4).round()
    assert len(coarse.unique(dim=0)) < 100  # so that no distance is left for most seeds
    results["seeds.duplicates"] = draw_seeds(coarse[mine], 100, 1, accelerator).numpy()
    bad_start = np.vstack([features[:30], np.full((10, 24), 1e3, dtype=np.float32)])
    for name, kmeans in {
        "spherical": KMeans(40, seed=0),
        "euclidean": KMeans(40, spherical=False, seed=1, tol=0, max_iter=20),
        "sample": KMeans(40, fit_samples=500, seed=2),
        "refilled": KMeans(40, init=bad_start, spherical=False),
    }.items():
        labels = gather_rows(accelerator, torch.from_numpy(kmeans.fit_predict_shard(shard, accelerator)))
        results[f"{name}.labels"] = labels.numpy()
        results[f"{name}.centers"] = kmeans.cluster_centers_.numpy()
        results[f"{name}.inertia"] = np.array(kmeans.inertia_)
    dbscan = ReciprocalDBSCAN(eps=0.5, k1=10, k2=3)
    labels = gather_rows(accelerator, torch.from_numpy(dbscan.fit_predict_shard(shard, accelerator)))
    results["dbscan.labels"] = labels.numpy()
    stage = RefinementStage(KMeans(40, seed=3), PseudoLabelRefiner(), 1, accelerator, min_confidence=0.6)
    before = pseudo_labels = None
    for epoch in range(3):
        noise = np.random.default_rng(epoch).normal(size=features.shape).astype(np.float32)
        rows = torch.from_numpy(shard + noise[mine])
        clusters = stage.cluster(rows, epoch)
        before, pseudo_labels = pseudo_labels, stage.refine(clusters, epoch, mine, pseudo_labels)
        state = stage.state_dict() | pseudo_labels.state_dict()
        results |= {f"stage.{name}.{epoch}": value for name, value in state.items()}
    metrics = compute_stage_metrics(before, pseudo_labels, mine, accelerator)
    results["stage.agreement_ari"] = np.array(metrics["agreement_ari"])
    results |= refine_in_shards(features, mine, accelerator)
    centered = center_features(torch.from_numpy(shard), accelerator)
    means = average_clusters(centered.rows, labels[mine] % 7, 7, accelerator)
    results |= {"center": centered.center.numpy(), "prototypes": means.directions.numpy()}

    broken = shard.copy()
    broken[:1] = np.nan if accelerator.process_index == 0 else broken[:1]
    try:
        KMeans(5).fit_predict_shard(broken, accelerator)
    except ValueError as error:
        results["nan_errors"] = np.array(gather_objects(accelerator, str(error)))
    try:
        run_on_main(accelerator, lambda: 1 // 0, "dividing")
    except (ZeroDivisionError, RuntimeError) as error:
        results["main_errors"] = np.array(gather_objects(accelerator, f"{type(error).__name__}: {error}"))
    if accelerator.is_main_process:
        np.savez(output, **results)
    accelerator.end_training()


if __name__ == "__main__":
    main(sys.argv[1])
