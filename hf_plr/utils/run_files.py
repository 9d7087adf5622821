"""Names of the files at the top of a run's output folder, and their protection from what commands write."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable
from pathlib import Path

# Patterns for the top of the folder; the state for resuming (optimizer, random states, ...) is useless to others.
BACKBONE_FILES = (
    "config.json",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "preprocessor_config.json",
    "processor_config.json",
)
PUBLISHED = (
    *BACKBONE_FILES,
    "README.md",
    "metrics.json",
    "clusters.png",
    "pseudo_labels.parquet",
    "prototypes.safetensors",
    "cluster_names.json",
    "run_history.json",
    "tree.json",
    "known_clusters.safetensors",
    "units.parquet",
    "centroids.safetensors",
)
# What says nothing of other weights; the card and the configurations are replaced, if at all.
OF_WEIGHTS = tuple(name for name in PUBLISHED if name not in ("README.md", *BACKBONE_FILES) or name.startswith("model"))
WRITTEN = (*PUBLISHED, "report.json", "report.html", "plr_state*.safetensors", "training_args.bin")
# Files that no other library writes beside a backbone.
FILES_OF_RUNS = ("plr_state*.safetensors", "prototypes.safetensors", "pseudo_labels.parquet", "units.parquet")
# Files by which a folder is known to hold a run or a backbone.
MARKS = ("metrics.json", "config.json", "model.safetensors", "plr_state.safetensors", "prototypes.safetensors")


def matches(path: str | os.PathLike[str], patterns: Iterable[str]) -> bool:
    """True if the name of a file, without its folders, is one of the patterns'."""
    return any(fnmatch.fnmatchcase(Path(path).name, pattern) for pattern in patterns)


def refuse_run_files(paths: Iterable[str | os.PathLike[str]], run: str | os.PathLike[str] | None = None) -> None:
    """Refuse to write what a run has written, or would write, in its own folder; nothing is meant to replace that.

    Args:
        paths: all files that are written together.
        run: folder of a run, whatever lies there.

    Raises:
        ValueError: naming the first file that is a run's own.
    """
    files = [Path(path) for path in paths]
    for file in files:
        if not matches(file, WRITTEN):
            continue
        marks = [file.with_name(name) for name in MARKS]
        is_run = run is not None and os.path.realpath(file.parent) == os.path.realpath(run)
        if is_run or any(mark.is_file() for mark in marks if mark not in files):
            raise ValueError(f"{file} is the run's own: name another file")
