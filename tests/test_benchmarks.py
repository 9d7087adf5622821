"""Benchmarks run and print one line of JSON; what they measure is not asserted, machines differ."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from conftest import REPOSITORY


@pytest.mark.slow
def test_throughput_prints_one_line_of_json():
    command = [sys.executable, "-m", "benchmarks.throughput", "--json", "--steps", "2", "--turns", "2"]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    assert len(run.stdout.strip().splitlines()) == 1
    result = json.loads(run.stdout)
    assert result["trainer_ratio"] > 0
    assert result["trainer_ratio_min"] <= result["trainer_ratio"] <= result["trainer_ratio_max"]


def test_refinement_prints_one_line_of_json():
    command = [sys.executable, "-m", "benchmarks.refinement", "--json", "--samples", "3000", "--clusters", "20"]
    run = subprocess.run([*command, "--turns", "1"], cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    assert len(run.stdout.strip().splitlines()) == 1
    result = json.loads(run.stdout)
    assert result["same_partition"]
    assert result["kinds"]["local"]["cells"] < result["kinds"]["uniform"]["cells"]
    assert 0 < result["kinds"]["uniform"]["folded_agreement"] <= 1


def test_reciprocal_prints_one_line_of_json():
    command = [sys.executable, "-m", "benchmarks.reciprocal", "--json", "--samples", "600", "--turns", "1"]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    assert len(run.stdout.strip().splitlines()) == 1
    result = json.loads(run.stdout)
    assert result["ari"] == 1.0
    assert result["noise_equal"]
