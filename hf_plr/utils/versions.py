"""Versions of installed packages."""

from __future__ import annotations

import functools
import importlib.metadata

import hf_plr


@functools.cache  # reading a package's metadata takes longer than writing a report
def find_version(package: str) -> str | None:
    """Find the version of a package; None if it is not installed. hf-plr may run from a checkout, without being so."""
    if package == "hf-plr":
        return hf_plr.__version__
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
