"""The evidence: its runs, its tables, and that README and docs show what was recorded."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from helpers.paths import REPOSITORY, SHARED_DATA
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_1samp

from benchmarks import adaptation, whitened
from benchmarks.evidence.defaults import DEFAULT, off_settings, own_settings, parts
from benchmarks.evidence.peers import PEERS
from benchmarks.evidence.runs import Run, append_record, read_all, read_records, runs_of
from benchmarks.evidence.summary import BETTER, FURTHER_PEERS, brief, interval, overview, summarise
from benchmarks.evidence.tasks import TASKS, arguments_of, draw_samples
from benchmarks.evidence.tuning import SEED, grid, merit, report
from benchmarks.evidence.ways import BASELINE, FROZEN, SUITES, TUNED
from benchmarks.novelty import draw_kept
from hf_plr import PLRTrainer


@pytest.mark.slow
def test_evidence_runs_once_and_prints_paired_differences(tmp_path):
    results = tmp_path / "results.jsonl"
    command = ["-m", "benchmarks.evidence", "--seeds", "1", "--json", str(results)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    for _ in range(2):
        run = subprocess.run(
            [sys.executable, *command], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=600
        )
        assert run.returncode == 0, run.stderr
        assert "| data | frozen | none | auto | seeds |" in run.stdout
    frozen, none, auto = (json.loads(line) for line in results.read_text().splitlines())
    assert [record["way"] for record in (frozen, none, auto)] == ["frozen", "none", "auto"]
    assert frozen["passes"] == frozen["budget"] == 0
    assert frozen["labels"] == {}
    for record in (none, auto):
        assert record["readout"]["centered"]["knn"] > frozen["readout"]["centered"]["knn"]
        assert record["labels"]["clusters"] == 64
        assert 0 < record["labels"]["seconds"] < record["seconds"]["train"]


def _write_runs(path, scores, task="digits", variation="-", budget=1):
    for way, by_seed in scores.items():
        for seed, score in enumerate(by_seed):
            labels = dict.fromkeys(("purity", "pair_precision", "pair_recall", "pair_f1", "nmi", "ari"), score)
            record = {"task": task, "variation": variation, "way": way, "seed": seed}
            record["budget"] = 0 if way == FROZEN else budget
            record["readout"] = {"centered": {"knn": score}, "white": {"knn": score + 0.1}}
            is_labelled = way in ("none", "auto")
            record["labels"] = {**labels, "noise": 0.0, "clusters": 64} if is_labelled else {}
            append_record(path, record)


def test_paired_differences_and_their_intervals(tmp_path):
    results = tmp_path / "results.jsonl"
    scores = {"frozen": (0.3,) * 3, "none": (0.5, 0.7, 0.6), "auto": (0.52, 0.73, 0.61), "simclr": (0.6, 0.8)}
    _write_runs(results, scores)
    text = summarise([results])
    assert "| data | frozen | none | auto | simclr | seeds |" in text
    assert "| digits | 0.300 | 0.600 | 0.620 | 0.700 | 2-3 |" in text
    # An interval of two seeds would look certain.
    assert "| digits | +32.0 [+5.8, +58.2] | +2.0 [-0.5, +4.5] | -7.5 (2 seeds) |" in text
    assert "| digits | purity | 0.600 | 0.620 | +2.0 [-0.5, +4.5] |" in text
    assert "| digits | clusters | 64 | 64 |  |" in text
    assert "in no cluster" not in text
    assert "off settings" not in text
    assert "| digits | 0.400 | 0.700 | 0.720 | 0.800 | 2-3 |" in summarise([results], "white")
    assert interval(np.zeros(5)) == (0.0, 0.0)


@given(st.lists(st.integers(-1_000, 1_000), min_size=2, max_size=10))
def test_intervals_are_those_of_the_t_test(tenths):
    values = np.array(tenths) / 10  # as differences in points are; hardly equal ones cost the t-test its precision
    low, high = interval(values)
    expected = ttest_1samp(values, 0.0).confidence_interval(0.95) if np.ptp(values) else (values[0], values[0])
    assert (low, high) == pytest.approx(tuple(expected), rel=1e-6, abs=1e-9)


def test_loss_at_off_settings_against_the_own_best(tmp_path):
    results = tmp_path / "results.jsonl"
    _write_runs(results, {"none": (0.5, 0.7, 0.6), "auto": (0.6, 0.7)})
    _write_runs(results, {"none": (0.4, 0.6), "auto": (0.7, 0.8), "simclr": (0.1, 0.1)}, variation="K/2")
    text = summarise([results])
    assert "| digits | - | 0.600 | 0.650 | +5.0 (2 seeds) | 0.0 | 10.0 | 2 |" in text
    assert "| digits | K/2 | 0.500 | 0.750 | +25.0 (2 seeds) | 10.0 | 0.0 | 2 |" in text


def test_budgets_have_tables_of_their_own(tmp_path):
    results = tmp_path / "results.jsonl"
    _write_runs(results, {"frozen": (0.1,), "auto": (0.5,), "none": (0.4,)})
    _write_runs(results, {"auto": (0.9,), "none": (0.8,)}, budget=3)
    text = summarise([results])
    assert "| digits | 0.100 | 0.400 | 0.500 | 1 |" in text
    assert "| digits | 0.100 | 0.800 | 0.900 | 1 |" in text
    _write_runs(results, {"frozen": (0.2,), "auto": (0.6,), "none": (0.5,)}, task="cifar-5")
    assert summarise([results]).count("| cifar-5 | 0.200 |") == 1  # nothing of it has three times the passes


def test_the_grid_has_every_peer_on_a_seed_of_its_own(tmp_path):
    runs = grid()
    for task in ("digits", "cifar-5"):
        found = {peer for run, peer in runs.items() if run.task == task}
        assert len(found) == 2 * 9 + 3 * 3
        assert set(TUNED[TASKS[task].model].values()) <= found
    assert {run.seed for run in runs} == {SEED}
    assert all(run.seed < SEED for suite in SUITES for run in runs_of(suite))
    results = tmp_path / "tuning.jsonl"
    for run in runs:
        if (run.task, run.way) == ("digits", "byol"):
            scores = {"knn": 0.8 if run.variation == "3lr" else 0.7, "linear": 0.9}
            record = {"task": run.task, "variation": run.variation, "way": run.way, "seed": run.seed, "budget": 1}
            append_record(results, {**record, "readout": {"centered": scores}})
    assert "| digits | byol | **3lr** | 0.800 | 0.900 | 0.850 |" in report([results])


def test_peers_have_the_settings_that_were_best_in_the_grid():
    records = read_records(REPOSITORY / "benchmarks" / "results" / "tuning.jsonl")
    chosen = 0
    for task, way in dict.fromkeys((run.task, run.way) for run in grid()):
        runs = [run for run in grid() if (run.task, run.way) == (task, way)]
        if all(run in records for run in runs):  # others are not decided yet
            best = max(runs, key=lambda run: merit(records[run]))
            assert grid()[best] == TUNED[TASKS[task].model][way]
            chosen += 1
    assert chosen >= 4


def _write_records(path, ends, variation="-", task="digits"):
    for way, scores in ends.items():
        for seed, score in enumerate(scores):
            record = {"task": task, "variation": variation, "way": way, "seed": seed, "score": "knn_accuracy"}
            append_record(path, {**record, "start": {"knn_accuracy": 0.3}, "end": {"knn_accuracy": score}})


def test_the_default_beside_no_refinement(tmp_path):
    results = tmp_path / "results.jsonl"
    _write_records(results, {BASELINE: (0.5, 0.7, 0.6, 0.9), DEFAULT: (0.52, 0.73, 0.61), "joint": (0.9, 0.9, 0.9)})
    assert own_settings([results]).splitlines()[2:] == [
        "| digits, knn_accuracy | 0.300 | 0.600 | 0.620 | +2.0 [-0.5, +4.5] | 3 |"
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


def test_the_brief_table_has_the_means_over_shared_seeds(tmp_path):
    results = tmp_path / "results.jsonl"
    scores = {"frozen": (0.3,) * 3, "none": (0.5, 0.7, 0.6), "auto": (0.52, 0.73, 0.61), "simclr": (0.6, 0.8)}
    for way, by_seed in scores.items():
        for seed, score in enumerate(by_seed):
            record = {"task": "digits", "variation": "-", "way": way, "seed": seed, "labels": {}}
            record["budget"] = 0 if way == FROZEN else 1
            record["readout"] = {"centered": {"knn": score, "linear": score + 0.1, "nmi": score - 0.1}}
            append_record(results, record)
    assert brief([results]).splitlines() == [
        "| data | start | no refinement | SimCLR | VICReg | auto | seeds |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| digits | .300 / .400 / .200 | .600 / .700 / .500 | .700 / .800 / .600 |  | .625 / .725 / .525 | 2 |",
    ]


def test_each_way_is_read_out_in_the_space_that_suits_it_better(tmp_path):
    results = tmp_path / "results.jsonl"
    scores = {"auto": ((0.7, 0.8), (0.6, 0.6)), "simclr": ((0.5, 0.5), (0.4, 0.9))}  # centered, then white
    for way, (centered, white) in scores.items():
        for seed in range(2):
            record = {"task": "digits", "variation": "-", "way": way, "seed": seed, "budget": 1, "labels": {}}
            record["readout"] = {"centered": {"knn": centered[seed]}, "white": {"knn": white[seed]}}
            append_record(results, record)
    for space, row in {
        "centered": "|  |  | 0.500 |  | 0.750 |  | +25.0 (2 seeds) |  | 2 |",
        "white": "|  |  | 0.650 |  | 0.600 |  | -5.0 (2 seeds) |  | 2 |",
        BETTER: "|  |  | 0.650 |  | 0.750 |  | +10.0 (2 seeds) |  | 2 |",  # all seeds of a way in one space
    }.items():
        assert overview([results], space=space).splitlines()[2:] == [f"| digits, kNN (5) {row}"]


def test_docs_have_the_tables_of_the_records():
    results = REPOSITORY / "benchmarks" / "results"
    explanation = REPOSITORY / "docs" / "explanation"
    old, records = [results / "labelings.jsonl"], [results / "peers.jsonl"]
    page = (explanation / "evidence_of_0.1.md").read_text(encoding="utf-8")
    for table in (own_settings(old), parts(old), off_settings(old)):
        assert table in page
    assert summarise(records) in (explanation / "evidence.md").read_text(encoding="utf-8")
    page = (explanation / "does_it_help.md").read_text(encoding="utf-8")
    assert overview(records) in page
    assert overview(records, from_seed=5) in page
    assert overview(records, space=BETTER) in page
    assert overview(records, choices=FURTHER_PEERS) in page
    assert whitened.summarise(results / "whitened.jsonl") in page
    assert brief(records) in (REPOSITORY / "README.md").read_text(encoding="utf-8")


def test_suites_have_each_run_once():
    for suite, chosen in SUITES.items():
        runs = runs_of(suite, seeds=2, budget=3)
        assert len(runs) == len(set(runs))
        assert {run.seed for run in runs} == {0, 1}
        assert all(run.budget == (0 if run.way == FROZEN else 3) for run in runs)
        assert set(chosen.off) <= set(chosen.ways)
    assert {*PEERS, BASELINE, "auto", FROZEN} <= set(SUITES["cpu"].ways)


def test_a_start_and_peers_are_run_once_for_tasks_that_differ_in_the_clusterer(tmp_path):
    for suite, chosen in SUITES.items():
        runs = {(run.task, run.way) for run in runs_of(suite)}
        for task in map(TASKS.get, chosen.tasks):
            own = {way for way in chosen.ways if (task.name, way) in runs}
            assert (own == set(chosen.ways)) is (task.peers_from is None)
            assert own | {FROZEN, *PEERS} >= set(chosen.ways)
    records = read_records(REPOSITORY / "benchmarks" / "results" / "peers.jsonl")
    path = tmp_path / "some.jsonl"
    append_record(path, records[Run("omniglot", "-", "simclr", 0)])
    append_record(path, records[Run("omniglot", "-", "auto", 0)])
    found = read_all([path])
    first, second = Run("omniglot", "-", "simclr", 0), Run("omniglot-hdbscan", "-", "simclr", 0)
    assert set(found) == {first, second, Run("omniglot", "-", "auto", 0)}
    assert found[first] == found[second]


def test_longer_runs_differ_in_size_alone(tmp_path):
    for name in SUITES["cpu"].tasks:
        task, longer = TASKS[name], TASKS[f"{name}-long"]
        assert longer.model == task.model
        changed = {key for key, value in longer.arguments.items() if task.arguments.get(key) != value}
        assert "num_train_epochs" in changed
        assert changed <= {"num_train_epochs", "per_device_train_batch_size", "num_clusters"}
        assert longer.arguments["num_train_epochs"] > task.arguments["num_train_epochs"]
    args = arguments_of(TASKS["digits-long"], str(tmp_path), 0, {"report": "no"})
    assert args.num_train_epochs == 30


@pytest.mark.parametrize(
    ("n_rows", "n", "first", "total"),
    [(10_000, 2_000, [1, 2, 6, 21, 22], 10_164_832), (2_000, 1_000, [0, 2, 5, 8, 10], 1_011_349)],
)
def test_a_task_has_the_samples_of_its_records(n_rows, n, first, total):
    rows = draw_samples(n_rows, n)
    assert (rows[:5].tolist(), rows.sum(), len(np.unique(rows))) == (first, total, n)
    assert draw_samples(n, n).tolist() == list(range(n))


def test_new_classes_are_looked_for_among_the_samples_of_the_records():
    rows = draw_kept(2_024, 2_000)
    assert sorted({*range(2_024)} - {*rows.tolist()})[:5] == [7, 29, 104, 176, 184]
    assert (len(rows), rows.sum()) == (2_000, np.arange(2_024).sum() - 21_463)
    assert draw_kept(1_995, 2_000).tolist() == list(range(1_995))


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="the real data are not here")
def test_longer_runs_take_all_samples(tmp_path):
    args = arguments_of(TASKS["cifar-5-long"], str(tmp_path), 0, {"report": "no"})
    trainer = TASKS["cifar-5-long"].make(PLRTrainer, args, 0, SHARED_DATA, tmp_path)
    assert len(trainer.train_dataset) == 10_000
    assert [labeling.stage.n_sought for labeling in trainer.labelings] == [150, 300, 600]


def test_the_page_on_adapters_has_the_table_of_its_records():
    records = adaptation.read(REPOSITORY / "benchmarks" / "results" / "adaptation.jsonl")
    page = (REPOSITORY / "docs" / "explanation" / "lora.md").read_text(encoding="utf-8")
    assert adaptation.summarise(records) in page
