"""The ways that are compared, and which of them a suite runs on what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hf_plr.refinement import PseudoLabelRefiner

BASELINE = "none"
DEFAULT = "soft x3"  # what refinement="auto" is
AS_IT_IS = "-"  # no variation


@dataclass(frozen=True)
class Way:
    """A refinement, and what else differs from the task's arguments.

    Attributes:
        refiner: makes the refiner.
        changes: changes to the arguments.
    """

    refiner: Callable[[], PseudoLabelRefiner]
    changes: dict[str, Any]


def _preset(name: str, changes: dict[str, Any] | None = None, **overrides: Any) -> Way:
    return Way(lambda: PseudoLabelRefiner.from_preset(name, **overrides), changes or {})


EMA = {"ema_decay": 0.98}
BY_HEIGHT = {"n_clusters": None}
WAYS = {
    BASELINE: _preset("none"),
    "argmax": _preset("slr", assignment="argmax", weight=0.4),
    "slr": _preset("slr"),
    "slr-low": _preset("slr", **BY_HEIGHT, distance_threshold=0.05, noise="drop", min_cluster_size=4),
    "rlcc": _preset("rlcc"),
    "joint": _preset("joint"),
    # Cells that differ in one of three labels are 0.47 apart, those that differ in two 0.67.
    "joint-3": _preset("joint", generations=3, weight=1 / 3, linkage="average", distance_threshold=0.55),
    "none+ema": _preset("none", EMA),
    "slr+ema": _preset("slr", EMA),
    "joint+ema": _preset("joint", EMA),
    "none x2": _preset("none", {"num_labelings": 2}),
    "slr x2": _preset("slr", {"num_labelings": 2}),
    "joint x2": _preset("joint", {"num_labelings": 2}),
    "none x3": _preset("none", {"num_labelings": 3}),
    "slr x3": _preset("slr", {"num_labelings": 3}),
    "joint x3": _preset("joint", {"num_labelings": 3}),
    "soft": _preset("soft"),
    "soft x3": _preset("soft", {"num_labelings": 3}),
    "rlcc x3": _preset("rlcc", {"num_labelings": 3}),
    "none x4": _preset("none", {"num_labelings": 4}),
}


@dataclass(frozen=True)
class Suite:
    """What is run.

    Attributes:
        tasks: names of tasks.
        ways: names of ways, in the order of their runs.
        off: ways that are run with the tasks' variations, too.
        seeds: number of seeds.
    """

    tasks: tuple[str, ...]
    ways: tuple[str, ...]
    off: tuple[str, ...]
    seeds: int


EVERYTHING = ("omniglot", "omniglot-hdbscan", "digits", "fashion-mnist", "fsdd", "cifar-5")
LONGER = tuple(f"{name}-long" for name in EVERYTHING)
SUITES = {
    "quick": Suite(("digits",), (BASELINE, DEFAULT), (), 5),
    "cpu": Suite(EVERYTHING, (BASELINE, DEFAULT, "slr x3", "none x3", "slr", "soft", "joint"), (BASELINE, DEFAULT), 5),
    "gpu": Suite(LONGER, (BASELINE, DEFAULT, "none x3", "slr", "none+ema"), (), 5),
    "all": Suite(EVERYTHING, tuple(WAYS), (BASELINE, DEFAULT), 5),
}
