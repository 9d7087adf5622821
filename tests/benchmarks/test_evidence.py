"""The evidence: its runs, its tables, and that README and cards show what was recorded."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from helpers.paths import REPOSITORY, SHARED_DATA

from benchmarks.evidence.defaults import off_settings, own_settings, parts
from benchmarks.evidence.runs import agreement, append_record, runs_of
from benchmarks.evidence.summary import interval, summarise
from benchmarks.evidence.tasks import TASKS, arguments_of
from benchmarks.evidence.ways import BASELINE, DEFAULT, SUITES


@pytest.mark.slow
def test_evidence_runs_once_and_prints_paired_differences(tmp_path):
    results = tmp_path / "results.jsonl"
    command = [
        "-m",
        "benchmarks.evidence",
        "--json",
        str(results),
        "--share",
        "0/7",
    ]  # none of seed 0, the default of seed 3
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    for _ in range(2):
        run = subprocess.run(
            [sys.executable, *command], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=600
        )
        assert run.returncode == 0, run.stderr
        assert "| - | none | 1 |" in run.stdout
    records = [json.loads(line) for line in results.read_text().splitlines()]
    assert [(record["way"], record["seed"]) for record in records] == [("none", 0), ("soft x3", 3)]
    for record in records:
        assert len(record["epochs"]) == 12
        assert record["end"]["knn_accuracy"] > record["start"]["knn_accuracy"]
        assert 0 < record["refine_seconds"] < record["stage_seconds"] < record["seconds"]


def test_paired_differences_and_their_intervals(tmp_path):
    results = tmp_path / "results.jsonl"
    for way, scores in {"none": (0.5, 0.7, 0.6), "joint": (0.52, 0.73, 0.61), "slr": (0.4, 0.6, None)}.items():
        for seed, score in enumerate(scores):
            if score is None:
                continue
            record = {"task": "digits", "variation": "-", "way": way, "seed": seed, "score": "knn_accuracy"}
            append_record(results, {**record, "start": {"knn_accuracy": 0.3}, "end": {"knn_accuracy": score}})
    lines = summarise([results]).splitlines()
    assert lines[0] == "**digits**, knn_accuracy, start 0.300"
    assert "| - | joint | 3 | 0.620 | +2.0 [+1.0, +3.0] | +2.0 [+1.0, +3.0] |" in lines
    assert "| - | slr | 2 | 0.500 | -10.0 (2 seeds) | -10.0 (2 seeds) |" in lines  # an interval would look certain
    assert interval(np.zeros(5)) == (0.0, 0.0)


def test_agreement_with_the_truth_by_hand():
    found = agreement(np.array([0, 0, 1, 1]), np.array([0, 0, 0, 1]))
    assert found["precision"] == 0.5  # of the pairs 01 and 23, one is right
    assert found["recall"] == pytest.approx(1 / 3)  # of 01, 02, 12, one is found


def _write_records(path, ends, variation="-", task="digits"):
    for way, scores in ends.items():
        for seed, score in enumerate(scores):
            record = {"task": task, "variation": variation, "way": way, "seed": seed, "score": "knn_accuracy"}
            append_record(path, {**record, "start": {"knn_accuracy": 0.3}, "end": {"knn_accuracy": score}})


def test_the_default_beside_no_refinement(tmp_path):
    results = tmp_path / "results.jsonl"
    _write_records(results, {BASELINE: (0.5, 0.7, 0.6, 0.9), DEFAULT: (0.52, 0.73, 0.61), "joint": (0.9, 0.9, 0.9)})
    assert own_settings([results]).splitlines()[2:] == [
        "| digits, knn_accuracy | 0.300 | 0.600 | 0.620 | +2.0 [+1.0, +3.0] | 3 |"
    ]
    assert off_settings([results]).splitlines()[2:] == []  # there is nothing to compare with
    _write_records(results, {BASELINE: (0.4, 0.6), DEFAULT: (0.5, 0.7)}, variation="K/2")
    assert off_settings([results]).splitlines()[2:] == [
        "| digits, knn_accuracy | - | 0.600 | 0.625 | +2.5 (2 seeds) | 0.0 | 0.0 | 2 |",
        "| digits, knn_accuracy | K/2 | 0.500 | 0.600 | +10.0 (2 seeds) | 10.0 | 2.5 | 2 |",
    ]


def test_what_the_default_is_made_of(tmp_path):
    results = tmp_path / "results.jsonl"
    _write_records(results, {BASELINE: (0.5, 0.7), DEFAULT: (0.52, 0.74), "none x3": (0.51, 0.72), "slr x3": (0.5,)})
    assert parts([results]).splitlines()[2:] == [
        "| digits, knn_accuracy | 1 | +1.0 (1 seed) | +0.0 (1 seed) | +2.0 (1 seed) | +1.0 (1 seed) |"
    ]


def test_readme_and_cards_have_the_tables_of_the_records():
    records = [REPOSITORY / "benchmarks" / "results" / "labelings.jsonl"]
    own = own_settings(records)
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert (REPOSITORY / "model_cards" / "evidence.md").read_text(encoding="utf-8").strip() == own
    for table in (own, parts(records), off_settings(records)):
        assert table in readme


def test_suites_leave_out_what_a_clusterer_cannot_do():
    for suite in SUITES:
        runs = runs_of(suite)
        assert len(runs) == len(set(runs))
        several = {run.task for run in runs if run.way == DEFAULT}
        assert several
        assert not {"omniglot-hdbscan", "omniglot-hdbscan-long"} & several


def test_longer_runs_differ_in_size_alone(tmp_path):
    for name in ("digits", "omniglot", "omniglot-hdbscan", "fashion-mnist", "fsdd", "cifar-5"):
        task, longer = TASKS[name], TASKS[f"{name}-long"]
        assert longer.score == task.score
        changed = {key for key, value in longer.arguments.items() if task.arguments.get(key) != value}
        assert "num_train_epochs" in changed
        assert changed <= {"num_train_epochs", "per_device_train_batch_size", "num_clusters"}
        assert longer.arguments["num_train_epochs"] > task.arguments["num_train_epochs"]
    args = arguments_of(TASKS["digits-long"], str(tmp_path), 0, {"report": "no"})
    assert args.num_train_epochs == 30


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="the real data are not here")
def test_longer_runs_take_all_samples(tmp_path):
    args = arguments_of(TASKS["cifar-5-long"], str(tmp_path), 0, {"report": "no"})
    trainer = TASKS["cifar-5-long"].make(args, 0, SHARED_DATA, tmp_path, [])
    assert len(trainer.train_dataset) == 10_000
    assert trainer.labelings[0].stage.clusterer.n_clusters == 150
