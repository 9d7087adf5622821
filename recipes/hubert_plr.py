"""Adapt a speech transformer to your own unlabelled recordings by pseudo-label refinement.

  accelerate launch recipes/hubert_plr.py
      tries it on 800 synthetic sounds that it makes itself, in a few minutes on two CPU cores
  accelerate launch recipes/hubert_plr.py --dataset_name DATA --model_name_or_path MODEL --output_dir out
      one label per recording: clusters of whole recordings, refined from epoch to epoch
  accelerate launch recipes/hubert_plr.py --dataset_name DATA --objective frames --output_dir out
      one label per frame, HuBERT's own objective: units of frames, refined from round to round

  DATA: a Hub id, a folder of wav, flac, ogg or mp3 files, or a folder with train.parquet (and test.parquet)
  MODEL: a Hub id or a folder with HuBERT, wav2vec 2.0, WavLM or data2vec-audio, for labels of recordings also with AST,
      wav2vec2-BERT or Whisper; without it a small HuBERT that fits the recordings starts from random weights

Afterwards `hf-plr units --model out --dataset DATA --output units.parquet` gives the units of a run with frames to any
recordings. A label column, where there is one, is used to score the features before and after and for nothing else.
"""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from datasets import Dataset
from transformers import set_seed

from hf_plr import PLRTrainer, PLRTrainingArguments, UnitTrainer, UnitTrainingArguments
from hf_plr.data.audio_store import read_sampling_rates
from hf_plr.data.columns import check_kind, find_audio_column
from hf_plr.data.example_data import make_synthetic_recordings
from hf_plr.data.loading import draw_rows, load_train_and_test
from hf_plr.data.streaming import load_stream
from hf_plr.models.speech import small_hubert, small_hubert_extractor
from hf_plr.recipe_tools.argument_parser import RecipeParser
from hf_plr.recipe_tools.launch_environment import localize_commands
from hf_plr.recipe_tools.output_folder import OutputArguments, adjust_output_dir, check_output_dir
from hf_plr.recipe_tools.running import (
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

DEMO_OUTPUT_DIR = "out/sounds"
DEFAULTS = {"per_device_eval_batch_size": 64}
IMAGE_ARGUMENTS = (
    *("image_column", "image_cache_gib", "image_cache_dir"),
    *("image_size", "decoded_size", "pixel_range", "transparency_background"),
)
NEXT_COMMANDS = {
    "utterance": (
        "accelerate launch recipes/hubert_plr.py --dataset_name YOUR_RECORDINGS --output_dir out/yours",
        "your own recordings",
    ),
    "frames": (
        "hf-plr units --model {out} --dataset {data} --output units.parquet",
        "the units of your own recordings",
    ),
}


@dataclass
class RecipeArguments(DataArguments):
    """The data, the objective and the start."""

    objective: Literal["utterance", "frames"] = field(
        default="utterance",
        metadata={"help": "utterance (one label per recording) or frames (one per frame, as HuBERT was trained)."},
    )
    dataset_name: str | None = field(
        default=None,
        metadata={"help": "Hub id, folder of recordings, archive or table. Default: synthetic sounds, made here."},
    )
    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Backbone to start from, a Hub id or a folder; changes the defaults of learning_rate to 3e-5, of "
            "num_train_epochs to 10, of per_device_train_batch_size to 16 and of first_units to layer. Default: the "
            "weights of continue_from, or a small HuBERT with random weights."
        },
    )


@dataclass
class SoundOutputArguments(OutputArguments):
    """The output folder, which synthetic sounds do not need."""

    output_dir: str | None = field(
        default=None, metadata={"help": f"Folder for the results. Default, for synthetic sounds: {DEMO_OUTPUT_DIR}."}
    )


@dataclass
class UtteranceArguments(SoundOutputArguments, PLRTrainingArguments):
    """The arguments of training with one label per recording."""


@dataclass
class FrameArguments(SoundOutputArguments, UnitTrainingArguments):
    """The arguments of training with one label per frame."""


@dataclass
class AllArguments(FrameArguments, UtteranceArguments):
    """The arguments of both, each once, for `--help`; never filled."""


Arguments = UtteranceArguments | FrameArguments


def main(argv: list[str] | None = None) -> None:
    """Run the recipe."""
    recipe, args = parse(argv)
    set_cpu_threads(recipe.cpu_threads, args)
    started = time.perf_counter()
    trainer, rows = build_trainer(recipe, args)
    score_and_train(trainer, args, rows)
    card = {"dataset": recipe.dataset_name or "synthetic sounds", "tags": [trainer.backbone.config.model_type]}
    write_results(trainer, rows, started, suggest_next(recipe, args), card)


def suggest_next(recipe: RecipeArguments, args: Arguments) -> tuple[str, str]:
    """The command to try after the run, and what it does."""
    if recipe.objective == "utterance" and recipe.dataset_name is not None:
        return suggest_push(args.output_dir)
    command, what = NEXT_COMMANDS[recipe.objective]
    data = shlex.quote(recipe.dataset_name or "YOUR_RECORDINGS")
    return command.format(out=shlex.quote(str(args.output_dir)), data=data), what


def parse(argv: list[str] | None) -> tuple[RecipeArguments, Arguments]:
    """Parse the recipe's arguments; without a data set, the synthetic sounds have an output folder of their own."""
    assert __doc__ is not None
    parser = RecipeParser(
        [RecipeArguments, AllArguments],
        localize_commands(__doc__),
        adjust_defaults,
        hidden=IMAGE_ARGUMENTS,
        choose=choose_arguments,
        defaults=DEFAULTS,
    )
    recipe, args = parser.parse_args_and_config(argv)
    return recipe, args


def choose_arguments(given: dict[str, Any]) -> list[type]:
    """Return the dataclasses of the objective.

    Raises:
        ValueError: if an argument of the other objective is given.
    """
    frames = given.get("objective") == "frames"
    own, other = (UnitTrainingArguments, PLRTrainingArguments)[:: 1 if frames else -1]
    without_effect = sorted(set(given) & set(other.__annotations__) - set(own.__annotations__))
    if without_effect:
        name, labels = without_effect[0], "units of frames" if frames else "labels of recordings"
        remedy = "leave it out" if frames else "leave it out, or add --objective frames"
        raise ValueError(f"{name}={given[name]!r} has no effect on {labels}: {remedy}")
    return [RecipeArguments, FrameArguments if frames else UtteranceArguments]


def adjust_defaults(given: dict[str, Any]) -> dict[str, Any]:
    """Return defaults that depend on the given arguments.

    Raises:
        ValueError: if there is a data set but no place for the results.
    """
    return DEFAULTS | adjust_output_dir(given, DEMO_OUTPUT_DIR)


def build_trainer(recipe: RecipeArguments, args: Arguments) -> tuple[PLRTrainer | UnitTrainer, np.ndarray]:
    """Load and check recordings and model; returns the trainer and the rows that it trains on."""
    check_output_dir(args)
    if isinstance(args, UtteranceArguments):
        check_given_labels(recipe, args)
        open_continuation(args)  # refuses a folder before the data are loaded
    sounds, test = load(recipe, args)
    check_kind(sounds, "audio", args.audio_column, recipe.dataset_name)
    rows = draw_rows(len(sounds), recipe.max_samples, args.seed)
    sounds = sounds.select(rows)
    model: Any = recipe.model_name_or_path
    extractor = None
    if model is None and getattr(args, "continue_from", None) is None:
        if len(sounds) == 0:
            raise ValueError(f"dataset_name={recipe.dataset_name!r}: the split {recipe.train_split!r} is empty")
        rates = read_sampling_rates(sounds, find_audio_column(sounds, args.audio_column))
        rate = 8_000 if np.median(rates) <= 8_000 else 16_000
        set_seed(args.seed)
        model, extractor = small_hubert(rate), small_hubert_extractor(rate)
    kind: Any = PLRTrainer if recipe.objective == "utterance" else UnitTrainer
    return kind(model, args, sounds, processing_class=extractor, eval_dataset=test), rows


def load(recipe: RecipeArguments, args: Arguments) -> tuple[Dataset, Dataset | None]:
    """Load training recordings and test split."""
    if recipe.dataset_name is None:
        if recipe.streaming:
            raise ValueError("streaming=True needs a dataset_name")
        return make_synthetic_recordings(), None
    with run_main_first(args.distributed_state, "loading the data set"):
        if recipe.streaming:
            config, split = recipe.dataset_config_name, recipe.train_split
            return load_stream(recipe.dataset_name, config, split, recipe.max_samples, "audio"), None
        return load_train_and_test(recipe.dataset_name, recipe.dataset_config_name, recipe.train_split, "audio")


if __name__ == "__main__":
    run_recipe(main)
