"""Fine-tune a classifier of images from a trained backbone, with few labels or many; stock classes only.

  accelerate launch recipes/finetune_image.py --model_name_or_path out --dataset_name DATA --output_dir classifier
      DATA: a Hub id, folders CLASS, or train/CLASS and test/CLASS, of images, or a folder with train.parquet

--labels_per_class 10 takes few labels, --freeze_backbone trains the head alone.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from PIL import Image as PILImage
from transformers import AutoImageProcessor, pipeline

from hf_plr.data.columns import find_image_column
from hf_plr.data.image_geometry import ImageGeometry
from hf_plr.data.sample_store import select_undecoded
from hf_plr.models.image_classifier import load_image_classifier
from hf_plr.models.loading import load_classifier_config
from hf_plr.recipe_tools.argument_parser import RecipeParser
from hf_plr.recipe_tools.finetune_arguments import ClassifierArguments, FinetuneArguments, adjust_defaults
from hf_plr.recipe_tools.finetuning import (
    label_tensor,
    show_first_answer,
    train_classifier,
)
from hf_plr.recipe_tools.labelled_data import Read, load_labelled
from hf_plr.recipe_tools.launch_environment import localize_commands
from hf_plr.recipe_tools.running import run_recipe, set_cpu_threads


@dataclass
class ImageArguments(FinetuneArguments):
    """Arguments for the data, the backbone, the number of labels and the pixels."""

    pixel_range: list[float] | None = field(
        default=None,
        metadata={
            "help": "Images of more than 8 bits: LOW HIGH, the pixels that become 0 and 255. Default: as kept with the "
            "backbone, otherwise from a sample of the images."
        },
    )
    transparency_background: str | None = field(
        default=None,
        metadata={
            "help": "Colour behind transparent pixels, a name or #rrggbb. Default: as kept with the backbone, or white."
        },
    )


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Run the recipe; returns the scores."""
    assert __doc__ is not None
    parser = RecipeParser([ImageArguments, ClassifierArguments], localize_commands(__doc__), adjust_defaults)
    recipe, args = parser.parse_args_and_config(argv)
    set_cpu_threads(None, args)
    config = load_classifier_config(recipe.model_name_or_path, "AutoModelForImageClassification")
    data = load_labelled(recipe, args.seed, "image")
    column = find_image_column(data.train)
    processor = AutoImageProcessor.from_pretrained(recipe.model_name_or_path)
    num_channels = getattr(getattr(config, "vision_config", config), "num_channels", 3)
    geometry = ImageGeometry(processor, num_channels, recipe.pixel_range, recipe.transparency_background)
    notes = geometry.fit(data.train, column)
    if args.process_index == 0:
        print("".join(f"{note}.\n" for note in notes), end="")

    def make_reader(samples: Dataset) -> Read:
        decoder = geometry.make_decoder(samples.features[column])
        return lambda value, row: geometry.decode(decoder, [row], [value])

    data = data.keep_readable(column, make_reader, recipe.skip_unreadable)

    def add_inputs(samples: Dataset, labels: np.ndarray) -> Dataset:
        decoder = geometry.make_decoder(samples.features[column])

        def read(batch: dict) -> dict:
            images = torch.from_numpy(geometry.decode(decoder, batch["row"], batch[column]))
            pixels = geometry.normalise(geometry.unit_range(images))
            return {"pixel_values": pixels, "labels": label_tensor(batch["labels"])}

        rows = data.train_rows if samples is data.train else data.test_rows
        stored = select_undecoded(samples, column)
        return stored.add_column("labels", labels).add_column("row", rows).with_transform(read)

    metrics = train_classifier(
        lambda classes: load_image_classifier(recipe.model_name_or_path, **classes),
        add_inputs,
        data,
        processor,
        recipe,
        args,
    )
    if args.process_index == 0 and num_channels == 3:
        with tempfile.TemporaryDirectory() as folder:
            file = str(Path(folder) / "image.png")
            value = select_undecoded(data.test, column)[0][column]
            image = geometry.make_decoder(data.test.features[column]).decode(value, int(data.test_rows[0]))
            assert isinstance(image, PILImage.Image)  # for a colour model
            image.save(file)
            answers = pipeline("image-classification", args.output_dir)(file, top_k=3)
        truth = data.names[data.test_labels[0]]
        show_first_answer(answers, truth, f'pipeline("image-classification", {args.output_dir!r})("image.png")')
    return metrics


if __name__ == "__main__":
    run_recipe(main)
