"""The first pass over damaged images and sounds, alone or in several processes."""

from __future__ import annotations

import sys
import tempfile

import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import load_from_disk

from helpers.tiny import image_trainer, sound_trainer
from hf_plr import PLRTrainer
from hf_plr.data import manifest
from hf_plr.data.image_store import ImageStore, UnreadableImage
from hf_plr.utils.distributed import gather_objects

SGD = {"optim": "sgd", "learning_rate": 0.0, "save_strategy": "no", "report": "no", "num_train_epochs": 1}
SMALL = {"per_device_eval_batch_size": 32}  # several batches, so that each process has some


def main(folder: str, output: str) -> None:
    """Train on what can be read, and write what every process found."""
    data, sounds = load_from_disk(f"{folder}/images"), load_from_disk(f"{folder}/sounds")
    results: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as own:
        state = PartialState()
        manifest.FOLDER = f"{gather_objects(state, own)[0]}/manifests"
        try:
            image_trainer(own, data, **SGD, **SMALL).train()
        except UnreadableImage as error:
            message = str(error)
        said = gather_objects(state, message)
        results["images: same error"] = np.array([each == said[0] and "image 5 cannot" in each for each in said])
        manifest.FOLDER = f"{gather_objects(state, own)[0]}/others"  # that run left what it has found
        rows: list[int] = []
        decode = ImageStore._decode_rows

        def counted(self, chosen):
            rows.extend(chosen.tolist())
            return decode(self, chosen)

        ImageStore._decode_rows = counted
        trainer = image_trainer(own, data, skip_unreadable=True, **SGD, **SMALL)
        trainer.check_samples(extract=False)
        n_rows = gather_objects(state, len(set(rows)))
        results["images: own part"] = np.array([sum(n_rows) == 203, len(n_rows) == 1 or max(n_rows) < 203])
        trainer.train()
        sound = sound_trainer(own, sounds, PLRTrainer, skip_unreadable=True, **SGD)
        sound.train()
        for name, each in (("images", trainer), ("sounds", sound)):
            results[f"{name}: unreadable"] = np.array(each.train_dataset.unreadable)
            results[f"{name}: rows"] = each.train_dataset.rows
            results[f"{name}: labels"] = each.pseudo_labels.labels
        results["sounds: lengths"] = sound.train_dataset.lengths
        for name, value in results.items():
            agree = gather_object([value.tolist()])
            assert all(other == agree[0] for other in agree), name
        again = image_trainer(own, data, skip_unreadable=True, **SGD)  # by the manifest, on every process
        assert all(gather_objects(state, again.train_dataset.is_checked))
        if state.is_main_process:
            np.savez(output, **results)
        state.wait_for_everyone()
        state.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
