"""The scripts in examples/, as modules."""

from __future__ import annotations

import importlib.util
from types import ModuleType

from helpers.paths import REPOSITORY


def load_example(name: str) -> ModuleType:
    """Load `examples/<name>/run.py`."""
    path = REPOSITORY / "examples" / name / "run.py"
    spec = importlib.util.spec_from_file_location(f"examples_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
