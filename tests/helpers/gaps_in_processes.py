"""Short runs whose finer labelings have gaps, which any number of processes share; run by the tests."""

from __future__ import annotations

import sys
import tempfile
from typing import Any

import numpy as np
import torch
from accelerate import PartialState

from helpers.train_in_shards import N_SHARDS, make_trainer

# With a smaller eps more samples are noise: those of the first labeling that are drawn have no target in the others.
SETTINGS: dict[str, Any] = {
    "clusterer": "dbscan",
    "clusterer_kwargs": {"eps": 0.5, "k1": 12},
    "num_clusters": None,
    "num_labelings": 3,
    "num_train_epochs": 2,
    "cluster_space": "centered",
    "pair_weight": 0.0,
    "learning_rate": 1e-6,  # so that rounding moves no sample over the eps, and every epoch has the same clusters
}
RUNS: dict[str, dict[str, Any]] = {
    "labels of all": {"label_shards": 1, "refinement": "none"},
    "own labels, weighted": {"label_shards": N_SHARDS, "refinement": "slr", "confidence_power": 1.0},
    "soft": {"label_shards": 1, "refinement": "rlcc"},
    "in two views": {"label_shards": 1, "refinement": "none", "pair_weight": None},
}


def train(**arguments: Any) -> dict[str, np.ndarray]:
    """Train on 203 images: the loss of every step, and the share of the first labeling's samples in each gap."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(folder, **{**SETTINGS, **arguments})
        trainer.train()
    first, *finer = (labeling.pseudo_labels.targets for labeling in trainer.labelings)
    return {
        "losses": np.array([entry["loss"] for entry in trainer.state.log_history if "loss" in entry]),
        "gaps": np.array([(each[first >= 0] < 0).mean() for each in finer]),
    }


def main(output: str) -> None:
    torch.set_num_threads(1)
    found = {f"{name}: {key}": value for name, arguments in RUNS.items() for key, value in train(**arguments).items()}
    state = PartialState()
    if state.is_main_process:
        np.savez(output, **found)
    state.wait_for_everyone()
    state.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
