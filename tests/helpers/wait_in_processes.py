"""Wait for the main process longer than the default group would; run by the tests under `accelerate launch`."""

from __future__ import annotations

import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from hf_plr.utils import distributed
from hf_plr.utils.distributed import gather_rows, run_main_first, run_on_main, sum_all, wait_for_all

TIMEOUT = 5.0  # of the default group, in seconds
WORK = 2 * TIMEOUT


def meet(output: str) -> None:
    """Wait until all processes have imported everything: the timeout is one of their meeting, too."""
    Path(f"{output}.ready.{os.environ['RANK']}").touch()
    while not all(Path(f"{output}.ready.{rank}").exists() for rank in range(int(os.environ["WORLD_SIZE"]))):
        time.sleep(0.05)


def main(output: str) -> None:
    distributed.LINE_SECONDS = 1.0
    meet(output)
    accelerator = Accelerator(cpu=True, kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=TIMEOUT))])

    def work() -> str:
        time.sleep(WORK)
        return "done"

    found = [run_on_main(accelerator, work, "sleeping")]
    with run_main_first(accelerator, "reading"):
        if accelerator.is_main_process:
            time.sleep(WORK)
    if accelerator.is_main_process:
        time.sleep(WORK)
    wait_for_all(accelerator, "writing")
    # Collectives on a CPU's tensors are as patient.
    time.sleep(WORK * accelerator.is_main_process)
    found.append(str(int(sum_all(accelerator, torch.ones(1)))))
    time.sleep(WORK * accelerator.is_main_process)
    found.append(str(len(gather_rows(accelerator, torch.ones(1 + accelerator.process_index, 2)))))
    Path(f"{output}.{accelerator.process_index}").write_text(" ".join(found))
    accelerator.end_training()


if __name__ == "__main__":
    main(sys.argv[1])
