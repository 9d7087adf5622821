"""Trains small backbones and pushes them and their labels to the Hub of HF_ENDPOINT: `published_runs.py FOLDER`.

FOLDER gets the output folders and published.json: what was trained, and what was said where the Hub refuses.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ENDPOINT = urlsplit(os.environ["HF_ENDPOINT"])
_connect = socket.socket.connect


def _connect_there_alone(self: socket.socket, address: Any) -> None:
    is_inside = self.family == socket.AF_UNIX  # as between a loader and its workers
    assert is_inside or address == (ENDPOINT.hostname, ENDPOINT.port), f"a connection to {address}"
    _connect(self, address)


socket.socket.connect = _connect_there_alone  # type: ignore[method-assign]

import torch  # noqa: E402
import transformers  # noqa: E402
from huggingface_hub.utils import disable_progress_bars  # noqa: E402
from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model  # noqa: E402

from hf_plr import PLRTrainer, PLRTrainingArguments, UnitTrainer  # noqa: E402
from hf_plr.data.example_data import digits, make_synthetic_recordings  # noqa: E402
from hf_plr.hub.push import HubError  # noqa: E402
from hf_plr.models.speech import small_hubert, small_hubert_extractor  # noqa: E402
from hf_plr.models.vision import small_vit, small_vit_processor  # noqa: E402

TOKEN = os.environ["HF_TOKEN"]
COMMON = {"num_train_epochs": 1, "num_clusters": 8, "disable_tqdm": True, "use_cpu": True, "push_to_hub": True}


def vit(out: Path, **changes: Any) -> PLRTrainer:
    of_hub = {"hub_model_id": "alice/vit", "hub_private_repo": True, "hub_token": TOKEN}
    args = PLRTrainingArguments(str(out), **{**COMMON, "num_train_epochs": 2, **of_hub, **changes})
    model = small_vit(16, 8, hidden_size=32, num_hidden_layers=1)
    return PLRTrainer(model, args, digits().select(range(120)), processing_class=small_vit_processor(16))


def dino(out: Path) -> PLRTrainer:
    args = PLRTrainingArguments(str(out), save_strategy="no", **COMMON)  # no name: that of the folder
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    processor = BitImageProcessorPil(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, do_convert_rgb=True
    )
    model = Dinov2Model(Dinov2Config(image_size=28, patch_size=14, **sizes))
    return PLRTrainer(model, args, digits().select(range(60)), processing_class=processor)


def hubert(out: Path, kind: type[PLRTrainer] | type[UnitTrainer], name: str) -> PLRTrainer | UnitTrainer:
    more = {"mask_length": 4} if kind is UnitTrainer else {}
    args = kind.arguments_class(
        str(out), hub_model_id=name, per_device_eval_batch_size=8, hub_strategy="end", **more, **COMMON
    )
    model = small_hubert(8_000, hidden_size=32, num_hidden_layers=2)
    sounds = make_synthetic_recordings(n_per_class=5)
    return kind(model, args, sounds, processing_class=small_hubert_extractor(8_000))


def digests(model: torch.nn.Module) -> dict[str, str]:
    """Of the bits of every weight."""
    return {
        name: hashlib.sha256(value.detach().contiguous().numpy().tobytes()).hexdigest()
        for name, value in model.state_dict().items()
    }


def refusals(folder: Path) -> dict[str, str]:
    """What is said before training where the Hub refuses."""
    cases: dict[str, dict[str, Any]] = {
        "no token": {"hub_token": None},
        "wrong token": {"hub_token": "hf_wrong"},
        "other's name": {"hub_model_id": "bob/vit"},
        "other's repository": {"hub_model_id": "bob/taken", "hub_private_repo": None},
        "no name": {"hub_model_id": "alice/a/vit"},
        "optimizer": {"hub_strategy": "checkpoint"},
        "public": {"hub_model_id": "alice/dino"},
    }
    said = {}
    for case, changes in cases.items():
        if case == "no token":
            del os.environ["HF_TOKEN"]
        try:
            vit(folder / "refused", **changes)
        except (HubError, ValueError) as error:
            said[case] = f"{type(error).__name__}: {error}"
        os.environ["HF_TOKEN"] = TOKEN
    return said


def main() -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    disable_progress_bars()
    folder = Path(sys.argv[1])
    trainers = {
        "vit": vit(folder / "vit"),
        "dino": dino(folder / "dino"),
        "hubert": hubert(folder / "hubert", PLRTrainer, "alice/hubert"),
        "units": hubert(folder / "units", UnitTrainer, "units"),
    }
    weights = {}
    for name, trainer in trainers.items():
        trainer.train()
        trainer.push_to_hub()
        weights[name] = digests(trainer.backbone)
    trainers["vit"].push_labels_to_hub("alice/vit-labels", with_media=True)
    trainers["dino"].push_labels_to_hub("dino-labels")
    trainers["hubert"].push_labels_to_hub("alice/hubert-labels", with_media=True)
    trainers["units"].push_labels_to_hub("alice/units-labels")
    published = {"weights": weights, "refusals": refusals(folder)}
    (folder / "published.json").write_text(json.dumps(published))


if __name__ == "__main__":
    main()
