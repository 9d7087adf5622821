"""Tables out of recorded runs: mean scores, and paired differences to no refinement with intervals over seeds."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evidence.runs import Run, read_records
from benchmarks.evidence.ways import AS_IT_IS, BASELINE, WAYS

RESAMPLES = 10_000
FEWEST_SEEDS = 3  # for an interval: of one or two it would look certain


def summarise(paths: list[Path], score: str | None = None) -> str:
    """Markdown tables of all records in these files: one for each task, then one of all without variations.

    Args:
        paths: files of results.
        score: the score that is compared, such as "nmi"; by default the one that counts for the task. Runs that do not
            have it are left out.
    """
    records = read_all(paths)
    if score is not None:
        records = {run: {**record, "score": score} for run, record in records.items() if score in record["start"]}
    tables = []
    for task in dict.fromkeys(run.task for run in records):
        tables.append(_table(task, {run: record for run, record in records.items() if run.task == task}))
    return "\n\n".join([*tables, _overview(records)])


def read_all(paths: list[Path]) -> dict[Run, dict[str, Any]]:
    """The records of several files of results."""
    records: dict[Run, dict[str, Any]] = {}
    for path in paths:
        records |= read_records(path)
    return records


def _overview(records: dict[Run, dict[str, Any]]) -> str:
    """A row a task: start and end without refinement, and the differences that each way makes."""
    plain = {run: record for run, record in records.items() if run.variation == AS_IT_IS}
    ways = [way for way in WAYS if way != BASELINE and way in {run.way for run in plain}]
    lines = [f"| data, score | start | {BASELINE} | {' | '.join(ways)} |", "|---" * (3 + len(ways)) + "|"]
    for task in dict.fromkeys(run.task for run in plain):
        name = next(record["score"] for run, record in plain.items() if run.task == task)
        scores = {
            way: {run.seed: record["end"][name] for run, record in plain.items() if (run.task, run.way) == (task, way)}
            for way in (BASELINE, *ways)
        }
        start = np.mean([record["start"][name] for run, record in plain.items() if run.task == task])
        end = np.mean(list(scores[BASELINE].values())) if scores[BASELINE] else np.nan
        cells = [f"{task}, {name}", f"{start:.3f}", f"{end:.3f}"]
        cells += [difference(scores[way], scores[BASELINE]) for way in ways]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _table(task: str, records: dict[Run, dict[str, Any]]) -> str:
    name = next(iter(records.values()))["score"]
    scores: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
    for run, record in sorted(records.items()):
        scores[run.variation, run.way][run.seed] = record["end"][name]
    starts = [record["start"][name] for run, record in records.items() if run.way == BASELINE]
    best = max(
        (variation for variation, way in scores if way == BASELINE),
        key=lambda variation: np.mean(list(scores[variation, BASELINE].values())),
        default=AS_IT_IS,
    )
    lines = [
        f"**{task}**, {name}, start {np.mean(starts):.3f}" if starts else f"**{task}**, {name}",
        "",
        f"| setting | way | seeds | {name} | minus none, same setting | minus none, its best setting ({best}) |",
        "|---|---|---|---|---|---|",
    ]
    for (variation, way), by_seed in scores.items():
        differences = [
            "" if way == BASELINE and other == variation else difference(by_seed, scores.get((other, BASELINE), {}))
            for other in (variation, best)
        ]
        mean = np.mean(list(by_seed.values()))
        cells = [variation, way, str(len(by_seed)), f"{mean:.3f}", *differences]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def difference(scores: dict[int, float], baseline: dict[int, float]) -> str:
    """Mean paired difference in points, with a 95% bootstrap interval over seeds, where there are three at least."""
    seeds = sorted(set(scores) & set(baseline))
    if not seeds:
        return ""
    paired = 100.0 * np.array([scores[seed] - baseline[seed] for seed in seeds])
    if len(seeds) < FEWEST_SEEDS:
        return f"{paired.mean():+.1f} ({len(seeds)} seed{'s' if len(seeds) > 1 else ''})"
    low, high = interval(paired)
    return f"{paired.mean():+.1f} [{low:+.1f}, {high:+.1f}]"


def interval(values: np.ndarray) -> tuple[float, float]:
    """95% percentile bootstrap interval of the mean of values (n,)."""
    drawn = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.percentile(values[drawn].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)
