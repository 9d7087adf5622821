"""The main process works for longer than the processes' timeout; run under `accelerate launch` by a check."""

from __future__ import annotations

import argparse
import tempfile
import time

import torch
from accelerate import Accelerator

from hf_plr import PLRTrainingArguments
from hf_plr.utils.distributed import run_on_main, sum_all


def main() -> None:
    """Wait for the main process, and compute together afterwards."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ddp_timeout", type=int, required=True, help="seconds")
    parser.add_argument("--sleep", type=float, required=True, help="seconds")
    parser.add_argument("--use_cpu", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        args = PLRTrainingArguments(
            folder, ddp_timeout=given.ddp_timeout, ddp_backend="gloo", use_cpu=given.use_cpu, report_to="none"
        )
        accelerator = Accelerator(cpu=given.use_cpu)
        started = time.monotonic()
        run_on_main(accelerator, lambda: time.sleep(given.sleep), "sleeping")
        total = sum_all(accelerator, torch.ones(3, device=args.device))
        if time.monotonic() - started >= given.sleep - 1 and total.tolist() == [accelerator.num_processes] * 3:
            print("waited and went on", flush=True)
        accelerator.end_training()


if __name__ == "__main__":
    main()
