"""Computes features of trained backbones as somebody does who has no hf_plr: run it by `python -I`.

The argument names a JSON file: by family the folder, and code for the feature. Samples are in samples.npz beside it,
features are written to features.npz there.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.modules["hf_plr"] = None  # type: ignore[assignment]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from transformers import AutoFeatureExtractor, AutoModel  # noqa: E402

AUTO = {"AutoModel": AutoModel, "AutoFeatureExtractor": AutoFeatureExtractor}


def main(asked: Path) -> None:
    samples = np.load(asked.parent / "samples.npz")
    found = {}
    for name, (folder, code) in json.loads(asked.read_text()).items():
        _, loaded = AutoModel.from_pretrained(folder, output_loading_info=True)
        assert not loaded["missing_keys"], (name, loaded)
        assert not loaded["unexpected_keys"], (name, loaded)
        names = {"folder": folder, "sample": samples[name], "torch": torch, **AUTO}
        with torch.no_grad():
            exec(code, names)  # noqa: S102
        found[name] = names["feature"].numpy()
    np.savez(asked.parent / "features.npz", **found)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
