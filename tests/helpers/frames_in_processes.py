"""Labels of frames that processes share, and runs on frames that go on; run by the tests in two or three processes.

`frames_in_processes.py FOLDER` writes what each process found to FOLDER/report.json. Processes that all have LOCAL_RANK
0 stand for as many machines.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from accelerate import Accelerator, PartialState
from accelerate.utils import gather_object

from helpers.runs import StopAt
from hf_plr import UnitTrainer, UnitTrainingArguments
from hf_plr.data.example_data import make_synthetic_recordings
from hf_plr.models.speech import small_hubert, small_hubert_extractor
from hf_plr.pseudo_labels.holding import is_of_samples
from hf_plr.trainer.checkpoints.finding import FILE_LIST
from hf_plr.trainer.checkpoints.run_state import load_state, name_part, save_state
from hf_plr.trainer.checkpoints.writing import _write_file_list
from hf_plr.units import frame_labels
from hf_plr.units.frame_labels import SharedLabels

N_FRAMES = 1000


def share_labels(folder: Path, accelerator: Accelerator) -> dict[str, Any]:
    """Write own labels to a shared file, read those of all, and say which files have had names since."""
    frame_labels.SENT_FRAMES = 64
    index, processes = accelerator.process_index, accelerator.num_processes
    bounds = [0, 1, N_FRAMES, N_FRAMES] if processes == 3 else [0, 700, N_FRAMES]  # the last of three has none
    own = slice(bounds[index], bounds[index + 1])
    expected = np.arange(N_FRAMES) * 7 - 1
    report: dict[str, Any] = {"same": [], "in_file": [], "names": []}
    for dtype in (np.int16, np.int32):
        files = SharedLabels(accelerator, folder / "labels")
        labels = files.allocate(N_FRAMES, np.dtype(dtype))
        labels[own] = expected[own]
        files.complete(labels, own)
        report["names"] += [path.name for path in (folder / "labels").iterdir()]
        report["same"].append(bool((labels == expected).all()))
        report["in_file"].append(isinstance(labels, np.memmap))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:  # all processes of a machine look at one file
            labels[0] = 5
        accelerator.wait_for_everyone()
        report.setdefault("first", []).append(int(labels[0]))
    assert files.allocate(0, np.dtype(np.int16)).shape == (0,)
    (folder / "no_folder").touch()
    try:
        SharedLabels(accelerator, folder / "no_folder").allocate(N_FRAMES, np.dtype(np.int16))
    except RuntimeError as error:
        report["fault"] = str(error)
    return report


def make_trainer(out: Path, *callbacks: Any) -> UnitTrainer:
    transformers.set_seed(0)
    args = UnitTrainingArguments(
        str(out),
        num_train_epochs=3,
        relabel_every=1,
        num_clusters=12,
        per_device_train_batch_size=8,
        per_device_eval_batch_size=4,
        refinement="joint",  # which remembers labels before and after refinement
        feature_dir=str(out.parent / "labels"),
        disable_tqdm=True,
        use_cpu=True,
    )
    model, data = small_hubert(8_000, hidden_size=32, num_hidden_layers=2), make_synthetic_recordings(n_per_class=11)
    return UnitTrainer(
        model, args, data.select(range(83)), processing_class=small_hubert_extractor(8_000), callbacks=[*callbacks]
    )


def go_on(folder: Path) -> dict[str, Any]:
    """Runs that go on from a checkpoint of a part a process, and from one file of all as older releases wrote it."""
    whole = make_trainer(folder / "whole")
    whole.train()
    make_trainer(folder / "part", StopAt(12)).train()
    checkpoint, state = folder / "part" / "checkpoint-12", PartialState()
    report: dict[str, Any] = {"parts": sorted(path.name for path in checkpoint.glob("plr_state-*"))}
    report |= {"differences": [], "names": []}
    for kind in ("parts", "one file"):
        if kind == "one file" and state.is_main_process:
            _put_into_one_file(checkpoint, state.num_processes)
        state.wait_for_everyone()
        resumed = make_trainer(folder / "part")
        resumed.train(resume_from_checkpoint=str(checkpoint))
        for name, array in whole.run_state().items():
            if not np.array_equal(array, resumed.run_state()[name]):
                report["differences"].append(f"{kind}: {name}")
        if not np.array_equal(whole.frame_units.labels, resumed.frame_units.labels):
            report["differences"].append(f"{kind}: all labels")
        report["names"] += [path.name for path in (folder / "labels").iterdir()]
    own = whole.frame_units.own
    lengths = {len(array) for name, array in whole.run_state().items() if is_of_samples(name)}
    report["own"] = [own.stop - own.start, len(whole.frame_units.labels)]
    assert lengths == {own.stop - own.start}
    return report


def _put_into_one_file(checkpoint: Path, processes: int) -> None:
    parts = [load_state(checkpoint, process, processes) for process in range(processes)]
    state, settings = parts[0]
    of_all = {
        name: np.concatenate([part[name] for part, _ in parts]) if is_of_samples(name) else array
        for name, array in state.items()
    }
    for process in range(processes):
        (checkpoint / name_part(process, processes)).unlink()
    save_state(checkpoint, of_all, settings)
    (checkpoint / FILE_LIST).unlink()
    _write_file_list(checkpoint)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    accelerator = Accelerator(cpu=True)
    report = {"shared": share_labels(folder, accelerator)}
    if accelerator.num_processes == 2:
        report["resumed"] = go_on(folder)
    reports = gather_object([report])
    if accelerator.is_main_process:
        (folder / "report.json").write_text(json.dumps(reports))
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
