"""The ways that are compared, and which of them a suite runs on what."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.evidence.peer_trainer import PeerTrainer
from benchmarks.evidence.peers import PEERS
from benchmarks.evidence.tasks import LARGE, SMALL
from hf_plr.trainer.base_trainer import BaseTrainer

BASELINE, DEFAULT, FROZEN = "none", "auto", "frozen"
AS_IT_IS = "-"  # no variation


@dataclass(frozen=True)
class Peer:
    """A peer's objective and its settings.

    Attributes:
        objective: its name in `benchmarks.evidence.peers.PEERS`.
        rate: factor of the task's learning rate, for the backbone; the head has its own.
        temperature: of SimCLR and SwAV.
    """

    objective: str
    rate: float = 1.0
    temperature: float = 0.1

    @property
    def trainer(self) -> Callable[..., BaseTrainer]:
        """Makes its trainer."""
        return functools.partial(PeerTrainer, peer=self.objective, temperature=self.temperature)


@dataclass(frozen=True)
class Way:
    """A kind of trainer, and what else differs from the task's arguments.

    Attributes:
        changes: changes to the arguments.
        peers: a peer's settings by kind of model; empty for `PLRTrainer`.
        is_trained: False for the start as it is.
    """

    changes: dict[str, Any] = field(default_factory=dict)
    peers: dict[str, Peer] = field(default_factory=dict)
    is_trained: bool = True

    @property
    def clusters(self) -> bool:
        """Whether the clusterer has a part in it."""
        return self.is_trained and not self.peers


# What `--tune` found best by the mean of centered kNN and linear probe: small models on digits, large ones on cifar-5.
TUNED = {
    SMALL: {
        "simclr": Peer("simclr"),
        "vicreg": Peer("vicreg"),
        "swav": Peer("swav", rate=1 / 3, temperature=0.2),
        "byol": Peer("byol", rate=1 / 3),
        "diet": Peer("diet", rate=1 / 3),
    },
    LARGE: {
        "simclr": Peer("simclr"),
        "vicreg": Peer("vicreg", rate=1 / 3),
        "swav": Peer("swav", temperature=0.2),
        "byol": Peer("byol"),
        "diet": Peer("diet", rate=1 / 3),
    },
}
WAYS = {
    FROZEN: Way(is_trained=False),
    BASELINE: Way({"refinement": "none", "num_labelings": 1}),
    "none x3": Way({"refinement": "none", "num_labelings": 3}),
    "soft x3": Way({"refinement": "soft", "num_labelings": 3}),
    "consensus": Way({"refinement": "consensus", "num_labelings": 1}),
    "one view": Way({"pair_weight": 0.0}),
    "vicreg pair": Way({"pair_loss": "vicreg"}),
    "simclr pair": Way({"pair_loss": "simclr"}),
    "centered": Way({"cluster_space": "centered"}),
    "0.1": Way({"refinement": "soft", "num_labelings": 3, "pair_weight": 0.0, "cluster_space": "centered"}),
    DEFAULT: Way(),
    "nested": Way({"refinement": "nested"}),
    "slr": Way({"refinement": "slr", "num_labelings": 1}),
    **{name: Way(peers={model: TUNED[model][name] for model in TUNED}) for name in PEERS},
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


EVERYTHING = ("digits", "omniglot", "omniglot-hdbscan", "magnetic-tile", "fashion-mnist", "fsdd", "cifar-5")
LONGER = tuple(f"{name}-long" for name in EVERYTHING)
SUITES = {
    "quick": Suite(("digits",), (FROZEN, BASELINE, DEFAULT), (), 5),
    "cpu": Suite(EVERYTHING, tuple(WAYS), (BASELINE, DEFAULT), 5),
    "gpu": Suite(LONGER, tuple(WAYS), (), 5),
}
