"""Several processes, or one that is set up as several: gloo and NCCL on one GPU, and FSDP2."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.gpu_check.findings import Bench, Findings
from benchmarks.gpu_check.launched_checks import BATCH, REFERENCE, UNSAVED, reference_run
from benchmarks.gpu_check.launching import CONFIGS, differing_share, launch, launch_recipe, run

SCRIPTS = Path(__file__).parent
# accelerate would put the second process on a second GPU; NCCL refuses two on one, gloo does not.
ONE_GPU_FOR_ALL = {"ACCELERATE_BYPASS_DEVICE_MAP": "true"}


def check_two_processes(bench: Bench, findings: Findings) -> None:
    """Two processes on one GPU by gloo: the labels of one; and a wait of twice the timeout for the main one."""
    launcher: list[object] = ["--num_processes", 2, "--num_machines", 1, "--main_process_port", 0, "--multi_gpu"]
    if not bench.is_gpu:
        launcher = ["--config_file", CONFIGS / "cpu_2.yaml"]
    out = bench.new_folder("two") / "out"
    settings = [*REFERENCE, BATCH, 16, "--bf16", "false", "--ddp_backend", "gloo", *UNSAVED]
    launch_recipe(bench, "vit_plr", out, *settings, launcher=launcher, variables=ONE_GPU_FOR_ALL)
    findings.expect("share_of_labels_that_differ", differing_share(out, reference_run(bench)), at_most=1e-4)
    timeout, sleep = bench.size((10, 20), (6, 9))
    words = ["--ddp_timeout", timeout, "--sleep", sleep]
    ended = launch(
        bench,
        SCRIPTS / "long_wait.py",
        *words,
        launcher=launcher,
        variables=ONE_GPU_FOR_ALL,
        own_arguments=[] if bench.is_gpu else ["--use_cpu"],
    )
    findings.expect("processes_that_waited", ended.output.count("waited and went on"), at_least=2)


def check_collectives(bench: Bench, findings: Findings) -> None:
    """Every collective and type of number in use, by NCCL in one process, and a group of gloo beside it."""
    backend = "nccl" if bench.is_gpu else "gloo"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 1]
    ended = run([*launcher, SCRIPTS / "collectives.py", backend], timeout=180)
    found = json.loads(next(line for line in ended.output.splitlines() if line.startswith("{")))
    failed = {name: error for name, error in found.items() if error}
    findings.report("collectives", len(found))
    findings.expect("failed", len(failed), at_most=0)
    for name, error in failed.items():
        findings.note(f"{name}: {error}")


def check_fsdp(bench: Bench, findings: Findings) -> None:
    """The recipe by fsdp2.yaml in one process, scored before and after: the labels of a plain run."""
    out = bench.new_folder("fsdp") / "out"
    settings = [*REFERENCE, BATCH, 32, "--bf16", "false", *UNSAVED]
    launch_recipe(
        bench,
        "vit_plr",
        out,
        *settings,
        watch={"shard_on_cpu": not bench.is_gpu},
        launcher=["--config_file", CONFIGS / "fsdp2.yaml", "--num_processes", 1],
        own_arguments=[] if bench.is_gpu else ["--cpu_threads", 1],
    )
    findings.expect("share_of_labels_that_differ", differing_share(out, reference_run(bench)), at_most=0.01)
