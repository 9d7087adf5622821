"""`metrics.json`: scores of a run, metrics of its epochs, settings and versions."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from hf_plr.evaluation.intervals import Interval
from hf_plr.report.file_names import TRAINED_EPOCHS, WEIGHTS_EPOCH
from hf_plr.report.summary import RunSummary
from hf_plr.utils.files import write_text
from hf_plr.utils.versions import find_versions


def write_metrics(path: str | os.PathLike[str], summary: RunSummary, seconds: float) -> None:
    """Write scores, the metrics of every epoch, settings and versions as JSON."""
    metrics = {
        "scores": summary.scores,
        "intervals": summary.intervals,
        "samples": summary.n_samples,
        "unreadable_rows": summary.unreadable_rows,
        "steps": summary.steps,
        TRAINED_EPOCHS: summary.epochs,
        WEIGHTS_EPOCH: summary.epochs_of_weights,
        "seconds": round(seconds, 1),
        "processes": summary.processes,
        "epochs": summary.stages,
        "epoch_scores": summary.epoch_scores,
        "settings": {name: str(value) for name, value in summary.changed_settings()},
        "versions": find_versions(),
    }
    write_text(Path(path), json.dumps(metrics, indent=2) + "\n")


def read_scores(path: str | os.PathLike[str]) -> dict[str, dict[str, float]]:
    """Read the scores by phase from a file of `write_metrics`.

    Raises:
        ValueError: if the file is damaged, naming it.
    """
    with _name_file_in_errors(path):
        scores = json.loads(Path(path).read_bytes())["scores"]
        return {
            phase: {name: float(value) for name, value in phase_scores.items()}
            for phase, phase_scores in scores.items()
        }


def read_intervals(path: str | os.PathLike[str]) -> dict[str, dict[str, Interval]]:
    """Read the intervals of scores by phase from a file of `write_metrics`; empty in files of older releases.

    Raises:
        ValueError: if the file is damaged, naming it.
    """
    with _name_file_in_errors(path):
        intervals = json.loads(Path(path).read_bytes()).get("intervals", {})
        return {
            phase: {name: (float(low), float(high)) for name, (low, high) in phase_scores.items()}
            for phase, phase_scores in intervals.items()
        }


def read_settings(path: str | os.PathLike[str]) -> dict[str, str]:
    """Read the settings that differ from the defaults, as text, from a file of `write_metrics`.

    Raises:
        ValueError: if the file is damaged, naming it.
    """
    with _name_file_in_errors(path):
        return {str(name): str(value) for name, value in json.loads(Path(path).read_bytes())["settings"].items()}


@contextlib.contextmanager
def _name_file_in_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as the metrics of a run: {error}") from error
