"""Adapt a vision transformer to your own unlabelled images by pseudo-label refinement.

  accelerate launch recipes/vit_plr.py
      tries it on scikit-learn's handwritten digits, in about two minutes on two CPU cores
  accelerate launch recipes/vit_plr.py --dataset_name DATA --model_name_or_path MODEL --output_dir out
      DATA: a Hub id, a folder of images, or a folder with train.parquet (and test.parquet)
      MODEL: a Hub id or a folder; without it a small ViT that fits the images starts from random weights

A label column, where there is one, is used to score the features before and after and for nothing else.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset
from transformers import set_seed
from transformers.trainer_utils import get_last_checkpoint

from hf_plr import PLRTrainer, PLRTrainingArguments
from hf_plr.arguments import RecipeParser
from hf_plr.data.columns import find_image_column
from hf_plr.data.images import image_sizes
from hf_plr.data.loading import digits, draw_rows, load_images
from hf_plr.models.backbone import fitting_size, small_vit, small_vit_processor
from hf_plr.report.outputs import METRICS_FILE, PSEUDO_LABELS_FILE, format_summary, write_metrics

DEMO_OUTPUT_DIR = "out/digits"
PRETRAINED_DEFAULTS = {"learning_rate": 3e-5, "num_train_epochs": 10, "per_device_train_batch_size": 64}


@dataclass
class RecipeArguments:
    """What to train on and where to start."""

    dataset_name: str | None = field(
        default=None,
        metadata={"help": "Hub id, folder of images, or folder of parquet files. Default: handwritten digits."},
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of a Hub data set."})
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Backbone to start from, a Hub id or a folder; changes the defaults of learning_rate to 3e-5, of "
            "num_train_epochs to 10 and of per_device_train_batch_size to 64. Default: a small ViT, random weights."
        },
    )
    cpu_threads: int | None = field(
        default=None,
        metadata={"help": "Threads a process on CPUs. Default: all cores, where one process runs alone."},
    )
    max_samples: int | None = field(
        default=None, metadata={"help": "Train on at most this many images, drawn at random: a first try."}
    )


@dataclass
class VitPLRArguments(PLRTrainingArguments):
    """`PLRTrainingArguments` with the handling of the output folder."""

    output_dir: str = field(  # type: ignore[assignment]
        default=None, metadata={"help": f"Folder for the results. The digits go to {DEMO_OUTPUT_DIR} by themselves."}
    )
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={
            "help": "Go on from the last checkpoint in output_dir, or from the one named here.",
            "nargs": "?",
            "const": "last",
        },
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace the results of a run in output_dir."})


def main(argv: list[str] | None = None) -> None:
    """Run the recipe."""
    recipe, args = parse(argv)
    set_cpu_threads(recipe, args)
    started = time.perf_counter()
    trainer, rows = build_trainer(recipe, args)
    prepare_output_dir(args, is_main_process=trainer.is_world_process_zero())
    trainer.accelerator.wait_for_everyone()

    trainer.score("before")
    trainer.train(resume_from_checkpoint=True if args.resume_from_checkpoint == "last" else args.resume_from_checkpoint)
    trainer.score("after")

    card: dict[str, Any] = {"dataset": recipe.dataset_name or "handwritten digits", "tags": ["vit"]}
    trainer.save_model(_internal_call=True)  # a push, if one is wanted, takes the whole folder at the end
    if trainer.is_world_process_zero():
        out = Path(args.output_dir)
        trainer.save_pseudo_labels(out / PSEUDO_LABELS_FILE, rows)
        trainer.create_model_card(**card)
        seconds = time.perf_counter() - started
        write_metrics(out / METRICS_FILE, trainer.summary(), seconds)
        print(format_summary(trainer.summary(), seconds))
    if args.push_to_hub:
        trainer.push_to_hub(**card)
    trainer.accelerator.end_training()


def parse(argv: list[str] | None) -> tuple[RecipeArguments, VitPLRArguments]:
    """The recipe's arguments; without a data set, the digits go to an output folder of their own."""
    assert __doc__ is not None
    parser = RecipeParser([RecipeArguments, VitPLRArguments], __doc__, adjust=defaults_for)
    recipe, args = parser.parse(argv)
    return recipe, args


def defaults_for(given: dict[str, Any]) -> dict[str, Any]:
    """Defaults that depend on what is trained.

    Raises:
        ValueError: if there is a data set but no place for the results.
    """
    if given.get("dataset_name") is not None and given.get("output_dir") is None:
        raise ValueError("--output_dir is needed with --dataset_name")
    defaults: dict[str, Any] = {} if given.get("model_name_or_path") is None else dict(PRETRAINED_DEFAULTS)
    if given.get("dataset_name") is None and given.get("output_dir") is None:
        defaults |= {"output_dir": DEMO_OUTPUT_DIR, "overwrite": given.get("resume_from_checkpoint") is None}
    return defaults


def set_cpu_threads(recipe: RecipeArguments, args: VitPLRArguments) -> None:
    """Use all cores in a single process; `accelerate launch` allows it one thread unless told otherwise."""
    if recipe.cpu_threads is not None:
        torch.set_num_threads(recipe.cpu_threads)
    elif args.device.type == "cpu" and args.world_size == 1:
        torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def build_trainer(recipe: RecipeArguments, args: VitPLRArguments) -> tuple[PLRTrainer, np.ndarray]:
    """Load images and model, and find what is wrong with them; returns the trainer and the rows that it trains on."""
    check_output_dir(args)
    train, test = load(recipe, args)
    rows = draw_rows(len(train), recipe.max_samples, args.seed)
    train = train.select(rows)
    if recipe.model_name_or_path is not None:
        return PLRTrainer(recipe.model_name_or_path, args, train, eval_dataset=test), rows
    if len(train) == 0:
        raise ValueError(f"dataset_name={recipe.dataset_name!r}: the split {recipe.train_split!r} is empty")
    image_column = find_image_column(train, args.image_column)
    image_size, patch_size = fitting_size(*image_sizes(train, image_column))
    set_seed(args.seed)
    model = small_vit(image_size, patch_size)
    processor = small_vit_processor(image_size)
    return PLRTrainer(model, args, train, processing_class=processor, eval_dataset=test), rows


def load(recipe: RecipeArguments, args: VitPLRArguments) -> tuple[Dataset, Dataset | None]:
    """Training images and test split."""
    if recipe.dataset_name is None:
        return digits(), None
    with args.main_process_first(desc="loading the data set"):
        return load_images(recipe.dataset_name, recipe.dataset_config_name, recipe.train_split)


def check_output_dir(args: VitPLRArguments) -> None:
    """Refuse to mix two runs in one folder.

    Raises:
        ValueError: if there is a run in `output_dir` and neither flag says what to do with it, or none to resume.
    """
    out = Path(args.output_dir)
    checkpoint = get_last_checkpoint(str(out)) if out.is_dir() else None
    if args.resume_from_checkpoint == "last" and checkpoint is None:
        raise ValueError(f"--resume_from_checkpoint: {out} holds no checkpoint")
    if args.resume_from_checkpoint is not None or args.overwrite:
        return
    if (out / METRICS_FILE).exists():
        raise ValueError(f"{out} holds a finished run: --overwrite replaces it, another --output_dir keeps it")
    if checkpoint is not None:
        raise ValueError(f"{out} holds an unfinished run: --resume_from_checkpoint goes on, --overwrite starts anew")


def prepare_output_dir(args: VitPLRArguments, is_main_process: bool) -> None:
    """Remove an earlier run's checkpoints and metrics where they are to be replaced."""
    out = Path(args.output_dir)
    if not (is_main_process and args.overwrite and args.resume_from_checkpoint is None):
        return
    for checkpoint in out.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    (out / METRICS_FILE).unlink(missing_ok=True)


if __name__ == "__main__":
    transformers.logging.set_verbosity_warning()
    try:
        main()
    except (ValueError, TypeError) as error:
        sys.exit(f"error: {error}")
