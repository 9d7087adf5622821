"""Adapt a backbone to unlabelled data: start one of the recipes, in one process or several.

  hf-plr train image --dataset_name YOUR_IMAGES --output_dir out
  hf-plr train audio --num_processes 2
  hf-plr train reid --config omniglot --dataset_name TARGET --output_dir out

Without arguments, image and audio train on small data of their own. `hf-plr train image --help` lists the arguments of
the recipe. --config takes a file, or the name of one that comes with the package. These are for `accelerate launch`,
which starts the recipe:
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from hf_plr.cli.recipes import make_launch_parser, start_recipe
from hf_plr.recipe_tools.launch_environment import RECIPES

SUMMARY = "adapt a backbone to unlabelled images or recordings"
DATA = {
    "image": "images, with a vision backbone such as ViT, DINOv3, CLIP, Swin or ConvNeXt",
    "audio": "recordings, with a backbone such as HuBERT, WavLM, AST or Whisper",
    "reid": "images of persons or vehicles for re-identification, with or without a labelled source",
}


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of all that is not the recipe's; its help lists the recipes."""
    return make_launch_parser("hf-plr train", DATA, __doc__)


def main(argv: Sequence[str]) -> int:
    """Run `hf-plr train`; returns the exit status: the recipe's, or 2 if it could not be started.

    Args:
        argv: the words after `hf-plr train`.
    """
    return start_recipe(make_parser(), RECIPES["train"], argv)
