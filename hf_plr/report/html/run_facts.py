"""Facts of a run beside its clusters: scores, curves, settings, versions."""

from __future__ import annotations

import datetime
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_plr.report.html.curves import metric_curves
from hf_plr.utils.versions import find_versions

if TYPE_CHECKING:
    from hf_plr.report.summary import RunSummary

LONGEST_TEXT = 300


def run_facts(summary: RunSummary, log: list[dict[str, Any]], finished: bool, stage: str) -> dict[str, Any]:
    """Collect title, run, facts, scores, curves, settings and versions of a report.

    Args:
        summary: the run.
        log: the log as `Trainer` keeps it.
        finished: True if the run has ended.
        stage: unit of training after each stage: "epoch" or "round".
    """
    modality, out = summary.modality, str(summary.args.output_dir)
    return {
        "title": as_line(os.path.basename(os.path.abspath(out))),
        "run": {
            "noun": modality.noun,
            "plural": modality.plural,
            "members": summary.cluster_members,
            "architecture": summary.architecture,
            "start": as_line(Path(summary.start).name if summary.start else "random weights"),
            "source": as_line(summary.source),
            "samples": summary.n_samples,
            "unreadable": len(summary.unreadable_rows),
            "epochs": round(float(summary.epochs), 2),
            "weights_epoch": None if summary.weights_epoch is None else round(float(summary.weights_epoch), 2),
            "steps": summary.steps,
            "processes": summary.processes,
            "stage": stage,
            "finished": finished,
            "written": current_time(),
            "output_dir": as_line(out),
            "scored_on": summary.scored_on,
        },
        "facts": summary.cluster_facts(),
        "scores": finite_scores(summary.scores),
        "score_titles": dict(summary.score_titles),
        "curves": metric_curves(log),
        "settings": [[name, as_line(value)] for name, value in summary.changed_settings()],
        "versions": find_versions(),
    }


def finite_scores(scores: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Filter scores by phase ("before", "after"): values that are not a finite number are left out."""
    return {
        as_line(phase): {
            as_line(name): float(value)
            for name, value in values.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        }
        for phase, values in scores.items()
        if isinstance(values, dict)
    }


def as_line(value: object) -> str:
    """Convert a value to one line of bounded length."""
    line = " ".join(str(value).split()).encode("utf-8", "replace").decode("utf-8")
    return line if len(line) <= LONGEST_TEXT else line[: LONGEST_TEXT - 1] + "\N{HORIZONTAL ELLIPSIS}"


def current_time() -> str:
    """Format the time for people."""
    return datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
