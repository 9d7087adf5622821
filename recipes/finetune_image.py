"""Fine-tune a classifier of images from a trained backbone, with few labels or many; stock classes only.

  python recipes/finetune_image.py --model_name_or_path out --dataset_name DATA --output_dir classifier
      DATA: a Hub id, a folder of images by class, or a folder with train.parquet and test.parquet

--labels_per_class 10 takes few labels, --freeze_backbone trains the head alone.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from datasets import Dataset
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

from hf_plr.data.columns import find_image_column
from hf_plr.recipe_tools.argument_parser import RecipeParser
from hf_plr.recipe_tools.finetuning import (
    ClassifierArguments,
    FinetuneArguments,
    adjust_defaults,
    label_tensor,
    load_labelled,
    show_first_answer,
    train_classifier,
)
from hf_plr.recipe_tools.running import run_recipe


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Run the recipe; returns the scores."""
    assert __doc__ is not None
    parser = RecipeParser([FinetuneArguments, ClassifierArguments], __doc__, adjust_defaults)
    recipe, args = parser.parse_args_and_config(argv)
    data = load_labelled(recipe, args.seed)
    column = find_image_column(data.train)
    processor = AutoImageProcessor.from_pretrained(recipe.model_name_or_path)

    def add_inputs(samples: Dataset, labels: np.ndarray) -> Dataset:
        def read(batch: dict) -> dict:
            images = [image.convert("RGB") for image in batch[column]]
            pixels = processor(images, return_tensors="pt")["pixel_values"]
            return {"pixel_values": pixels, "labels": label_tensor(batch["labels"])}

        return samples.select_columns([column]).add_column("labels", labels).with_transform(read)

    metrics = train_classifier(
        lambda classes: AutoModelForImageClassification.from_pretrained(recipe.model_name_or_path, **classes),
        add_inputs,
        data,
        processor,
        recipe,
        args,
    )
    if args.process_index == 0:
        with tempfile.TemporaryDirectory() as folder:
            file = str(Path(folder) / "image.png")
            data.test[0][column].convert("RGB").save(file)
            answers = pipeline("image-classification", args.output_dir)(file, top_k=3)
        truth = data.names[data.test_labels[0]]
        show_first_answer(answers, truth, f'pipeline("image-classification", {args.output_dir!r})("image.png")')
    return metrics


if __name__ == "__main__":
    run_recipe(main)
