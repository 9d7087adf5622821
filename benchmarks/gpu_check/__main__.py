"""Command line of the checks of a machine with a GPU."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

import benchmarks.gpu_check
from benchmarks.gpu_check.checks import CHECKS
from benchmarks.gpu_check.findings import Bench, Check
from benchmarks.gpu_check.machine import describe_card, list_versions
from benchmarks.gpu_check.supervisor import CLEAN_START, LEAST_PATIENCE, Record, is_cuda_usable, run_checks, supervise

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # one process sees one GPU, as the trainers want it


def main(argv: Sequence[str] | None = None) -> None:
    """Read the arguments, and run what they ask for."""
    args = parse(argv)
    chosen = [check for check in CHECKS if not args.only or check.name in args.only]
    if args.list:
        for number, check in enumerate(CHECKS):
            print(f"{number:>2}  {check.name:<18}{check.expected_seconds(args.quick):>4} s  {check.summary}")
        return
    if args.worker is not None:
        sys.exit(work(args, chosen))
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("there is no GPU that torch can use: --device cpu --quick is a dry run")
    with tempfile.TemporaryDirectory() as folder:
        path = args.json or Path(folder) / "gpu.json"
        record = start_record(args, path, chosen)
        deadline = time.time() + args.budget
        command = [sys.executable, "-m", "benchmarks.gpu_check", "--worker", str(deadline), "--json", str(path)]
        command += ["--device", args.device, "--only", *(check.name for check in chosen)]
        command += ["--quick"] * args.quick
        record = supervise(command, chosen, path, args.quick, deadline, LEAST_PATIENCE[args.device], show)
        record.write()
    counts = (f"{record.content[outcome]} {outcome}" for outcome in ("passed", "failed", "skipped"))
    print(f"{', '.join(counts)}, {record.content['seconds']:.0f} s")
    sys.exit(1 if record.content["failed"] else 0)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_check",
        description=benchmarks.gpu_check.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [check.name for check in CHECKS]
    parser.add_argument("--json", type=Path, metavar="FILE", help="written anew after each check")
    parser.add_argument("--append", action="store_true", help="keep what FILE has, but for --only and what was skipped")
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help="some of the checks, see --list")
    parser.add_argument("--list", action="store_true", help="list the checks and what they take, and run none")
    parser.add_argument("--budget", type=float, default=1500, help="skip what takes longer (default: %(default)s s)")
    parser.add_argument("--quick", action="store_true", help="small sizes; rates then have no bounds")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda", help="cpu: a dry run (default: cuda)")
    parser.add_argument("--worker", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.append and args.json is None:
        parser.error("--append needs --json FILE")
    return args


def start_record(args: argparse.Namespace, path: Path, chosen: Sequence[Check]) -> Record:
    """The file as it is before the first check."""
    facts = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "device": args.device,
        "quick": args.quick,
        "budget": args.budget,
        "versions": list_versions(),
    }
    record = Record(path, facts)
    if args.append and path.exists():
        earlier = Record.read(path)
        for name in ("device", "quick", "versions"):
            if earlier.content.get(name) != facts[name]:
                sys.exit(f"--append: {path} is of {name} {earlier.content.get(name)}, and this run of {facts[name]}")
        skipped = [each["name"] for each in earlier.content["checks"] if each["passed"] is None]
        record = earlier
        record.forget([check.name for check in chosen] if args.only else skipped)
    record.write()
    return record


def work(args: argparse.Namespace, chosen: Sequence[Check]) -> int:
    """Carry out what the file lacks; returns the exit status."""
    transformers.logging.set_verbosity_error()
    device = torch.device("cuda", 0) if args.device == "cuda" else torch.device("cpu")
    record = Record.read(args.json)
    left = [check for check in chosen if check.name not in record.names]
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(device, args.quick, Path(folder))
        record.content["machine"] = describe_card(device)
        record.write()
        return 0 if run_checks(left, bench, record, args.worker, show, is_cuda_usable) else CLEAN_START


def show(found: dict[str, Any]) -> None:
    """Print a check's entry in a line, and what it measured."""
    outcome = {True: "passed", False: "FAILED", None: "skipped"}[found["passed"]]
    note = found["note"].split("\n")[0][:200]
    print(f"{outcome:<8}{found['name']:<18}{found['seconds']:>7.1f} s  {note}", flush=True)
    for name, value in found["value"].items():
        bound = found["bound"].get(name)
        print(f"        {name}: {value}" + (f"   ({bound})" if bound else ""), flush=True)


if __name__ == "__main__":
    main()
