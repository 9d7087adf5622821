"""Computes features of trained backbones as somebody does who has no hf_plr: run it by `python -I`.

The argument names a JSON file: by family the folder, the model's further arguments, and code for the tokens and the
feature. Inputs are in inputs.npz beside it, features are written to features.npz there.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.modules["hf_plr"] = None  # type: ignore[assignment]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from transformers import AutoModel  # noqa: E402


def main(asked: Path) -> None:
    inputs = np.load(asked.parent / "inputs.npz")
    found = {}
    for name, (folder, arguments, tokens, feature) in json.loads(asked.read_text()).items():
        model, loaded = AutoModel.from_pretrained(folder, output_loading_info=True)
        assert not loaded["missing_keys"], (name, loaded)
        assert not loaded["unexpected_keys"], (name, loaded)
        names = {"model": model.eval(), "inputs": torch.from_numpy(inputs[name]), "torch": torch}
        with torch.no_grad():
            names["output"] = eval(f"model(inputs{arguments})", names)
            names["tokens"] = eval(tokens, names)
            found[name] = eval(feature, names).numpy()
    np.savez(asked.parent / "features.npz", **found)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
