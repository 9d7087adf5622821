"""What pages of documentation find in their folder: `<!-- test: prepare NAME -->` calls NAME with it.

A function makes something small, offline and the same each time. Pages may name several.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from datasets import Audio
from helpers.launching import call
from helpers.paths import REPOSITORY, SHARED_DATA
from helpers.tiny import tiny_hubert, tiny_vit
from PIL import Image

from hf_plr.cli import main
from hf_plr.data.example_data import digits, make_synthetic_recordings
from hf_plr.models.speech import small_hubert_extractor
from hf_plr.models.vision import small_vit_processor


def checkout(folder: Path) -> None:
    """Link what commands for a checkout use: recipes/, examples/ and benchmarks/."""
    for name in ("recipes", "examples", "benchmarks"):
        (folder / name).symlink_to(REPOSITORY / name)


def digit_images(folder: Path) -> None:
    """Draw 120 images in photos/, without labels."""
    _draw_digits(folder / "photos", range(120))


def digit_run(folder: Path) -> None:
    """Train on the first 203 digits with MODEL; the run is in `out`, of few and rough clusters."""
    tiny_image_model(folder)
    _train(folder, "out", "--max_samples", 203)


def drawn_inspection_run(folder: Path) -> None:
    """Draw 203 digits in photos/ and 60 others in tuesday/, and train on the first; the run is in `monday`."""
    tiny_image_model(folder)
    _draw_digits(folder / "photos", range(203))
    _draw_digits(folder / "tuesday", range(1000, 1060))
    _train(folder, "monday", "--dataset_name", "photos")


def magnetic_tile_photos(folder: Path) -> None:
    """Write photos of magnetic tiles to photos/, tuesday/ and wednesday/, and the backbone to start from as MODEL.

    Cracks are on Wednesday alone. The figures of the page are of all photos of Monday, not of every fourth.
    `.simulated/look.py RUN` marks the random check of a run as an auditor would who knows the defect of each tile, and
    writes few.csv with the defects of 60 of its photos.
    """
    start = SHARED_DATA / "dinov2-small-saliency"
    tables = [SHARED_DATA / "magnetic-tile" / f"{split}.parquet" for split in ("train", "test")]
    if not all(path.exists() for path in (start, *tables)):
        pytest.skip("the photos of magnetic tiles are not beside this checkout")
    (folder / "MODEL").symlink_to(start)
    rows = [[{**row["image"], "label": row["label"]} for row in pq.read_table(path).to_pylist()] for path in tables]
    train, test = (sorted((row for row in part if row["label"] != CRACK), key=lambda row: row["path"]) for part in rows)
    cracks = [row for part in rows for row in part if row["label"] == CRACK]
    parts = {"photos": train[::4], "tuesday": test[:129], "wednesday": test[129:] + cracks[:30]}
    for name, part in parts.items():
        (folder / name).mkdir()
        for row in part:
            (folder / name / row["path"]).write_bytes(row["bytes"])
    simulated = folder / ".simulated"
    simulated.mkdir()
    (simulated / "look.py").write_text(LOOK)
    kinds = {row["path"]: KINDS[row["label"]] for part in rows for row in part}
    (simulated / "kinds.json").write_text(json.dumps(kinds))


KINDS = ("blowhole", "break", "crack", "fray", "free", "uneven")
CRACK = 2
LOOK = """
import json
import sys
from pathlib import Path

import pandas as pd

run = Path(sys.argv[1])
labels = pd.read_parquet(run / "pseudo_labels.parquet").set_index("index")
kinds = json.loads(Path(".simulated/kinds.json").read_text())
labels["kind"] = [kinds[Path(file).name] for file in labels["file"]]
usual = labels["label"].map(labels.groupby("label")["kind"].agg(lambda names: names.mode()[0]))
labels["mark"] = (labels["kind"] == usual).map({True: "right", False: "wrong"})
check = [int(key) for key in json.loads((run / "report.json").read_text())["sheets"]["random"]]
labels.loc[check, ["label", "mark"]].assign(sheet="random").to_csv(run.name + "_marks.csv", index_label="index")
few = labels.sample(60, random_state=0)
few.rename(columns={"kind": "label", "label": "cluster"})[["file", "label"]].to_csv("few.csv", index=False)
"""


def new_images(folder: Path) -> None:
    """Draw 60 further digits in NEW/, with a column "taken" of days."""
    _draw_digits(folder / "NEW", range(1000, 1060))
    rows = [
        f"{path.name},2026-05-{1 + index // 10:02d}" for index, path in enumerate(sorted((folder / "NEW").iterdir()))
    ]
    (folder / "NEW" / "metadata.csv").write_text("\n".join(["file_name,taken", *rows]) + "\n")


def two_weeks(folder: Path) -> None:
    """Train week1 on digits, name and audit it, then week2, which continues it; write tables for that."""
    tiny_image_model(folder)
    _train(folder, "week1", "--max_samples", 203, "--num_clusters", 25)
    truth = np.asarray(digits()["label"])
    first = _mark(folder, "week1", truth)
    few = first.sample(60, random_state=0).sort_index()
    few["label"] = [f"digit {value}" for value in few["truth"]]
    few[["index", "label"]].to_csv(folder / "few.csv", index=False)
    number = int(first["label"].max())
    (folder / "names.csv").write_text(f"cluster,name\n{number},a digit\n")
    assert main(["name", str(folder / "week1"), "--labels", str(folder / "few.csv")]) == 0
    assert main(["audit", str(folder / "week1"), "--marks", str(folder / "marks1.csv"), "--random"]) == 0
    _train(folder, "week2", "--max_samples", 403, "--num_clusters", 25, "--continue_from", "week1")
    _mark(folder, "week2", truth)


def _mark(folder: Path, week: str, truth: np.ndarray) -> pd.DataFrame:
    """Write marks of 100 samples of a run, wrong where they are not of their cluster's most frequent digit."""
    labels = pd.read_parquet(folder / week / "pseudo_labels.parquet", columns=["index", "label"])
    labels["truth"] = truth[labels["index"]]
    majority = labels.groupby("label")["truth"].agg(lambda values: values.mode()[0])
    drawn = labels[labels["label"] >= 0].sample(100, random_state=0).sort_index()
    marks = np.where(drawn["truth"] == drawn["label"].map(majority), "right", "wrong")
    drawn.assign(mark=marks)[["index", "mark"]].to_csv(folder / f"marks{week[-1]}.csv", index=False)
    return labels


def _train(folder: Path, out: str, *arguments: object) -> None:
    """Run the recipe for images on digits, from MODEL, on one thread."""
    few = ["--num_train_epochs", 2, "--num_clusters", 12, "--per_device_train_batch_size", 32, "--learning_rate", 1e-3]
    start = [] if "--continue_from" in arguments else ["--model_name_or_path", "MODEL"]
    done = call("--output_dir", out, *start, *few, *arguments, cwd=folder)
    assert done.returncode == 0, done.stderr


def digit_classes(folder: Path) -> None:
    """Draw images in folders of classes: DATA/train and DATA/test, 12 and 4 of each digit."""
    _draw_digits(folder / "DATA" / "train", range(240), per_class=12)
    _draw_digits(folder / "DATA" / "test", range(240, 480), per_class=4)


def tiny_image_model(folder: Path) -> None:
    """Save a ViT of one layer for images of 16 x 16 as MODEL."""
    tiny_vit().save_pretrained(folder / "MODEL")
    small_vit_processor(16).save_pretrained(folder / "MODEL")


def tiny_sound_model(folder: Path) -> None:
    """Save a HuBERT of two layers for sounds at 8 kHz as SOUND_MODEL."""
    tiny_hubert().save_pretrained(folder / "SOUND_MODEL")
    small_hubert_extractor(8_000).save_pretrained(folder / "SOUND_MODEL")


def recordings(folder: Path) -> None:
    """Write 40 wav files of up to a second in recordings/, without labels."""
    place = folder / "recordings"
    place.mkdir()
    files = make_synthetic_recordings(n_per_class=5).cast_column("audio", Audio(decode=False))
    for index, row in enumerate(files):
        (place / f"{index:02d}.wav").write_bytes(row["audio"]["bytes"])


def spoken_digits(folder: Path) -> None:
    """Write spoken digits to recordings/ and new_recordings/, of all six speakers."""
    for split, name, step in (("train", "recordings", 12), ("test", "new_recordings", 5)):
        table = SHARED_DATA / "fsdd" / f"{split}.parquet"
        if not table.exists():
            pytest.skip("the spoken digits are not beside this checkout")
        (folder / name).mkdir()
        for row in pq.read_table(table, columns=["audio"]).to_pylist()[::step]:
            (folder / name / row["audio"]["path"]).write_bytes(row["audio"]["bytes"])


def _draw_digits(folder: Path, rows: range, per_class: int | None = None) -> None:
    """Save digits as images of 32 x 32; with `per_class` as many of each digit, in a folder of its name."""
    drawn: dict[int, int] = {}
    for index, row in enumerate(digits().select(rows)):
        digit = int(row["label"])
        drawn[digit] = drawn.get(digit, 0) + 1
        if per_class is not None and drawn[digit] > per_class:
            continue
        place = folder if per_class is None else folder / str(digit)
        place.mkdir(parents=True, exist_ok=True)
        row["image"].resize((32, 32), Image.Resampling.BICUBIC).save(place / f"{index:03d}.png")
