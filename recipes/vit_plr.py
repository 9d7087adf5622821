"""Adapt a vision transformer to your own unlabelled images by pseudo-label refinement.

  accelerate launch recipes/vit_plr.py
      tries it on scikit-learn's handwritten digits, in about two minutes on two CPU cores
  accelerate launch recipes/vit_plr.py --dataset_name DATA --model_name_or_path MODEL --output_dir out
      DATA: a Hub id, a folder of images, or a folder with train.parquet (and test.parquet)
      MODEL: a Hub id or a folder; without it a small ViT that fits the images starts from random weights

A label column, where there is one, is used to score the features before and after and for nothing else.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import set_seed

from hf_plr import PLRTrainer, PLRTrainingArguments
from hf_plr.data.columns import check_kind, find_image_column
from hf_plr.data.example_data import digits
from hf_plr.data.image_store import read_image_sizes
from hf_plr.data.loading import draw_rows, load_train_and_test
from hf_plr.data.streaming import load_stream
from hf_plr.models.vision import choose_vit_size, small_vit, small_vit_processor
from hf_plr.recipe_tools.argument_parser import RecipeParser
from hf_plr.recipe_tools.launch_environment import localize_commands
from hf_plr.recipe_tools.output_folder import OutputArguments, adjust_output_dir, check_output_dir
from hf_plr.recipe_tools.running import (
    SOUND_ARGUMENTS,
    DataArguments,
    check_given_labels,
    run_recipe,
    score_and_train,
    set_cpu_threads,
    suggest_push,
    write_results,
)
from hf_plr.trainer.continuation import open_continuation
from hf_plr.utils.distributed import run_main_first

DEMO_OUTPUT_DIR = "out/digits"
NEXT_COMMAND = (
    "accelerate launch recipes/vit_plr.py --dataset_name YOUR_IMAGES --output_dir out/yours",
    "your own images",
)


@dataclass
class RecipeArguments(DataArguments):
    """The data and the start."""

    dataset_name: str | None = field(
        default=None,
        metadata={"help": "Hub id, folder of images, archive or table. Default: handwritten digits."},
    )
    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Backbone to start from, a Hub id or a folder; changes the defaults of learning_rate to 3e-5, of "
            "num_train_epochs to 10 and of per_device_train_batch_size to 64. Default: the weights of continue_from, "
            "or a small ViT with random weights."
        },
    )


@dataclass
class VitPLRArguments(OutputArguments, PLRTrainingArguments):
    """The arguments of training, where the digits need no output folder."""

    output_dir: str | None = field(
        default=None, metadata={"help": f"Folder for the results. Default, for the digits: {DEMO_OUTPUT_DIR}."}
    )


def main(argv: list[str] | None = None) -> None:
    """Run the recipe."""
    recipe, args = parse(argv)
    set_cpu_threads(recipe.cpu_threads, args)
    started = time.perf_counter()
    trainer, rows = build_trainer(recipe, args)
    score_and_train(trainer, args, rows)
    card = {"dataset": recipe.dataset_name or "handwritten digits", "tags": ["vit"]}
    next_command = NEXT_COMMAND if recipe.dataset_name is None else suggest_push(args.output_dir)
    write_results(trainer, rows, started, next_command, card)


def parse(argv: list[str] | None) -> tuple[RecipeArguments, VitPLRArguments]:
    """Parse the recipe's arguments; without a data set, the digits have an output folder of their own."""
    assert __doc__ is not None
    parser = RecipeParser(
        [RecipeArguments, VitPLRArguments], localize_commands(__doc__), adjust_defaults, hidden=SOUND_ARGUMENTS
    )
    recipe, args = parser.parse_args_and_config(argv)
    return recipe, args


def adjust_defaults(given: dict[str, Any]) -> dict[str, Any]:
    """Return the default of the output folder, which depends on the given arguments.

    Raises:
        ValueError: if there is a data set but no place for the results.
    """
    return adjust_output_dir(given, DEMO_OUTPUT_DIR)


def build_trainer(recipe: RecipeArguments, args: VitPLRArguments) -> tuple[PLRTrainer, np.ndarray]:
    """Load and check images and model; returns the trainer and the rows that it trains on."""
    check_output_dir(args)
    check_given_labels(recipe, args)
    open_continuation(args)  # refuses a folder before the data are loaded
    images, test = load(recipe, args)
    check_kind(images, "image", args.image_column, recipe.dataset_name)
    rows = draw_rows(len(images), recipe.max_samples, args.seed)
    images = images.select(rows)
    if recipe.model_name_or_path is not None or args.continue_from is not None:
        return PLRTrainer(recipe.model_name_or_path, args, images, eval_dataset=test), rows
    if len(images) == 0:
        raise ValueError(f"dataset_name={recipe.dataset_name!r}: the split {recipe.train_split!r} is empty")
    image_column = find_image_column(images, args.image_column)
    image_size, patch_size = choose_vit_size(*read_image_sizes(images, image_column), args.image_size)
    set_seed(args.seed)
    model = small_vit(image_size, patch_size)
    processor = small_vit_processor(image_size)
    return PLRTrainer(model, args, images, processing_class=processor, eval_dataset=test), rows


def load(recipe: RecipeArguments, args: VitPLRArguments) -> tuple[Dataset, Dataset | None]:
    """Load training images and test split."""
    if recipe.dataset_name is None:
        if recipe.streaming:
            raise ValueError("streaming=True needs a dataset_name")
        return digits(), None
    with run_main_first(args.distributed_state, "loading the data set"):
        if recipe.streaming:
            config, split = recipe.dataset_config_name, recipe.train_split
            return load_stream(recipe.dataset_name, config, split, recipe.max_samples, "image"), None
        return load_train_and_test(recipe.dataset_name, recipe.dataset_config_name, recipe.train_split, "image")


if __name__ == "__main__":
    run_recipe(main)
