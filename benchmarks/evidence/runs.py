"""One run: train on a task in one way from one seed, and tell what came out."""

from __future__ import annotations

import fcntl
import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import normalize
from transformers import TrainerCallback

from benchmarks.evidence.tasks import TASKS, arguments_of
from benchmarks.evidence.ways import AS_IT_IS, SUITES, WAYS
from hf_plr import PLRTrainer
from hf_plr.clustering import can_be_finer, make_clusterer
from hf_plr.evaluation.clusters import score_clusters
from hf_plr.refinement import NOISE
from hf_plr.trainer.progress_display import ProgressDisplay


@dataclass(frozen=True, order=True)
class Run:
    """What tells one run from another."""

    task: str
    variation: str
    way: str
    seed: int


def runs_of(suite: str) -> list[Run]:
    """All runs of a suite; one seed of everything comes before the next."""
    chosen = SUITES[suite]
    runs = []
    for seed in range(chosen.seeds):
        for name in chosen.tasks:
            runs += [Run(name, AS_IT_IS, way, seed) for way in chosen.ways if _fits(way, name)]
    for seed in range(chosen.seeds):
        for name in chosen.tasks:
            ways = [way for way in chosen.off if _fits(way, name)]
            runs += [Run(name, variation, way, seed) for variation in TASKS[name].variations for way in ways]
    return runs


def _fits(way: str, task: str) -> bool:
    """Whether a way can be run on a task: several labelings need a clusterer that can be made finer."""
    clusterer = make_clusterer(TASKS[task].arguments.get("clusterer", "kmeans"), num_clusters=2)
    return WAYS[way].changes.get("num_labelings", 1) == 1 or can_be_finer(clusterer)


def carry_out(run: Run, data: Path, starts: Path) -> dict[str, Any]:
    """Train, and return the run's record for the file of results."""
    task, way = TASKS[run.task], WAYS[run.way]
    changes = {"num_labelings": 1, **way.changes, **task.variations.get(run.variation, {})}
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        watch = EpochWatch(task.score)
        trainer = task.make(arguments_of(task, folder, run.seed, changes), run.seed, data, starts, [watch])
        trainer.remove_callback(ProgressDisplay)
        for labeling in trainer.labelings:
            labeling.stage.refiner = way.refiner()
        watch.trainer = trainer
        before = trainer.score("start")
        trainer.train()
        after = trainer.score("end")
    history = trainer.state.log_history
    stages = [entry for entry in history if "plr/seconds" in entry]
    return {
        **asdict(run),
        "score": task.score,
        "start": rounded(before),
        "end": rounded(after),
        "epochs": watch.epochs,
        "stage_seconds": round(sum(entry["plr/seconds"] for entry in stages), 2),
        "refine_seconds": round(sum(entry["plr/seconds_refine"] for entry in stages), 3),
        "train_seconds": round(history[-1]["train_runtime"], 1),
        "seconds": round(time.perf_counter() - started, 1),
    }


class EpochWatch(TrainerCallback):
    """Scores each epoch: its pseudo-labels and features against the truth, which nothing else sees, and without it.

    Args:
        score: the downstream score, "knn_accuracy" or "mAP".
    """

    def __init__(self, score: str) -> None:
        self.score = score
        self.trainer: PLRTrainer | None = None
        self.epochs: list[dict[str, float]] = []

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add an epoch to `epochs`."""
        trainer = self.trainer
        assert trainer is not None
        assert trainer.pseudo_labels is not None
        assert trainer.evaluator is not None
        labels, truth = trainer.pseudo_labels.labels, trainer.evaluator.true_labels(trainer)
        assert truth is not None
        member = labels != NOISE
        self.epochs.append(
            rounded(
                {
                    "clusters": float(trainer.pseudo_labels.n_clusters),
                    "noise": float((~member).mean()),
                    **agreement(labels[member], truth[member]),
                    self.score: self._downstream(trainer),
                    **{f"plr/{name}": value for name, value in trainer.label_free_scores().items()},
                }
            )
        )

    def _downstream(self, trainer: PLRTrainer) -> float:
        if self.score == "mAP":
            return trainer.score("epoch")["mAP"]
        features, labels = trainer.extract_features().cpu().numpy(), trainer.train_dataset.true_labels()
        test: Any = trainer.eval_dataset
        if test is None:
            return knn_accuracy(features, labels)
        store = trainer.open_samples(test)
        return knn_accuracy(features, labels, trainer.extract_features(store).cpu().numpy(), store.true_labels())


def knn_accuracy(
    features: np.ndarray,
    labels: np.ndarray,
    test_features: np.ndarray | None = None,
    test_labels: np.ndarray | None = None,
) -> float:
    """Accuracy of 5 nearest neighbours: of the test features, or where there are none of five folds."""
    center = features.mean(axis=0)
    knn = KNeighborsClassifier(5)
    if test_features is None:
        folds = StratifiedKFold(5, shuffle=True, random_state=0)
        return float(cross_val_score(knn, normalize(features - center), labels, cv=folds).mean())
    return float(knn.fit(normalize(features - center), labels).score(normalize(test_features - center), test_labels))


def agreement(labels: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """How labels agree with the truth: NMI, ARI, and precision and recall of the pairs that they put together."""
    found = score_clusters(labels, truth)
    names = {"nmi": "nmi", "ari": "ari", "precision": "pair_precision", "recall": "pair_recall"}
    return {name: found[score] for name, score in names.items()}


def rounded(scores: dict[str, float]) -> dict[str, float]:
    """Four digits after the point."""
    return {name: round(float(value), 4) for name, value in scores.items()}


def read_records(path: Path) -> dict[Run, dict[str, Any]]:
    """The records of a file of results, one a line; none where there is no file."""
    if not path.exists():
        return {}
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {Run(*(record[name] for name in ("task", "variation", "way", "seed"))): record for record in records}


def append_record(path: Path, record: dict[str, Any]) -> None:
    """Add a record as one line; several processes may do so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps(record) + "\n")
