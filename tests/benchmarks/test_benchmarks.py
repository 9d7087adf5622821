"""Benchmarks run and print one line of JSON; what they measure is not asserted, machines differ."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from helpers.paths import REPOSITORY


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
