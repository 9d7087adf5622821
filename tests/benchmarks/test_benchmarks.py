"""Benchmarks run and print one line of JSON that fits together; how fast they are is not asserted, machines differ."""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys

import pytest
import torch
from helpers.paths import REPOSITORY

from benchmarks import throughput
from benchmarks.measuring import busy_cores
from benchmarks.scaling.model import MEASURED, Size, peak_bytes


@pytest.fixture
def run_benchmark(monkeypatch, capsys):
    """Run a benchmark in this process; returns the one line of JSON that it prints."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, "--json", *arguments])
        capsys.readouterr()
        threads = torch.get_num_threads()
        try:
            importlib.import_module(f"benchmarks.{name}").main()
        finally:
            torch.set_num_threads(threads)
        (line,) = capsys.readouterr().out.strip().splitlines()
        return json.loads(line)

    return run


@pytest.mark.parametrize(
    ("arguments", "n_clusters"),
    [
        ("--samples 410", [30, 60, 120]),
        ("--model vit_tiny --image_size 32 --bf16 --labelings 1 --clusters 6 --samples 40", [6]),
    ],
)
def test_throughput(run_benchmark, arguments, n_clusters):
    size = ["--steps", "2", "--turns", "1", "--batch_size", "16", "--device", "cpu"]
    result = run_benchmark("throughput", *size, *arguments.split())
    assert result["clusters"] == n_clusters
    assert result["samples"] % 16 == 0  # the last batch of a stock Trainer is as large as the others
    ratio = result["plr_samples_per_second"] / result["stock_samples_per_second"]
    assert result["trainer_ratio_min"] == result["trainer_ratio"] == result["trainer_ratio_max"]
    assert result["trainer_ratio"] == pytest.approx(ratio, rel=2e-3)


def test_throughput_is_of_soft_targets_that_cost_no_time(tmp_path):
    parser = argparse.ArgumentParser()
    throughput.add_arguments(parser)
    args = parser.parse_args(["--samples", "200", "--steps", "10", "--batch_size", "40", "--device", "cpu"])
    ours, _ = throughput.trainers(args, throughput.many_digits(200), str(tmp_path))
    labels = [labeling.pseudo_labels for labeling in ours.labelings]
    assert [each.soft_targets is not None for each in labels] == [True] * 3
    for each in labels:
        assert 0.05 < (each.labels != each.previous_labels).mean() < 0.5
        assert each.refinement["soft_share"] > 0.02
    ours.train()  # of three epochs
    for before, labeling in zip(labels, ours.labelings, strict=True):
        assert labeling.pseudo_labels.soft_targets is before.soft_targets


def test_refinement(run_benchmark):
    result = run_benchmark("refinement", "--samples", "3000", "--clusters", "20", "--turns", "1")
    assert result["same_partition"]
    assert result["kinds"]["local"]["cells"] < result["kinds"]["uniform"]["cells"]
    assert 0.5 < result["kinds"]["uniform"]["folded_agreement"] <= 1


def test_reciprocal(run_benchmark):
    result = run_benchmark("reciprocal", "--samples", "600", "--turns", "1")
    assert result["ari"] == 1.0
    assert result["noise_equal"]


def test_kmeans(run_benchmark):
    result = run_benchmark("kmeans", "--samples", "2000", "--clusters", "20", "--turns", "1", "--busy", "1")
    assert result["busy"] == 1
    assert result["ours_inertia"] == pytest.approx(result["scikit_learn_inertia"], rel=1e-3)
    share = result["ours_gflops"] / result["rate_gflops"]
    assert result["ours_share_of_rate"] == pytest.approx(share, abs=0.06 / result["rate_gflops"] + 1e-3)


def test_busy_cores_are_let_go():
    processes = []

    def interrupt():
        with busy_cores(2) as started:
            processes.extend(started)
            assert [process.poll() for process in processes] == [None, None]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert None not in [process.poll() for process in processes]


def test_seeding(run_benchmark):
    result = run_benchmark("seeding", "--samples", "3000", "--dimension", "16", "--clusters", "30", "--turns", "3")
    assert result["potential_ratio"] == pytest.approx(1.0, abs=0.15)
    assert result["ours_seconds"] > 0


def test_knn(run_benchmark):
    sizes = ["--samples", "2000", "--queries", "200", "--dimension", "16", "--classes", "5", "--turns", "1"]
    result = run_benchmark("knn", *sizes)
    assert {"ours_seconds", "scikit_learn_seconds"} <= result.keys()
    assert result["predicted_alike"] > 0.99


def test_extraction(run_benchmark):
    result = run_benchmark("extraction", "--images", "48", "--image_size", "32", "--turns", "1", "--dtype", "float32")
    assert result["ari"] > 0.9
    assert 0 < result["stage_share_of_epoch"] < 1


def test_audio(run_benchmark):
    result = run_benchmark("audio", "--recordings", "40", "--width", "32", "--layers", "1", "--turns", "1")
    assert result["sorted_padding"] < result["random_padding"]
    assert result["largest_difference"] < 1e-4


def test_scaling_measures_real_processes_beside_the_model(tmp_path):
    output = tmp_path / "scaling.json"
    size = ["--samples", "2000", "--growth", "1", "--columns", "8", "--clusters", "10", "--processes", "2"]
    command = [sys.executable, "-m", "benchmarks.scaling", "--json", str(output), *size]
    command += ["--refinements", "consensus", "--label_shards", "2", "--paper", "1e6", "8", "100", "4"]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=1200)
    assert run.returncode == 0, run.stderr
    assert "| consensus | 2,000 | 2 | 2 |" in run.stdout
    assert "what that means" in run.stdout
    line = json.loads(output.read_text())
    assert line["same_labels"]
    (found,) = line["runs"]
    assert (found["samples"], found["processes"], found["label_shards"]) == (2000, 2, 2)
    model = Size(2000, 8, 10, 2, "consensus", 2, **found["counted"])
    for moment, of_model in MEASURED.items():
        assert found[f"{moment}_mib_model"] == pytest.approx(peak_bytes(model, *of_model) / 2**20, abs=0.01)
    assert found["counted"]["cells"] >= 10
    assert len(found["passes"]) == 7
    assert found["seconds_model"] == pytest.approx(sum(found["parts_model"].values()), abs=1e-4)
    (calculated,) = line["limits"]
    assert calculated["fits"] == {"gpu": True, "machine": True}


def test_scaling_calculates_the_seconds_of_a_stage():
    command = [sys.executable, "-m", "benchmarks.scaling", "--stage", "2e5", "16", "100", "2"]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    lines = [line.rsplit(maxsplit=1) for line in run.stdout.splitlines() if line.startswith("  ")]
    parts = {name.strip(): float(seconds.replace(",", "")) for name, seconds in lines}
    assert {"whitening", "members, products", "consensus, cells", "k-means++, 400 clusters"} < set(parts)
    together = list(parts).index("together")
    assert sum(list(parts.values())[:together]) == pytest.approx(parts["together"], abs=0.6)


def test_parts_of_a_stage(run_benchmark):
    found = run_benchmark("stage", "--samples", "600", "--dimension", "16", "--clusters", "12", "--stages", "2")
    assert list(found["parts"]) == ["whitening", "k-means", "ensemble", "2K and 4K", "consensus", "means"]
    assert all(part["seconds"] >= 0 and part["processor_seconds"] >= 0 for part in found["parts"].values())
    assert found["passes"] >= 1


def test_refinement_over_shards_gives_the_labels_of_one_process(run_benchmark, tmp_path):
    result = run_benchmark(
        "sharded_refinement", "--samples", "5000", "--clusters", "20", "--shards", "3", "--directory", str(tmp_path)
    )
    assert result["same_labels"] is True
    assert result["shards_summary"] == result["one_summary"]
    assert result["shards_summary"].startswith("5,000 samples in")
    assert list(tmp_path.iterdir()) == []
