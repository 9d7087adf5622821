"""Pseudo-label refinement (PLR) for clustering-based self-supervised learning with Hugging Face models."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_plr.clustering import KMeans, ReciprocalDBSCAN, ReciprocalHDBSCAN
    from hf_plr.jobs.assignment import assign
    from hf_plr.refinement import PseudoLabelRefiner
    from hf_plr.report.tree_file import read_levels, read_tree
    from hf_plr.trainer.plr_trainer import PLRTrainer
    from hf_plr.trainer.unit_trainer import UnitTrainer
    from hf_plr.training_args import PLRTrainingArguments, UnitTrainingArguments

__version__ = "0.2.0"
__all__ = [
    "KMeans",
    "PLRTrainer",
    "PLRTrainingArguments",
    "PseudoLabelRefiner",
    "ReciprocalDBSCAN",
    "ReciprocalHDBSCAN",
    "UnitTrainer",
    "UnitTrainingArguments",
    "assign",
    "read_levels",
    "read_tree",
]

# The refiner must be importable where there is no torch, so each name is imported when it is first used.
_HOME = {
    "KMeans": "hf_plr.clustering",
    "PLRTrainer": "hf_plr.trainer.plr_trainer",
    "PLRTrainingArguments": "hf_plr.training_args",
    "PseudoLabelRefiner": "hf_plr.refinement",
    "ReciprocalDBSCAN": "hf_plr.clustering",
    "ReciprocalHDBSCAN": "hf_plr.clustering",
    "UnitTrainer": "hf_plr.trainer.unit_trainer",
    "UnitTrainingArguments": "hf_plr.training_args",
    "assign": "hf_plr.jobs.assignment",
    "read_levels": "hf_plr.report.tree_file",
    "read_tree": "hf_plr.report.tree_file",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'hf_plr' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
