"""The tables of docs/explanation/evidence_of_0.1.md: the default beside no refinement, out of version 0.1's records."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.evidence.runs import read_all
from benchmarks.evidence.summary import difference
from benchmarks.evidence.ways import AS_IT_IS, BASELINE

DEFAULT = "soft x3"  # what refinement="auto" was called in these records
OWN_HEADER = "| data, score | start | no refinement | auto | difference | seeds |"
PARTS = {"none x3": "three labelings, no refinement", "slr x3": "three, `slr`", DEFAULT: "auto"}
PARTS_HEADER = f"| data, score | seeds | {' | '.join(PARTS.values())} | auto, against three without |"
OFF_HEADER = "| data, score | setting | no refinement | auto | difference | below own best: none | auto | seeds |"


def own_settings(paths: list[Path]) -> str:
    """A Markdown table of both ways at the tasks' own settings, over the seeds that both have.

    Args:
        paths: files of results.
    """
    rows = [OWN_HEADER, "|---" * 6 + "|"]
    for task in _ends_of_tasks(paths):
        none, auto = (task.ends.get((AS_IT_IS, way), {}) for way in (BASELINE, DEFAULT))
        seeds = sorted(set(none) & set(auto))
        if seeds:
            means = (f"{np.mean([way[seed] for seed in seeds]):.3f}" for way in (none, auto))
            cells = [
                task.title,
                f"{np.mean([task.starts[seed] for seed in seeds]):.3f}",
                *means,
                difference(auto, none),
                str(len(seeds)),
            ]
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def parts(paths: list[Path]) -> str:
    """A Markdown table of what the default is made of, over the seeds that all have.

    That is differences to no refinement on one labeling, then that of the default to no refinement on three.

    Args:
        paths: files of results.
    """
    rows = [PARTS_HEADER, "|---" * (3 + len(PARTS)) + "|"]
    for task in _ends_of_tasks(paths, (BASELINE, *PARTS)):
        none, *others = (task.ends.get((AS_IT_IS, way), {}) for way in (BASELINE, *PARTS))
        seeds = sorted(set(none).intersection(*others))
        if seeds:
            without, *_, auto = others = [{seed: way[seed] for seed in seeds} for way in others]
            gains = [*(difference(way, none) for way in others), difference(auto, without)]
            rows.append(f"| {' | '.join([task.title, str(len(seeds)), *gains])} |")
    return "\n".join(rows)


def off_settings(paths: list[Path]) -> str:
    """A Markdown table of both ways at every setting: their scores, and how far they end below their own best setting.

    That is in points, and over the seeds that all settings of a task have; tasks that were run at their own setting
    alone are left out.

    Args:
        paths: files of results.
    """
    rows = [row for task in _ends_of_tasks(paths) for row in _off_rows(task)]
    return "\n".join([OFF_HEADER, "|---" * 8 + "|", *rows])


@dataclass
class _Ends:
    """Scores of one task before training by seed, and after it by setting and way, and by seed."""

    title: str
    starts: dict[int, float] = field(default_factory=dict)
    ends: dict[tuple[str, str], dict[int, float]] = field(default_factory=dict)


def _ends_of_tasks(paths: list[Path], ways: tuple[str, ...] = (BASELINE, DEFAULT)) -> list[_Ends]:
    tasks: dict[str, _Ends] = {}
    for run, record in sorted(read_all(paths).items()):
        if run.way in ways:
            name = record["score"]
            task = tasks.setdefault(run.task, _Ends(f"{run.task}, {name}"))
            task.starts[run.seed] = record["start"][name]
            task.ends.setdefault((run.variation, run.way), {})[run.seed] = record["end"][name]
    return list(tasks.values())


def _off_rows(task: _Ends) -> list[str]:
    """A row for each setting of a task; none where it was only run at its own, or no seed has all settings."""
    found = task.ends
    settings = sorted({setting for setting, _ in found}, key=lambda setting: (setting != AS_IT_IS, setting))
    both = [(setting, way) for setting in settings for way in (BASELINE, DEFAULT)]
    if len(settings) < 2 or not all(each in found for each in both):
        return []
    seeds = sorted(set.intersection(*(set(found[each]) for each in both)))
    if not seeds:
        return []
    means = {each: float(np.mean([found[each][seed] for seed in seeds])) for each in both}
    best = {way: max(means[setting, way] for setting in settings) for way in (BASELINE, DEFAULT)}
    rows = []
    for setting in settings:
        below = [f"{100 * (best[way] - means[setting, way]):.1f}" for way in (BASELINE, DEFAULT)]
        pair = [f"{means[setting, way]:.3f}" for way in (BASELINE, DEFAULT)]
        gain = difference(*({seed: found[setting, way][seed] for seed in seeds} for way in (DEFAULT, BASELINE)))
        rows.append(f"| {' | '.join([task.title, setting, *pair, gain, *below, str(len(seeds))])} |")
    return rows
