"""Tables out of recorded runs: mean scores, and paired differences with intervals over seeds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import sem, t

from benchmarks.evidence.readout import SPACES
from benchmarks.evidence.runs import Run, read_all
from benchmarks.evidence.ways import AS_IT_IS, BASELINE, DEFAULT, FROZEN, WAYS

FEWEST_SEEDS = 3  # for an interval: one of two values is 12.7 times as wide as they are apart
SCORES = {"knn": "kNN (5)", "linear": "linear probe", "few": "10 labels a class", "nmi": "NMI of k-means"}
LABELS = {
    "purity": "purity",
    "pair_precision": "pair precision",
    "pair_recall": "pair recall",
    "pair_f1": "pair F1",
    "nmi": "NMI",
    "ari": "ARI",
    "noise": "in no cluster",
}

READ_OUT = "centered"  # space of the scores of features
BETTER = "better"  # for each way and score the one of SPACES in which its mean over seeds is higher
RETRIEVAL = {("score", "mAP"): "mAP"}  # by space and name
OVERVIEW_SCORES = ("knn", "linear", "nmi")
CHOICES = {FROZEN: "start", BASELINE: "no refinement", "simclr": "SimCLR", "vicreg": "VICReg"}
FURTHER_PEERS = {FROZEN: "start", "swav": "SwAV", "byol": "BYOL", "diet": "DIET"}

Records = dict[Run, dict[str, Any]]
BySeed = dict[int, float]


def summarise(paths: list[Path], space: str = "centered") -> str:
    """Markdown tables of all records in these files, for each budget of image passes.

    Args:
        paths: files of results.
        space: space of the scores, "centered", "white" or "better".
    """
    records = read_all(paths)
    tables = []
    for budget in sorted({run.budget for run in records if run.budget}):
        tasks = {run.task for run in records if run.budget == budget}
        chosen = {run: record for run, record in records.items() if run.task in tasks and run.budget in (0, budget)}
        own = {run: record for run, record in chosen.items() if run.variation == AS_IT_IS}
        where = f"{space}, {budget}x passes"
        for score, title in SCORES.items():
            tables += [
                f"**{title}, {where}: means**\n\n{means(own, space, score)}",
                f"**{title}, {where}: {DEFAULT} minus each other, in points**\n\n{gains(own, space, score)}",
            ]
        tables.append(f"**Pseudo-labels of the last epoch, {budget}x passes**\n\n{label_quality(own)}")
        if any(run.variation != AS_IT_IS for run in chosen):
            for score in ("knn", "linear"):
                tables.append(f"**{SCORES[score]}, {where}: off settings**\n\n{off_settings(chosen, space, score)}")
    return "\n\n".join(tables)


def overview(paths: list[Path], from_seed: int = 0, choices: dict[str, str] = CHOICES, space: str = READ_OUT) -> str:
    """A row a task and score: what a user may choose, as means over the seeds that all have, and paired differences.

    Args:
        paths: files of results; their runs at the tasks' own settings and budget are compared.
        from_seed: first seed that counts; tasks without this or a later one are left out.
        choices: the ways beside the default with their titles, the start first; tasks with none of the others are left
            out.
        space: as for `summarise`; mAP is there in the library's own space alone.
    """
    shown = {(space, score): SCORES[score] for score in OVERVIEW_SCORES}
    rows = []
    for (space_of_score, score), title in ((RETRIEVAL if space == READ_OUT else {}) | shown).items():
        for task, default, others in _choices(paths, space_of_score, score, from_seed, choices):
            means, seeds = _shared_means([*others, default])
            differences = [difference(default, each) for each in others[1:]]
            rows.append((task, [f"{task}, {title}", *means, *differences, seeds]))
    rows.sort(key=lambda row: row[0])
    against = [f"{DEFAULT} minus {title}" for title in list(choices.values())[1:]]
    return _table(["data, score", *choices.values(), DEFAULT, *against, "seeds"], [cells for _, cells in rows])


def brief(paths: list[Path]) -> str:
    """A row a task: the means of `overview`, its scores of features side by side as ".784 / .844 / .383".

    They are kNN, linear probe and NMI of k-means.

    Args:
        paths: files of results.
    """
    cells: dict[str, list[list[str]]] = defaultdict(list)
    counts: dict[str, str] = {}
    for score in OVERVIEW_SCORES:
        for task, default, others in _choices(paths, READ_OUT, score):
            means, counts[task] = _shared_means([*others, default])
            cells[task].append([mean.removeprefix("0") for mean in means])
    rows = []
    for task in sorted(cells):
        by_way = [" / ".join(filter(None, each)) for each in zip(*cells[task], strict=True)]
        rows.append([task, *by_way, counts[task]])
    return _table(["data", *CHOICES.values(), DEFAULT, "seeds"], rows)


def _choices(
    paths: list[Path], space: str, score: str, from_seed: int = 0, choices: dict[str, str] = CHOICES
) -> list[tuple[str, BySeed, list[BySeed]]]:
    """Scores by seed of the default, and of each of the choices, for every task that has some beside the start's."""
    records = {
        run: record
        for run, record in read_all(paths).items()
        if run.variation == AS_IT_IS and run.budget < 2 and run.seed >= from_seed
    }
    scores = _collect(records, space, score)
    return [
        (task, scores.get((task, DEFAULT), {}), [scores.get((task, way), {}) for way in choices])
        for task in _tasks_in(scores)
        if any((task, way) in scores for way in choices if way != FROZEN)
    ]


def _shared_means(ways: list[BySeed]) -> tuple[list[str], str]:
    """Means over the seeds that all ways have which have any, the default last, and the number of these seeds."""
    common = set(ways[-1]).intersection(*(each for each in ways if each))
    means = [_mean({seed: each[seed] for seed in common if seed in each}) for each in ways]
    return means, str(len(common))


def means(records: Records, space: str, score: str) -> str:
    """A row a task: the mean score of each way, and the seeds that it is a mean of."""
    scores = _collect(records, space, score)
    ways = _ways_in(scores)
    rows = []
    for task in _tasks_in(scores):
        by_way = [scores.get((task, way), {}) for way in ways]
        counts = sorted({len(by_seed) for by_seed in by_way if by_seed})
        rows.append([task, *map(_mean, by_way), "-".join(map(str, dict.fromkeys((counts[0], counts[-1]))))])
    return _table(["data", *ways, "seeds"], rows)


def gains(records: Records, space: str, score: str) -> str:
    """A row a task: the default minus each other way, over the seeds that both have."""
    scores = _collect(records, space, score)
    ways = [way for way in _ways_in(scores) if way != DEFAULT]
    rows = []
    for task in _tasks_in(scores):
        default = scores.get((task, DEFAULT), {})
        rows.append([task, *(difference(default, scores.get((task, way), {})) for way in ways)])
    return _table(["data", *ways], rows)


def label_quality(records: Records) -> str:
    """A row a task and score of the pseudo-labels: without refinement, by default, and the difference in points."""
    labelled = {run: record for run, record in records.items() if record["labels"]}
    rows = []
    for task in dict.fromkeys(run.task for run in sorted(labelled)):
        both = []
        for way in (BASELINE, DEFAULT):
            both.append({run.seed: r["labels"] for run, r in labelled.items() if (run.task, run.way) == (task, way)})
        for score, title in LABELS.items():
            none, auto = (
                {seed: labels[score] for seed, labels in by_seed.items() if score in labels} for by_seed in both
            )
            if any(none.values()) or any(auto.values()):
                rows.append([task, title, _mean(none), _mean(auto), difference(auto, none)])
        sizes = [
            f"{np.mean([labels['clusters'] for labels in by_seed.values()]):.0f}" if by_seed else "" for by_seed in both
        ]
        rows.append([task, "clusters", *sizes, ""])
    return _table(["data", "score", BASELINE, DEFAULT, "difference"], rows)


def off_settings(records: Records, space: str, score: str) -> str:
    """A row a task and setting: both ways, their difference, and how far each ends below its own best setting.

    That is over the seeds that all settings of a task and both ways have, or the default alone where no refinement was
    not run at all of them. Tasks that were run at their own setting alone are left out.
    """
    found: dict[str, dict[tuple[str, str], BySeed]] = defaultdict(lambda: defaultdict(dict))
    for run, record in sorted(records.items()):
        value = record["readout"][space].get(score)
        if run.way in (BASELINE, DEFAULT) and value is not None:
            found[run.task][run.variation, run.way][run.seed] = value
    rows = [row for task, scores in found.items() for row in _off_rows(task, scores)]
    header = ["data", "setting", BASELINE, DEFAULT, "difference", f"below own best: {BASELINE}", DEFAULT, "seeds"]
    return _table(header, rows)


def _off_rows(task: str, scores: dict[tuple[str, str], BySeed]) -> list[list[str]]:
    settings = sorted({setting for setting, _ in scores}, key=lambda setting: (setting != AS_IT_IS, setting))
    ways = [way for way in (BASELINE, DEFAULT) if all((setting, way) in scores for setting in settings)]
    if len(settings) < 2 or DEFAULT not in ways:
        return []
    each = [(setting, way) for setting in settings for way in ways]
    seeds = sorted(set.intersection(*(set(scores[key]) for key in each)))
    if not seeds:
        return []
    shared = {key: {seed: scores[key][seed] for seed in seeds} for key in each}
    average = {key: float(np.mean(list(by_seed.values()))) for key, by_seed in shared.items()}
    best = {way: max(average[setting, way] for setting in settings) for way in ways}
    rows = []
    for setting in settings:
        none, auto = shared.get((setting, BASELINE), {}), shared[setting, DEFAULT]
        below = [
            f"{100 * (best[way] - average[setting, way]):.1f}" if way in ways else "" for way in (BASELINE, DEFAULT)
        ]
        rows.append([task, setting, _mean(none), _mean(auto), difference(auto, none), *below, str(len(seeds))])
    return rows


def _collect(records: Records, space: str, score: str) -> dict[tuple[str, str], BySeed]:
    """Scores by task and way, and by seed; of records that have the score."""
    if space == BETTER:
        centered, *others = (_collect(records, each, score) for each in SPACES)
        return {
            key: max([by_seed, *(other[key] for other in others)], key=lambda each: float(np.mean(list(each.values()))))
            for key, by_seed in centered.items()
        }
    scores: dict[tuple[str, str], BySeed] = defaultdict(dict)
    for run, record in sorted(records.items()):
        value = record["readout"].get(space, {}).get(score)
        if value is not None:
            scores[run.task, run.way][run.seed] = value
    return scores


def _ways_in(scores: Iterable[tuple[str, str]]) -> list[str]:
    present = {way for _, way in scores}
    return [way for way in WAYS if way in present]


def _tasks_in(scores: Iterable[tuple[str, str]]) -> list[str]:
    return list(dict.fromkeys(task for task, _ in scores))


def _mean(by_seed: BySeed) -> str:
    return f"{np.mean(list(by_seed.values())):.3f}" if by_seed else ""


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def difference(scores: BySeed, baseline: BySeed) -> str:
    """Mean paired difference in points, with a 95% interval over seeds, where there are three at least."""
    seeds = sorted(set(scores) & set(baseline))
    if not seeds:
        return ""
    paired = 100.0 * np.array([scores[seed] - baseline[seed] for seed in seeds])
    if len(seeds) < FEWEST_SEEDS:
        return f"{paired.mean():+.1f} ({len(seeds)} seed{'s' if len(seeds) > 1 else ''})"
    low, high = interval(paired)
    return f"{paired.mean():+.1f} [{low:+.1f}, {high:+.1f}]"


def interval(values: np.ndarray) -> tuple[float, float]:
    """95% interval of the mean of values (n,), n at least 2, by Student's t.

    Percentiles of a bootstrap are too narrow for few: between those of five normal values the mean lies in 83% of all
    cases, between those of three in 74%.
    """
    reach = float(t.ppf(0.975, len(values) - 1) * sem(values))
    mean = float(np.mean(values))
    return mean - reach, mean + reach
