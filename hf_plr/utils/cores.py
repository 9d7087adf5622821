"""Cores that this process may use, and how many of them load data by default."""

from __future__ import annotations

import math
import os
from pathlib import Path

from accelerate.utils import get_int_from_env

MOST_WORKERS = 16
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container
LOCAL_PROCESSES = ("LOCAL_WORLD_SIZE", "MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE")


def count_cores() -> int:
    """Count the cores that this process may use, by its affinity and its container's quota; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = CPU_QUOTA.read_text(encoding="ascii").split()
        return max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # there is none: no such file, or "max"
        return cores


def count_local_processes() -> int:
    """Count the processes that a launcher started for this run on this machine; 1 without a launcher."""
    return max(1, int(get_int_from_env(LOCAL_PROCESSES, 1)))


def count_default_workers() -> int:
    """Count the worker processes that load data for this process: its share of the cores without its own, up to 16."""
    return max(0, min(MOST_WORKERS, count_cores() // count_local_processes() - 1))
