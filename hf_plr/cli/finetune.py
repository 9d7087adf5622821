"""Fine-tune a stock classifier of transformers on labels, from a trained backbone.

  hf-plr finetune image --model_name_or_path out --dataset_name DATA --output_dir classifier
  hf-plr finetune audio --model_name_or_path out --dataset_name DATA --output_dir classifier --labels_per_class 10

`hf-plr finetune image --help` lists the arguments of the recipe. These are for `accelerate launch`, which starts it:
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from hf_plr.cli.recipes import make_launch_parser, start_recipe
from hf_plr.recipe_tools.launch_environment import RECIPES

SUMMARY = "fine-tune a classifier of images or recordings from a trained backbone"
DATA = {"image": "images", "audio": "recordings"}


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of all that is not the recipe's; its help lists the recipes."""
    return make_launch_parser("hf-plr finetune", DATA, __doc__)


def main(argv: Sequence[str]) -> int:
    """Run `hf-plr finetune`; returns the exit status: the recipe's, or 2 if it could not be started.

    Args:
        argv: the words after `hf-plr finetune`.
    """
    return start_recipe(make_parser(), RECIPES["finetune"], argv)
