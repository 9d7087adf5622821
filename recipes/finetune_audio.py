"""Fine-tune a classifier of recordings from a trained backbone, with few labels or many; stock classes only.

  accelerate launch recipes/finetune_audio.py --model_name_or_path out --dataset_name DATA --output_dir classifier
      DATA: a Hub id, folders CLASS, or train/CLASS and test/CLASS, of wav, flac, ogg or mp3 files, or a folder with
      train.parquet

--labels_per_class 10 takes few labels, --freeze_backbone trains the head alone.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from datasets import Dataset
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification, pipeline

from hf_plr.data.audio_decoding import decode_waveform
from hf_plr.data.columns import find_audio_column
from hf_plr.data.sample_store import select_undecoded
from hf_plr.models.loading import load_classifier_config
from hf_plr.recipe_tools.argument_parser import RecipeParser
from hf_plr.recipe_tools.finetune_arguments import ClassifierArguments, FinetuneArguments, adjust_defaults
from hf_plr.recipe_tools.finetuning import (
    check_max_seconds,
    choose_length,
    extract_sounds,
    find_length_bounds,
    label_tensor,
    show_first_answer,
    train_classifier,
)
from hf_plr.recipe_tools.labelled_data import load_labelled
from hf_plr.recipe_tools.launch_environment import localize_commands
from hf_plr.recipe_tools.running import run_recipe, set_cpu_threads


@dataclass
class AudioArguments(FinetuneArguments):
    """The data, the number of labels and the length of the recordings."""

    max_seconds: float | None = field(
        default=None,
        metadata={
            "help": "Length that recordings are cut or padded to. Default: the longest, at most 10 seconds and at most "
            "what the model sees."
        },
    )


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Run the recipe; returns the scores."""
    assert __doc__ is not None
    parser = RecipeParser([AudioArguments, ClassifierArguments], localize_commands(__doc__), adjust_defaults)
    recipe, args = parser.parse_args_and_config(argv)
    set_cpu_threads(None, args)
    load_classifier_config(recipe.model_name_or_path, "AutoModelForAudioClassification")
    data = load_labelled(recipe, args.seed, "audio")
    column = find_audio_column(data.train)
    extractor = AutoFeatureExtractor.from_pretrained(recipe.model_name_or_path)
    rate, (min_samples, longest) = extractor.sampling_rate, find_length_bounds(extractor)
    check_max_seconds(recipe.max_seconds, rate, longest)
    lengths: list[int] = []

    def read_length(value: Any, row: int) -> None:
        lengths.append(len(decode_waveform(value, row, rate)))

    data = data.keep_readable(column, lambda _: read_length, recipe.skip_unreadable)
    max_samples = choose_length(lengths, rate, recipe.max_seconds, longest)

    def add_inputs(samples: Dataset, labels: np.ndarray) -> Dataset:
        def read(batch: dict) -> dict:
            stored = zip(batch[column], batch["row"], strict=True)
            waveforms = [decode_waveform(value, row, rate, min_samples) for value, row in stored]
            values = extract_sounds(extractor, waveforms, rate, max_samples)
            return {**values, "labels": label_tensor(batch["labels"])}

        rows = data.train_rows if samples is data.train else data.test_rows
        stored = select_undecoded(samples, column)
        return stored.add_column("labels", labels).add_column("row", rows).with_transform(read)

    metrics = train_classifier(
        lambda classes: AutoModelForAudioClassification.from_pretrained(
            recipe.model_name_or_path, dtype=torch.float32, ignore_mismatched_sizes=True, **classes
        ),
        add_inputs,
        data,
        extractor,
        recipe,
        args,
    )
    if args.process_index == 0:
        with tempfile.TemporaryDirectory() as folder:
            file = str(Path(folder) / "sound.wav")
            waveform = decode_waveform(select_undecoded(data.test, column)[0][column], 0, rate)
            soundfile.write(file, waveform[:max_samples], rate)
            heard, _ = soundfile.read(file, dtype="float32")  # by its path the pipeline asks for ffmpeg
            answers = pipeline("audio-classification", args.output_dir)(heard, top_k=3)
        truth = data.names[data.test_labels[0]]
        show_first_answer(answers, truth, f'pipeline("audio-classification", {args.output_dir!r})(waveform)')
    return metrics


if __name__ == "__main__":
    run_recipe(main)
