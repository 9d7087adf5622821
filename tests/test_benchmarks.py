"""Benchmarks run and print one line of JSON; what they measure is not asserted, machines differ."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import REPOSITORY

from benchmarks.evidence.runs import agreement, append_record
from benchmarks.evidence.summary import interval, summarise


def run_benchmark(name, *arguments):
    """The one line of JSON that a benchmark prints."""
    command = [sys.executable, "-m", f"benchmarks.{name}", "--json", *arguments]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    assert len(run.stdout.strip().splitlines()) == 1
    return json.loads(run.stdout)


@pytest.mark.slow
def test_throughput_prints_one_line_of_json():
    result = run_benchmark("throughput", "--steps", "2", "--turns", "2")
    assert result["trainer_ratio"] > 0
    assert result["trainer_ratio_min"] <= result["trainer_ratio"] <= result["trainer_ratio_max"]


def test_refinement_prints_one_line_of_json():
    result = run_benchmark("refinement", "--samples", "3000", "--clusters", "20", "--turns", "1")
    assert result["same_partition"]
    assert result["kinds"]["local"]["cells"] < result["kinds"]["uniform"]["cells"]
    assert 0 < result["kinds"]["uniform"]["folded_agreement"] <= 1


def test_reciprocal_prints_one_line_of_json():
    result = run_benchmark("reciprocal", "--samples", "600", "--turns", "1")
    assert result["ari"] == 1.0
    assert result["noise_equal"]


@pytest.mark.slow
def test_kmeans_prints_one_line_of_json():
    result = run_benchmark("kmeans", "--samples", "2000", "--clusters", "20", "--turns", "1")
    assert result["ours_inertia"] == pytest.approx(result["scikit_learn_inertia"], rel=1e-3)
    assert result["ours_share_of_rate"] > 0


@pytest.mark.slow
def test_extraction_prints_one_line_of_json():
    result = run_benchmark("extraction", "--images", "48", "--image_size", "32", "--turns", "1", "--dtype", "float32")
    assert result["ari"] > 0.9
    assert 0 < result["stage_share_of_epoch"] < 1


def test_scaling_measures_real_processes_beside_the_model(tmp_path):
    output = tmp_path / "scaling.json"
    size = ["--samples", "2000", "--growth", "1", "--columns", "8", "--clusters", "10", "--processes", "2"]
    command = [sys.executable, "-m", "benchmarks.scaling", "--json", str(output), *size]
    command += ["--paper", "1e6", "8", "100", "4"]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    assert "| 2,000 | 2 |" in run.stdout
    assert "what that means" in run.stdout
    line = json.loads(output.read_text())
    assert line["same_labels"]
    (found,) = line["runs"]
    assert (found["samples"], found["processes"]) == (2000, 2)
    for figure in ("clustering_mib", "labelling_mib", "training_mib", "seconds"):
        assert found[figure] >= 0
        assert found[f"{figure}_model"] > 0
    assert line["limits"]["fits"] == {"gpu": True, "machine": True}


def test_audio_prints_one_line_of_json():
    result = run_benchmark("audio", "--recordings", "40", "--width", "32", "--layers", "1", "--turns", "1")
    assert result["sorted_padding"] < result["random_padding"]
    assert result["largest_difference"] < 1e-4
    assert result["sorted_over_random"] > 0


@pytest.mark.slow
def test_evidence_runs_once_and_prints_paired_differences(tmp_path):
    results = tmp_path / "results.jsonl"
    command = ["-m", "benchmarks.evidence", "--json", str(results), "--share", "0/7"]  # none of seed 0, joint of seed 3
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    for _ in range(2):
        run = subprocess.run(
            [sys.executable, *command], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=600
        )
        assert run.returncode == 0, run.stderr
        assert "| - | none | 1 |" in run.stdout
    records = [json.loads(line) for line in results.read_text().splitlines()]
    assert [(record["way"], record["seed"]) for record in records] == [("none", 0), ("joint", 3)]
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
