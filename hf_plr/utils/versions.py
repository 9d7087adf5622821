"""Versions of installed packages."""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Iterable

import hf_plr

OF_A_RUN = ("hf-plr", "transformers", "torch", "datasets", "accelerate", "scikit-learn", "numpy")


@functools.cache  # reading a package's metadata takes longer than writing a report
def find_version(package: str) -> str | None:
    """Find the version of a package; None if it is not installed. hf-plr may run from a checkout, without being so."""
    if package == "hf-plr":
        return hf_plr.__version__
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def find_versions(packages: Iterable[str] = OF_A_RUN) -> dict[str, str]:
    """Find the versions of those of these packages that are installed."""
    return {package: version for package in packages if (version := find_version(package))}
