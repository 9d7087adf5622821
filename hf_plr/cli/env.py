"""Print versions, devices and settings, to paste into a bug report.

  hf-plr env

It prints nothing that identifies you: no token, no user, no address. Paths are those in variables.
"""

from __future__ import annotations

import argparse
import os
import platform

import hf_plr
from hf_plr.utils.versions import find_version

SUMMARY = "print versions, devices and settings for a bug report"
PACKAGES = ("torch", "transformers", "datasets", "accelerate", "scikit-learn", "numpy", "scipy", "huggingface_hub")
OPTIONAL_PACKAGES = ("faiss-cpu", "faiss-gpu", "timm")  # printed only if installed
# A list of names, so that none may hold a token or a password, as an address can.
VARIABLES = (
    *("HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"),
    *("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS", "TRANSFORMERS_VERBOSITY"),
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TOKENIZERS_PARALLELISM", "CUBLAS_WORKSPACE_CONFIG"),
    *("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"),
    *("ACCELERATE_USE_CPU", "ACCELERATE_MIXED_PRECISION", "WORLD_SIZE", "NCCL_DEBUG", "TORCH_LOGS", "LOGLEVEL"),
)
GIB = 2**30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `hf-plr env`: none."""


def run(args: argparse.Namespace) -> None:
    """Print versions, devices and variables."""
    facts = {"hf_plr": hf_plr.__version__, "Python": platform.python_version(), "Platform": platform.platform()}
    facts |= list_versions() | list_devices() | list_variables()
    print("\n".join(f"- {name}: {value}" for name, value in facts.items()))


def list_versions() -> dict[str, str]:
    """List the installed versions of the packages that results depend on."""
    installed = {package: find_version(package) for package in (*PACKAGES, *OPTIONAL_PACKAGES)}
    return {
        package: number or "not installed" for package, number in installed.items() if number or package in PACKAGES
    }


def list_devices() -> dict[str, str]:
    """List processors and GPUs, as far as torch and accelerate can be imported."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts = {"CPUs": f"{os.cpu_count()}, {usable} of them usable"}
    try:
        import torch
        from accelerate.utils import is_bf16_available
    except (ImportError, OSError) as error:  # OSError: a library that torch needs is missing
        return {**facts, "Devices": f"unknown: {' '.join(str(error).split())}"}
    facts["Threads of torch"] = str(torch.get_num_threads())
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    facts["Device"] = device.type if device is not None else "cpu"
    facts["bf16"] = "yes" if is_bf16_available() else "no"
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        facts[f"GPU {i}"] = f"{properties.name}, {properties.total_memory / GIB:.0f} GiB"
    if torch.cuda.is_available():
        facts["CUDA of torch"] = str(torch.version.cuda or torch.version.hip)
    return facts


def list_variables() -> dict[str, str]:
    """List the environment variables that change a run, if they are set."""
    return {name: os.environ[name] for name in VARIABLES if name in os.environ}
