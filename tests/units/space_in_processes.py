"""Units in several spaces of frames, over any number of processes; run by the tests, alone and under a launcher."""

from __future__ import annotations

import sys
import tempfile

import numpy as np
import torch
from accelerate import PartialState
from transformers import set_seed

from hf_plr import UnitTrainer, UnitTrainingArguments
from hf_plr.data.example_data import make_synthetic_recordings
from hf_plr.models.speech import small_hubert, small_hubert_extractor
from hf_plr.units.frames import Frames

SPEAKERS = ["ada", "bob", None, "cleo", "bob", "ada", "dan"]


def main(output: str) -> None:
    torch.set_num_threads(1)
    data = make_synthetic_recordings(n_per_class=11).select(range(83))
    data = data.add_column("speaker", [SPEAKERS[i % 7] for i in range(83)])
    results: dict[str, np.ndarray] = {}
    for scaling in ("none", "global", "recording", "speaker"):
        for shrinkage in (None, 0.1):
            set_seed(0)
            with tempfile.TemporaryDirectory() as folder:
                args = UnitTrainingArguments(
                    folder,
                    num_clusters=12,
                    per_device_eval_batch_size=4,
                    fit_frames=600,
                    frame_scaling=scaling,
                    speaker_column="speaker" if scaling == "speaker" else None,
                    whitening_shrinkage=shrinkage,
                    report="no",
                    disable_tqdm=True,
                )
                model = small_hubert(8_000, hidden_size=32, num_hidden_layers=2)
                trainer = UnitTrainer(model, args, data, processing_class=small_hubert_extractor(8_000))
                frames = Frames(trainer.extractor, trainer.train_dataset, 2)
                trainer.stage.fit(frames, 0)
                name = f"{scaling}.{shrinkage}"
                results[f"{name}.labels"] = np.array(trainer.stage.assign(frames, 0))
                results[f"{name}.centers"] = trainer.stage.kmeans.cluster_centers_.numpy()
    state = PartialState()
    if state.is_main_process:
        np.savez(output, **results)
    state.wait_for_everyone()
    state.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
