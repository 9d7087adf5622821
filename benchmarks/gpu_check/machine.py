"""The machine: what it is, and what it can do at most."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.gpu_check.findings import CHECKOUT, Bench, Findings
from hf_plr.utils.versions import find_version

NVIDIA_SMI = ("name", "driver_version", "clocks.sm", "clocks.max.sm", "power.limit", "temperature.gpu")
PACKAGES = ("transformers", "accelerate", "datasets", "kornia", "numpy", "scikit-learn", "hf-plr")
DTYPES = {"bf16": torch.bfloat16, "tf32": torch.float32, "fp32": torch.float32}


def check_machine(bench: Bench, findings: Findings) -> None:
    """Card, clocks and versions; products of 8,192 x 8,192 matrices and copies: the limits of all other checks."""
    for name, value in describe_card(bench.device).items():
        findings.report(name, value)
    for name in DTYPES:
        findings.report(f"{name}_tflops", product_rate(bench, name))
    for name, rate in copy_rates(bench).items():
        findings.report(name, rate)


def product_rate(bench: Bench, dtype: str) -> float:
    """TFLOP/s of a product of square matrices, measured once; `dtype` is bf16, tf32 or fp32."""
    return float(bench.once(f"{dtype}_tflops", lambda: _measure_products(bench, dtype)))


def _measure_products(bench: Bench, dtype: str) -> float:
    size = 8192 if bench.is_gpu else 768
    left, right = torch.randn(2, size, size, device=bench.device, dtype=DTYPES[dtype])
    out = torch.empty_like(left)
    with fp32_arithmetic("tf32" if dtype == "tf32" else "ieee"):
        seconds = bench.seconds(lambda: torch.mm(left, right, out=out), turns=5)
    return 2 * size**3 / seconds / 1e12


@contextlib.contextmanager
def fp32_arithmetic(precision: str) -> Iterator[None]:
    """Compute float32 products and convolutions of GPUs in "tf32", as `torch_compile` allows, or in "ieee"."""
    cudnn: Any = torch.backends.cudnn
    settings: list[Any] = [torch.backends.cuda.matmul, cudnn.conv]
    before = [each.fp32_precision for each in settings]
    for each in settings:
        each.fp32_precision = precision
    try:
        yield
    finally:
        for each, value in zip(settings, before, strict=True):
            each.fp32_precision = value


def copy_rates(bench: Bench) -> dict[str, float]:
    """GB/s of a copy on the device (read and written) and, for a GPU, from the host."""
    n_bytes = 2**30 if bench.is_gpu else 2**26
    source = torch.ones(n_bytes, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    rates = {"copy_gb_per_second": 2 * n_bytes / bench.seconds(lambda: target.copy_(source)) / 1e9}
    if bench.is_gpu:
        for kind in ("pageable", "pinned"):
            host = torch.ones(n_bytes // 4, dtype=torch.uint8, pin_memory=kind == "pinned")
            part = target[: len(host)]
            seconds = bench.seconds(lambda part=part, host=host: part.copy_(host, non_blocking=True))  # type: ignore[misc]
            rates[f"{kind}_to_device_gb_per_second"] = len(host) / seconds / 1e9
    return rates


def describe_card(device: torch.device) -> dict[str, Any]:
    """The card and the host around it."""
    facts: dict[str, Any] = {"device": str(device), "cores": usable_cores(), "platform": platform.platform()}
    if os.path.isdir("/dev/shm"):  # noqa: S108  # it is only measured
        facts["shm_gib"] = shutil.disk_usage("/dev/shm").total / 2**30  # noqa: S108
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "card": properties.name,
            "gpus": torch.cuda.device_count(),
            "memory_gib": properties.total_memory / 2**30,
            "free_gib": torch.cuda.mem_get_info(device)[0] / 2**30,
            "capability": f"{properties.major}.{properties.minor}",
            "bf16": torch.cuda.is_bf16_supported(including_emulation=False),
        }
    return facts | ask_nvidia_smi()


def ask_nvidia_smi() -> dict[str, str]:
    """What nvidia-smi says of the first card; empty where there is none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    command = [program, f"--query-gpu={','.join(NVIDIA_SMI)}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    lines = answer.stdout.strip().splitlines()
    if answer.returncode != 0 or not lines:
        return {}
    return {f"nvidia_smi {name}": value.strip() for name, value in zip(NVIDIA_SMI, lines[0].split(","), strict=False)}


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def list_versions() -> dict[str, str]:
    """Versions of what results depend on, and the commit."""
    versions = {"python": sys.version.split()[0], "torch": torch.__version__, "cuda": str(torch.version.cuda)}
    if torch.cuda.is_available():
        versions["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
        versions["cudnn"] = str(torch.backends.cudnn.version())
    for package in PACKAGES:
        versions[package] = find_version(package) or "not installed"
    return {**versions, "commit": find_commit()}


def find_commit() -> str:
    """The checkout's commit, and whether files differ from it; "unknown" where git does not say."""
    git = shutil.which("git")
    if git is None:
        return "unknown"

    def ask(*words: str) -> str:
        answer = subprocess.run([git, "-C", str(CHECKOUT), *words], capture_output=True, text=True)
        return answer.stdout.strip() if answer.returncode == 0 else ""

    commit = ask("rev-parse", "--short=12", "HEAD")
    if not commit:
        return "unknown"
    return f"{commit} with changes" if ask("status", "--porcelain", "--untracked-files=no") else commit


def is_hopper(bench: Bench) -> bool:
    """True for an H100 or its like, which absolute rates are meant for."""
    return bench.is_gpu and torch.cuda.get_device_capability(bench.device)[0] == 9
