"""What a run shows while it works."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from datasets import Audio, Dataset, concatenate_datasets
from helpers.paths import REPOSITORY
from helpers.tiny import image_trainer, sound_trainer, tiny_vit
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import PrinterCallback, ProgressCallback

from hf_plr import PLRTrainer, PLRTrainingArguments
from hf_plr.data.example_data import digits
from hf_plr.data.loading import load_splits
from hf_plr.trainer.progress_display import ProgressDisplay, describe, describe_backbone, make_plan
from hf_plr.utils import progress
from hf_plr.utils.progress import track

STAGE = {
    "plr/clusters": 64.0,
    "plr/noise_share": 0.031,
    "plr/changed_share": 0.12,
    "plr/agreement_ari": 0.846,
    "plr/kept": 60.0,
    "plr/split": 2.0,
    "plr/died": 1.0,
    "plr/effective_rank": 31.26,
    "plr/silhouette": 0.333,
    "plr/seconds": 1.52,
}
IN_A_TERMINAL = """
import time
from tqdm.auto import tqdm
from hf_plr.utils.progress import track
with tqdm(total=4) as outer:
    for step in range(4):
        for _ in track(range(3), "Extracting features", 3, is_shown=True):
            time.sleep(0.15)
        outer.update()
        tqdm.write(f"line {step}")
print("done")
"""


def test_a_stage_in_a_line():
    assert describe(STAGE, 3.0) == (
        "epoch   3.0  stage: 64 clusters (2 split, 1 died), 3.1% in none, agreement with the last 0.85, "
        "12.0% changed by refinement, effective rank 31.3, silhouette 0.33, 1.5 s"
    )


def test_a_stage_with_soft_targets_in_a_line():
    moved = describe(STAGE | {"plr/soft_share": 0.08}, 3.0)
    assert "12.0% changed by refinement, 8.0% of the targets on other clusters by refinement, " in moved
    assert "changed" not in describe(STAGE | {"plr/soft_share": 0.08, "plr/changed_share": 0.0}, 3.0)


def test_other_entries_in_a_line():
    assert describe({"loss": 1.23456, "learning_rate": 1e-3, "epoch": 2.5}, 2.5) == (
        "epoch   2.5  loss 1.235, learning_rate 0.001"
    )
    evaluated = {"eval_knn_accuracy": 0.9, "eval_plr/effective_rank": 20.0, "eval_plr/silhouette": 0.5}
    assert describe(evaluated | {"eval_plr/churn": 0.1}, 1.0) == (
        "epoch   1.0  eval_knn_accuracy 0.9, effective rank 20.0, silhouette 0.500"
    )
    assert describe({"train_runtime": 2.0, "train_loss": 3.0}, 3.0) == "epoch   3.0  trained in 2.0 s, mean loss 3"


def test_scores_in_a_line():
    scored = {
        "score/knn_accuracy": 0.91,
        "score/nmi": 0.5,
        "score/knn_accuracy_low": 0.88,
        "score/knn_accuracy_high": 0.94,
    }
    assert describe(scored | {"epoch": 2.0}, 2.0) == "epoch   2.0  scores: knn_accuracy 0.91 (0.88 to 0.94), nmi 0.5"


def test_without_a_terminal_there_are_plain_lines(make_trainer, capsys):
    trainer = make_trainer(num_train_epochs=2)
    names = {type(callback) for callback in trainer.callback_handler.callbacks}
    assert ProgressDisplay in names
    assert not names & {PrinterCallback, ProgressCallback}
    capsys.readouterr()
    trainer.train()
    lines = capsys.readouterr().out.splitlines()
    n = sum(parameter.numel() for parameter in trainer.model.parameters())
    trained = n - sum(parameter.numel() for parameter in trainer.model.pooler.parameters())
    assert lines[:7] == [
        f"backbone  ViTModel, feature cls of size 32, {trained:,} of {n:,} parameters trained, learning rate 0.001",
        "samples   203 images",
        "scores    by 10 classes in column 'label' (0, 1, 2, 3, ...), which training does not see",
        "clusters  12 by KMeans in a space that a trial finds, refinement slr",
        "epochs    2, with a stage before each",
        "steps     14 of 16 images, each in 2 views: too few to learn from, give more --num_train_epochs or a smaller "
        "--per_device_train_batch_size",
        "device    cpu, float32, 1 thread",
    ]
    assert sum(re.fullmatch(r"time      about \d+ s left, .*", line) is not None for line in lines) == 1
    assert sum("stage: 12 clusters" in line for line in lines) == 2
    assert sum(" loss " in line and "stage" not in line for line in lines) == 3
    assert not any("\x1b" in line or "{" in line for line in lines)


def test_the_plan_tells_the_rates_of_an_optimizer_of_ones_own(make_trainer):
    model = tiny_vit()
    parameters = list(model.parameters())
    groups = [{"params": parameters[:4], "lr": 0.02}, {"params": parameters[4:]}]
    given = make_trainer({"model": model, "optimizers": (torch.optim.SGD(groups, lr=0.5), None)})
    assert describe_backbone(given).endswith("parameters trained, learning rate 0.02 or 0.5 of SGD")
    for settings, rate in (({"lr": 0.25}, "0.25"), ({}, "by default")):
        made = make_trainer({"optimizer_cls_and_kwargs": (torch.optim.Adam, settings)})
        assert describe_backbone(made).endswith(f"learning rate {rate} of Adam")


@pytest.mark.parametrize(
    ("step", "expected"),
    [(3, "38 s"), (7, "34 s"), (14, "17 s"), (20, "1 s"), (21, None)],  # three epochs of seven steps
)
def test_time_left_has_the_stages_to_come(make_trainer, capsys, step, expected):
    display = ProgressDisplay(make_trainer(), bar=False)
    display._timer = SimpleNamespace(end_step=lambda enough: True, seconds_per_step=1.0)
    log = [{"plr/seconds": 10.0}]
    state = SimpleNamespace(is_world_process_zero=True, log_history=log, max_steps=21, global_step=step)
    display.on_step_end(display.trainer.args, state, None)
    line = f"time      about {expected} left, without evaluations and checkpoints\n"
    assert capsys.readouterr().out == ("" if expected is None else line)


def test_lines_are_in_a_file_at_once(make_trainer, monkeypatch, tmp_path):
    display = ProgressDisplay(make_trainer(), bar=False)
    with (tmp_path / "log").open("w") as file:
        monkeypatch.setattr(sys, "stdout", file)
        display.on_log(None, SimpleNamespace(is_world_process_zero=True, epoch=1.0), None, {"loss": 2.0})
        assert (tmp_path / "log").read_text() == "epoch   1.0  loss 2\n"


def test_the_plan_names_devices_other_than_cuda(make_trainer, monkeypatch):
    trainer = make_trainer()
    monkeypatch.setattr(PLRTrainingArguments, "device", torch.device("mps"))
    assert make_plan(trainer)[-1] == ("device", "mps, float32")


def test_the_plan_of_a_resumed_run_says_what_is_left(make_trainer):
    trainer = make_trainer()
    trainer.state.max_steps = 21
    for done, expected in (
        (0, ""),
        (20, ", 20 of them done"),
        (21, ", all of them done before: nothing is left to train"),
    ):
        trainer.state.global_step = done
        assert dict(make_plan(trainer))["steps"] == f"21 of 16 images, each in 2 views{expected}"


def test_one_of_a_kind_is_no_plural(make_trainer):
    plan = dict(make_plan(make_trainer(clusterer="dbscan")))
    assert plan["clusters"].startswith("1 labeling by ")


def make_tones(rate, n_samples=9600):
    """Eight tones of the same samples at a sampling rate."""
    rows = []
    for i in range(8):
        buffer = io.BytesIO()
        soundfile.write(buffer, 0.5 * np.sin(np.arange(n_samples) * (1 + i) / 9.0), rate, format="wav")
        rows.append({"bytes": buffer.getvalue(), "path": None})
    return Dataset.from_dict({"audio": rows}).cast_column("audio", Audio())


def test_the_plan_tells_what_of_sounds_is_not_heard_and_which_loss_is_guessing(tmp_path):
    plan = dict(make_plan(sound_trainer(tmp_path / "high", make_tones(24_000))))
    assert plan["samples"] == "8 recordings, resampled from 24,000 to 8,000 Hz: nothing above 4,000 Hz is heard"
    assert plan["clusters"].endswith("refinement slr; a loss of 2.48 is guessing")  # ln 12
    mixed = concatenate_datasets([make_tones(8_000), make_tones(16_000)])
    plan = dict(make_plan(sound_trainer(tmp_path / "mixed", mixed)))
    assert plan["samples"] == "16 recordings, resampled from up to 16,000 to 8,000 Hz: nothing above 4,000 Hz is heard"
    shorter, longer = make_tones(8_000, 3000), make_tones(8_000)
    few = concatenate_datasets([*[shorter] * 3, make_tones(16_000).select([0]), *[longer] * 3])
    for _ in range(2):  # the second time by the manifest
        trainer = sound_trainer(tmp_path / "few", few)
        trainer.train_dataset.check()
        assert "resampled from up to 16,000 to 8,000 Hz" in dict(make_plan(trainer))["samples"]
    plan = dict(make_plan(sound_trainer(tmp_path / "low", make_tones(8_000), PLRTrainer, num_clusters=2)))
    assert plan["samples"] == "8 recordings"


def test_the_plan_says_that_names_of_folders_are_labels(tmp_path):
    for i, digit in enumerate(digits().select(range(16))):
        folder = tmp_path / "photos" / ("good" if i % 2 else "bad")
        folder.mkdir(parents=True, exist_ok=True)
        digit["image"].save(folder / f"{i}.png")
    photos = load_splits(str(tmp_path / "photos"))["train"]
    plan = dict(make_plan(image_trainer(tmp_path / "out", photos, num_clusters=2)))
    assert plan["scores"] == "by 2 classes in column 'label' (bad, good), which training does not see"
    unlabeled = photos.remove_columns("label")
    assert "scores" not in dict(make_plan(image_trainer(tmp_path / "out", unlabeled, num_clusters=2)))


def test_long_work_without_a_terminal_says_how_far_it_is(monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE_SECONDS", -1.0)
    assert list(track(range(3), "Reading images", 3, is_shown=True)) == [0, 1, 2]
    assert capsys.readouterr().out.splitlines() == [f"Reading images: {done} of 3" for done in range(3)]
    assert list(track(range(3), "Reading images", 3, is_shown=False)) == [0, 1, 2]
    assert capsys.readouterr().out == ""


@pytest.mark.skipif(sys.platform != "linux", reason="pseudo-terminals of Linux")
def test_in_a_terminal_there_are_bars_within_bars():
    main, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))  # 40 lines of 100 characters
    with subprocess.Popen(
        [sys.executable, "-c", IN_A_TERMINAL],
        stdout=end,
        stderr=end,
        cwd=REPOSITORY,
        env={**os.environ, "TERM": "xterm", "PYTHONPATH": str(REPOSITORY)},
    ) as process:
        os.close(end)
        shown = b""
        while True:
            try:
                part = os.read(main, 4096)
            except OSError:  # how Linux says that the other end is closed
                break
            if not part:
                break
            shown += part
    os.close(main)
    assert process.returncode == 0
    text = shown.decode()
    assert "Extracting features:  33%" in text
    assert "4/4" in text
    assert text.rstrip().endswith("done")
    assert all(f"line {step}" in text for step in range(4))


def test_curves_go_where_trainer_reports(make_trainer, tmp_path):
    folder = tmp_path / "curves"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TENSORBOARD_LOGGING_DIR", str(folder))
        trainer = make_trainer(num_train_epochs=2, report_to="tensorboard", eval_strategy="epoch")
        trainer.train()
    events = EventAccumulator(str(folder))
    events.Reload()
    curves = set(events.Tags()["scalars"])
    assert {"train/loss", "train/plr/clusters", "train/plr/effective_rank", "eval/plr/silhouette"} <= curves
    logged = [entry["plr/effective_rank"] for entry in trainer.state.log_history if "plr/effective_rank" in entry]
    assert [event.value for event in events.Scalars("train/plr/effective_rank")] == pytest.approx(logged)
