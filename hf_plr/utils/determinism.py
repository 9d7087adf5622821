"""Arithmetic on GPUs that gives the same bits each time."""

from __future__ import annotations

import os

import torch

# Read when cuBLAS and NCCL start: a fixed workspace, and sums over processes in the order of a ring.
ENVIRONMENT = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "NCCL_ALGO": "Ring"}


def require_determinism() -> None:
    """Let torch choose algorithms that give the same bits each time, and raise where there is none.

    They are slower and take more memory, attention's gradients most of all. On CPUs nothing changes: results are the
    same each time as it is. The variables of `ENVIRONMENT` must be set before a GPU is used.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    torch.use_deterministic_algorithms(True)
    # Nothing here reads memory that it has not written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
