"""Loads models and labels from the Hub of HF_ENDPOINT as somebody does who has no hf_plr: run it by `python -I`.

The argument is JSON, as is what is printed: see `main`.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import sys
from typing import Any
from urllib.parse import urlsplit

sys.modules["hf_plr"] = None  # type: ignore[assignment]
try:
    import hf_plr  # noqa: F401
except ImportError:
    pass
else:
    raise AssertionError("hf_plr can be imported")

ENDPOINT = urlsplit(os.environ["HF_ENDPOINT"])
_connect = socket.socket.connect


def _connect_there_alone(self: socket.socket, address: Any) -> None:
    is_inside = self.family == socket.AF_UNIX  # as between a loader and its workers
    assert is_inside or address == (ENDPOINT.hostname, ENDPOINT.port), f"a connection to {address}"
    _connect(self, address)


socket.socket.connect = _connect_there_alone  # type: ignore[method-assign]

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from datasets import Audio, load_dataset  # noqa: E402


def digests(model: torch.nn.Module) -> dict[str, str]:
    """Of the bits of every weight."""
    return {
        name: hashlib.sha256(value.detach().contiguous().numpy().tobytes()).hexdigest()
        for name, value in model.state_dict().items()
    }


def read_model(repo: str, processor: str, classifier: str, revision: str | None) -> dict[str, Any]:
    """A model, its processor, and a classifier on top."""
    model, loaded = transformers.AutoModel.from_pretrained(repo, revision=revision, output_loading_info=True)
    kind = getattr(transformers, processor).from_pretrained(repo, revision=revision)
    with_head, head = getattr(transformers, classifier).from_pretrained(
        repo, revision=revision, num_labels=3, output_loading_info=True
    )
    return {
        "weights": digests(model),
        "missing": sorted(loaded["missing_keys"]),
        "unexpected": sorted(loaded["unexpected_keys"]),
        "processor": type(kind).__name__,
        "head": sorted({key.split(".")[0] for key in head["missing_keys"]}),
        "below head": digests(with_head.base_model),
    }


def read_labels(repo: str) -> dict[str, Any]:
    """A data set of labels; of media, what their bits are."""
    labels = load_dataset(repo, split="train")
    found: dict[str, Any] = {"columns": labels.column_names}
    if "image" in labels.column_names:
        found["media"] = [hashlib.sha256(np.asarray(image).tobytes()).hexdigest() for image in labels["image"]]
    if "audio" in labels.column_names:
        labels = labels.cast_column("audio", Audio(decode=False))
        found["media"] = [hashlib.sha256(sound["bytes"]).hexdigest() for sound in labels["audio"]]
    return found | {name: list(labels[name]) for name in labels.column_names if name not in ("image", "audio")}


def main() -> None:
    asked = json.loads(sys.argv[1])
    found = {
        "models": {repo: read_model(repo, *arguments) for repo, arguments in asked["models"].items()},
        "labels": {repo: read_labels(repo) for repo in asked["labels"]},
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
