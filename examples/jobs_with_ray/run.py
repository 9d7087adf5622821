"""The method as jobs, with Ray for the part that reads and computes most: the features.

Ray's workers map over parquet files of images, each with a backbone of its own, and write a file of features per file
of images. Clusters, refinement and training are commands, as in any other pipeline. Needs `pip install "ray[data]"`.

  python examples/jobs_with_ray/run.py --output out            # digits, a small ViT and two rounds
  python examples/jobs_with_ray/run.py --images FOLDER --model MODEL --rounds 10 --workers 64 --output out

FOLDER holds parquet files, in the order of their names, with a column of images as `datasets` writes it and a column
index, which counts the rows of all files.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from hf_plr.jobs.embedding import Embedder, write_table

SHARDS = 4
HF_PLR = shutil.which("hf-plr") or "hf-plr"


class EmbedFile:
    """Worker that holds a backbone and writes the features of one parquet file after another.

    Args:
        model: folder or Hub id of the backbone.
    """

    def __init__(self, model: str):
        self.embedder = Embedder(model)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Write the features of the file `images` to the file `features`, unless that is there."""
        if not os.path.exists(row["features"]):
            write_table(self.embedder(pq.read_table(row["images"])), row["features"])
        return {**row, "worker": os.getpid()}


def embed(model: str, images: list[Path], folder: Path, workers: int) -> int:
    """Write a file of features per file of images; returns the number of processes that did."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"images": str(path), "features": str(folder / path.name)} for path in images]
    tasks = ray.data.from_items(rows, override_num_blocks=len(rows))
    done = tasks.map(EmbedFile, fn_constructor_args=[model], concurrency=workers).take_all()
    return len({row["worker"] for row in done})


def run(*words: str | Path) -> None:
    """Run a command of hf-plr."""
    subprocess.run([HF_PLR, *map(str, words)], check=True)


def main(argv: list[str] | None = None) -> None:
    """Run the rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", metavar="FOLDER", help="parquet files of images (default: digits, made here)")
    parser.add_argument("--model", help="backbone to start from (default: a small ViT with random weights)")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="where everything goes")
    parser.add_argument("--rounds", type=int, default=2, help="rounds (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="workers of Ray (default: %(default)s)")
    args, training = parser.parse_known_args(argv)  # what is left is for hf-plr train
    out = Path(args.output).absolute()
    model = args.model or make_model(out / "start")
    folder = Path(args.images) if args.images else make_images(out / "images")
    images = sorted(folder.glob("*.parquet"))
    ray.init(num_cpus=args.workers, include_dashboard=False, ignore_reinit_error=True)
    labels: Path | None = None
    for number in range(args.rounds):
        features, clusters = out / "features" / str(number), out / "clusters" / str(number)
        n_workers = embed(model, images, features, args.workers)
        print(f"Round {number}: features of {len(images)} files by {n_workers} workers")
        start = ["--start", out / "clusters" / str(number - 1)] if number else []
        run("cluster", features, *start, "--output", clusters)
        if labels is None:
            labels = clusters
        else:
            run("refine", "--previous", labels, "--current", clusters, "--output", out / "refined" / str(number))
            labels = out / "refined" / str(number)
        trained = out / "trained" / str(number)
        data = ["--dataset_name", folder, "--model_name_or_path", model, "--labels", labels]
        run("train", "image", *data, "--num_train_epochs", "1", "--output_dir", trained, *training)
        model = str(trained)


def make_images(folder: Path) -> Path:
    """Write scikit-learn's digits as parquet files of about 450 rows."""
    from hf_plr.data.example_data import digits
    from hf_plr.utils.shards import Shard

    folder.mkdir(parents=True, exist_ok=True)
    table = digits().data.table
    table = table.append_column("index", pa.array(range(len(table))))
    for number in range(SHARDS):
        shard = Shard(number, SHARDS)
        rows = shard.rows(len(table))
        pq.write_table(table.slice(rows.start, len(rows)), folder / f"train-{shard.name('.parquet')}")
    return folder


def make_model(folder: Path) -> str:
    """Save a small ViT with random weights."""
    from transformers import set_seed

    from hf_plr.models.vision import small_vit, small_vit_processor

    set_seed(0)
    small_vit(32, 8).save_pretrained(folder)
    small_vit_processor(32).save_pretrained(folder)
    return str(folder)


if __name__ == "__main__":
    main()
