"""Names of the files at the top of a run's output folder, and their protection from what commands write."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple


class RunFile(NamedTuple):
    """A file at the top of a run's folder.

    Args:
        pattern: its name, as `fnmatch` reads it.
        is_backbone: it is loaded with the backbone, and lies beside backbones that have seen no run.
        tells_of_weights: what it says is true of one epoch's weights and no others.
        is_published: a push takes it. The state for resuming (optimizer, random states, ...) is useless to others.
        shows_a_run: no other library writes it beside a backbone.
        is_saved_anew: the next training that saves into the folder replaces it; until then it stays, as people's data.
    """

    pattern: str
    is_backbone: bool = False
    tells_of_weights: bool = True
    is_published: bool = True
    shows_a_run: bool = False
    is_saved_anew: bool = False


RUN_FILES = (
    RunFile("config.json", is_backbone=True, tells_of_weights=False),
    RunFile("model.safetensors", is_backbone=True, is_saved_anew=True),
    RunFile("model-*-of-*.safetensors", is_backbone=True, is_saved_anew=True),
    RunFile("model.safetensors.index.json", is_backbone=True, is_saved_anew=True),
    RunFile("preprocessor_config.json", is_backbone=True, tells_of_weights=False),
    RunFile("processor_config.json", is_backbone=True, tells_of_weights=False),
    RunFile("README.md", tells_of_weights=False),  # a card is replaced, if at all: people write in it
    RunFile("metrics.json"),
    RunFile("clusters.png"),
    RunFile("pseudo_labels.parquet", shows_a_run=True, is_saved_anew=True),
    RunFile("prototypes.safetensors", shows_a_run=True, is_saved_anew=True),
    RunFile("cluster_names.json", shows_a_run=True),
    RunFile("run_history.json", shows_a_run=True),
    RunFile("tree.json"),
    RunFile("known_clusters.safetensors", shows_a_run=True),
    RunFile("units.parquet", shows_a_run=True, is_saved_anew=True),
    RunFile("centroids.safetensors", is_saved_anew=True),
    RunFile("report.json", is_published=False),
    RunFile("report.html", is_published=False),
    RunFile("plr_state*.safetensors", is_published=False, shows_a_run=True, is_saved_anew=True),
    RunFile("training_args.bin", is_published=False, tells_of_weights=False),
)
WRITTEN = tuple(file.pattern for file in RUN_FILES)
PUBLISHED = tuple(file.pattern for file in RUN_FILES if file.is_published)
BACKBONE_FILES = tuple(file.pattern for file in RUN_FILES if file.is_backbone)
PUBLISHED_OF_WEIGHTS = tuple(file.pattern for file in RUN_FILES if file.is_published and file.tells_of_weights)
FILES_OF_RUNS = tuple(file.pattern for file in RUN_FILES if file.shows_a_run)
TELLING_OF_EARLIER = tuple(file.pattern for file in RUN_FILES if file.tells_of_weights and not file.is_saved_anew)
# By these a folder is known to hold a run or a backbone; others' projects have a README.md or a tree.json, too.
MARKS = ("metrics.json", "config.json", "model.safetensors", "plr_state.safetensors", "prototypes.safetensors")


def matches(path: str | os.PathLike[str], patterns: Iterable[str]) -> bool:
    """True if the name of a file, without its folders, is one of the patterns'."""
    return any(fnmatch.fnmatchcase(Path(path).name, pattern) for pattern in patterns)


def find_files(folder: str | os.PathLike[str], patterns: Iterable[str]) -> list[Path]:
    """List the files at the top of a folder whose names are of these patterns; none where there is no such folder."""
    return sorted(path for path in Path(folder).glob("*") if path.is_file() and matches(path, patterns))


def holds_run(folder: str | os.PathLike[str]) -> bool:
    """True if a run has left results at the top of a folder; checkpoints below it are none."""
    return bool(find_files(folder, ("metrics.json", *FILES_OF_RUNS)))


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
