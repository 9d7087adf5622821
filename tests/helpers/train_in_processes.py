"""Small runs that do not depend on the number of processes; run by the tests, alone and under `accelerate launch`."""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, gather_object
from torch.distributed.tensor import DTensor
from transformers import set_seed

from helpers.spectrograms import MODELS as SPECTROGRAM_MODELS
from helpers.spectrograms import make_extractor, make_model
from hf_plr import KMeans, PLRTrainer, PLRTrainingArguments
from hf_plr.data.example_data import digits, make_synthetic_recordings
from hf_plr.data.loading import draw_rows
from hf_plr.models.speech import small_hubert, small_hubert_extractor
from hf_plr.models.vision import small_vit, small_vit_processor

# SGD moves weights in proportion to their gradients, so that rounding stays rounding; Adam divides by them. Steps are
# whole: accelerate fills up the last batch of an epoch for several processes, and not for one.
ARGUMENTS = {
    "num_train_epochs": 3,
    "num_clusters": 12,
    "optim": "sgd",
    "learning_rate": 0.0003,
    "max_grad_norm": 0.0,
    "per_device_eval_batch_size": 32,
    "feature_dtype": "float32",
    "logging_strategy": "steps",
    "logging_steps": 1,
    "save_strategy": "no",
    "disable_tqdm": True,
}
SOUNDS = {"learning_rate": 0.001, "per_device_eval_batch_size": 4}
LORA: dict[str, dict[str, Any]] = {
    "images": {"lora": True, "lora_rank": 4, "learning_rate": 0.01, "ema_decay": 0.5},
    "sounds": {**SOUNDS, "lora": True, "lora_rank": 4, "gradient_checkpointing": True},
}
# Dropout is drawn by process; the tiny models of the others have none.
NO_DROPOUT = {
    "wav2vec2-bert": dict.fromkeys(
        ("hidden_dropout", "activation_dropout", "attention_dropout", "feat_proj_dropout", "conformer_conv_dropout"),
        0.0,
    )
}
N_IMAGES = 203  # divisible by nothing
WIDTH = 32


class WatchedKMeans(KMeans):
    """Notes how many rows it is given, and how many tensors of this process hold all rows at that moment."""

    def fit_predict_shard(self, features: Any, accelerator: Any) -> np.ndarray:
        self.seen = getattr(self, "seen", [])
        gc.collect()  # what is free already does not count
        tensors = [found for found in gc.get_objects() if type(found) is torch.Tensor]
        self.seen.append((len(features), sum(found.shape == (N_IMAGES, WIDTH) for found in tensors)))
        return super().fit_predict_shard(features, accelerator)


def train(kind: str, batch_size: int, **arguments: Any) -> dict[str, np.ndarray]:
    """Train on 203 images or 83 sounds: labels, the loss of every step, features at the end, and what k-means saw.

    `kind` is "images", "sounds", or the name of a model of spectrograms, for sounds too.
    """
    set_seed(0)
    model: Any
    if kind == "images":
        data = digits()
        data = data.select(draw_rows(len(data), N_IMAGES, seed=0))
        model, processor = small_vit(16, 8, hidden_size=WIDTH, num_hidden_layers=1), small_vit_processor(16)
    else:
        data = make_synthetic_recordings(n_per_class=11).select(range(83))
        model, processor = small_hubert(8_000, hidden_size=WIDTH, num_hidden_layers=2), small_hubert_extractor(8_000)
        if kind in SPECTROGRAM_MODELS:
            model, processor = make_model(kind, **NO_DROPOUT.get(kind, {})), make_extractor(kind)
        if kind == "ast":  # whose first layer norm is of zeros otherwise, with gradients of a million
            for name in ("cls_token", "distillation_token", "position_embeddings"):
                torch.nn.init.normal_(getattr(model.embeddings, name), std=0.5)
    kmeans = WatchedKMeans(12, seed=1)
    with tempfile.TemporaryDirectory() as folder:
        # The report would hold the features of up to 1,500 samples, which are all of these.
        args = PLRTrainingArguments(
            folder, report="no", **{**ARGUMENTS, "per_device_train_batch_size": batch_size, **arguments}
        )
        trainer = PLRTrainer(model, args, data, processing_class=processor, clusterer=kmeans)
        trainer.train()
    labels = trainer.pseudo_labels
    assert labels is not None
    return {
        "labels": labels.labels,
        "previous_labels": labels.previous_labels,
        "losses": np.array([entry["loss"] for entry in trainer.state.log_history if "loss" in entry]),
        "features": trainer.extract_features().cpu().numpy(),
        "seen": np.array(kmeans.seen),
        "sharded": np.array([isinstance(weights, DTensor) for weights in trainer.model.parameters()]),
    }


def main(output: str, *spectrogram_models: str) -> None:
    sharded = os.environ.get("ACCELERATE_USE_FSDP") == "true"
    if sharded:  # accelerate shards weights on devices only: let it take the CPU for one
        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
        torch.accelerator.is_available = lambda: True
        PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)
    runs: dict[str, dict[str, Any]] = {"images": {}, "sounds": dict(SOUNDS)}
    if not sharded:
        runs["images, workers"] = {"dataloader_num_workers": 2, "image_cache_gib": 0}
        runs |= {f"{kind}, lora": arguments for kind, arguments in LORA.items()}
    if spectrogram_models:
        runs = {kind: dict(SOUNDS) for kind in spectrogram_models}
    results: dict[str, np.ndarray] = {}
    for name, arguments in runs.items():
        for key, value in train(name.split(",")[0], 4, **arguments).items():
            results[f"{name}: {key}"] = value if key != "seen" else np.array(gather_object([value]))
    results["threads"] = np.array(gather_object([torch.get_num_threads()]))
    state = PartialState()
    if state.is_main_process:
        np.savez(output, **results)
    state.wait_for_everyone()
    state.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
