"""Small runs in four logical shards, which 1, 2 and 4 processes share; run by the tests, alone and under a launcher."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import set_seed

from helpers.train_in_processes import ARGUMENTS, N_IMAGES, WIDTH
from hf_plr import PLRTrainer, PLRTrainingArguments, read_tree
from hf_plr.data.example_data import digits
from hf_plr.data.loading import draw_rows
from hf_plr.models.vision import small_vit, small_vit_processor
from hf_plr.pseudo_labels.holding import is_of_samples

N_SHARDS = 4
PER_STEP = 16
RUNS: dict[str, dict[str, Any]] = {
    "auto": {},  # a consensus of several clusterings over three epochs, three labelings, and the pair term
    "nested": {"refinement": "nested"},  # three levels of one consensus
    "slr": {"refinement": "slr", "pair_weight": 0, "gradient_accumulation_steps": 2},
    "soft": {"refinement": "soft", "confidence_power": 1, "min_confidence": 0.3, "num_labelings": 2},
    "joint": {"refinement": "joint", "report": "epoch", "ema_decay": 0.5},
    "none": {"refinement": "none", "feature_source": "epoch"},
    "hdbscan": {"clusterer": "hdbscan", "num_clusters": None, "pair_weight": 0},  # noise, found in one place
}


class WatchedTrainer(PLRTrainer):
    """Notes the samples of each batch, and at the end the labels of which samples this process holds."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        self.drawn = [*getattr(self, "drawn", []), inputs["index"].tolist()]
        return super().compute_loss(model, inputs, *args, **kwargs)

    def check_state(self) -> None:
        """What has an entry per sample has one for each own sample; by that, and not by its name alone, it is known."""
        n_held = len(self.labelings[0].pseudo_labels.labels)
        lengths = {name: len(array) for name, array in self.label_state().items()}
        assert {length for name, length in lengths.items() if is_of_samples(name)} == {n_held}, lengths
        assert n_held == N_IMAGES or N_IMAGES not in lengths.values(), lengths
        everywhere = gather_object([lengths])
        differing = {name for name in lengths if len({each[name] for each in everywhere}) > 1}
        assert all(map(is_of_samples, differing)), differing  # processes hold 102 and 101, or 51 and 50


def make_trainer(folder: str, **arguments: Any) -> WatchedTrainer:
    """A trainer of a tiny ViT on 203 digits in four shards, 16 samples a step, by any number of processes."""
    set_seed(0)
    data = digits()
    data = data.select(draw_rows(len(data), N_IMAGES, seed=0))
    accumulation = arguments.get("gradient_accumulation_steps", 1)
    batch_size = PER_STEP // accumulation // int(os.environ.get("WORLD_SIZE", "1"))
    given = {
        "per_device_train_batch_size": batch_size,
        "label_shards": N_SHARDS,
        "report": "no",
        "label_column": "label",
        **ARGUMENTS,
        **arguments,
    }
    model = small_vit(16, 8, hidden_size=WIDTH, num_hidden_layers=1)
    return WatchedTrainer(model, PLRTrainingArguments(folder, **given), data, processing_class=small_vit_processor(16))


def describe(trainer: WatchedTrainer, folder: str) -> dict[str, np.ndarray]:
    """What a run has found, on the main process: labels, metrics, and the samples of each step in any order."""
    trainer.save_labels(folder)
    held = gather_object([len(trainer.labelings[0].pseudo_labels.labels)])
    drawn = gather_object([trainer.drawn])
    if not PartialState().is_main_process:
        return {}
    table = pd.read_parquet(Path(folder) / "pseudo_labels.parquet")
    n_steps = trainer.state.max_steps
    steps = np.concatenate([np.array(each).reshape(n_steps, -1) for each in drawn], axis=1)
    tree = read_tree(folder)
    log = {name: value for entry in trainer.state.log_history for name, value in entry.items() if name[:4] == "plr/"}
    found = {
        **{name: np.array(table[name].to_list()) for name in table},
        "held": np.array(held),
        "steps": np.sort(steps, axis=1),
        "metrics": np.array([value for name, value in sorted(log.items()) if "seconds" not in name]),
        "sizes": trainer.summary().cluster_sizes,
        "tree": tree.nodes,
        "heights": tree.heights,
    }
    if trainer.args.report != "no":
        trainer.write_report()
        page = (Path(folder) / "report.json").read_text()
        found["report"] = np.array([len(page) > 1000 and '"random"' in page])
    return found


def main(output: str) -> None:
    torch.set_num_threads(1)
    results: dict[str, np.ndarray] = {}
    for name, arguments in RUNS.items():
        with tempfile.TemporaryDirectory() as folder:
            trainer = make_trainer(folder, **arguments)
            trainer.train()
            results |= {f"{name}: {key}": value for key, value in describe(trainer, folder).items()}
            trainer.check_state()
    state = PartialState()
    if state.is_main_process:
        np.savez(output, **results)
    state.wait_for_everyone()
    if state.num_processes > 1:
        state.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
