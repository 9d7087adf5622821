"""The recipe for images, of which one process is killed; run by the tests under `accelerate launch`.

Arguments: the process, the place ("step" or "stage"), the steps before; then those of the recipe.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import time
from typing import Any

from helpers.paths import VIT_PLR
from hf_plr import KMeans, PLRTrainer


def main(process: int, place: str, steps: int) -> None:
    owner: Any = {"step": PLRTrainer, "stage": KMeans}[place]
    name = {"step": "compute_loss", "stage": "fit_predict_shard"}[place]
    inner = getattr(owner, name)
    calls = 0

    def deadly(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > steps and int(os.environ["RANK"]) == process:
            time.sleep(2)  # the other waits for this one by then
            print(f"killed at {time.time()}", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        return inner(self, *args, **kwargs)

    setattr(owner, name, deadly)
    sys.argv = [str(VIT_PLR), *sys.argv[4:]]
    runpy.run_path(str(VIT_PLR), run_name="__main__")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
