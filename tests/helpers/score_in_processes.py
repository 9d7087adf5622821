"""Score features that several processes share; run by the tests under `accelerate launch`, writes what came out."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from sklearn.datasets import make_blobs
from transformers import EvalPrediction

from hf_plr.clustering import kmeans, neighbors
from hf_plr.evaluation import evaluators, scores
from hf_plr.evaluation import neighbors as labeled_neighbors
from hf_plr.evaluation.scores import assess_features
from hf_plr.utils.distributed import gather_objects, gather_rows

N, N_TEST, DIMENSION = 3001, 701, 24


def part_of(accelerator: Accelerator, n: int) -> slice:
    """Rows of this process, of n; of three processes the second one has none."""
    bounds = {1: [0, n], 2: [0, n // 3, n], 3: [0, n - 200, n - 200, n]}[accelerator.num_processes]
    return slice(*bounds[accelerator.process_index : accelerator.process_index + 2])


class Samples:
    """What an evaluator sees of a `SampleStore`."""

    def __init__(self, features: np.ndarray, labels: np.ndarray, rows: np.ndarray | None = None):
        self.features, self.labels = torch.from_numpy(features), labels
        self.rows = np.arange(len(labels)) if rows is None else rows
        self.segments = None if rows is None else np.zeros((len(rows), 2))

    def __len__(self) -> int:
        return len(self.labels)

    def true_labels(self) -> np.ndarray:
        return self.labels


def make_trainer(accelerator: Accelerator, train: Samples) -> Any:
    """What an evaluator sees of a trainer, with features for weights."""
    extractor = SimpleNamespace(
        local_slice=lambda store, positions: part_of(accelerator, len(positions)),
        extract=lambda store, positions: store.features[positions],
    )
    return SimpleNamespace(
        accelerator=accelerator,
        train_dataset=train,
        eval_dataset=None,
        label_column="label",
        extractor=extractor,
        open_samples=SimpleNamespace(latest=train),
    )


def record_gathers(n_columns: int) -> list[int]:
    """Record the numbers of rows of features that are gathered."""
    sizes = [0]

    def record(accelerator: Accelerator | None, rows: torch.Tensor) -> torch.Tensor:
        gathered = gather_rows(accelerator, rows)
        if rows.shape[1:] == (n_columns,) and rows.is_floating_point():
            sizes.append(len(gathered))
        return gathered

    for module in (kmeans, neighbors, labeled_neighbors, scores):
        if hasattr(module, "gather_rows"):
            module.gather_rows = record
    return sizes


def main(output: str) -> None:
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    features, labels = make_blobs(N + N_TEST, n_features=DIMENSION, centers=12, cluster_std=7.0, random_state=0)
    features = features.astype(np.float32)
    features[100:140] = features[100]  # duplicates of other classes, also beside the first process's last row
    features[990:1010] = features[2800:2820] = features[100]
    labels[5:300:7] = labels[-50:-20] = -1
    train, test = slice(0, N), slice(N, None)
    mine, mine_of_test = part_of(accelerator, N), part_of(accelerator, N_TEST)
    shard, shard_labels = features[train][mine], labels[train][mine]
    test_shard, test_labels = features[test][mine_of_test], labels[test][mine_of_test]
    scores.MAX_SAMPLES = 700

    results: dict[str, Any] = {}
    sizes = record_gathers(DIMENSION)
    for name, width in {"tiles": 256, "one tile": 1 << 14}.items():
        neighbors.TILE_COLUMNS = width
        found = neighbors.search_gallery(torch.from_numpy(features[test]), torch.from_numpy(shard), 20, accelerator)
        results[f"search by {name}"] = [values.tolist() for values in found]
    results["test split"] = asdict(assess_features(shard, shard_labels, test_shard, test_labels, 3, accelerator))
    results["cross-validated"] = asdict(assess_features(shard, shard_labels, seed=1, accelerator=accelerator))
    few = np.where(np.arange(N) % 50 == 0, labels[train], -1)[mine]
    results["few labels"] = asdict(assess_features(torch.from_numpy(shard), few, accelerator=accelerator))
    results["one class"] = asdict(assess_features(shard, np.zeros(len(shard), int), accelerator=accelerator))
    trainer = make_trainer(accelerator, Samples(features[train], labels[train]))
    results["evaluator"] = asdict(evaluators.FeatureEvaluator()(trainer))
    evaluators.GALLERY_SAMPLES = 800
    trainer.open_samples.latest = Samples(features[test], labels[test])
    results["predictions"] = evaluators.score_against_gallery(trainer, EvalPrediction(features[test], labels[test]))
    results["gathered"] = max(sizes)
    rows = np.arange(N) * 7 % N // 5
    trainer = make_trainer(accelerator, Samples(features[train], rows % 6, rows))
    results["segments"] = asdict(evaluators.FeatureEvaluator()(trainer))
    results["predicted segments"] = evaluators.score_against_gallery(trainer, EvalPrediction(features[train], rows % 6))

    broken = shard.copy()
    broken[:1] = np.nan
    try:
        assess_features(broken, shard_labels, accelerator=accelerator)
    except ValueError as error:
        results["errors"] = gather_objects(accelerator, str(error))
    results["same everywhere"] = len({json.dumps(each) for each in gather_objects(accelerator, results)}) == 1
    if accelerator.is_main_process:
        with open(output, "w") as file:
            json.dump(results, file)
    accelerator.end_training()


if __name__ == "__main__":
    main(sys.argv[1])
