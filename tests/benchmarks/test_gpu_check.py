"""The checks of a machine with a GPU: what carries them out, a few on a CPU, and that they can fail."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import warnings
from types import SimpleNamespace

import pytest
import torch
from helpers.paths import REPOSITORY

from benchmarks.gpu_check import clustering_checks, function_checks, training_checks
from benchmarks.gpu_check.__main__ import main
from benchmarks.gpu_check.checks import CHECKS
from benchmarks.gpu_check.findings import Bench, Check, Findings, Skipped, carry_out
from benchmarks.gpu_check.launching import LaunchError, run
from benchmarks.gpu_check.supervisor import Record, run_checks, supervise
from hf_plr import KMeans
from hf_plr.clustering.exact_sums import ClusterSums
from hf_plr.pseudo_labels.prototypes import PrototypeMemory

CPU = torch.device("cpu")
NAMES = [check.name for check in CHECKS]


@pytest.fixture
def bench(tmp_path) -> Bench:
    return Bench(CPU, is_quick=True, folder=tmp_path)


def check(name, run, seconds=1):
    return Check(name, run, seconds=100 * seconds, quick_seconds=seconds)


def outcomes(record):
    return {each["name"]: each["passed"] for each in record.content["checks"]}


# ---- one check -----------------------------------------------------------------------------------------------------


def test_values_are_held_against_their_bounds(bench):
    def run(bench, findings):
        findings.report("only reported", 1.23456789)
        findings.expect("inside", 0.5, at_least=0.5, at_most=1)
        findings.expect("without a bound here", 7.0, at_most=1, unless="this is a CPU")
        findings.expect("outside", 0.49, at_least=0.5)
        findings.expect("not a number", float("nan"), at_most=1)

    found = carry_out(check("name", run), bench)
    assert found["name"] == "name"
    assert found["passed"] is False
    assert found["value"]["only reported"] == 1.235
    assert found["value"]["not a number"] == "nan"
    assert found["bound"] == {"inside": ">= 0.5 and <= 1", "outside": ">= 0.5", "not a number": "<= 1"}
    words = "outside its bound: outside, not a number; without a bound here: no bound, this is a CPU"
    assert found["note"] == words
    assert found["seconds"] >= 0
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("error", "passed", "note"),
    [
        (ZeroDivisionError("by zero"), False, "ZeroDivisionError: by zero"),
        (SystemExit("error: no data"), False, "SystemExit: error: no data"),
        (Skipped("this card has no bfloat16"), None, "this card has no bfloat16"),
    ],
)
def test_a_check_that_raises_keeps_what_it_found(bench, error, passed, note):
    def run(bench, findings):
        findings.expect("rate", 2.0, at_least=1)
        raise error

    found = carry_out(check("raises", run), bench)
    assert (found["passed"], found["note"], found["value"]) == (passed, note, {"rate": 2.0})


def test_a_check_that_is_skipped_after_a_bound_was_missed_has_failed(bench):
    def run(bench, findings):
        findings.expect("rate", 0.0, at_least=1)
        raise Skipped("no more here")

    assert carry_out(check("both", run), bench)["passed"] is False


# ---- one after the other -------------------------------------------------------------------------------------------


def test_a_failure_stops_nothing_and_the_file_is_written_after_each(bench, tmp_path):
    path = tmp_path / "found.json"
    seen = []

    def fail(bench, findings):
        raise RuntimeError("CUDA error")

    def look(bench, findings):
        content = json.loads(path.read_text())
        seen.append((outcomes(SimpleNamespace(content=content)), content["running"]["name"]))

    record = Record(path, {"card": "none"})
    checks = [check("first", fail), check("second", look), check("third", look)]
    assert run_checks(checks, bench, record, deadline=time.time() + 60)
    assert seen == [({"first": False}, "second"), ({"first": False, "second": True}, "third")]
    content = json.loads(path.read_text())
    assert (content["passed"], content["failed"], content["skipped"], content["card"]) == (2, 1, 0, "none")
    assert "running" not in content
    assert [file.name for file in tmp_path.iterdir()] == ["found.json"]


def test_what_no_longer_fits_the_budget_is_skipped_and_says_so(bench):
    def run(bench, findings):
        findings.report("ran", 1)

    record = Record(None)
    checks = [check("long", run, seconds=500), check("short", run, seconds=5)]
    run_checks(checks, bench, record, deadline=time.time() + 60)
    long, short = record.content["checks"]
    assert (long["passed"], short["passed"]) == (None, True)
    assert long["note"].startswith("skipped: it takes about 500 s, and ")
    assert long["value"] == {}


def test_a_device_that_is_of_no_use_any_more_ends_the_process(bench):
    def fail(bench, findings):
        raise RuntimeError("illegal memory access")

    record = Record(None)
    both = [check("first", fail), check("second", fail)]
    assert not run_checks(both, bench, record, time.time() + 60, is_usable=lambda bench: False)
    assert run_checks([check("first", fail)], bench, Record(None), time.time() + 60)
    assert outcomes(record) == {"first": False}


# ---- processes that end before their time --------------------------------------------------------------------------

# Carries out what the file lacks, as the package does, without importing torch.
WORKER = """
import json, os, signal, sys, time
from pathlib import Path
path, names = Path(sys.argv[1]), sys.argv[2:]
content = json.loads(path.read_text())
done = [each["name"] for each in content["checks"]]


def write():
    path.with_suffix(".tmp").write_text(json.dumps(content))
    path.with_suffix(".tmp").replace(path)


if "never begins" in names and "never begins" not in done and "dies" in done:
    sys.exit(3)
for name in names:
    if name in done:
        continue
    content["running"] = {"name": name, "since": time.time()}
    write()
    if name == "dies":
        os.kill(os.getpid(), signal.SIGSEGV)
    while name == "hangs":
        time.sleep(1)
    del content["running"]
    content["checks"].append({"name": name, "passed": True, "seconds": 0.0})
    write()
    if name == "asks for a new process":
        sys.exit(75)
"""


def supervised(tmp_path, *names, least_patience=60.0, budget=60.0):
    path = tmp_path / "found.json"
    Record(path).write()
    shown = []
    command = [sys.executable, "-c", WORKER, str(path), *names]
    checks = [check(name, lambda *_: None, seconds=0) for name in names]
    record = supervise(command, checks, path, True, time.time() + budget, least_patience, shown.append)
    assert set(record.names) == set(names)
    return record, {each["name"]: each["note"] for each in shown}


def test_a_check_whose_process_dies_has_failed_and_the_others_go_on(tmp_path):
    record, notes = supervised(tmp_path, "fine", "dies", "never begins", "asks for a new process", "last")
    assert outcomes(record) == {
        **{"fine": True, "dies": False, "never begins": False},
        **{"asks for a new process": True, "last": True},
    }
    assert notes == {
        "dies": "its process was ended by SIGSEGV",
        "never begins": "its process ended by status 3 before it began",
    }


def test_a_check_that_hangs_is_ended(tmp_path):
    record, notes = supervised(tmp_path, "hangs", "last", least_patience=1.0)
    assert outcomes(record) == {"hangs": False, "last": True}
    assert notes == {"hangs": "no end after 1 s"}


def test_a_check_that_runs_when_the_budget_is_used_up_is_ended(tmp_path):
    _, notes = supervised(tmp_path, "hangs", budget=-59.5)
    assert notes == {"hangs": "no end when the budget was used up"}


def test_a_launch_that_takes_too_long_is_ended_with_all_its_processes(tmp_path):
    child = "import time; time.sleep(60)"
    parent = f"import subprocess, sys; print('started', flush=True); subprocess.run([sys.executable, '-c', {child!r}])"
    started = time.monotonic()
    with pytest.raises(LaunchError, match=r"(?s)no end after 2 s: .*started"):
        run([sys.executable, "-c", parent], timeout=2)
    assert time.monotonic() - started < 30
    with pytest.raises(LaunchError, match="ended with 3: "):
        run([sys.executable, "-c", "raise SystemExit(3)"], timeout=60)
    assert run([sys.executable, "-c", "raise SystemExit(3)"], timeout=60, fails=True).status == 3


# ---- the command ---------------------------------------------------------------------------------------------------


def test_a_launched_recipe_finds_what_the_caller_finds(tmp_path, monkeypatch):
    (tmp_path / "only_here.py").write_text("FOUND = 'found it'")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    words = "import hf_plr, only_here; print(only_here.FOUND)"
    assert "found it" in run([sys.executable, "-c", words], timeout=100).output


def test_the_list_has_all_checks_in_their_order(capsys):
    main(["--list"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == NAMES
    assert len(NAMES) == 20
    assert all(len(line.split(" s  ")[1]) > 20 for line in lines)


def test_without_a_gpu_a_dry_run_is_offered(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no GPU that torch can use: --device cpu --quick is a dry run"):
        main(["--json", str(tmp_path / "found.json")])
    assert not list(tmp_path.iterdir())


def test_a_few_cheap_checks_pass_on_a_cpu(tmp_path, capsys):
    path = tmp_path / "found.json"
    names = ["machine", "exact_sums", "kmeans_labels", "kmeans_rate"]
    Record(path, {"device": "cpu"}).write()
    deadline = str(time.time() + 600)
    words = ["--device", "cpu", "--quick", "--json", str(path), "--only", *names, "--worker", deadline]
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 0
    record = Record.read(path)
    assert outcomes(record) == dict.fromkeys(names, True)
    assert record.content["machine"]["device"] == "cpu"
    assert "ways_that_differ: 0   (<= 0)" in capsys.readouterr().out
    found = {each["name"]: each for each in record.content["checks"]}
    assert found["exact_sums"]["value"]["ways"] == 3
    assert "no bound, this is a CPU" in found["kmeans_rate"]["note"]


def test_a_run_goes_on_in_its_file(tmp_path, monkeypatch):
    path = tmp_path / "found.json"
    command = [sys.executable, "-c", WORKER, str(path)]
    module = "benchmarks.gpu_check.__main__"
    started = []

    def supervise_quickly(given, checks, *args):
        started.append([each.name for each in checks if each.name not in Record.read(path).names])
        return supervise([*command, *(each.name for each in checks)], checks, *args)

    monkeypatch.setattr(f"{module}.supervise", supervise_quickly)
    quick = ["--device", "cpu", "--quick", "--json", str(path)]

    def call(*words):
        with pytest.raises(SystemExit) as ended:
            main([*quick, *words])
        return ended.value.code

    assert call("--only", "machine", "exact_sums") == 0
    content = Record.read(path).content
    assert {"torch", "cuda", "transformers", "accelerate", "hf-plr", "commit"} <= set(content["versions"])
    content["checks"][1]["passed"] = None
    path.write_text(json.dumps(content))
    assert call("--append", "--only", "machine", "seeding") == 0
    assert started == [["machine", "exact_sums"], ["machine", "seeding"]]
    assert call("--append") == 0
    assert started[2] == [name for name in NAMES if name not in ("machine", "seeding")]
    assert Record.read(path).content["passed"] == 20
    content["checks"] = [{"name": "machine", "passed": False, "seconds": 0.0, "value": {}, "bound": {}, "note": ""}]
    path.write_text(json.dumps(content))
    assert call("--append", "--only", "seeding") == 1
    path.write_text(json.dumps(content | {"quick": False}))
    assert call("--append") == f"--append: {path} is of quick False, and this run of True"


@pytest.mark.slow
def test_a_dry_run_of_all_checks_passes(tmp_path):
    path = tmp_path / "found.json"
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--device", "cpu", "--quick", "--json", str(path)]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=880)
    assert ended.returncode == 0, ended.stdout[-5000:] + ended.stderr[-2000:]
    content = json.loads(path.read_text())
    assert [each["name"] for each in content["checks"]] == NAMES
    assert [each["name"] for each in content["checks"] if each["passed"] is not True] == []
    assert content["versions"]["commit"]


# ---- checks that fail where they should ----------------------------------------------------------------------------


def test_sums_that_round_are_found(bench, monkeypatch):
    def add(self, rows, labels, sign=1):
        self._sums.index_add_(0, labels % len(self._counts), rows.double().div(3.0), alpha=sign)
        self._counts.index_add_(0, labels % len(self._counts), torch.full_like(labels, sign))

    monkeypatch.setattr(ClusterSums, "add", add)
    found = carry_out(check("exact_sums", clustering_checks.check_exact_sums), bench)
    assert found["passed"] is False
    assert found["value"]["ways_that_differ"] == 2


def test_labels_that_depend_on_the_shard_are_found(bench, monkeypatch):
    fit = KMeans.fit

    def shard_fit(self, features, y=None):
        fitted = fit(self, features, y)
        fitted.labels_[0] = (fitted.labels_[0] + 1) % self.n_clusters
        return fitted

    monkeypatch.setattr(KMeans, "fit", shard_fit)
    found = carry_out(check("kmeans_labels", clustering_checks.check_kmeans_labels), bench)
    assert found["passed"] is False
    assert found["value"]["share_unlike_in_three_shards"] > 0


def test_seeds_that_are_drawn_alike_are_found(bench, monkeypatch):
    def init_centers(self, rows, start, total, accelerator=None):
        if isinstance(self.init, str):
            return rows.take(torch.arange(self.n_clusters))
        return torch.as_tensor(self.init)

    monkeypatch.setattr(KMeans, "init_centers", init_centers)
    found = carry_out(check("seeding", clustering_checks.check_seeding), bench)
    assert found["passed"] is False
    assert found["value"]["potential_over_scikit_learn"] > 1.05


def test_a_function_that_differs_between_devices_is_found(bench, monkeypatch):
    calls = []

    def differs(device):
        calls.append(device)
        return {"same": torch.ones(3), "other": torch.full((3,), 1.0 + 2e-5 * len(calls))}

    def fails(device):
        raise RuntimeError("not implemented for 'Half'")

    functions = {"differs": (differs, 1e-5), "fails": (fails, 1e-5)}
    monkeypatch.setattr(function_checks, "FUNCTIONS", functions)
    found = carry_out(check("functions", function_checks.check_functions), bench)
    assert found["passed"] is False
    assert found["value"]["differs"] == pytest.approx(2e-5, rel=0.1)
    assert found["value"]["fails"] == "nan"
    assert "differs: most in 'other'" in found["note"]
    assert "fails: RuntimeError: not implemented for 'Half'" in found["note"]


@pytest.mark.parametrize(
    ("found", "expected", "error"),
    [
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5]), 0.2),
        (torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 3, 5]), 0.25),
        (torch.ones(2), torch.ones(3), float("inf")),
        (torch.ones(2).double(), torch.ones(2), float("inf")),
        (torch.tensor([float("nan")]), torch.tensor([float("nan")]), float("inf")),
        (torch.empty(0), torch.empty(0), 0.0),
        (0.5, 0.5, 0.0),
    ],
)
def test_the_largest_error(found, expected, error):
    assert function_checks.largest_error(found, expected) == pytest.approx(error)


def test_waits_for_the_device_are_found(bench, monkeypatch):
    update = PrototypeMemory.update

    def waiting_update(self, features, *args):
        for column in features.T[:3]:
            column[column > 0].unique()
        update(self, features, *args)

    monkeypatch.setattr(PrototypeMemory, "update", waiting_update)
    found = carry_out(check("synchronisations", training_checks.check_synchronisations), bench)
    assert found["passed"] is False
    assert found["value"]["waits_beyond_stock"] == 6
    assert "_unique2" in found["note"]


def test_operations_that_wait_are_counted_in_both_directions():
    waits = []
    with training_checks.count_waiting_operations(waits):
        values = torch.arange(6.0, requires_grad=True)
        (values * 2).sum().backward()
        assert waits == []
        float(values.detach().sum())
        values[values > 2]
        values[torch.tensor([1, 2])]
        torch.nonzero(values)
    assert waits == ["_local_scalar_dense", "index", "nonzero"]


def test_the_busy_share_of_overlapping_kernels():
    def event(start, end, device=torch.autograd.DeviceType.CUDA, is_user_annotation=False):
        span = SimpleNamespace(start=start, end=end)
        return SimpleNamespace(time_range=span, device_type=device, is_user_annotation=is_user_annotation)

    events = [event(10, 20), event(15, 30), event(50, 60), event(0, 100, is_user_annotation=True)]
    events.append(event(0, 100, torch.autograd.DeviceType.CPU))
    assert training_checks.busy_share(SimpleNamespace(events=lambda: events)) == pytest.approx(30 / 50)
    assert training_checks.busy_share(SimpleNamespace(events=lambda: [])) == 0


def test_kernels_that_are_not_deterministic_are_found(bench, monkeypatch):
    update = PrototypeMemory.update

    def warning_update(self, *args):
        warnings.warn("scatter_add_cuda_kernel does not have a deterministic implementation", stacklevel=1)
        warnings.warn("Memory Efficient attention defaults to a non-deterministic algorithm", stacklevel=1)
        update(self, *args)

    monkeypatch.setattr(PrototypeMemory, "update", warning_update)
    found = carry_out(check("determinism", training_checks.check_determinism), bench)
    assert found["value"]["unknown_warnings"] == 1
    assert len(found["value"]["warnings"]) == 2
    assert found["note"].endswith("scatter_add_cuda_kernel does not have a deterministic implementation")
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_note_is_written_once():
    findings = Findings()
    for _ in range(2):
        findings.note("slow")
    assert findings.notes == ["slow"]
