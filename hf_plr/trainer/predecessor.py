"""The run before: what it left in its folder, or in a checkpoint of the run that continues it."""

from __future__ import annotations

import dataclasses
import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from hf_plr.pseudo_labels.known_samples import KnownSamples, LastLabels
from hf_plr.pseudo_labels.label_files import PSEUDO_LABELS_FILE
from hf_plr.refinement import NOISE
from hf_plr.report.names import parse_names, read_cluster_names, read_level_names
from hf_plr.report.run_history import RunEntry, RunHistory
from hf_plr.report.tree_file import TREE_FILE, read_levels
from hf_plr.trainer.checkpoints.finding import find_defect, last_complete_checkpoint, list_checkpoints
from hf_plr.trainer.checkpoints.run_state import load_state
from hf_plr.utils.run_files import holds_run
from hf_plr.utils.serialization import name_file_in_errors, validate_array

ABOUT = "continued.about"  # in the state of a run
COUNTS = [field.name for field in dataclasses.fields(KnownSamples) if field.name != "position"]


@dataclass(frozen=True)
class Predecessor:
    """The run before.

    Attributes:
        folder: its output folder, as the user named it.
        weights: folder that holds the weights to start from.
        history: the runs up to it.
        names: names that its clusters have.
        labels: its last labels; None where a checkpoint of the run that continues it tells of it.
        levels: of each of its levels, by the number of clusters, the number of the level's cluster by cluster.
        level_names: names that clusters of its levels have, by the number of clusters of the level.
    """

    folder: str
    weights: str
    history: RunHistory
    names: dict[int, str]
    labels: LastLabels | None
    levels: dict[int, dict[int, int]] = dataclasses.field(default_factory=dict)
    level_names: dict[int, dict[int, str]] = dataclasses.field(default_factory=dict)

    @classmethod
    def read(cls, folder: str) -> Predecessor:
        """Read what a finished run left in its output folder.

        Raises:
            ValueError: if the folder has no finished run, or a file is damaged, naming it.
        """
        if not os.path.isdir(folder):
            raise ValueError(f"continue_from={folder!r} is not a folder: name the output folder of a finished run")
        has_labels = (Path(folder) / PSEUDO_LABELS_FILE).is_file()
        if not has_labels and _has_trained_to_its_end(folder):
            raise ValueError(
                f"continue_from={folder!r} holds a run trained to its end, but its labels were not saved there: "
                f"--resume_from_checkpoint, or in Python save_model() and save_labels({folder!r}), saves them"
            )
        if not holds_run(folder) and list_checkpoints(folder):
            raise ValueError(f"continue_from={folder!r} holds an unfinished run: --resume_from_checkpoint resumes it")
        if not has_labels:
            raise ValueError(
                f"continue_from={folder!r} holds no {PSEUDO_LABELS_FILE}: only finished runs that label whole images, "
                "recordings or segments are continued"
            )
        labels = LastLabels.read(folder)
        history = RunHistory.read(folder) or _history_of_older_release(folder, labels)
        levels = _levels_by_cluster(folder)
        given = (number for level in levels.values() for number in level.values())
        number = max(history.next_number, int(labels.labels.max(initial=NOISE)) + 1, max(given, default=NOISE) + 1)
        history = dataclasses.replace(history, next_number=number)
        return cls(folder, folder, history, read_cluster_names(folder), labels, levels, read_level_names(folder))

    def read_audits(self) -> RunHistory:
        """The history, with audits that were made since this run began, where the folder is still there."""
        try:
            now = RunHistory.read(self.folder)
        except (ValueError, OSError):
            now = None
        audits = {} if now is None else {run.id: run.audit for run in now.runs}
        runs = [dataclasses.replace(run, audit=audits.get(run.id) or run.audit) for run in self.history.runs]
        return dataclasses.replace(self.history, runs=tuple(runs))


def find_predecessor(folder: str, output_dir: str | None, resume_from: str | bool | None = None) -> Predecessor:
    """Find what is known of the run before: in its folder, or in a checkpoint of the run that continues it.

    Args:
        folder: output folder of the run before.
        output_dir: that of the run that continues it; None if that one begins anew, whatever its folder holds.
        resume_from: checkpoint to resume from, if one is named; otherwise the last one in `output_dir` counts.

    Raises:
        ValueError: if there is no finished run in the folder and no such checkpoint, or a file is damaged.
    """
    try:
        return Predecessor.read(folder)
    except ValueError:
        checkpoint = None if output_dir is None else _find_own_checkpoint(output_dir, resume_from)
        state = {} if checkpoint is None else load_state(checkpoint)[0]
        if checkpoint is None or ABOUT not in state:
            raise
    with name_file_in_errors(checkpoint):
        told, _, _ = parse_about(state)
    return dataclasses.replace(told, folder=folder, weights=checkpoint)


def _has_trained_to_its_end(folder: str) -> bool:
    """True if the last complete checkpoint in a folder is of the last step of a run that can be continued."""
    checkpoint = last_complete_checkpoint(folder)[0]
    path = None if checkpoint is None else checkpoint / TRAINER_STATE_NAME
    if path is None or not path.is_file():
        return False
    try:
        state = TrainerState.load_from_json(str(path))
        settings = load_state(path.parent)[1]
    except (OSError, ValueError, TypeError):  # a damaged one is told of by who resumes it
        return False
    return 0 < state.max_steps <= state.global_step and "first_units" not in settings  # which runs of frames have


def _levels_by_cluster(folder: str) -> dict[int, dict[int, int]]:
    """The levels of a run, none where it left no tree, as runs of older releases."""
    levels = read_levels(folder) if (Path(folder) / TREE_FILE).is_file() else {}
    pairs = {n: (level.labels.tolist(), level.numbers.tolist()) for n, level in levels.items()}
    return {n: dict(zip(labels, numbers, strict=True)) for n, (labels, numbers) in pairs.items()}


def parse_about(state: Mapping[str, np.ndarray]) -> tuple[Predecessor, KnownSamples, int]:
    """Read what a checkpoint tells of the run before, of known samples, and of how many new ones fitted."""
    text = validate_array(state, ABOUT, "integers", (None,), 0, 255).astype(np.uint8).tobytes()
    try:
        about = json.loads(text)
        levels = {
            int(n): {int(label): int(number) for label, number in level.items()}
            for n, level in about.get("levels", {}).items()
        }
        level_names = {int(n): parse_names(names) for n, names in about.get("level_names", {}).items()}
        history, names = RunHistory.from_json(about["history"]), parse_names(about["names"])
        told = Predecessor("", "", history, names, None, levels, level_names)
        counts = {name: int(about["counts"][name]) for name in COUNTS}
        return told, KnownSamples(np.empty(0, np.int64), **counts), int(about["n_fitting"])
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{ABOUT!r} tells of no run: {error}") from error


def _find_own_checkpoint(output_dir: str, named: str | bool | None) -> str | None:
    """The complete checkpoint that a run may be resumed from, if there is one."""
    if isinstance(named, str) and os.path.isdir(named) and find_defect(Path(named)) is None:
        return named
    checkpoint = last_complete_checkpoint(output_dir)[0]
    return None if checkpoint is None else str(checkpoint)


def _history_of_older_release(folder: str, labels: LastLabels) -> RunHistory:
    """The history of a run that left none: itself, by its labels."""
    sizes = labels.sizes()
    written = datetime.fromtimestamp(os.path.getmtime(os.path.join(folder, PSEUDO_LABELS_FILE)), timezone.utc)
    entry = RunEntry(
        id=uuid.uuid4().hex[:16],
        name=os.path.basename(os.path.realpath(folder)),
        written=written.isoformat(timespec="seconds"),
        samples=len(labels.labels),
        noise=len(labels.labels) - sum(sizes.values()),
        clusters=sizes,
    )
    return RunHistory(max(sizes, default=NOISE) + 1, (entry,))
