"""One run: train on a task in one way from one seed, and tell what came out."""

from __future__ import annotations

import fcntl
import functools
import json
import shutil
import subprocess
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset

from benchmarks.evidence.passes import PassCounter
from benchmarks.evidence.readout import read_out
from benchmarks.evidence.tasks import TASKS, arguments_of
from benchmarks.evidence.ways import AS_IT_IS, SUITES, WAYS, Peer
from hf_plr import PLRTrainer
from hf_plr.evaluation.evaluators import FeatureEvaluator
from hf_plr.evaluation.scores import score_features
from hf_plr.refinement import NOISE
from hf_plr.trainer.base_trainer import BaseTrainer
from hf_plr.trainer.progress_display import ProgressDisplay

LABEL_SCORES = ("purity", "pair_precision", "pair_recall", "pair_f1", "nmi", "ari")


@dataclass(frozen=True, order=True)
class Run:
    """What tells one run from another.

    Attributes:
        task: name of the task.
        variation: name of one of its variations, "-" for none.
        way: name of the way.
        seed: seed of everything random.
        budget: image passes, as a multiple of those of the task's epochs; 0 without training.
    """

    task: str
    variation: str
    way: str
    seed: int
    budget: int = 1


def runs_of(suite: str, seeds: int | None = None, budget: int = 1) -> list[Run]:
    """All runs of a suite; one seed of everything comes before the next. Peers of one task are not run for another.

    Args:
        suite: its name.
        seeds: number of seeds; by default the suite's.
        budget: multiple of the tasks' epochs.
    """
    chosen = SUITES[suite]
    all_seeds = range(chosen.seeds if seeds is None else seeds)
    runs = [
        Run(task, AS_IT_IS, way, seed, budget if WAYS[way].is_trained else 0)
        for seed in all_seeds
        for task in chosen.tasks
        for way in chosen.ways
        if WAYS[way].clusters or TASKS[task].peers_from is None
    ]
    off = [
        Run(task, variation, way, seed, budget)
        for seed in all_seeds
        for task in chosen.tasks
        for variation in TASKS[task].variations
        for way in chosen.off
    ]
    return runs + off


def carry_out(run: Run, data: Path, starts: Path, peer: Peer | None = None) -> dict[str, Any]:
    """Train, and return the run's record for the file of results.

    Args:
        run: what to run.
        data: folder with data.
        starts: folder for trained starts.
        peer: a peer's settings, for tuning; by default those of the way and the task's kind of model.
    """
    task, way = TASKS[run.task], WAYS[run.way]
    peer = way.peers.get(task.model) if peer is None else peer
    changes = {**way.changes, **task.variations.get(run.variation, {})}
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        args = arguments_of(task, folder, run.seed, changes, max(run.budget, 1), 1.0 if peer is None else peer.rate)
        trainer = task.make(PLRTrainer if peer is None else peer.trainer, args, run.seed, data, starts)
        trainer.remove_callback(ProgressDisplay)
        counter = PassCounter(trainer.modality)
        made = time.perf_counter()
        if way.is_trained:
            trainer.train()
        trained, passes = time.perf_counter(), counter.passes
        readout = read_out_trainer(trainer)
    ended = time.perf_counter()
    return {
        **asdict(run),
        "settings": None if peer is None else asdict(peer),
        "readout": {name: rounded(scores) for name, scores in readout.items()},
        "labels": rounded(describe_labels(trainer)),
        "space": trainer.cluster_space.describe() if isinstance(trainer, PLRTrainer) else None,
        "steps": trainer.state.global_step,
        "passes": round(passes, 2),
        "seconds": {
            "train": round(trained - made, 1),
            "readout": round(ended - trained, 1),
            "all": round(ended - started, 1),
        },
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "device": torch.cuda.get_device_name() if trainer.args.device.type == "cuda" else "cpu",
        "commit": find_commit(),
    }


def read_out_trainer(trainer: BaseTrainer) -> dict[str, dict[str, float]]:
    """Read out a trainer's features as they are; "score" has what `trainer.score` tells, on the same features."""
    labelled = extract_labelled(trainer)
    readout = read_out(*labelled)
    if isinstance(trainer.evaluator, FeatureEvaluator):
        return {**readout, "score": score_features(*labelled)}
    return {**readout, "score": trainer.score("end")}


def extract_labelled(trainer: BaseTrainer) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Extract what a read-out takes: features (n, D) of the training samples and their labels, and of the test split.

    The latter are None where there is none.
    """
    assert trainer.evaluator is not None
    labels = trainer.evaluator.true_labels(trainer)
    assert labels is not None
    features = trainer.extract_features().cpu().numpy()
    if not isinstance(trainer.eval_dataset, Dataset):
        return features, labels, None, None
    store = trainer.open_samples(trainer.eval_dataset)
    return features, labels, trainer.extract_features(store).cpu().numpy(), store.true_labels()


def describe_labels(trainer: BaseTrainer) -> dict[str, float]:
    """The last epoch's pseudo-labels against the truth, noise left out; empty where there are none.

    "noise" is the share of samples that are left out, "agreement" the adjusted Rand index with the epoch before, and
    "seconds" those of all stages.
    """
    if not isinstance(trainer, PLRTrainer) or trainer.pseudo_labels is None:
        return {}
    found = trainer.score_labels()  # empty where all samples are noise
    scores = {name: found[name] for name in LABEL_SCORES if found}
    agreements = [entry["plr/agreement_ari"] for entry in trainer.state.log_history if "plr/agreement_ari" in entry]
    return {
        **scores,
        **({"agreement": agreements[-1]} if agreements else {}),
        "clusters": trainer.pseudo_labels.n_clusters,
        "noise": float((trainer.pseudo_labels.labels == NOISE).mean()),
        "seconds": sum(entry.get("plr/seconds", 0.0) for entry in trainer.state.log_history),
    }


def rounded(scores: dict[str, float]) -> dict[str, float]:
    """Four digits after the point."""
    return {name: round(float(value), 4) for name, value in scores.items()}


@functools.cache
def find_commit() -> str:
    """Find the commit of this code, with "-dirty" where files of it were changed; empty outside of a checkout."""
    git = shutil.which("git")
    if git is None:
        return ""
    command = [git, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return found.stdout.strip()


def read_records(path: Path) -> dict[Run, dict[str, Any]]:
    """The records of a file of results, one a line; none where there is no file."""
    if not path.exists():
        return {}
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    identities = (
        (record["task"], record["variation"], record["way"], record["seed"], record.get("budget", 1))
        for record in records
    )
    return {Run(*identity): record for identity, record in zip(identities, records, strict=True)}


def read_all(paths: list[Path]) -> dict[Run, dict[str, Any]]:
    """The records of several files of results; those of a start and of peers stand for every task that has them."""
    records: dict[Run, dict[str, Any]] = {}
    for path in paths:
        records |= read_records(path)
    shared = {
        replace(run, task=task.name): record
        for task in TASKS.values()
        for run, record in records.items()
        if run.task == task.peers_from and run.way in WAYS and not WAYS[run.way].clusters
    }
    return shared | records


def append_record(path: Path, record: dict[str, Any]) -> None:
    """Add a record as one line; several processes may do so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps(record) + "\n")
